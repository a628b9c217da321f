"""Several limits at once: shares of rows, a deadline, GPU dollars, beside or without a budget."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from scipy.optimize import linprog

from rtr_ray.errors import BudgetError, ConfigError
from rtr_ray.policies.base import fit, merged
from rtr_ray.policies.limits import TEMPERATURE, FittedLimits, Limits
from rtr_ray.policies.row_sample import ROWS
from rtr_ray.types import Candidate, FloatArray, Plan, RoutingTable
from tests.fakes import pool_of, random_table

LOSS = 0.004  # of accuracy, to the exact optimum: T log C, and the noise of the draw


def many(queries: int, seed: int = 0, alike: bool = False, start: int = 0) -> RoutingTable:
    """Three models of one strategy, the better the dearer; all queries alike, or each another one."""
    rng = np.random.default_rng(seed)
    shape = (queries, 3)
    accuracy = np.array([0.3, 0.6, 0.8]) + (0 if alike else rng.normal(0, 0.12, shape))
    tokens = np.array([100.0, 150.0, 300.0]) * (1 if alike else rng.lognormal(0, 0.5, shape))
    tokens = np.broadcast_to(tokens, shape).astype(np.float32)
    cost = tokens * np.array([1e-6, 4e-6, 2e-5])
    return RoutingTable(
        tuple(f"q{start + i}" for i in range(queries)),
        tuple(Candidate(f"m{c}", "cot") for c in range(3)),
        np.clip(np.broadcast_to(accuracy, shape), 0, 1).astype(np.float32),
        tokens,
        2 * tokens,
        cost.astype(np.float32),
        np.ones(shape, dtype=bool),
    )


def shares(plan: Plan) -> FloatArray:
    return np.bincount(plan.choice, minlength=len(plan.table.candidates)) / len(plan.choice)


def mean(plan: Plan, name: str) -> float:
    return float(plan.chosen(getattr(plan.table, name)).mean(dtype=np.float64))


def planned(policy: Limits, *tables: RoutingTable) -> tuple[FittedLimits, list[Plan]]:
    fitted = fit(policy, tables)
    assert isinstance(fitted, FittedLimits)
    return fitted, [fitted.choose(table) for table in tables]


def exact(table: RoutingTable, budget_usd: float | None, bounds: dict[int, tuple[float, float]]) -> float:
    """The mean accuracy of the linear relaxation, by a solver that knows nothing of prices."""
    count, width = table.accuracy.shape
    rows, limits = [], []
    if budget_usd is not None:
        rows.append(table.cost_usd.ravel().astype(np.float64))
        limits.append(budget_usd)
    for column, (least, most) in bounds.items():
        mine = np.tile(np.arange(width) == column, count).astype(np.float64)
        rows += [mine, -mine]
        limits += [most * count, -least * count]
    each = np.kron(np.eye(count), np.ones((1, width)))
    found = linprog(
        -table.accuracy.ravel().astype(np.float64),
        np.array(rows),
        limits,
        each,
        np.ones(count),
        method="highs",
    )
    assert found.status == 0
    return float(-found.fun / count)


@pytest.mark.parametrize("seed", range(12))
def test_it_comes_as_close_to_the_best_as_the_noise_lets_it(seed: int) -> None:
    dice = np.random.default_rng(seed)
    table = many(600, seed)
    most, least = float(dice.uniform(0.1, 0.6)), float(dice.uniform(0.05, 0.2))
    low, high = table.cost_usd.min(axis=1).sum(), table.cost_usd.max(axis=1).sum()
    budget_usd = float(low + dice.uniform(0.3, 0.7) * (high - low))
    policy = Limits(shares={"m2": (0, most), "m0:cot": (least, 1)}, budget_usd=budget_usd)
    fitted, (plan,) = planned(policy, table)
    best = exact(table, budget_usd, {2: (0, most), 0: (least, 1)})
    # the draw of 600 rows is off by some standard deviations of a share
    assert shares(plan)[2] <= most + 0.04
    assert shares(plan)[0] >= least - 0.04
    assert plan.chosen(table.cost_usd).sum() <= 1.06 * budget_usd
    assert fitted.cost is not None
    assert fitted.cost <= 1.01 * budget_usd
    assert fitted.accuracy == pytest.approx(best, abs=LOSS)
    assert mean(plan, "accuracy") == pytest.approx(best, abs=LOSS + 0.02)


def test_queries_that_are_alike_are_divided_as_the_limit_wants_it() -> None:
    table = many(5000, alike=True)
    fitted, (plan,) = planned(Limits(shares={"m2": (0, 0.3)}), table)
    assert shares(plan) == pytest.approx([0, 0.7, 0.3], abs=0.02)
    assert fitted.binding == ("the share of m2",)
    assert fitted.per_row["m2:cot"] == pytest.approx(0.2, abs=0.01), "the price of the limit is what it costs"


def test_a_limit_that_does_not_bind_costs_nothing() -> None:
    table = many(2000)
    free = float(table.accuracy.max(axis=1).mean(dtype=np.float64))
    fitted, (plan,) = planned(Limits(shares={"m0": (0, 0.9)}, budget_usd=1e6), table)
    assert mean(plan, "accuracy") == pytest.approx(free, abs=LOSS)
    assert fitted.binding == ()
    assert fitted.price == 0


def test_many_tables_are_solved_for_by_a_sample_of_their_rows() -> None:
    tables = [many(4000, seed, start=4000 * seed) for seed in range(8)]
    policy = Limits(shares={"m2": (0, 0.25)}, budget_usd=32_000 * 3e-3)
    sketch = merged(policy, (policy.sketch(table) for table in tables))
    assert sketch is not None
    assert len(json.dumps(sketch)) < 60 * ROWS
    fitted, plans = planned(policy, *tables)
    assert (fitted.rows, fitted.routed) == (32_000, 32_000)
    chosen = np.concatenate([plan.choice for plan in plans])
    assert np.mean(chosen == 2) == pytest.approx(0.25, abs=0.01)
    spent = sum(float(plan.chosen(plan.table.cost_usd).sum()) for plan in plans)
    assert 40 < spent <= 1.03 * 96


def on_lanes(policy: Limits) -> Limits:
    pool = pool_of(("m0:cot", "m1:cot", "m2:cot"))
    deployments = {
        name: replace(
            one,
            output_tokens_per_s={"m0": 2000.0, "m1": 1000.0, "m2": 250.0}[name],
            gpu_usd_per_hour=Decimal({"m0": "1", "m1": "2", "m2": "4"}[name]),
            max_replicas=2 if name == "m2" else 1,
        )
        for name, one in pool.deployments.items()
    }
    return policy.on(replace(pool, deployments=deployments))


def seconds(plan: Plan) -> FloatArray:
    tokens = plan.chosen(plan.table.output_tokens).astype(np.float64)
    return np.bincount(plan.choice, tokens, 3) / np.array([2000.0, 1000.0, 500.0])


def test_a_deadline_is_kept_by_the_slowest_deployment() -> None:
    table = many(6000)
    _, (free,) = planned(Limits(shares={"m0": (0, 1)}), table)
    deadline_s = float(seconds(free).max()) / 3
    fitted, (plan,) = planned(on_lanes(Limits(deadline_s=deadline_s)), table)
    assert seconds(plan).max() <= 1.05 * deadline_s
    assert seconds(plan).max() >= 0.95 * deadline_s
    assert "deadline_s of m2" in fitted.binding
    assert mean(plan, "accuracy") > mean(planned(Limits(shares={"m2": (0, 0)}), table)[1][0], "accuracy")


def test_of_a_part_of_the_rows_a_deadline_is_that_part() -> None:
    table = many(6000)
    policy = on_lanes(Limits(deadline_s=700.0))
    half = policy.within(1e6, refuse=True, part=0.5)
    _, (plan,) = planned(half, table)
    assert seconds(plan).max() <= 1.05 * 350


def test_gpu_dollars_are_tokens_times_speed_times_price() -> None:
    table = many(6000)
    rate = np.array([1 / 2000, 2 / 1000, 4 / 250]) / 3600
    _, (free,) = planned(Limits(shares={"m0": (0, 1)}), table)

    def usd(plan: Plan) -> float:
        return float((plan.chosen(table.output_tokens) * rate[plan.choice]).sum())

    fitted, (plan,) = planned(on_lanes(Limits(gpu_budget_usd=usd(free) / 2)), table)
    assert usd(plan) == pytest.approx(usd(free) / 2, rel=0.04)
    assert fitted.binding == ("gpu_budget_usd",)


def test_limits_that_exclude_each_other_are_refused_and_the_worst_is_named() -> None:
    table = many(500)
    with pytest.raises(BudgetError, match=r"No plan for 500 queries keeps to all limits: the share of m. is"):
        fit(Limits(shares={"m0": (0, 0.1), "m1": (0, 0.1), "m2": (0, 0.1)}), [table])
    with pytest.raises(BudgetError, match=r"deadline_s of m. is to be at most 0\.01"):
        fit(on_lanes(Limits(deadline_s=0.01)), [table])


def test_a_budget_below_the_cheapest_plan_within_the_limits_is_refused_and_the_least_named() -> None:
    table = many(500, alike=True)
    # half of the rows at m2 cost 500 / 2 * 300 * 2e-5 = 1.5 dollars
    with pytest.raises(BudgetError, match=r"within the other limits costs about \$1\.5"):
        fit(Limits(shares={"m2": (0.5, 1)}, budget_usd=1.0), [table])
    fitted, (plan,) = planned(Limits(shares={"m2": (0, 0.5)}, budget_usd=1e-9, when_short="cheapest"), table)
    assert fitted.budget == 1e-9
    assert set(plan.choice) == {0}


def test_the_noise_is_small_and_of_query_and_candidate_alone() -> None:
    table = many(3000)
    fitted, (plan,) = planned(Limits(shares={"m0": (0, 1)}), table)
    lost = table.accuracy.max(axis=1) - plan.chosen(table.accuracy)
    assert lost.max() < 20 * TEMPERATURE
    turned = replace(
        table,
        candidates=table.candidates[::-1],
        **{n: getattr(table, n)[:, ::-1] for n in ("accuracy", "output_tokens", "output_tokens_p95")},
        **{n: getattr(table, n)[:, ::-1] for n in ("cost_usd", "allowed")},
    )
    assert (2 - fitted.choose(turned).choice == plan.choice).all()


def test_what_the_pool_lacks_is_named() -> None:
    pool = pool_of(("m0:cot", "m1:cot"))
    with pytest.raises(ConfigError, match="names 'm7', which is no model and no candidate of the pool"):
        Limits(shares={"m7": (0, 1)}).on(pool)
    with pytest.raises(ConfigError, match=r"how fast deployment 'm0' is\. Give it output_tokens_per_s"):
        Limits(deadline_s=5.0).on(pool)
    with pytest.raises(ConfigError, match="limits nothing: no deployment of the pool has a gpu_usd_per_hour"):
        Limits(gpu_budget_usd=5.0).on(pool)
    with pytest.raises(ConfigError, match="does not know the pool yet"):
        fit(Limits(deadline_s=5.0), [random_table(0)])
