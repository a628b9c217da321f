"""What a run came to: exact sums, from the results alone."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.ledger import Account
from rtr_ray.schemas import RESULTS
from rtr_ray.summary import COLUMNS, Grades, Tally, plain, summary, summed
from rtr_ray.types import Candidate

SMALL, LARGE = Candidate("small", "cot"), Candidate("large", "vanilla", 5)


def row(
    candidate: Candidate | None = SMALL,
    status: str = "answered",
    tokens: tuple[int, int, int] | None = (10, 4, 5),
    cost: str | None = "0.00003",
    correct: float | None = None,
    finish: str | None = "stop",
) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(RESULTS.names)
    found |= {"query_id": "q", "status": status, "correct": correct, "attempts": 1}
    found["finish_reason"] = finish
    if candidate is not None:
        found |= {"model": candidate.model, "strategy": candidate.strategy, "samples": candidate.samples}
    if tokens is not None:
        found |= dict(zip(("input_tokens", "cached_input_tokens", "output_tokens"), tokens, strict=True))
    return found | {"cost_usd": None if cost is None else Decimal(cost)}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), RESULTS)


ROWS = (
    row(correct=1.0),
    row(correct=0.0, cost="0.00001", tokens=(7, 0, 2), finish="budget"),
    row(LARGE, correct=1.0, cost="0.5", tokens=(100, 0, 1000)),
    row(SMALL, "failed", cost="0.000000000001", tokens=(3, 0, 0)),
    row(SMALL, "failed", tokens=None, cost=None),
    row(LARGE, "skipped_budget", tokens=None, cost=None),
    row(LARGE, tokens=None, cost=None),  # answered, and nobody knows what it cost
    row(None, "failed", tokens=None, cost=None),  # no candidate could take it
)


def test_every_row_is_counted_by_its_status():
    assert Tally.of(table(*ROWS)).rows == {"answered": 4, "failed": 3, "skipped_budget": 1}


def test_tokens_and_dollars_are_summed_by_candidate_failed_calls_included():
    assert Tally.of(table(*ROWS)).accounts == {
        SMALL: Account(3, 20, 4, 7, Decimal("0.000040000001")),
        LARGE: Account(1, 100, 0, 1000, Decimal("0.5")),
    }


def test_answers_whose_price_nobody_knows_are_counted_and_not_taken_for_free():
    tally = Tally.of(table(*ROWS))
    assert tally.unpriced == 1
    assert tally.cost_usd == Decimal("0.500040000001")


def test_answered_and_settled_rows_are_counted_by_candidate():
    tally = Tally.of(table(*ROWS))
    assert tally.answered == {SMALL: 2, LARGE: 2}
    assert tally.settled == {SMALL: 4, LARGE: 2}  # what was skipped may still be asked


def test_accuracy_is_the_mean_over_what_was_graded():
    tally = Tally.of(table(*ROWS))
    assert tally.grades == {SMALL: Grades(2, 1.0), LARGE: Grades(1, 1.0)}
    assert tally.accuracy == pytest.approx(2 / 3)


def test_nothing_graded_has_no_accuracy():
    assert Tally.of(table(row(), row(correct=None))).accuracy is None
    assert Tally.of(table()).accuracy is None
    assert Grades().accuracy is None


def test_only_some_columns_need_to_be_read():
    assert Tally.of(table(*ROWS).select(list(COLUMNS))) == Tally.of(table(*ROWS))


MANY = st.lists(
    st.builds(
        row,
        candidate=st.sampled_from([SMALL, LARGE]),
        status=st.sampled_from(["answered", "failed"]),
        tokens=st.tuples(st.integers(100, 10**6), st.integers(0, 100), st.integers(0, 10**6)),
        cost=st.integers(0, 10**18).map(lambda amount: str(Decimal(amount).scaleb(-12))),
        correct=st.sampled_from([None, 0.0, 0.25, 1.0]),
    )
    | st.sampled_from(ROWS),
    max_size=12,
)


@given(MANY, st.integers(0, 12), st.integers(0, 12))
def test_tallies_of_parts_add_up_to_the_tally_of_the_whole(rows, one, other):
    low, high = sorted((one, other))
    parts = [rows[:low], rows[low:high], rows[high:]]
    assert summed(Tally.of(table(*part)) for part in parts) == Tally.of(table(*rows))


@given(MANY)
def test_dollars_are_summed_to_the_last_digit(rows):
    assert Tally.of(table(*rows)).cost_usd == sum((r["cost_usd"] for r in rows if r["cost_usd"]), Decimal(0))


def test_adding_changes_no_tally_that_was_added():
    one, other = Tally.of(table(ROWS[0])), Tally.of(table(ROWS[1]))
    summed([one, other, one])
    assert (one, other) == (Tally.of(table(ROWS[0])), Tally.of(table(ROWS[1])))


def test_the_summary_is_as_promised():
    found = summary(Tally.of(table(*ROWS)), "completed", 8, Decimal("2.50"), 0.75, {"route": 1.5})
    assert found == {
        "schema_version": 1,
        "status": "completed",
        "rows": {"total": 8, "answered": 4, "failed": 3, "skipped_budget": 1},
        "cut_by_budget": 1,
        "usage": {"input_tokens": 120, "cached_input_tokens": 4, "output_tokens": 1007},
        "cost_usd": {"spent": "0.500040000001", "budget": "2.5", "forecast": 0.75},
        "accuracy": pytest.approx(2 / 3),
        "by_candidate": [
            {
                "model": "large",
                "strategy": "vanilla",
                "samples": 5,
                "rows": 2,
                "input_tokens": 100,
                "output_tokens": 1000,
                "cost_usd": "0.5",
                "accuracy": 1.0,
            },
            {
                "model": "small",
                "strategy": "cot",
                "samples": 1,
                "rows": 2,
                "input_tokens": 20,
                "output_tokens": 7,
                "cost_usd": "0.000040000001",
                "accuracy": 0.5,
            },
        ],
        "seconds": {"route": 1.5},
    }
    assert json.loads(json.dumps(found)) == found


def test_a_summary_of_nothing_spends_nothing():
    found = summary(Tally(), "completed", 0, None, None, {})
    assert found["cost_usd"] == {"spent": "0", "budget": None, "forecast": None}
    assert (found["accuracy"], found["by_candidate"]) == (None, [])


@given(MANY)
def test_the_rows_of_a_summary_add_up_to_its_totals(rows):
    found = summary(Tally.of(table(*rows)), "completed", len(rows), None, None, {})
    by = found["by_candidate"]
    assert sum(one["rows"] for one in by) == found["rows"]["answered"]
    assert sum(found["rows"][name] for name in ("answered", "failed", "skipped_budget")) == len(rows)
    assert sum((Decimal(one["cost_usd"]) for one in by), Decimal(0)) == Decimal(found["cost_usd"]["spent"])
    for name in ("input_tokens", "output_tokens"):
        assert sum(one[name] for one in by) == found["usage"][name]


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0"),
        ("0E-12", "0"),
        ("1.50", "1.5"),
        ("100", "100"),
        ("1E+2", "100"),
        ("0.000000000001", "0.000000000001"),
        ("-0.5", "-0.5"),
    ],
)
def test_money_is_written_plainly(amount, text):
    assert plain(Decimal(amount)) == text
