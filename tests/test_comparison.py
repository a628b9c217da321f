"""Routing against its baselines, checked by eye on a table of four queries and three candidates."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.comparison import Served, compare, paired_interval
from rtr_ray.errors import DataError
from rtr_ray.schemas import OUTCOMES, RESULTS

#        cheap       middle      dear
SERVED = {
    "q1": [(1.0, "1"), (1.0, "2"), (1.0, "9")],
    "q2": [(0.0, "1"), (1.0, "3"), (1.0, "9")],
    "q3": [(0.0, "1"), (0.0, "2"), (1.0, "9")],
    "q4": [(0.0, "2"), (0.0, "1"), (0.0, "9")],
}
ROUTED = {"q1": (1.0, "1"), "q2": (1.0, "3"), "q3": (1.0, "9"), "q4": (0.0, "1")}
NAMES = ("cheap", "middle", "dear")


def outcomes(**changed: Any) -> pa.Table:
    cells = SERVED | changed
    rows = [
        {
            "query_id": q,
            "model": m,
            "strategy": "cot",
            "samples": 1,
            "correct": c,
            "cost_usd": d and Decimal(d),
        }
        for q, row in cells.items()
        for m, (c, d) in zip(NAMES, row, strict=False)
    ]
    return pa.Table.from_pylist(rows, OUTCOMES)


def results(**changed: Any) -> pa.Table:
    rows = [
        {"query_id": q, "correct": c, "cost_usd": d and Decimal(d)}
        for q, (c, d) in (ROUTED | changed).items()
    ]
    return pa.Table.from_pylist(rows, RESULTS)


def test_the_routed_run_stands_beside_four_ways_not_to_route():
    found = compare(Served.of(outcomes(), results()))["comparison"]
    assert found == {
        "routed": {"accuracy": 0.75, "cost_usd": "14"},
        "best_single": {"accuracy": 0.75, "cost_usd": "36", "candidate": "dear:cot"},
        "cheapest": {"accuracy": 0.25, "cost_usd": "5", "candidate": "cheap:cot"},
        "random": {"accuracy": 0.5, "cost_usd": "16.333333333333"},  # (5 + 8 + 36) / 3, to 12 decimals
        # q1 cheap for 1, q2 middle for 3, q3 dear for 9; nobody knows q4: the cheapest, middle for 1
        "oracle": {"accuracy": 0.75, "cost_usd": "14"},
    }


def test_of_two_equally_accurate_candidates_the_cheaper_is_the_best():
    even = {"q3": [(0.0, "1"), (1.0, "2"), (1.0, "9")]}
    assert compare(Served.of(outcomes(**even), results()))["comparison"]["best_single"] == {
        "accuracy": 0.75,
        "cost_usd": "8",
        "candidate": "middle:cot",
    }


def test_the_advantage_is_paired_with_the_best_single_candidate():
    advantage = compare(Served.of(outcomes(), results(q4=(1.0, "1"))))["advantage"]
    assert advantage["points"] == 25.0  # right on q4 too, where "dear" is wrong
    assert advantage["queries"] == 4
    low, high = advantage["interval_95"]
    assert 0 <= low <= 25 <= high <= 100


def test_the_same_answers_have_no_advantage():
    served = {q: (row[2][0], row[2][1]) for q, row in SERVED.items()}
    assert compare(Served.of(outcomes(), results(**served)))["advantage"] == {
        "points": 0.0,
        "interval_95": [0.0, 0.0],
        "queries": 4,
    }


def test_an_answer_that_failed_is_wrong_at_whatever_it_cost():
    served = Served.of(
        outcomes(q1=[(None, "1"), (1.0, None), (1.0, "9")]), results(q1=(None, "0.5"), q2=(None, None))
    )
    assert served.correct[0].tolist() == [0, 1, 1]
    assert served.cost_usd[0] == [Decimal(1), Decimal(0), Decimal(9)]
    assert served.routed_correct.tolist() == [0, 0, 1, 0]
    assert list(served.routed_cost_usd) == [Decimal("0.5"), Decimal(0), Decimal(9), Decimal(1)]


def test_only_queries_that_both_have_are_compared():
    served = Served.of(outcomes(q5=[(1.0, "1")] * 3), results(q6=(1.0, "1")))
    assert served.query_ids == ("q1", "q2", "q3", "q4")


def test_a_query_that_a_candidate_lacks_is_told():
    with pytest.raises(DataError, match=r"^1 of 4 queries were not answered by every candidate\.$"):
        Served.of(outcomes(q1=[(1.0, "1")]), results())


def test_no_query_in_common_is_told():
    with pytest.raises(DataError, match=r"^The outcomes and the results have no query in common\.$"):
        Served.of(outcomes(), results().slice(0, 0))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**9)), min_size=3, max_size=30), st.integers(1, 10))
def test_no_choice_of_candidates_beats_the_oracle(cells, queries):
    count = max(len(cells) // queries, 1)
    grid = [[cells[(q * count + c) % len(cells)] for c in range(count)] for q in range(queries)]
    correct = np.array([[float(right) for right, _ in row] for row in grid])
    cost = [[Decimal(dollars).scaleb(-9) for _, dollars in row] for row in grid]
    choice = [sum(map(ord, str(row))) % count for row in grid]
    served = Served(
        tuple(f"q{i}" for i in range(queries)),
        tuple(f"c{i}" for i in range(count)),
        correct,
        cost,
        np.array([correct[q, c] for q, c in enumerate(choice)]),
        [cost[q][c] for q, c in enumerate(choice)],
    )
    found = compare(served)["comparison"]
    for name, row in found.items():
        assert row["accuracy"] <= found["oracle"]["accuracy"]
        if name in ("best_single", "routed") and row["accuracy"] == found["oracle"]["accuracy"]:
            assert Decimal(row["cost_usd"]) >= Decimal(found["oracle"]["cost_usd"])
        if name in ("best_single", "random"):
            assert Decimal(row["cost_usd"]) >= Decimal(found["cheapest"]["cost_usd"])


def test_the_interval_of_a_mean_holds_it_and_narrows_with_more_queries():
    few, many = (np.tile([1.0, 0.0, 0.0, -0.5], repeats) for repeats in (5, 500))
    (low, high), (lower, higher) = paired_interval(few), paired_interval(many)
    assert low < 0.125 < high
    assert low < lower < 0.125 < higher < high
    assert paired_interval(few) == (low, high)  # the same seed, the same interval
    assert paired_interval(few, seed=1) != (low, high)


def test_the_interval_is_about_two_standard_errors_wide():
    differences = np.random.default_rng(0).normal(0.1, 1.0, 2000)
    low, high = paired_interval(differences)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.1)
