"""What dies on the way: an encoder actor, a replica, the driver. Nothing is lost, nothing comes twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rtr_ray import registry
from rtr_ray.distributed.ledger_actor import claim, release
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import DataError
from rtr_ray.schemas import stamp
from rtr_ray.storage import open_store, read_metadata
from rtr_ray.types import FloatArray
from tests.distributed.conftest import ROOT, Cluster
from tests.distributed.engine import let_go, metered, wait_for_lines
from tests.distributed.workbench import Workbench, called, money, wait_for_its_actors_to_go

pytestmark = pytest.mark.ray
_ENCODED = itertools.count()  # batches of this process


@dataclass(frozen=True)
class TellingEncoder:
    """A hash encoder that writes down in which process it works, and waits for the others to begin.

    Each process encodes `hold` batches and then waits for a file `go` beside the folder.
    """

    folder: str
    together: int = 0  # processes that must have come before anyone goes on
    hold: int = 0
    dim: int = 32
    kind: ClassVar[str] = "telling"

    @property
    def identity(self) -> str:
        return "telling"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        (Path(self.folder) / str(os.getpid())).touch()
        while len(list(Path(self.folder).iterdir())) < self.together:
            time.sleep(0.02)
        if self.hold and next(_ENCODED) >= self.hold:
            while not Path(self.folder).with_name("go").exists():
                time.sleep(0.02)
        time.sleep(0.1)
        return HashEncoder(self.dim).encode(texts)


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"fault-{tmp_path.name[:20]}")
    bench.pool()
    bench.router()
    return bench


def test_four_encoder_actors_share_two_gpus_and_one_may_die(bench: Workbench) -> None:
    pids = bench.folder / "pids"
    pids.mkdir()
    bench.router(encoder=TellingEncoder(str(pids)))  # type: ignore[arg-type]
    head = json.loads((bench.folder / "router" / "router.json").read_text())
    head["encoder"]["together"] = 5  # four actors, and this process, which trained the router
    head["encoder"]["hold"] = 22  # eleven tables of two batches: 44 of 64, when the four of them wait
    (bench.folder / "router" / "router.json").write_text(json.dumps(head))
    bench.corpus(4096, row_group_size=64)
    killed: list[int] = []

    def kill_one() -> None:
        while len(open_store(str(bench.output)).keys("tables/")) < 44:
            time.sleep(0.02)
        victim = next(int(path.name) for path in pids.iterdir() if int(path.name) != os.getpid())
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
        (bench.folder / "go").touch()

    killer = threading.Thread(target=kill_one, daemon=True)
    with bench.serving():
        killer.start()
        found = bench.run(
            encoder={"actors": 4, "num_cpus": 0.25, "num_gpus": 0.5, "batch_rows": 32},
            policy={"kind": "fixed", "candidate": "weak:vanilla"},
        )
    assert killed, "nobody was killed: the test shows nothing"
    assert found["rows"] == {"total": 4096, "answered": 4096, "failed": 0, "skipped_budget": 0}
    assert len(set(bench.results()["query_id"].to_pylist())) == 4096
    store = open_store(str(bench.output))
    rows: Counter[str] = Counter()
    for key in store.keys("tables/"):
        facts = stamp(read_metadata(store, key).metadata, "facts")
        rows[facts["worker"]] += facts["rows"]
    # Ray gives a restarted actor its old name: four names, each with its share of the work
    assert len(rows) == 4
    assert min(rows.values()) >= 0.15 * 4096, rows


def test_a_killed_replica_costs_no_row_and_what_is_paid_twice_is_reported(bench: Workbench) -> None:
    from ray import serve

    bench.corpus(600)
    pids: list[int] = []

    def kill_replica() -> None:
        wait_for_lines(bench.meter, 60)
        handle = serve.get_deployment_handle("FakeEngine", f"{bench.prefix}-strong")
        while handle.held.remote().result(timeout_s=60) < 150:  # they are on their way when the blow falls
            time.sleep(0.1)
        pids.extend(handle.processes.remote().result(timeout_s=60))
        os.kill(pids[0], signal.SIGKILL)
        let_go(bench.meter)

    killer = threading.Thread(target=kill_replica, daemon=True)
    with bench.serving(strong={"hold_after": 60}):
        killer.start()
        found = bench.run(policy={"kind": "fixed", "candidate": "strong:vanilla"})
    assert pids, "nobody was killed: the test shows nothing"
    assert found["rows"] == {"total": 600, "answered": 600, "failed": 0, "skipped_budget": 0}
    results = bench.results()
    assert len(set(results["query_id"].to_pylist())) == 600
    assert money(results) == Decimal(found["cost_usd"]["spent"])
    again = found["calls"]["sent_again"]
    assert again >= 150, "more than 150 requests were unanswered when the replica died"
    assert max(results["attempts"].to_pylist()) > 1
    # what was answered without our seeing it is covered by the worst case that is reported
    answered = len(metered(bench.meter))
    assert 600 <= answered <= 600 + again
    assert Decimal(found["calls"]["lost_worst_case_usd"]) > 0


def durable_rows(bench: Workbench) -> int:
    """The rows of all results parts."""
    store = open_store(str(bench.output))
    return sum(read_metadata(store, key).num_rows for key in store.keys("results/"))


def test_a_killed_driver_goes_on_where_it_stopped(bench: Workbench, cluster: Cluster) -> None:
    bench.corpus(500)
    command = bench.command(cluster)
    with bench.serving(weak={"hold_after": 150}, strong={"hold_after": 150}):
        first = subprocess.Popen(
            command, env=cluster.environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_lines(bench.meter, 100)
        deadline = time.monotonic() + 60
        while not durable_rows(bench) and time.monotonic() < deadline:
            time.sleep(0.05)
        first.kill()
        first.wait()
        before, durable = len(metered(bench.meter)), durable_rows(bench)
        assert 0 < before < 500
        wait_for_its_actors_to_go()  # nobody sees the answers to what was out
        let_go(bench.meter)
        second = called(command, cluster)
    assert second.returncode == 0, second.stdout + second.stderr
    results = bench.results()
    assert sorted(results["note"].to_pylist()) == sorted(f"note {i}" for i in range(500))
    found: dict[str, Any] = json.loads((bench.output / "summary.json").read_text())
    assert money(results) == Decimal(found["cost_usd"]["spent"])
    # only what was not durable when the driver died was asked again, and the first may have asked for all
    assert len(metered(bench.meter)) <= 500 + (500 - durable)
    assert durable > 0
    # and what was out just then may have been paid: the second session still says so
    assert found["calls"]["lost"] > 0
    assert Decimal(found["calls"]["lost_worst_case_usd"]) > 0


def test_of_two_drivers_on_one_cluster_the_second_is_refused_until_the_first_has_ended(
    tmp_path: Path, connected: Cluster
) -> None:
    uri = str(tmp_path / "run")  # stands for a bucket, which has no lock
    first = claim(uri, Decimal(1))
    other = claim(str(tmp_path / "another"), None)
    with pytest.raises(DataError) as caught:
        claim(uri, Decimal(1), patience_s=1.0)
    assert str(caught.value).startswith(f"Another run works on {uri} just now")
    release(first)
    release(first)  # at every ending; twice is no matter
    release(claim(uri, Decimal(1)))
    release(other)


def test_the_telling_encoder_can_be_named_in_a_router_folder() -> None:
    spec = registry.spec_of(TellingEncoder("x"), {})
    assert registry.build(spec, {}, "encoder") == TellingEncoder("x")
