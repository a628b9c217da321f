"""What answers teach about predictions: factors that are exact on many rows and careful on few."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from rtr_ray.corrections import Corrections, Seen, merged, seen_in
from rtr_ray.schemas import USD
from rtr_ray.types import Candidate, RoutingTable
from tests.fakes import pool_of

SMALL, LARGE = Candidate("small", "cot"), Candidate("large", "cot")
POOL = pool_of(("small:cot", "large:cot"), prices={"small": ("1", "4"), "large": ("10", "40")})


def table(tokens: list[list[float]], input_usd: tuple[float, float] = (1e-5, 1e-4)) -> RoutingTable:
    tokens_QC = np.array(tokens)
    price_C = np.array([4e-6, 40e-6])
    return RoutingTable(
        tuple(f"q{i}" for i in range(len(tokens))),
        (SMALL, LARGE),
        np.full(tokens_QC.shape, 0.5),
        tokens_QC,
        2 * tokens_QC,
        np.array(input_usd) + tokens_QC * price_C,
        np.ones(tokens_QC.shape, dtype=bool),
    )


def seen(rows: int, predicted: float, actual: float) -> Seen:
    return Seen(rows, rows * predicted, int(rows * actual), rows * 1e-5, rows * 1e-5)


def test_with_nothing_seen_nothing_is_changed() -> None:
    one = table([[10, 100]])
    assert Corrections.of({}).apply(one, POOL) is one


def test_a_common_factor_is_found_and_applied_to_tokens_and_their_dollars_alone() -> None:
    found = Corrections.of({(SMALL, 3): seen(10_000, 10, 20), (LARGE, 6): seen(10_000, 100, 200)})
    corrected = found.apply(table([[10, 100]]), POOL)
    assert corrected.output_tokens[0] == pytest.approx([20, 200], rel=0.01)
    assert corrected.output_tokens_p95[0] == pytest.approx([40, 400], rel=0.01)
    assert corrected.cost_usd[0] == pytest.approx([1e-5 + 20 * 4e-6, 1e-4 + 200 * 40e-6], rel=0.01)


def test_one_candidate_may_be_wrong_while_the_other_is_right() -> None:
    found = Corrections.of({(SMALL, 3): seen(10_000, 10, 20), (LARGE, 6): seen(10_000, 100, 100)})
    assert found.factor(SMALL) == pytest.approx(2, rel=0.01)
    assert found.factor(LARGE) == pytest.approx(1, rel=0.01)


def test_lengths_of_one_candidate_may_be_wrong_by_different_factors() -> None:
    found = Corrections.of({(SMALL, 3): seen(10_000, 10, 5), (SMALL, 9): seen(10_000, 600, 1800)})
    tokens = found.apply(table([[10, 1], [600, 1]]), POOL).output_tokens[:, 0]
    assert tokens == pytest.approx([5, 1800], rel=0.03)


def test_few_rows_move_a_prediction_a_little_and_many_by_all_of_it() -> None:
    factors = [
        Corrections.of({(SMALL, 3): seen(rows, 10, 20)}).factor(SMALL) for rows in (1, 10, 100, 10_000)
    ]
    assert factors == sorted(factors)
    assert factors[0] < 1.1
    assert factors[-1] == pytest.approx(2, rel=0.01)


def test_a_candidate_that_was_never_asked_takes_what_all_others_show() -> None:
    found = Corrections.of({(SMALL, 3): seen(10_000, 10, 20)})
    assert found.factor(LARGE) == pytest.approx(2, rel=0.01)


def test_one_mad_answer_does_not_become_a_mad_factor() -> None:
    found = Corrections.of({(SMALL, 3): Seen(100_000, 1e5, 10**12)})
    assert found.factor(SMALL) == 50


def test_a_cautious_table_counts_every_answer_at_its_quantile() -> None:
    one = Corrections(cautious=True).apply(table([[10, 100]]), POOL)
    assert one.cost_usd[0] == pytest.approx([1e-5 + 20 * 4e-6, 1e-4 + 200 * 40e-6])
    assert list(one.output_tokens[0]) == [10, 100]


def test_a_cap_for_each_row_is_on_what_is_expected_however_cautious_the_dollars() -> None:
    one = table([[10, 100]])
    expected = Corrections().apply(one, POOL).cost_usd[0]
    cautious = replace(Corrections(cautious=True), max_row_usd=float(expected[1]))
    assert cautious.apply(one, POOL).allowed.tolist() == [[True, True]]
    assert (cautious.apply(one, POOL).cost_usd[0] > expected).all()
    lower = replace(cautious, max_row_usd=float(expected[0]))
    assert lower.apply(one, POOL).allowed.tolist() == [[True, False]]
    assert Corrections.from_json(json.loads(json.dumps(lower.to_json()))) == lower


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    parts = [{(SMALL, 3): seen(2, 10, 20)}, {(SMALL, 3): seen(3, 9, 8), (LARGE, 1): seen(1, 2, 3)}]
    assert merged(parts) == {
        (SMALL, 3): Seen(5, 47.0, 64, pytest.approx(5e-5), pytest.approx(5e-5)),
        (LARGE, 1): seen(1, 2, 3),
    }


def test_corrections_come_back_from_json() -> None:
    found = Corrections.of({(SMALL, 3): seen(50, 10, 20), (LARGE, 6): seen(70, 100, 90)})
    assert Corrections.from_json(json.loads(json.dumps(found.to_json()))) == found


def results(*rows: tuple[str, float | None, int | None, str | None, str]) -> pa.Table:
    """Rows of (model, predicted tokens, tokens, dollars, how it ended); predicted input dollars are 1e-5."""
    price = {"small": 4e-6, "large": 40e-6}
    return pa.table(
        {
            "model": pa.array([model for model, *_ in rows], pa.string()),
            "strategy": pa.array(["cot"] * len(rows), pa.string()),
            "samples": pa.array([1] * len(rows), pa.int32()),
            "predicted_output_tokens": pa.array([predicted for _, predicted, *_ in rows], pa.float64()),
            "predicted_cost_usd": pa.array(
                [None if p is None else 1e-5 + p * price[model] for model, p, *_ in rows], pa.float64()
            ),
            "output_tokens": pa.array([tokens for _, _, tokens, *_ in rows], pa.int64()),
            "cost_usd": pa.array([None if usd is None else Decimal(usd) for *_, usd, _ in rows], USD),
            "finish_reason": pa.array([finish for *_, finish in rows], pa.string()),
        }
    )


def test_results_are_counted_by_candidate_and_class_of_length() -> None:
    found, spent = seen_in(
        results(
            ("small", 10, 20, "0.00010", "stop"),
            ("small", 12, 10, "0.00005", "stop"),
            ("small", 100, 50, "0.00021", "length"),
            ("large", 1, 2, "0.00018", "stop"),
        ),
        POOL,
    )
    assert {key: (one.rows, one.predicted_tokens, one.tokens) for key, one in found.items()} == {
        (SMALL, 3): (2, 22, 30),
        (SMALL, 6): (1, 100, 50),
        (LARGE, 0): (1, 1, 2),
    }
    assert found[SMALL, 3].predicted_input_usd == pytest.approx(2e-5)
    assert found[SMALL, 3].input_usd == pytest.approx(0.00015 - 30 * 4e-6)
    assert spent == pytest.approx(0.00054)


def test_what_was_cut_or_not_predicted_costs_and_teaches_nothing_and_what_failed_does_neither() -> None:
    found, spent = seen_in(
        results(
            ("small", 10, 4, "0.00002", "budget"),
            ("small", None, 9, "0.00004", "stop"),
            ("large", 10, None, None, None),
        ),
        POOL,
    )
    assert found == {}
    assert spent == pytest.approx(0.00006)
    assert seen_in(results(), POOL) == ({}, 0.0)
