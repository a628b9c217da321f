"""How many rows are labelled for how much, and what a summary says of it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from rtr_ray.errors import BudgetError, StorageError
from rtr_ray.labels import Labels, check_enough, check_one_call, limit, next_rows, pilot_exhausted
from tests.fakes import pool_of


def steps(row_usd: list[str], wanted: int, limit_usd: str) -> list[int]:
    """The rows after each step, where a step's rows cost what the list says; the last price stays."""
    done, gone, found = 0, Decimal(0), []
    for step in range(100):
        rows = next_rows(done, gone, wanted, Decimal(limit_usd))
        if rows == done:
            return found
        gone += (rows - done) * Decimal(row_usd[min(step, len(row_usd) - 1)])
        done = rows
        found.append(done)
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("row_usd", "wanted", "limit_usd", "rows"),
    [
        (["0.001"], 300, "2.50", [20, 80, 300]),
        (["0.01"], 300, "2.50", [20, 80, 237]),  # 0.95 * 2.50 / 0.01
        (["0.1"], 300, "2.50", [20, 23]),
        (["0.12"], 300, "2.50", [20]),  # for 19.8
        (["0.005", "0.02"], 300, "2.50", [20, 80, 146]),  # longer answers than the first rows showed
        (["0.02", "0.005"], 300, "2.50", [20, 80, 271, 300]),  # shorter ones
        (["0"], 300, "2.50", [20, 80, 300]),  # candidates without a price
        (["0.001"], 12, "2.50", [12]),  # a corpus of 12 rows
        (["0.001"], 85, "2.50", [20, 80, 85]),  # what was wanted is reached, however small the last step
    ],
)
def test_rows_grow_step_by_step_as_far_as_they_are_wanted_and_paid_for(row_usd, wanted, limit_usd, rows):
    assert steps(row_usd, wanted, limit_usd) == rows


def test_the_limit_is_an_exact_share():
    assert limit(Decimal("25"), 0.1) == Decimal("2.5")
    assert limit(Decimal("0.3"), 0.1) == Decimal("0.03")


def test_a_summary_tells_labels_from_answers_and_adds_them_up():
    labels = Labels(120, Decimal("0.30"), Decimal("0.01"), True, {"used": False})
    run = {"status": "completed", "cost_usd": {"spent": "2.1", "budget": "2.19", "forecast": 2.0}}
    assert labels.stated(run) == {
        "status": "completed",
        "cost_usd": {"spent": "2.1", "budget": "2.5", "forecast": 2.0, "labels": "0.3", "total": "2.4"},
        "labels": {"rows": 120, "lost_worst_case_usd": "0.01"},
        "routing": {"used": False},
    }


def test_what_is_saved_of_labels_comes_back_and_what_is_damaged_is_refused():
    labels = Labels(120, Decimal("0.000000000001"), Decimal("0.01"), True, {"used": True, "points": 1.5})
    assert Labels.from_json(labels.to_json()) == labels
    assert labels.gone_usd == Decimal("0.010000000001")
    with pytest.raises(StorageError, match=r"labels\.json is damaged"):
        Labels.from_json({"rows": 3})


def test_a_share_that_does_not_cover_one_answer_is_refused_and_the_least_budget_named():
    pool = pool_of()
    worst = max(pool.price(c).worst_case_usd(0, pool.max_tokens(c) * c.samples) for c in pool.candidates)
    check_one_call(pool, worst, 0.1)
    with pytest.raises(
        BudgetError, match=r"Labels may take 0\.1 of the budget, which is \$0\.000001, and one"
    ):
        check_one_call(pool, Decimal("0.000001"), 0.1)


def test_a_share_that_does_not_cover_the_first_rows_is_told_with_what_would():
    message = pilot_exhausted(30, 100, Decimal("0.30"), 0.1).message
    # 100 calls at 1 cent, and a tenth more: 1.10 dollars are a tenth of 11
    assert message.startswith("Not even 20 rows can be labelled: of 100 calls 30 were answered for $0.3, ")
    assert "Raise budget_usd to about $11 (what was paid for is kept)" in message


def test_a_budget_that_is_surely_too_small_for_the_answers_is_refused_before_more_labels_are_paid():
    check_enough(0.001, 10_000, Decimal("9"), Decimal("10"))  # 10 for 9: a few rows may be wrong by that
    with pytest.raises(
        BudgetError, match=r"for 30000 queries costs about \$30, .* Raise .* to about \$31 or"
    ):
        check_enough(0.001, 30_000, Decimal("9"), Decimal("10"))
