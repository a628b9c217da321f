"""The Parquet schemas of everything that is written."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtr_ray.corpus import Columns, result_names
from rtr_ray.errors import DataError
from rtr_ray.schemas import OUTCOMES, PREDICTIONS, RESULTS, USD, VERSION, stamp, stamped


def test_outcomes_have_the_columns_that_are_promised():
    assert " ".join(OUTCOMES.names) == (
        "query_id query dataset group_id split ood model strategy samples sample correct input_tokens "
        "output_tokens cost_usd max_tokens temperature finish_reason answer gold response error "
        "pool_fingerprint"
    )


def test_results_have_the_columns_that_are_promised():
    assert " ".join(RESULTS.names) == (
        "query_id status answer response model strategy samples input_tokens cached_input_tokens "
        "output_tokens cost_usd predicted_accuracy predicted_output_tokens predicted_cost_usd runner_up "
        "plan_version dual_price finish_reason latency_s attempts error correct all_samples"
    )


def test_money_is_exact_and_estimates_are_doubles():
    assert pa.decimal128(38, 12) == USD == RESULTS.field("cost_usd").type == OUTCOMES.field("cost_usd").type
    for schema in (RESULTS, PREDICTIONS):
        for field in schema:
            if field.name.startswith("predicted_"):
                assert field.type == pa.float64()
    assert OUTCOMES.field("correct").type == pa.float32()


@pytest.mark.parametrize("amount", ["0.000000000001", "12345678901234567890123456.123456789012", "0", None])
def test_money_comes_back_from_parquet_to_the_last_digit(tmp_path, amount):
    value = None if amount is None else Decimal(amount)
    pq.write_table(pa.table({"cost_usd": pa.array([value], USD)}), tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["cost_usd"].to_pylist() == [value]


def test_a_table_carries_its_schema_version_and_notes_through_parquet(tmp_path):
    table = stamped(pa.table({"a": [1]}), candidates=["small:cot"], facts={"rows": 1})
    pq.write_table(table, tmp_path / "a.parquet")
    metadata = pq.read_schema(tmp_path / "a.parquet").metadata
    assert metadata[b"schema_version"] == str(VERSION).encode()
    assert stamp(metadata, "candidates") == ["small:cot"]
    assert stamp(metadata, "facts") == {"rows": 1}


@pytest.mark.parametrize("metadata", [None, {}, {b"other": b"1"}])
def test_a_part_that_somebody_else_wrote_is_refused(metadata):
    with pytest.raises(DataError, match=r"^A Parquet part lacks 'facts' in its metadata"):
        stamp(metadata, "facts")


def test_every_name_of_the_results_is_kept_free():
    assert all(new.startswith("corpus_") for new in result_names(RESULTS.names, Columns()).values())
