"""Real engines: what dies under a job, what they refuse, several samples in one request."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from rtr_ray.distributed.ledger_actor import NAMESPACE, ledger_name
from rtr_ray.storage import open_store
from tests.distributed.conftest import Cluster
from tests.distributed.e2e.conftest import embedded_part, engine_processes, questions
from tests.distributed.workbench import Workbench, money

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

COUNT = 2800
BETWEEN = 150  # rows that become durable before the second blow: the replacement works
OUT = 150  # requests that are out when a blow falls


def _durable(bench: Workbench) -> int:
    return sum(pq.read_metadata(path).num_rows for path in bench.output.glob("results/part-*.parquet"))


def _out(bench: Workbench) -> int:
    """Requests that are out, by the run's own ledger; 0 before there is one."""
    try:
        ledger = ray.get_actor(ledger_name(open_store(str(bench.output)).uri), NAMESPACE)
        return int(ray.get(ledger.snapshot.remote()).balance.in_flight)
    except ValueError:
        return 0


def _engine(cluster: Cluster, others: set[int]) -> psutil.Process:
    """The engine process that the job under test has started.

    What it forks bears its name until it has one of its own, and may be gone when we look closer.
    """
    for _ in range(200):
        with contextlib.suppress(psutil.NoSuchProcess):
            found = [psutil.Process(pid) for pid in engine_processes(cluster) - others]
            cores = {one.pid: one for one in found if "EngineCore" in one.name()}
            own = [one for one in cores.values() if one.ppid() not in cores]
            if len(own) == 1:
                return own[0]
        time.sleep(0.05)
    raise AssertionError("the job's own engine was not found")


def _kill_both(bench: Workbench, cluster: Cluster, others: set[int], over: threading.Event) -> dict[str, int]:
    """End the engine process below the replica, with many requests out; when it is back, the replica.

    Gives how many were out at each blow, as far as it came until the run was over.
    """
    killed: dict[str, int] = {}
    durable = 0
    for victim in ("engine", "replica"):
        # a call to the replica would wait behind the requests: its processes are found from outside
        while _durable(bench) < durable + BETWEEN or (out := _out(bench)) < OUT:
            if over.wait(0.02):
                return killed
        engine = _engine(cluster, others)
        replica = next(one for one in engine.parents() if "ServeReplica" in " ".join(one.cmdline()))
        os.kill(engine.pid if victim == "engine" else replica.pid, signal.SIGKILL)
        killed[victim], durable = out, _durable(bench)
    return killed


def test_what_dies_with_a_hundred_answers_on_the_way_costs_no_row_and_leaves_no_process(
    nano: Workbench, connected: Cluster
) -> None:
    embedded_part(nano, "nano", {"cot": {}})
    questions(nano, COUNT)
    others = engine_processes(connected)  # those of the served pool, if another test started it
    over = threading.Event()
    with ThreadPoolExecutor(1) as beside:
        killing = beside.submit(_kill_both, nano, connected, others, over)
        try:
            found = nano.run(
                policy={"kind": "fixed", "candidate": "nano:cot"},
                dispatch={"chunk": 64, "backoff_s": 0.2, "commit_s": 0.1, "commit_rows": 50},
                cluster={},
            )
        finally:
            over.set()
    killed = killing.result()
    assert list(killed) == ["engine", "replica"], "not both were killed: the test shows too little"
    assert found["rows"] == {"total": COUNT, "answered": COUNT, "failed": 0, "skipped_budget": 0}
    results = nano.results()
    assert len(set(results["query_id"].to_pylist())) == results.num_rows == COUNT
    assert money(results) == Decimal(found["cost_usd"]["spent"])
    # some answers come between a look and its blow
    assert found["calls"]["sent_again"] >= 100, (found["calls"], killed)
    assert Decimal(found["calls"]["lost_worst_case_usd"]) > 0
    assert max(results["attempts"].to_pylist()) > 1
    deadline = time.monotonic() + 60
    while (left := engine_processes(connected) - others) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"{len(left)} engine processes outlived the job"


def test_what_an_engine_refuses_becomes_a_row_and_not_the_end(nano: Workbench, served: str) -> None:
    embedded_part(nano, "nano", {"vanilla": {}})
    bad = {3: "7 " * 50_000, 8: "What is 12 + 30? " * 200}
    questions(nano, 60, lambda i, query: bad.get(i, query))
    found = nano.run(policy={"kind": "fixed", "candidate": "nano:vanilla"}, cluster={"serve_app": served})
    assert found["rows"] == {"total": 60, "answered": 58, "failed": 2, "skipped_budget": 0}
    failed = [row for row in nano.results().to_pylist() if row["status"] == "failed"]
    assert {row["question"] for row in failed} == set(bad.values())
    assert all("context" in row["error"] for row in failed), [row["error"] for row in failed]
    assert [row["attempts"] for row in failed if row["question"] == bad[8]] == [1], "not sent again"
    assert money(nano.results()) == Decimal(found["cost_usd"]["spent"])


def test_several_samples_travel_in_one_request_and_the_majority_answers(nano: Workbench, served: str) -> None:
    embedded_part(
        nano, "nano", {"cot": {"samples": [1, 3], "select": "majority", "sampling": {"temperature": 0.7}}}
    )
    questions(nano, 40)
    policy = {"kind": "fixed", "candidate": "nano:cot@3"}
    found = nano.run(policy=policy, cluster={"serve_app": served})
    assert found["rows"]["answered"] == 40
    several = False
    for row in nano.results().to_pylist():
        samples = row["all_samples"]
        assert len(samples) == 3
        assert sum(sample["output_tokens"] for sample in samples) == row["output_tokens"]
        assert row["input_tokens"] < 150, "the prompt is charged once"
        answers = [sample["answer"] for sample in samples]
        assert answers.count(row["answer"]) == max(answers.count(one) for one in answers)
        several |= len(set(answers)) > 1
    assert several, "at this temperature some samples differ"
    assert money(nano.results()) == Decimal(found["cost_usd"]["spent"])
