"""How runs end and go on: planned only, told to stop, with failed rows; and why a row went where it did."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.config import load_pool
from rtr_ray.distributed.batch import plan_job, run_job
from rtr_ray.errors import DataError
from rtr_ray.explanation import explain
from rtr_ray.job import Job
from rtr_ray.run_folder import RunFolder
from rtr_ray.storage import open_store
from tests.distributed.conftest import ROOT, Cluster
from tests.distributed.engine import let_go, metered, wait_for_lines
from tests.distributed.test_batch import metered_usd
from tests.distributed.workbench import Workbench, called, money, screen

pytestmark = pytest.mark.ray
BUDGET: dict[str, Any] = {"policy": {"kind": "budget"}, "grader": None}


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"end-{tmp_path.name[:20]}")
    bench.pool()
    bench.router()
    return bench


def test_a_run_that_is_told_to_stop_pays_for_nothing_twice(bench: Workbench, cluster: Cluster) -> None:
    bench.corpus(600)
    command = bench.command(cluster)
    said = bench.folder / "said.txt"
    slow = {"latency_s": 1.5, "hold_after": 60}  # nothing more comes before it has heard of it
    with bench.serving(weak=slow, strong=slow):
        with said.open("w") as out:
            first = subprocess.Popen(
                command, env=cluster.environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
            )
        wait_for_lines(bench.meter, 60)
        first.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 120
        while "what has been asked is waited for" not in said.read_text():
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)
        let_go(bench.meter)
        assert first.wait(120) == 130, said.read_text()
        head = json.loads((bench.output / "run.json").read_text())
        assert head["status"] == "interrupted"
        # what was out came in: as many results as answers, and nothing lost
        answered = len(metered(bench.meter))
        assert 60 <= answered < 600
        assert len(bench.results()) == answered
        ledger = json.loads((bench.output / "ledger.json").read_text())
        assert (ledger["in_flight"], ledger["lost"]) == (0, 0)
        second = called(command, cluster)
    assert second.returncode == 0, second.stdout + second.stderr
    assert len(metered(bench.meter)) == len(bench.results()) == 600
    assert money(bench.results()) == metered_usd(bench)


def test_rows_that_failed_are_asked_again_only_when_that_is_wanted(bench: Workbench) -> None:
    bench.corpus(80, texts={7: "FLAKY: what is 2 + 2?", 8: "POISON, and what is 1 + 1?"})
    once = {"dispatch": {"chunk": 16, "attempts": 1, "commit_s": 0.2}}
    with bench.serving():
        first = bench.run(**once)
        assert first["rows"]["failed"] == 2
        asked = len(metered(bench.meter))
        assert bench.run(**once)["rows"]["failed"] == 2
        assert len(metered(bench.meter)) == asked
        again = run_job(Job.check(bench.job(**once)), screen(), retry_failed=True)
    assert again["rows"] == {"total": 80, "answered": 79, "failed": 1, "skipped_budget": 0}
    assert len(metered(bench.meter)) == asked + 1
    assert money(bench.results()) == Decimal(again["cost_usd"]["spent"]) == metered_usd(bench)


def test_a_plan_says_what_budgets_buy_and_the_run_goes_on_from_it(bench: Workbench) -> None:
    bench.corpus(400)
    file = bench.job(budget_usd="0.006", **BUDGET)
    plan = plan_job(Job.check(file), screen())
    assert metered(bench.meter) == []
    assert (plan["rows"], plan["unrouted"], plan["budget_usd"]) == (400, 0, "0.006")
    assert 0.97 * 0.006 <= plan["cost_usd"] <= 0.006
    weak, strong = plan["by_candidate"][1], plan["by_candidate"][0]
    assert (weak["candidate"], strong["candidate"]) == ("weak:vanilla", "strong:vanilla")
    assert weak["rows"] + strong["rows"] == 400
    costs = [point["cost_usd"] for point in plan["curve"]]
    accuracies = [point["accuracy"] for point in plan["curve"]]
    assert costs == sorted(costs)
    assert accuracies == sorted(accuracies)
    assert (accuracies[0], accuracies[-1]) == (pytest.approx(0.4), pytest.approx(0.8))
    assert any(point["budget_usd"] == 0.006 for point in plan["curve"])
    assert json.loads((bench.output / "run.json").read_text())["status"] == "planned"
    with bench.serving():
        found = bench.run(budget_usd="0.012", **BUDGET)  # another budget than was planned for
    # of so few rows the last ones may cost more than what is left; test_autopilot.py bounds them
    assert found["rows"]["answered"] >= 380
    assert found["rows"]["answered"] + found["rows"]["skipped_budget"] == 400
    # the last of five slices is planned while others are being answered, on a busy machine before much is
    # known (95.6% was seen); for a corpus of some size test_autopilot.py asks for 97%
    assert Decimal("0.9") * Decimal("0.012") <= Decimal(found["cost_usd"]["spent"]) <= Decimal("0.012")
    explain_rows(bench)


def explain_rows(bench: Workbench) -> None:
    """Every kind of row has its reasons."""
    folder, pool = RunFolder(open_store(str(bench.output))), load_pool(str(bench.folder / "pool.yaml"))
    rows = {row["model"]: row for row in bench.results().to_pylist()}
    assert set(rows) == {"weak", "strong"}
    for model, row in rows.items():
        found = explain(folder, row["query_id"], pool)
        assert found.chosen is not None
        assert (found.chosen.model, found.dual_price) == (model, row["dual_price"])
        assert [one.cost_usd for one in found.options] == sorted(one.cost_usd for one in found.options)
    cheap = " ".join(explain(folder, rows["weak"]["query_id"], pool).words())
    assert "weak:vanilla was chosen: expected to be right with 40.0%" in cheap
    assert "The next better candidate, strong:vanilla, adds 40.0 points" in cheap
    dear = " ".join(explain(folder, rows["strong"]["query_id"], pool).words())
    assert "more money would have changed nothing" in dear
    with pytest.raises(DataError, match="has no row 'nobody'"):
        explain(folder, "nobody", pool)
