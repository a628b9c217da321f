"""What `rtr-ray evaluate` makes of odd tables, as a user sees it; and the names in its JSON, which stay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rtr_ray.cli import app
from rtr_ray.outcomes import read_long
from tests.test_quality import written

Row = dict[str, Any]
Change = Callable[[int, Row], Row | None]


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Result]:
    """Evaluate 240 queries of two candidates, after something was done to the rows."""
    rows = pq.read_table(written(tmp_path / "fine.parquet", telling=True, samples=1)).to_pylist()

    def run(change: Change, *arguments: str, more: Sequence[Row] = ()) -> Result:
        changed = [found for n, row in enumerate(rows) if (found := change(n, dict(row))) is not None]
        extra = [rows[n] | row for n, row in enumerate(more)]
        pq.write_table(pa.Table.from_pylist(changed + extra), tmp_path / "table.parquet")
        flags = ["--outcomes", str(tmp_path / "table.parquet"), "--encoder", "hash", "--estimator", "knn"]
        json_file = ["--json", str(tmp_path / "out.json"), "--report", str(tmp_path / "page")]
        return CliRunner().invoke(
            app, ["evaluate", *flags, *json_file, *arguments], env={"COLUMNS": "220"}, catch_exceptions=False
        )

    return run


def the(n: int, **values: Any) -> Callable[[int, Row], Row]:
    """Change one row."""
    return lambda number, row: row | values if number == n else row


def every(**values: Any) -> Callable[[int, Row], Row]:
    """Change all rows."""
    return lambda number, row: row | values


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda n, row: row if row["model"] == "weak" else None, "has outcomes of one candidate, weak:cot"),
        (the(3, correct=math.nan), "correct is no number (NaN), or infinite, in 1 of 480 rows"),
        (the(3, correct=1.5), "correct lies between 0 and 1.5; 0 to 1 is possible"),
        (the(3, output_tokens=-5), "output_tokens lies between -5 and 59; 0 to any number is possible"),
        (the(3, cost_usd=math.inf), "cost_usd is no number (NaN), or infinite, in 1 of 480 rows"),
        (the(3, cost_usd=-1.0), "cost_usd lies between -1 and"),
        (
            every(split="train"),
            "has no query of split 'test' outside of those marked as ood; --repeats",
        ),
        (every(ood=True), "has no query of split 'train' outside of those marked as ood."),
        (lambda n, row: row if n < 20 else None, "has 10 queries; 20 are needed to say anything"),
        (
            lambda n, row: row | {"cost_usd": None} if row["model"] == "weak" else row,
            "too few cells with accuracy, tokens and cost in train + test for weak:cot (0 + 0); 10 + 10",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    evaluated: Callable[..., Result], change: Any, told: str
) -> None:
    done = evaluated(change)
    assert done.exit_code == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_table_without_a_right_answer_or_without_a_wrong_one_says_so(
    evaluated: Callable[..., Result], tmp_path: Path
) -> None:
    for value, word in ((1.0, "right"), (0.0, "wrong")):
        done = evaluated(every(correct=value))
        assert done.exit_code == 0, done.output
        assert f"All outcomes are {word}" in done.output
        assert "Do not route here" in done.output
        assert json.loads((tmp_path / "out.json").read_text())["verdict"]["route"] is False


def test_a_candidate_with_three_rows_is_left_out_and_named(
    evaluated: Callable[..., Result], tmp_path: Path
) -> None:
    done = evaluated(lambda n, row: row, more=[{"model": "third", "correct": 1.0}] * 3)
    assert done.exit_code == 0, done.output
    assert "Left out, for too few cells" in done.output
    assert "third:cot (2 + 0)" in done.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert [one["model"] for one in found["candidates"]] == ["weak", "strong"]
    assert found["anchors"]["best_single"]["candidate"] == "strong:cot"


def test_query_ids_on_both_sides_are_left_out_of_test(
    evaluated: Callable[..., Result], tmp_path: Path
) -> None:
    done = evaluated(lambda n, row: row | {"split": "test"} if n in (0, 2, 4) else row)
    assert "3 query ids are in train and in test: they are left out of test." in done.output
    assert json.loads((tmp_path / "out.json").read_text())["n_test"] == 60


def test_the_same_text_on_both_sides_is_counted_for_the_tables_own_split_alone(
    evaluated: Callable[..., Result],
) -> None:
    def change(number: int, row: Row) -> Row:
        return row | {"query": "the same"} if row["query_id"] in ("q1", "q2", "q170") else row

    assert "1 texts are in train and in test" in evaluated(change).output
    done = evaluated(change, "--repeats", "2")
    assert "texts are in train" not in done.output
    assert "2 random splits, seeds 0 to 1" in done.output


def test_without_dollars_costs_are_tokens_wherever_they_are_shown(
    evaluated: Callable[..., Result], tmp_path: Path
) -> None:
    done = evaluated(every(cost_usd=None))
    assert "has no cost_usd: costs are output tokens here" in done.output
    assert "output tokens" in done.output.replace("costs are output tokens here", "")
    assert "$" not in done.output
    assert "mean output tokens of a question" in (tmp_path / "page/index.html").read_text()


def test_datasets_that_nothing_was_learned_from_are_named(evaluated: Callable[..., Result]) -> None:
    done = evaluated(lambda n, row: row | {"dataset": "new" if row["query_id"] in ("q170", "q171") else "a"})
    assert "Nothing was learned from new, which 2 of the test queries are from." in done.output


def test_an_estimator_that_is_no_json_gets_a_sentence(evaluated: Callable[..., Result]) -> None:
    done = evaluated(lambda n, row: row, "--estimator", "{knn")
    assert done.exit_code == 1
    assert "--estimator is not JSON" in done.stderr


def test_a_text_is_in_memory_once_however_many_rows_have_it(tmp_path: Path) -> None:
    long = "a long question " * 200
    table = pa.table(
        {
            "query_id": [f"q{n % 10}" for n in range(5000)],
            "query": [f"{n % 10} {long}" for n in range(5000)],
            "model": ["m"] * 5000,
            "strategy": ["s"] * 5000,
            "correct": np.ones(5000),
            "output_tokens": np.ones(5000, np.int32),
        }
    )
    for number, kind in enumerate((pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table.set_column(1, "query", table["query"].cast(kind)), path, row_group_size=1000)
        found = read_long(str(path))
        assert found["query"].nbytes < 0.02 * table["query"].nbytes
        assert found["query"].to_pylist() == table["query"].to_pylist()


def test_the_names_in_the_json_stay(evaluated: Callable[..., Result], tmp_path: Path) -> None:
    done = evaluated(lambda n, row: row | {"dataset": "one"}, "--repeats", "2")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert {
        "table", "n_train", "n_test", "n_ood", "repeats", "seeds", "candidates", "anchors", "routers",
        "verdict",
    } <= set(found)  # fmt: skip
    assert {"model", "strategy", "samples", "accuracy", "cost_usd", "output_tokens"} <= set(
        found["candidates"][0]
    )
    assert {"best_single", "cheapest", "random", "static_hull", "oracle"} <= set(found["anchors"])
    assert (found["repeats"], found["seeds"]) == (2, [0, 1])
    assert {one["part"] for one in found["routers"]} == {"test", "ood"}
    for one in found["routers"]:
        assert {
            "name", "part", "aiq", "aiq_interval", "aiq_over_hull", "gap_closed", "best_accuracy",
            "cost_saved_at_best_single", "cost_saved_within_1pt", "points", "fit_s", "predict_us_per_query",
        } <= set(one)  # fmt: skip
        low, high = one["aiq_interval"]
        assert low <= one["aiq"] <= high
        assert all(len(point) == 3 for point in one["points"])
        for cost, accuracy, below, above in one["curve"]:
            assert cost > 0
            assert below - 1e-9 <= accuracy <= above + 1e-9
        levels = sum(level["queries"] for level in one["by_difficulty"])
        assert one["by_dataset"]["one"]["queries"] == levels
    assert set(found["verdict"]) == {"route", "estimator", "reason"}
