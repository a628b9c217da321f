"""One command without labels and without a router, with engines that think nothing."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rtr_ray.config import JobFile
from rtr_ray.distributed.labelling import run_unrouted
from rtr_ray.errors import BudgetError
from rtr_ray.labelling import Labelling
from rtr_ray.router import RouterFolder
from tests.distributed.conftest import ROOT, Cluster
from tests.distributed.engine import let_go, metered
from tests.distributed.test_batch import metered_usd
from tests.distributed.workbench import Workbench, called, money, screen, wait_for_its_actors_to_go

pytestmark = pytest.mark.ray
STRATEGIES = {
    "vanilla": {"builtin": "vanilla", "max_tokens": 60},
    "cot": {"builtin": "cot", "max_tokens": 60},
}
LABELS = {"rows": 80, "share": 0.4, "encoder": "hash"}
BUDGET = Decimal("0.019")


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"label-{tmp_path.name[:20]}")
    bench.pool(strategies=STRATEGIES, exclude=[{"model": "weak", "strategy": "cot"}])
    return bench


def telling(number: int) -> str:
    """Every other query says that it is an easy one: the weak engine is right about those."""
    return "EASY for children, sum" if number % 2 else "A riddle for experts, number"


def job(bench: Workbench, **changes: Any) -> JobFile:
    settings = {"router": None, "policy": None, "labels": LABELS, "budget_usd": str(BUDGET)}
    return bench.job(**(settings | changes))


def run(bench: Workbench, **changes: Any) -> tuple[dict[str, Any], str]:
    """The summary, and what was said."""
    shown = screen()
    found = run_unrouted(Labelling.check(job(bench, **changes)), shown)
    return found, shown.console.file.getvalue()  # type: ignore[attr-defined]


def labels(bench: Workbench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bench.folder / "run-labels" / "labels.json").read_text())
    return found


def spent_on_labels(bench: Workbench) -> Decimal:
    """By the rows of the outcomes."""
    return money(pq.read_table(bench.folder / "run-labels" / "outcomes", columns=["cost_usd"]))


def test_one_command_labels_trains_and_answers_and_all_dollars_add_up(bench: Workbench) -> None:
    bench.corpus(900, lead=telling)
    with bench.serving():
        found, said = run(bench)
        calls = len(metered(bench.meter))
        again, _ = run(bench)  # all is there: nothing is asked, nothing is paid
        assert len(metered(bench.meter)) == calls
    cost, rows = found["cost_usd"], found["labels"]["rows"]
    answered = found["rows"]["answered"]
    # the last ones may cost more than what is left: 0 to 21 of them, of so few rows in slices of twenty;
    # test_autopilot holds a run of 3,000 to 10 rows and 97% of its budget
    assert answered >= 850
    assert len(set(bench.results()["query_id"].to_pylist())) == 900
    assert rows == 80
    assert calls == answered + 3 * rows
    # three sums, each counted elsewhere: outcomes and results, summary, the engines' own meter
    assert Decimal(cost["labels"]) == spent_on_labels(bench) <= Decimal("0.4") * BUDGET
    assert Decimal(cost["spent"]) == money(bench.results())
    assert Decimal(cost["total"]) == Decimal(cost["labels"]) + Decimal(cost["spent"]) == metered_usd(bench)
    assert Decimal("0.9") * BUDGET <= Decimal(cost["total"]) <= BUDGET == Decimal(cost["budget"])
    assert again["cost_usd"]["total"] == cost["total"]
    # the texts tell who can answer them: routing pays, and it does
    assert found["routing"]["used"]
    # 80 labels, of whatever rows came first, tell it within a few points
    assert found["routing"]["points"] > 1
    least, most = found["routing"]["interval_90"]
    assert least < found["routing"]["points"] < most
    assert "Routing pays here." in said
    asked = bench.results().to_pylist()
    dear = [row["question"].startswith("A riddle") for row in asked if row["model"] == "strong"]
    assert sum(dear) > 0.8 * len(dear) > 100
    assert found["accuracy"] > 0.7
    # forecasts by this router have intervals
    held_out = RouterFolder.load(str(bench.folder / "run-router")).held_out
    assert held_out is not None
    assert len(held_out.query_ids) == 80


def test_where_routing_does_not_pay_the_best_fixed_mix_is_used_and_a_judge_is_paid_from_the_budget(
    bench: Workbench,
) -> None:
    bench.corpus(400)
    judge = {"kind": "judge", "candidate": "weak:vanilla"}  # whatever it says is cut to 1: all is right
    with bench.serving():
        with pytest.raises(BudgetError, match=r"^Not even 20 rows can be labelled: of 120 calls \d+ were"):
            run(bench, grader=judge, budget_usd="0.0015")
        paid = len(metered(bench.meter))
        found, said = run(bench, grader=judge)  # goes on: what was paid for is kept
    cost = found["cost_usd"]
    assert 0 < paid < 120
    assert len(metered(bench.meter)) == 2 * 3 * found["labels"]["rows"] + found["rows"]["answered"]
    assert not found["routing"]["used"]
    assert "Routing does not pay here: the best fixed mix for the budget is used." in said
    router = RouterFolder.load(str(bench.folder / "run-router"))
    assert router.estimator.kind == "prior"
    assert router.held_out is not None
    assert found["accuracy"] is None, "a judge serves the labels; the run has one answer of each row"
    assert Decimal(cost["total"]) == metered_usd(bench) <= BUDGET
    assert Decimal(cost["labels"]) > spent_on_labels(bench), "the judge's dollars are in it"
    # nothing is gained by the dear engine, so it is not asked
    assert {row["model"] for row in bench.results().to_pylist()} == {"weak"}


def test_killed_while_it_labels_and_while_it_answers_it_goes_on_and_pays_for_no_label_twice(
    bench: Workbench, cluster: Cluster
) -> None:
    bench.corpus(500, lead=telling)
    settings = {"budget_usd": "0.02", "labels": LABELS | {"rows": 60}}
    command = bench.command(cluster, job(bench, **settings))
    refused = called(command, cluster)
    assert (refused.returncode, refused.stdout.count("labels"), metered(bench.meter)) == (1, 1, [])
    assert "Add --yes, or give a router." in refused.stderr

    def killed(when: Callable[[], bool]) -> None:
        process = subprocess.Popen(
            [*command, "--yes"], env=cluster.environment, cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 300
            while not when():
                assert process.poll() is None, "it ended before it was killed: the test shows nothing"
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()

    slow = {"latency_s": 0.2, "hold_after": 81}  # the first 20 rows are 60 calls, and 40 are 120
    with bench.serving(weak=slow, strong=slow):
        killed(when=lambda: len(metered(bench.meter)) > 80)
        assert (labels(bench)["rows"], labels(bench)["complete"]) == (20, False)
        wait_for_its_actors_to_go()
        let_go(bench.meter)
        killed(when=lambda: any((bench.output / "results").glob("part-*")))
        assert labels(bench)["complete"]
        labelled = spent_on_labels(bench)
        # what was out when it was killed may have been paid, so it goes on with more money
        found, _ = run(bench, **(settings | {"budget_usd": "0.05"}))
    assert found["rows"]["answered"] == 500
    assert len(set(bench.results()["query_id"].to_pylist())) == 500
    cost = found["cost_usd"]
    assert Decimal(cost["labels"]) == labelled == spent_on_labels(bench)
    assert Decimal(cost["spent"]) == money(bench.results())
    unknown = sum(Decimal(found[name]["lost_worst_case_usd"]) for name in ("labels", "calls"))
    assert unknown > 0
    assert Decimal(cost["total"]) <= metered_usd(bench) <= Decimal(cost["total"]) + unknown
    assert Decimal(cost["total"]) + unknown <= Decimal("0.05") == Decimal(cost["budget"])
