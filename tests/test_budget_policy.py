"""One budget for all queries: what it buys, what it never does, and how close it comes to the best."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from rtr_ray.errors import BudgetError, ConfigError, DataError
from rtr_ray.policies.base import fit, merged, stable_hash
from rtr_ray.policies.budget import Budget, FittedBudget, curve, extremes
from rtr_ray.policies.hull import HASH_BITS, bin_of, climb, lower_edge, share_hash
from rtr_ray.types import Candidate, FloatArray, Plan, RoutingTable
from tests.fakes import random_table

BIN = 1 / 64  # no bin of rates is wider than that


def table_of(accuracy: Any, cost_usd: Any, allowed: Any = None, ids: str = "q") -> RoutingTable:
    accuracy_QC, cost_QC = np.array(accuracy, np.float32), np.array(cost_usd, np.float32)
    queries, candidates = accuracy_QC.shape
    return RoutingTable(
        tuple(f"{ids}{i}" for i in range(queries)),
        tuple(Candidate(f"m{c}", "cot") for c in range(candidates)),
        accuracy_QC,
        np.round(cost_QC * 1000),
        np.round(cost_QC * 2000),
        cost_QC,
        np.ones_like(accuracy_QC, dtype=bool) if allowed is None else np.array(allowed),
    )


def planned(policy: Budget, *tables: RoutingTable) -> tuple[FittedBudget, list[Plan]]:
    fitted = fit(policy, tables)
    assert isinstance(fitted, FittedBudget)
    return fitted, [fitted.choose(table) for table in tables]


def right(plan: Plan) -> float:
    return float(plan.chosen(plan.table.accuracy)[plan.routed].sum(dtype=np.float64))


def hull_of(table: RoutingTable, row: int) -> list[tuple[float, float]]:
    """(cost, accuracy) of the upper hull of a row, by a plain monotone chain over exact differences."""
    allowed = np.flatnonzero(table.allowed[row])
    points = sorted((float(table.cost_usd[row, c]), -float(table.accuracy[row, c])) for c in allowed)
    hull: list[tuple[float, float]] = []
    for cost, minus in points:
        if hull and -minus <= hull[-1][1]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (cost - hull[-2][0]) <= (
            -minus - hull[-2][1]
        ) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append((cost, -minus))
    return hull


def cheapest_of(table: RoutingTable) -> float:
    return float(sum(hull[0][0] for row in range(len(table.query_ids)) if (hull := hull_of(table, row))))


def dearest_of(table: RoutingTable) -> float:
    return float(sum(hull[-1][0] for row in range(len(table.query_ids)) if (hull := hull_of(table, row))))


def between(table: RoutingTable, share: float) -> float:
    """A budget between the cheapest plan and the dearest useful one."""
    return cheapest_of(table) + share * (dearest_of(table) - cheapest_of(table)) + 1e-8


def relaxed(table: RoutingTable, budget: float) -> float:
    """The exact linear relaxation, upgrades sorted by rate: correct answers."""
    hulls = [hull for row in range(len(table.query_ids)) if (hull := hull_of(table, row))]
    total = sum(hull[0][1] for hull in hulls)
    room = budget - sum(hull[0][0] for hull in hulls)
    steps = [(b[0] - a[0], b[1] - a[1]) for hull in hulls for a, b in itertools.pairwise(hull)]
    for cost, gain in sorted(steps, key=lambda step: step[1] / step[0], reverse=True):
        taken = min(1.0, room / cost)
        total, room = total + taken * gain, room - taken * cost
        if taken < 1:
            break
    return total


def best_of_all(table: RoutingTable, budget: float) -> float:
    """The most correct answers of any assignment within the budget, by trying all."""
    cost, gain = np.zeros(1), np.zeros(1)
    for row in range(len(table.query_ids)):
        columns = np.flatnonzero(table.allowed[row])
        if len(columns):
            cost = (cost[:, None] + table.cost_usd[row, columns].astype(np.float64)).ravel()
            gain = (gain[:, None] + table.accuracy[row, columns].astype(np.float64)).ravel()
    return float(gain[cost <= budget].max())


small_tables = st.builds(
    random_table,
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 6),
    candidates=st.integers(1, 4),
    allowed_share=st.sampled_from([0.4, 0.9, 1.0]),
    ties=st.booleans(),
)
shares = st.floats(0, 1.1)


def test_the_plan_by_hand():
    # upgrades: q0 +0.4 for 1 dollar, then +0.1 for 2; q1 +0.2 for 1
    table = table_of([[0.4, 0.8, 0.9], [0.5, 0.7, 0.6]], [[1, 2, 4], [1, 2, 3]])
    for budget, choice in [(2, [0, 0]), (2.9, [0, 0]), (3, [1, 0]), (4, [1, 1]), (5.9, [1, 1]), (6, [2, 1])]:
        fitted, (plan,) = planned(Budget(budget_usd=budget), table)
        assert list(plan.choice) == choice
        assert fitted.cost == plan.cost_usd
        assert fitted.accuracy == pytest.approx(plan.accuracy)
        assert fitted.binding == ("more than needed" if budget == 6 else "binds")
    fitted, _ = planned(Budget(budget_usd=3.5), table)
    assert fitted.price == pytest.approx(0.2, rel=BIN)  # the next dollar would buy 0.2
    assert fitted.normaliser == pytest.approx(13 / 6)
    assert fitted.lam == pytest.approx(1 / (1 + fitted.price * 13 / 6))
    assert fitted.gap == pytest.approx(0.05, rel=0.05)  # half a dollar at 0.2, over two queries


def test_at_its_lambda_the_papers_score_prefers_the_same():
    from rtr_ray.policies.score import FittedScore

    table = random_table(4, queries=500, allowed_share=1.0)
    fitted, (plan,) = planned(Budget(budget_usd=between(table, 0.5)), table)
    assert fitted.lam is not None
    assert fitted.normaliser is not None
    scored = FittedScore(fitted.lam, fitted.normaliser).choose(table)
    assert (scored.choice == plan.choice).mean() > 0.99  # but for those at just that price


@settings(max_examples=1500)
@given(table=small_tables, share=shares)
def test_it_is_within_the_budget_and_within_one_upgrade_of_the_best_of_all_assignments(
    table: RoutingTable, share: float
):
    assume(table.allowed.any())
    budget = between(table, share)
    fitted, (plan,) = planned(Budget(budget_usd=budget), table)
    assert plan.cost_usd <= budget
    best, found = best_of_all(table, budget), right(plan)
    hulls = [hull_of(table, row) for row in range(len(table.query_ids))]
    gains = [b[1] - a[1] for hull in hulls for a, b in itertools.pairwise(hull)]
    assert best - found <= max(gains, default=0) + BIN * sum(gains) + 1e-9
    assert fitted.gap is not None
    assert best - found <= fitted.gap * plan.routed.sum() + 1e-9  # what it says is proven


@settings(max_examples=300)
@given(table=small_tables, share=shares)
def test_it_promises_what_the_plan_holds(table: RoutingTable, share: float):
    assume(table.allowed.any())
    fitted, (plan,) = planned(Budget(budget_usd=between(table, share)), table)
    assert (fitted.rows, fitted.routed) == (len(table.query_ids), plan.routed.sum())
    assert fitted.cost == pytest.approx(plan.cost_usd, abs=1e-10)
    assert fitted.accuracy == pytest.approx(plan.accuracy, abs=1e-8)


@settings(max_examples=200)
@given(table=small_tables, budgets=st.lists(shares, min_size=2, max_size=6))
def test_more_budget_never_means_less_accuracy(table: RoutingTable, budgets: list[float]):
    assume(table.allowed.any())
    found = [planned(Budget(budget_usd=between(table, s)), table) for s in sorted(budgets)]
    for (poor, (plan_poor,)), (rich, (plan_rich,)) in itertools.pairwise(found):
        assert right(plan_rich) >= right(plan_poor)
        assert plan_rich.cost_usd >= plan_poor.cost_usd - 1e-12
        assert rich.price <= poor.price


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    share=st.floats(0, 1),
    ties=st.booleans(),
)
def test_the_order_of_rows_and_their_partition_into_tables_do_not_change_the_plan(
    seed: int, cuts: list[int], share: float, ties: bool
):
    table = random_table(seed, queries=400, ties=ties)
    policy = Budget(budget_usd=between(table, share))
    fitted, (plan,) = planned(policy, table)
    shuffled = table.rows(np.random.default_rng(seed).permutation(400))
    edges = [0, *sorted(cuts), 400]
    parts = [shuffled.rows(slice(a, b)) for a, b in itertools.pairwise(edges)]
    again, plans = planned(policy, *parts)
    assert replace(again, normaliser=fitted.normaliser, lam=fitted.lam) == fitted
    assert sum(p.cost_usd for p in plans) == pytest.approx(plan.cost_usd)


@settings(max_examples=200)
@given(table=small_tables)
def test_the_hull_is_that_of_a_plain_monotone_chain(table: RoutingTable):
    seen: list[list[tuple[float, float]]] = [[] for _ in table.query_ids]
    rates: list[list[float]] = [[] for _ in table.query_ids]

    def visit(rows: Any, to: Any, rate: FloatArray) -> Any:
        for row, column, one in zip(rows, to, rate, strict=True):
            seen[row].append((float(table.cost_usd[row, column]), float(table.accuracy[row, column])))
            rates[row].append(float(one))
        return np.ones(len(rows), dtype=bool)

    climb(table.cost_usd, table.accuracy, table.allowed, visit)
    for row, points in enumerate(seen):
        hull = hull_of(table, row)
        assert points[:1] + points[-1:] == hull[:1] + hull[-1:]
        assert set(hull) <= set(points)  # and beside it only what lies on one line of it
        assert all(a >= b for a, b in zip(rates[row], rates[row][1:], strict=False))
        assert len(points) == len(set(points))


def test_it_reaches_the_linear_programme():
    for seed in range(6):
        table = random_table(seed, queries=400, candidates=8, allowed_share=0.8)
        budget = between(table, 0.1 + 0.15 * seed)
        rows, columns = np.nonzero(table.allowed)
        one_each = np.zeros((400, len(rows)))
        one_each[rows, np.arange(len(rows))] = 1
        solved = linprog(
            -table.accuracy[rows, columns].astype(np.float64),
            A_ub=table.cost_usd[rows, columns].astype(np.float64)[None],
            b_ub=[budget],
            A_eq=one_each[table.allowed.any(axis=1)],
            b_eq=np.ones(int(table.allowed.any(axis=1).sum())),
            bounds=(0, 1),
        )
        assert -solved.fun == pytest.approx(relaxed(table, budget), rel=1e-7)  # so the next test may use it
        fitted, (plan,) = planned(Budget(budget_usd=budget), table)
        assert -solved.fun >= right(plan) >= -solved.fun * 0.999
        assert fitted.gap is not None
        assert -solved.fun <= right(plan) + fitted.gap * plan.routed.sum() + 1e-6


def test_sketches_that_only_count_come_within_a_thousandth_of_the_exact_relaxation():
    tables = [random_table(seed, queries=1500, candidates=10) for seed in range(8)]
    whole = joined(tables)
    for share in (0.03, 0.2, 0.5, 0.9):
        budget = between(whole, share)
        fitted, plans = planned(Budget(budget_usd=budget), *tables)
        cost, found = sum(p.cost_usd for p in plans), sum(map(right, plans))
        best = relaxed(whole, budget)
        assert budget * 0.995 <= cost <= budget
        assert best * 0.999 <= found <= best
        assert fitted.gap is not None
        assert best <= found + fitted.gap * fitted.routed
        assert fitted.gap < 0.001
        assert fitted.cost == pytest.approx(cost, rel=3e-3)
        assert fitted.accuracy == pytest.approx(found / fitted.routed, rel=1e-3)


def joined(tables: list[RoutingTable]) -> RoutingTable:
    def stack(name: str) -> Any:
        return np.concatenate([getattr(table, name) for table in tables])

    return RoutingTable(
        tuple(name for table in tables for name in table.query_ids),
        tables[0].candidates,
        *(stack(name) for name in ("accuracy", "output_tokens", "output_tokens_p95", "cost_usd", "allowed")),
    )


@pytest.mark.parametrize(("queries", "parts"), [(1000, 1), (1000, 10), (20_000, 1), (20_000, 40)])
def test_identical_queries_with_room_to_upgrade_half_use_the_budget(queries: int, parts: int):
    table = table_of([[0.5, 0.9]] * queries, [[0.001, 0.049]] * queries)
    tables = [table.rows(slice(i, None, parts)) for i in range(parts)]
    budget = 0.025 * queries
    fitted, plans = planned(Budget(budget_usd=budget), *tables)
    assert 0.99 * budget < sum(p.cost_usd for p in plans) <= budget
    assert 0.45 < fitted.share < 0.55


def test_identical_queries_among_others_use_the_budget():
    # in some tables the heavy rate is light: there it is one cell, in others it is many
    other = [random_table(seed, queries=1000, allowed_share=1.0) for seed in range(10)]
    same = table_of([[0.5, 0.9] + [0.0] * 4] * 10_000, [[0.001, 0.0049] + [1.0] * 4] * 10_000, ids="same")
    same = replace(same, candidates=other[0].candidates)
    tables = [
        joined([table, same.rows(slice(n * n * 100, (n + 1) * (n + 1) * 100))])
        for n, table in enumerate(other)
    ]
    for share in (0.2, 0.3, 0.4, 0.5):
        budget = between(joined(tables), share)
        fitted, plans = planned(Budget(budget_usd=budget), *tables)
        cost = sum(p.cost_usd for p in plans)
        assert 0.995 * budget < cost <= budget
        assert fitted.cost == pytest.approx(cost, rel=4e-3)


def test_small_budgets_are_used_as_well_as_large_ones():
    # most of the money that could be spent is dear: what is cheap must be told apart all the same
    tables = []
    for part in range(10):
        dice = np.random.default_rng(part)
        cost_QC = np.array([0.001, 0.002, 0.003, 0.5]) * np.exp(dice.normal(0, 0.01, (1000, 4)))
        tables.append(table_of([[0.2, 0.5, 0.7, 0.9]] * 1000, cost_QC, ids=f"{part}-"))
    whole = joined(tables)
    for room in (1.0, 3.0, 8.0, 12.0, 17.0):
        budget = cheapest_of(whole) + room
        fitted, plans = planned(Budget(budget_usd=budget), *tables)
        assert 0.99 * budget < sum(p.cost_usd for p in plans) <= budget
        assert fitted.cost == pytest.approx(sum(p.cost_usd for p in plans), rel=5e-3)


def test_what_is_free_is_used_and_costs_nothing():
    table = table_of([[0.5, 0.7, 0.9]] * 4, [[0, 0, 1]] * 4)
    fitted, (plan,) = planned(Budget(budget_usd=1e-6), table)
    assert list(plan.choice) == [1] * 4
    assert (fitted.cost, fitted.binding) == (0.0, "binds")
    assert planned(Budget(budget_usd=4), table)[1][0].choice.tolist() == [2] * 4
    all_free, (plan,) = planned(Budget(budget_usd=1e-6), table_of([[0.5, 0.7]], [[0, 0]]))
    assert (list(plan.choice), all_free.binding, all_free.price) == ([1], "more than needed", 0.0)


def test_of_equal_costs_the_more_accurate_is_taken():
    table = table_of([[0.5, 0.7, 0.6, 0.9, 0.8]], [[1, 1, 1, 2, 2]])
    assert planned(Budget(budget_usd=1), table)[1][0].choice.tolist() == [1]
    assert planned(Budget(budget_usd=2), table)[1][0].choice.tolist() == [3]


def test_a_single_candidate_is_chosen_whatever_the_budget():
    fitted, (plan,) = planned(Budget(budget_usd=5), table_of([[0.5]] * 4, [[1]] * 4))
    assert list(plan.choice) == [0] * 4
    assert (fitted.binding, fitted.gap, fitted.cost, fitted.accuracy) == ("more than needed", 0.0, 4.0, 0.5)


def test_a_query_for_which_nothing_is_allowed_goes_nowhere():
    table = table_of([[0.5, 0.9]] * 3, [[1, 2]] * 3, [[True, True], [False, False], [False, True]])
    fitted, (plan,) = planned(Budget(budget_usd=10), table)
    assert list(plan.choice) == [1, -1, 1]
    assert (fitted.rows, fitted.routed, fitted.cost) == (3, 2, 4.0)


def test_nothing_allowed_anywhere_promises_nothing():
    table = table_of([[0.5, 0.9]], [[1, 2]], [[False, False]])
    fitted, (plan,) = planned(Budget(budget_usd=10), table)
    assert list(plan.choice) == [-1]
    assert (fitted.cost, fitted.accuracy, fitted.binding) == (None, None, None)


def test_without_any_table_the_cheapest_is_chosen():
    assert fit(Budget(budget_usd=10), []).choose(table_of([[0.5, 0.9]], [[1, 2]])).choice.tolist() == [0]


def test_a_cell_without_a_finite_prediction_is_never_chosen():
    accuracy = [[0.5, np.nan, 0.9, 0.95], [np.nan] * 4]
    fitted, (plan,) = planned(Budget(budget_usd=9), table_of(accuracy, [[1, 1, 2, np.inf]] * 2))
    assert list(plan.choice) == [2, -1]
    assert fitted.normaliser is not None
    assert np.isfinite(fitted.normaliser)


def test_a_budget_below_the_cheapest_plan_is_refused_and_the_minimum_named():
    table = table_of([[0.5, 0.9]] * 10, [[1.81645, 2]] * 10)
    with pytest.raises(BudgetError) as refused:
        fit(Budget(budget_usd=0.5), [table])
    assert str(refused.value) == (
        "The cheapest plan for 10 queries costs $18.1645, over budget_usd=$0.5. "
        "Raise budget_usd to at least $18.1645 or add a cheaper candidate."
    )
    assert planned(Budget(budget_usd=18.1645), table)[0].binding == "binds"


def test_the_minimum_that_is_named_suffices_however_small():
    for scale in (1e-5, 1e-3, 1.0, 1e4):
        base = random_table(7)
        table = replace(base, cost_usd=(base.cost_usd * scale).astype(np.float32))
        with pytest.raises(BudgetError) as refused:
            fit(Budget(budget_usd=1e-12), [table])
        named = float(str(refused.value).partition("at least $")[2].partition(" ")[0].replace(",", ""))
        _, (plan,) = planned(Budget(budget_usd=named), table)
        assert plan.cost_usd == pytest.approx(named, rel=2e-3)


def test_a_short_budget_may_give_the_cheapest_plan_instead():
    table = table_of([[0.5, 0.9]] * 10, [[1, 2]] * 10)
    fitted, (plan,) = planned(Budget(budget_usd=0.5, when_short="cheapest"), table)
    assert list(plan.choice) == [0] * 10
    assert (fitted.binding, fitted.cost, fitted.budget) == ("too small", 10.0, 0.5)


def test_a_budget_of_output_tokens_counts_output_tokens():
    table = replace(
        table_of([[0.5, 0.9], [0.5, 0.8]], [[9, 1], [9, 1]]),
        output_tokens=np.array([[10, 100], [10, 100]], np.float32),
    )
    fitted, (plan,) = planned(Budget(budget_output_tokens=110), table)
    assert list(plan.choice) == [1, 0]
    assert (fitted.unit, fitted.cost) == ("output_tokens", 110.0)
    with pytest.raises(BudgetError, match=r"takes 20, over budget_output_tokens=15\. Raise budget_output"):
        fit(Budget(budget_output_tokens=15), [table])


def test_a_floor_of_accuracy_is_reached_at_the_least_cost():
    table = table_of([[0.4, 0.8, 0.9], [0.5, 0.7, 0.6]], [[1, 2, 4], [1, 2, 3]])
    for floor, cost in [(0.3, 2), (0.45, 2), (0.5, 3), (0.65, 3), (0.7, 4), (0.75, 4), (0.8, 6)]:
        fitted, (plan,) = planned(Budget(min_accuracy=floor), table)
        assert plan.cost_usd == cost
        assert plan.accuracy >= floor - 1e-7
        assert (fitted.budget, fitted.min_accuracy) == (None, floor)


def test_a_floor_above_the_best_plan_is_refused_and_the_best_named():
    table = table_of([[0.4, 0.8], [0.5, 0.7]], [[1, 2], [1, 2]])
    with pytest.raises(BudgetError, match=r"share of 0\.7500 correctly.*Lower min_accuracy to 0\.7500"):
        fit(Budget(min_accuracy=0.9), [table])
    assert planned(Budget(min_accuracy=0.75), table)[1][0].cost_usd == 4


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 1), parts=st.sampled_from([1, 4]))
def test_a_floor_costs_no_more_than_the_budget_that_buys_as_much(seed: int, share: float, parts: int):
    table = random_table(seed, queries=300, allowed_share=1.0)
    tables = [table.rows(slice(i, None, parts)) for i in range(parts)]
    _, (plan,) = planned(Budget(budget_usd=between(table, share)), table)
    _, plans = planned(Budget(min_accuracy=plan.accuracy), *tables)
    assert sum(map(right, plans)) >= right(plan) - 1e-6
    assert sum(p.cost_usd for p in plans) <= plan.cost_usd + 1e-9


def test_a_floor_holds_where_cells_are_cut():
    tables = [random_table(seed, queries=400 * (1 + seed), candidates=8) for seed in range(7)]
    for floor in (0.6, 0.7, 0.8):
        _, plans = planned(Budget(min_accuracy=floor), *tables)
        reached = sum(map(right, plans)) / sum(int(p.routed.sum()) for p in plans)
        assert floor <= reached <= floor + 0.002


def test_no_row_costs_more_than_its_cap():
    table = random_table(1, queries=300, allowed_share=1.0)
    cap = 0.004
    _, (plan,) = planned(Budget(budget_usd=99, max_row_usd=cap), table)
    cheapest_Q = table.cost_usd.min(axis=1)
    assert (plan.routed == (cheapest_Q <= cap)).all()
    assert plan.chosen(table.cost_usd)[plan.routed].max() <= cap
    exact = table_of([[0.5, 0.9]], [[0.1, 0.3]])
    assert planned(Budget(budget_usd=9, max_row_usd=0.3), exact)[1][0].choice.tolist() == [1]


def test_the_curve_is_what_each_budget_would_freeze_to():
    tables = [random_table(seed, queries=700) for seed in range(4)]
    sketch = merged(Budget(budget_usd=1), (Budget(budget_usd=1).sketch(table) for table in tables))
    assert sketch is not None
    least, most = extremes(sketch)
    whole = joined(tables)
    assert least.cost == pytest.approx(cheapest_of(whole))
    assert most.cost == pytest.approx(dearest_of(whole))
    assert most.price == 0 < least.price
    budgets = list(np.linspace(least.cost + 1e-6, most.cost + 1e-6, 9))
    points = curve(sketch, [least.cost / 2, *budgets])
    assert points[0] is None
    for budget, point in zip(budgets, points[1:], strict=True):
        fitted = Budget(budget_usd=budget).freeze(sketch)
        assert point is not None
        assert (point.cost, point.accuracy, point.price) == (fitted.cost, fitted.accuracy, fitted.price)
    accuracy = [point.accuracy for point in points[1:] if point]
    assert accuracy == sorted(accuracy)
    assert (accuracy[0], accuracy[-1]) == pytest.approx((least.accuracy, most.accuracy), rel=1e-3)


def test_a_sketch_stays_small():
    for table in (
        random_table(0, queries=30_000, candidates=12),
        table_of([[0.5, 0.9]] * 30_000, [[0.001, 0.049]] * 30_000),
        random_table(0, queries=900, candidates=12),
    ):
        sketch = Budget(budget_usd=1).sketch(table)
        assert sum(len(str(value)) for value in sketch.values()) < 150_000


def test_sketches_of_different_units_do_not_merge():
    table = random_table(0)
    dollars, tokens = Budget(budget_usd=1), Budget(budget_output_tokens=1)
    with pytest.raises(DataError, match="unit=usd and unit=output_tokens cannot be added up"):
        dollars.merge(dollars.sketch(table), tokens.sketch(table))
    capped = Budget(budget_usd=1, max_row_usd=1)
    with pytest.raises(DataError, match="max_row_usd=None and max_row_usd=1 cannot be added up"):
        dollars.merge(dollars.sketch(table), capped.sketch(table))


def test_costs_beyond_all_measure_are_refused():
    with pytest.raises(DataError, match="46 million dollars"):
        Budget(budget_usd=1).sketch(table_of([[0.5]], [[1e8]]))
    many = Budget(budget_usd=1).sketch(table_of([[0.5]], [[4e7]]))
    with pytest.raises(DataError, match="46 million dollars"):
        Budget(budget_usd=1).merge(many, many)


def test_an_absurdly_large_budget_is_more_than_needed():
    fitted, _ = planned(Budget(budget_usd=1e300), random_table(0))
    assert fitted.binding == "more than needed"


def test_goals_are_checked_in_one_sentence():
    with pytest.raises(ConfigError, match=r"policy\.budget_usd is -5; a finite amount above 0 is needed"):
        Budget(budget_usd=-5)
    with pytest.raises(ConfigError, match=r"takes one of budget_usd.*it has budget_usd and min_accuracy"):
        Budget(budget_usd=1, min_accuracy=0.5)
    with pytest.raises(ConfigError, match=r"has no amount"):
        fit(Budget(), [random_table(0)])
    with pytest.raises(ConfigError, match="it has budget_usd and min_accuracy"):
        Budget(budget_usd=1, min_accuracy=0.5)


def test_the_hash_of_the_share_is_the_same_everywhere():
    ids = ("q0", "qé", "", "a" * 1000)
    code = f"from rtr_ray.policies.hull import share_hash; print(share_hash({ids!r}).tolist())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(share_hash(ids).tolist())
    assert share_hash(ids).tolist() == [share_hash((name,))[0] for name in ids]  # of each by itself
    assert share_hash(ids).tolist() == PINNED


PINNED = [415724, 889491, 366291, 845089]


@pytest.mark.parametrize("pattern", ["{}", "part-{:08d}", "{}/data/part.parquet", "é{}"])
def test_the_hash_of_the_share_is_even_and_knows_nothing_of_the_other_hash(pattern: str):
    ids = tuple(pattern.format(i) for i in range(40_000))
    high = share_hash(ids) >> (HASH_BITS - 4)
    other = np.array([stable_hash(name) % 16 for name in ids])
    counts = np.zeros((16, 16))
    np.add.at(counts, (high, other), 1)
    expected = 40_000 / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)  # chi squared
    in_turn = np.zeros((16, 16))
    np.add.at(in_turn, (high[1:], high[:-1]), 1)
    assert ((in_turn - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)
    assert len(np.unique(share_hash(ids))) > 39_000


@given(rate=st.floats(1e-300, 1e300))
def test_a_rate_lies_in_its_bin(rate: float):
    number = int(bin_of(np.array([rate]))[0])
    assert lower_edge(number) <= rate < lower_edge(number + 1)
    assert lower_edge(number + 1) <= lower_edge(number) * (1 + BIN) * 1.0000001
