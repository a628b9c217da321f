"""One budget over a corpus, with engines that think nothing: spent well, never exceeded, solved anew."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.config import load_pool
from rtr_ray.distributed.autopilot import Pace, rows_ahead
from rtr_ray.distributed.ledger_actor import Snapshot
from rtr_ray.distributed.steering import Steering
from rtr_ray.errors import BudgetError, ConfigError
from rtr_ray.explanation import explain
from rtr_ray.ledger import Balance
from rtr_ray.parts import Version
from rtr_ray.policies.base import fit
from rtr_ray.policies.budget import Budget
from rtr_ray.run_folder import RunFolder
from rtr_ray.storage import open_store
from rtr_ray.types import Candidate
from tests.distributed.conftest import Cluster
from tests.distributed.engine import metered
from tests.distributed.test_batch import metered_usd
from tests.distributed.workbench import Workbench, money
from tests.fakes import pool_of, random_table

pytestmark = pytest.mark.ray
QUICK: dict[str, Any] = {"policy": {"kind": "budget"}, "grader": None}


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"pilot-{tmp_path.name[:20]}")
    bench.pool()
    bench.router()
    return bench


def test_fast_engines_have_more_planned_for_them_but_never_what_answers_should_correct():
    assert rows_ahead(256, 100_000, 0.0, budgeted=False) == 640
    assert rows_ahead(256, 100_000, 50.0, budgeted=False) == 640
    assert rows_ahead(256, 100_000, 4_000.0, budgeted=False) == 12_000
    assert rows_ahead(256, 100_000, 0.0, budgeted=True) == 320
    assert rows_ahead(256, 100_000, 4_000.0, budgeted=True) == 12_000
    assert rows_ahead(256, 100_000, 40_000.0, budgeted=True) == 12_500
    assert rows_ahead(256, 400, 0.0, budgeted=True) == 64


def test_the_pace_is_that_of_the_last_seconds():
    now = iter([0.0, 1.0, 2.0, 9.0, 17.0])
    pace = Pace(lambda: next(now))
    assert [pace.rows_per_s(rows) for rows in (100, 150, 300, 300, 1100)] == [0.0, 50.0, 100.0, 18.75, 100.0]


def test_no_version_is_solved_before_what_is_being_planned_is_known(tmp_path: Path, connected: Cluster):
    import ray

    policy, table = Budget(), random_table(3, queries=30)
    folder, pool = RunFolder(open_store(str(tmp_path))), pool_of(map(str, table.candidates))
    steering = Steering(
        folder, pool, policy, Decimal("0.1"), 30, Version(fit(policy.within(0.1), [table])), stale=True
    )
    steering._sketches = [ray.put(policy.sketch(table))]  # a new solution is on its way
    now = Snapshot(Balance(Decimal("0.1"), *[Decimal(0)] * 3, 0, 0, {}), {}, 0, 0)
    assert not steering.settled([], {}, 0, now, planning=True)
    assert (steering.version.number, folder.store.keys("policies/")) == (0, [])
    promised = {(0, table.candidates[0]): 0.04}  # it has been planned since
    assert steering.settled([], promised, 0, now)
    assert steering.version.number == 1
    written = folder.read_json("policies/000001.json")
    assert written is not None
    assert written["budget_usd"] == pytest.approx(0.06, abs=0.001)


def extremes(bench: Workbench) -> tuple[float, float]:
    """What the cheapest and the dearest useful plan are expected to cost."""
    rows = json.loads((bench.output / "plan.json").read_text())["if_all_went_to"]
    by_name = {row["candidate"]: row["cost_usd"] for row in rows}
    return by_name["weak:vanilla"], by_name["strong:vanilla"]


def test_a_budget_is_spent_and_not_exceeded_though_answers_are_longer_than_believed(bench: Workbench) -> None:
    # the router believes in 10 tokens an answer, and they have 25 on average
    bench.router(tokens=10.0)
    bench.corpus(3000)
    with bench.serving():
        found = bench.run(budget_usd="0.04", **QUICK)
    spent = Decimal(found["cost_usd"]["spent"])
    assert spent == money(bench.results()) == metered_usd(bench)
    assert Decimal("0.97") * Decimal("0.04") <= spent <= Decimal("0.04")
    assert sum(found["rows"][name] for name in ("answered", "failed", "skipped_budget")) == 3000
    assert found["rows"]["answered"] >= 2990
    rows = bench.results().to_pylist()
    assert len({row["query_id"] for row in rows}) == 3000
    versions = {row["plan_version"] for row in rows}
    assert len(versions) > 2
    saved = [json.loads(path.read_text()) for path in sorted((bench.output / "policies").iterdir())]
    last = saved[-1]["corrections"]["by_candidate"]
    assert last[str(Candidate("strong", "vanilla"))] == pytest.approx(2.5, rel=0.1)
    dear = [row for row in rows if row["model"] == "strong"]
    assert 100 < len(dear) < 2900
    assert all(row["dual_price"] > 0 for row in dear)


def test_without_autopilot_the_same_run_ends_with_rows_that_nobody_could_pay(bench: Workbench) -> None:
    bench.router(tokens=10.0)
    bench.corpus(3000)
    with bench.serving():
        found = bench.run(budget_usd="0.04", autopilot=False, **QUICK)
    assert metered_usd(bench) == Decimal(found["cost_usd"]["spent"]) <= Decimal("0.04")
    assert found["rows"]["skipped_budget"] > 100
    assert found["status"] == "budget_exhausted"


def test_a_share_of_the_rows_and_a_budget_hold_together_and_are_explained(bench: Workbench) -> None:
    bench.router(tokens=10.0)
    bench.corpus(1500)
    limits = {"policy": {"kind": "limits", "shares": {"strong": [0, 0.2]}}, "grader": None}
    with bench.serving():
        found = bench.run(budget_usd="0.02", **limits)
    spent = Decimal(found["cost_usd"]["spent"])
    assert spent == money(bench.results()) == metered_usd(bench) <= Decimal("0.02")
    rows = bench.results().to_pylist()
    assert found["rows"]["answered"] == len(rows) == 1500
    strong = sum(row["model"] == "strong" for row in rows) / len(rows)
    assert 0.17 <= strong <= 0.22
    row = next(row for row in rows if row["model"] == "weak")
    pool = load_pool(str(bench.folder / "pool.yaml"))
    said = explain(RunFolder(open_store(str(bench.output))), row["query_id"], pool).words()
    assert "the share of strong" in said[-1]


def test_more_money_than_helps_is_not_spent(bench: Workbench) -> None:
    bench.corpus(400)
    with bench.serving():
        found = bench.run(budget_usd="100", **QUICK)
    assert found["rows"]["answered"] == 400
    assert {row["model"] for row in bench.results().to_pylist()} == {"strong"}
    assert Decimal(found["cost_usd"]["spent"]) < Decimal("0.05")


def test_a_budget_below_the_cheapest_plan_is_refused_and_the_minimum_named(bench: Workbench) -> None:
    bench.corpus(300)
    with (
        bench.serving(),
        pytest.raises(BudgetError, match=r"The cheapest plan for 300 queries costs \$0\.000"),
    ):
        bench.run(budget_usd="0.00001", **QUICK)
    assert metered(bench.meter) == []


def test_a_larger_budget_answers_what_a_smaller_one_left(bench: Workbench) -> None:
    bench.router(tokens=10.0)
    bench.corpus(1500)
    with bench.serving():
        first = bench.run(budget_usd="0.012", autopilot=False, **QUICK)
        assert first["status"] == "budget_exhausted"
        second = bench.run(budget_usd="0.06", **QUICK)
    assert second["rows"]["answered"] == 1500
    results = bench.results()
    assert len(set(results["query_id"].to_pylist())) == len(results) == 1500
    assert money(results) == Decimal(second["cost_usd"]["spent"]) == metered_usd(bench)


def test_rows_that_the_budget_did_not_reach_teach_nothing_and_may_go_meanwhile(
    tmp_path: Path, connected: Cluster
) -> None:
    import ray

    from rtr_ray.distributed.planning import look_back
    from rtr_ray.run_folder import RESULTS

    store = open_store(str(tmp_path))
    # who reads it fails, as who reads one that is taken away does
    store.write(f"{RESULTS}0123456789abcdef-skipped.parquet", b"gone")
    assert ray.get(look_back.remote(str(tmp_path), ["0123456789abcdef"], pool_of())) == ({}, 0.0)


@pytest.mark.parametrize("budget", [None, "0.01"])
def test_a_corpus_of_which_nothing_can_be_asked_ends_with_its_reasons(
    bench: Workbench, budget: str | None
) -> None:
    bench.corpus(3, texts={0: None, 1: "  ", 2: None})
    with bench.serving():
        found = bench.run(grader=None, budget_usd=budget, policy={"kind": "budget"} if budget else None)
    assert found["rows"] == {"total": 3, "answered": 0, "failed": 3, "skipped_budget": 0}
    assert found["status"] == "completed"
    assert metered(bench.meter) == []


def test_a_policy_that_divides_a_budget_needs_one(bench: Workbench) -> None:
    bench.corpus(10)
    with pytest.raises(ConfigError, match="divides a budget, and the job has none"):
        bench.run(**QUICK)
