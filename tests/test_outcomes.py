"""Recorded outcomes: long tables, and what an estimator learns from."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtr_ray.errors import ConfigError, DataError
from rtr_ray.outcomes import pivot, read_long, split_rows
from rtr_ray.storage import s3_client
from rtr_ray.types import Candidate, Outcomes

SMALL, LARGE, VOTE = Candidate("small", "cot"), Candidate("large", "cot"), Candidate("small", "cot", 5)
RECORDED = Path(__file__).parents[2] / "shared/data"


def row(
    query: str = "q1", model: str = "small", correct: Any = 1.0, tokens: Any = 10, **more: Any
) -> dict[str, Any]:
    found = {"query_id": query, "query": f"text of {query}", "model": model, "strategy": "cot"}
    return found | {"correct": correct, "output_tokens": tokens} | more


def written(path: Path, *rows: dict[str, Any], schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path)
    return path


def read(folder: Path, *rows: dict[str, Any]) -> Outcomes:
    return pivot(read_long(str(written(folder / "a.parquet", *rows))))


def cells(values_MC: Any) -> list[list[float | None]]:
    return [[None if math.isnan(value) else round(float(value), 6) for value in row] for row in values_MC]


def test_queries_and_candidates_come_in_the_order_in_which_they_appear(tmp_path):
    found = read(tmp_path, row("q2", "large"), row("q1", "small"), row("q2", "small"), row("q1", "large"))
    assert found.query_ids == ("q2", "q1")
    assert found.queries == ("text of q2", "text of q1")
    assert found.candidates == (LARGE, SMALL)


def test_a_cell_that_was_not_run_is_unknown_and_not_zero(tmp_path):
    found = read(tmp_path, row("q1", "small", 1.0, 10), row("q2", "large", 0.0, 30))
    assert cells(found.accuracy) == [[1.0, None], [None, 0.0]]
    assert cells(found.output_tokens) == [[10, None], [None, 30]]
    assert found.runs.tolist() == [[1, 0], [0, 1]]


def test_a_cell_that_was_run_several_times_holds_means(tmp_path):
    found = read(
        tmp_path,
        row(correct=1.0, tokens=10, finish_reason="stop", cost_usd=0.1, sample=0),
        row(correct=0.0, tokens=20, finish_reason="length", cost_usd=0.3, sample=1),
        row(correct=None, tokens=60, finish_reason="length", cost_usd=None, sample=2),
    )
    assert cells(found.accuracy) == [[0.5]]  # of the two that were graded
    assert cells(found.output_tokens) == [[30]]
    assert cells(found.cost_usd) == [[0.2]]
    assert cells(found.cut) == [[round(2 / 3, 6)]]
    assert found.runs.tolist() == [[3]]


def test_a_candidate_that_draws_several_samples_is_another_candidate(tmp_path):
    found = read(tmp_path, row(samples=1), row(samples=5), row(samples=None))
    assert found.candidates == (SMALL, VOTE)
    assert found.runs.tolist() == [[2, 1]]


def test_errors_tell_nothing_of_accuracy_and_length(tmp_path):
    found = read(
        tmp_path, row(error=None), row("q2", error=None), row("q2", correct=0.0, tokens=999, error="cut off")
    )
    assert cells(found.accuracy) == [[1.0], [1.0]]
    assert found.runs.tolist() == [[1], [1]]


def test_errors_alone_are_nothing_to_learn_from(tmp_path):
    with pytest.raises(DataError, match="has no usable row: all are errors"):
        read(tmp_path, row(error="cut off"))


def test_what_is_known_of_queries_is_kept(tmp_path):
    more = {"group_id": "g", "dataset": "sums", "split": "test", "max_tokens": 100, "input_tokens": 7}
    found = read(tmp_path, row(**more), row("q2", **(more | {"group_id": None, "split": None})))
    assert (found.group_ids, found.datasets, found.splits) == (("g", ""), ("sums", "sums"), ("test", ""))
    assert (cells(found.max_tokens), cells(found.input_tokens)) == ([[100], [100]], [[7], [7]])
    bare = read(tmp_path, row())
    assert (bare.group_ids, bare.datasets, bare.splits) == ((), (), ())
    assert (cells(bare.max_tokens), cells(bare.input_tokens), cells(bare.cut)) == (
        [[None]],
        [[None]],
        [[0.0]],
    )


def test_only_the_candidates_that_are_asked_for_are_columns_in_that_order(tmp_path):
    table = read_long(str(written(tmp_path / "a.parquet", row(), row(model="large"), row("q2", "other"))))
    found = pivot(table, [LARGE, SMALL])
    assert found.candidates == (LARGE, SMALL)
    assert cells(found.accuracy) == [[1.0, 1.0], [None, None]]
    assert cells(pivot(table, [VOTE]).accuracy) == [[None], [None]]


def test_files_of_a_folder_are_one_table_whatever_columns_they_lack(tmp_path):
    written(tmp_path / "out/part-a.parquet", row(input_tokens=5, cost_usd=Decimal("0.1")))
    written(tmp_path / "out/part-b.parquet", row("q2"))
    written(tmp_path / "out/_run/results/part-x.parquet", {"something": "else"})
    (tmp_path / "out/summary.json").write_text("{}")
    found = pivot(read_long(str(tmp_path / "out")))
    assert found.query_ids == ("q1", "q2")
    assert cells(found.input_tokens) == [[5], [None]]
    assert cells(found.cost_usd) == [[0.1], [None]]


def test_values_are_read_whatever_type_holds_them(tmp_path):
    table = pa.table(
        {
            "query_id": pa.array([1, 2], pa.int64()),
            "query": pa.array(["a", "b"], pa.large_string()),
            "model": pa.array(["small", "small"]).dictionary_encode(),
            "strategy": ["cot", "cot"],
            "correct": [True, False],
            "output_tokens": pa.array([1, 2], pa.uint16()),
            "cost_usd": pa.array([Decimal("0.5"), None], pa.decimal128(38, 12)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = pivot(read_long(str(tmp_path / "a.parquet")))
    assert found.query_ids == ("1", "2")
    assert cells(found.accuracy) == [[1.0], [0.0]]
    assert cells(found.cost_usd) == [[0.5], [None]]


def test_the_reference_answer_is_never_read(tmp_path):
    path = written(tmp_path / "a.parquet", row(gold="42", answer="41", response="so 41"))
    assert not {"gold", "answer", "response"} & set(read_long(str(path)).column_names)
    assert "gold" not in Outcomes.__dataclass_fields__


@pytest.mark.parametrize(
    ("split", "ood", "found"),
    [
        ("train", False, ["none", "empty", "train"]),
        ("test", False, ["test"]),
        (None, False, ["none", "empty", "train", "test"]),
        (None, True, ["ood"]),
        (None, None, ["none", "empty", "train", "test", "ood"]),
        ("train", None, ["none", "empty", "train", "ood"]),
        ("validation", False, []),
    ],
)
def test_rows_without_a_split_are_for_training_and_those_out_of_distribution_are_kept_apart(
    tmp_path, split, ood, found
):
    rows = [
        row("none", split=None, ood=None),
        row("empty", split="", ood=False),
        row("train", split="train", ood=False),
        row("test", split="test", ood=False),
        row("ood", split="train", ood=True),
    ]
    table = read_long(str(written(tmp_path / "a.parquet", *rows)))
    assert split_rows(table, split, ood)["query_id"].to_pylist() == found


# What is no table of outcomes


def refused(path: object) -> str:
    with pytest.raises(DataError) as caught:
        read_long(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_that_are_missing_are_named(tmp_path):
    path = written(tmp_path / "a.parquet", {"query_id": "q", "query": "text", "model": "small"})
    assert refused(path).startswith("a.parquet lacks the column(s) strategy, correct, output_tokens. ")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"correct": 5.0}, "correct lies between 1 and 5; 0 to 1 is possible."),
        ({"correct": -1.0}, "correct lies between -1 and 1; 0 to 1 is possible."),
        ({"tokens": -3}, "output_tokens lies between -3 and 10; 0 to any number is possible."),
        ({"input_tokens": -3}, "input_tokens lies between -3 and -3; 0 to any number is possible."),
        ({"query": None}, "query_id is null in 1 of 2 rows."),
        ({"model": None}, "model is null in 1 of 2 rows."),
    ],
)
def test_impossible_values_are_told(tmp_path, bad, message):
    path = written(tmp_path / "a.parquet", row(input_tokens=None), row(**bad))
    assert refused(path) == f"{path}: {message}"


def test_values_of_a_type_that_cannot_be_are_told(tmp_path):
    path = written(tmp_path / "a.parquet", row(ood="maybe"))
    assert refused(path).startswith("Cannot read a.parquet as outcomes: ")
    path = written(tmp_path / "b.parquet", row(correct="right"))
    assert refused(path).startswith("Cannot read b.parquet as outcomes: ")


def test_a_file_that_is_no_parquet_is_told(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"none")
    assert refused(tmp_path).startswith("Cannot read a.parquet as outcomes: ")


def test_outcomes_that_are_not_there_are_told(tmp_path):
    assert refused(tmp_path / "nope").startswith("No such file or folder: ")


def test_a_name_that_no_candidate_can_have_is_told(tmp_path):
    with pytest.raises(ConfigError, match="model 'gpt 4' is not a usable name"):
        read(tmp_path, row(model="gpt 4"))


def test_outcomes_in_a_bucket_are_read_as_those_in_a_folder_are(tmp_path, s3_bucket):
    path = written(tmp_path / "a.parquet", row(), row("q2", "large", 0.0))
    s3_client().upload_file(str(path), s3_bucket.removeprefix("s3://"), "outcomes/a.parquet")
    assert read_long(f"{s3_bucket}/outcomes").equals(read_long(str(path)))


# Recorded outcomes of real models, where they are at hand


@pytest.mark.parametrize(
    ("name", "rows", "queries", "candidates", "runs"),
    [
        ("renze_dense_2x4", 78_960, 987, 8, (10, 10)),
        ("renze_dense_9models", 8_469, 941, 9, (1, 1)),
        ("renze_dense_joined17", 20_559, 231, 17, (1, 10)),
        ("routellm_dense", 28_084, 14_042, 2, (1, 1)),
    ],
)
def test_recorded_outcomes_load_unchanged(name, rows, queries, candidates, runs):
    path = RECORDED / f"{name}.parquet"
    if not path.exists():
        pytest.skip("the recorded outcomes of real models (../shared/data) are not part of the repository")
    table = read_long(str(path))
    found = pivot(table)
    assert (len(table), len(found.query_ids), len(found.candidates)) == (rows, queries, candidates)
    assert (found.runs.min(), found.runs.max()) == runs
    assert found.runs.sum() == rows
    assert not np.isnan(found.accuracy).any()
    assert {"train", "test"} <= set(found.splits)
    assert all(found.queries)
    train, test = (pivot(split_rows(table, split)) for split in ("train", "test"))
    assert not set(train.query_ids) & set(test.query_ids)


def test_recorded_errors_are_left_out():
    path = RECORDED / "renze_long_with_responses.parquet"
    if not path.exists():
        pytest.skip("the recorded outcomes of real models (../shared/data) are not part of the repository")
    table = read_long(str(path))
    assert len(table) == 139_596
    errors = len(table) - table["error"].null_count
    assert errors > 0
    assert pivot(table).runs.sum() == len(table) - errors
