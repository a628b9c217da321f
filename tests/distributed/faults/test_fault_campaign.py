"""The fault campaign in short: two faults that a run survives, and ledgers that are broken on purpose."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from benchmarks.fault_tools import engines
from benchmarks.fault_tools.audit import Findings
from benchmarks.fault_tools.campaign import Site, run_case
from benchmarks.fault_tools.case import Case, Fault
from benchmarks.fault_tools.s3 import BUCKET, S3
from rtr_ray.storage import s3_client, s3_filesystem
from tests.distributed.conftest import ROOT, Cluster

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class SharedCluster:
    """The cluster of the test session as a campaign sees it; it has one node, which nobody kills."""

    address: str
    environment: dict[str, str]
    nodes: int = 1

    def processes(self) -> list[psutil.Process]:
        port = f"--port={self.address.rpartition(':')[2]}"
        for process in psutil.process_iter():
            try:
                if "start" in process.cmdline() and port in process.cmdline():
                    return process.children(recursive=True)
            except psutil.Error:
                continue
        raise AssertionError("the session's cluster is gone")

    def kill_node(self, number: int) -> int:
        raise AssertionError("there is one node")


@pytest.fixture(scope="module")
def site(connected: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("faults")
    engines.serve_fake(folder / "meters")
    yield Site(folder, SharedCluster(connected.address, connected.environment))
    engines.stop_fake()
    shutil.rmtree(folder, ignore_errors=True)


def struck(site: Site, case: Case) -> Findings:
    """A run that its fault came in time for: where this process stands still, it may be over before."""
    for number in range(3):
        found = run_case(site, replace(case, name=f"{case.name}-{number}"))
        if found.kills or found.s3_faults:
            break
    return found


def settled(found: Findings) -> None:
    assert found.completed, found.said
    assert not found.missed, "nothing went wrong: the test shows nothing"
    assert found.losses == {}, found
    assert found.calls_unexplained == 0
    assert found.processes_left == 0


def test_a_driver_that_is_killed_under_a_binding_budget_loses_and_doubles_nothing(site: Site) -> None:
    faults = (Fault("driver", share=0.3),)
    found = struck(site, Case("driver", "driver", 5, faults, rows=300, budget_share=0.8))
    settled(found)
    assert found.kills == 1
    assert found.exit_codes == [-9, 3]
    assert found.usd_metered > 0
    assert found.calls_in_flight > 0


def test_a_bucket_that_fails_every_second_request_for_a_while_loses_and_doubles_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = (Fault("s3", share=0.2, lasts_s=2.0, strength=0.5),)
    with S3(seed=3) as s3:
        for name, value in s3.variables(through_proxy=False).items():
            monkeypatch.setenv(name, value)
        s3_client.cache_clear()
        s3_filesystem.cache_clear()
        s3_client().create_bucket(Bucket=BUCKET)
        through = Site(site.folder, site.cluster, s3, variables=s3.variables())
        found = struck(through, Case("bucket", "s3", 6, faults, rows=200, place="s3"))
    s3_client.cache_clear()
    s3_filesystem.cache_clear()
    settled(found)
    assert found.s3_faults > 0


def broken(site: Site, what: str, budget_share: float | None = None) -> Findings:
    """A run without any fault, in which rtr-ray itself is broken."""
    here = Path(__file__).parent / "broken"
    variables = {"RTR_FAULTS_BREAK": what, "PYTHONPATH": f"{here}:{ROOT}"}
    site = Site(site.folder, site.cluster, variables=variables, patience_s=0.0)
    return run_case(
        site, Case(f"broken-{what.replace(',', '-')}", "broken", 7, (), rows=120, budget_share=budget_share)
    )


def test_a_ledger_that_drops_every_tenth_settlement_is_found_out(site: Site) -> None:
    found = broken(site, "forget")
    assert found.losses == {"unfinished": 1}, "the run's own check of its books is the first to notice"
    assert "ledger" in found.said[0]


def test_a_wrong_price_and_a_blind_ledger_are_found_out_by_the_meter(site: Site) -> None:
    found = broken(site, "misprice,generous", budget_share=0.6)
    assert found.completed, "the run itself sees nothing: its books and its results agree"
    assert found.losses.keys() == {"usd_unaccounted", "usd_overspent"}
    assert found.losses["usd_overspent"] == found.usd_metered - (found.budget_usd or 0)
