"""What every test has: no network but this machine's loopback."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# the same examples on every machine, and no deadline: a shared core stands still now and then
settings.register_profile("calm", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("calm")

pytest_plugins = ["tests.s3"]

_LOOPBACK = ("127.", "::1", "localhost")


class NetworkRefusedError(OSError):
    """A test tried to reach another machine."""


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.node.get_closest_marker("ray") or request.node.get_closest_marker("vllm"):
        yield  # Ray talks to this machine under its own address
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
            raise NetworkRefusedError(f"tests reach no other machine; this one tried {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What stands on one cluster, or on engines, runs in one process each; the rest beside them."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return next((name for name, of in _TOGETHER.items() if of.match(nodeid)), nodeid)

    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: a session that is ended from outside never gets to its summary."""
    again = report.outcome == "rerun"  # .ci/run tries once more, and whoever reads its log is to know of it
    if (report.failed or again) and "PYTEST_XDIST_WORKER" not in os.environ:
        what = "failed, and is tried once more" if again else "failed"
        why = str(report.longrepr).strip().splitlines()[-1:]
        sys.__stdout__.write(f"\n{what}: {report.nodeid} ({report.when}): {' '.join(why)[:300]}\n")
        sys.__stdout__.flush()


_TOGETHER = {  # each starts a cluster of its own; both take about as long
    "engines, and some that need a cluster": re.compile(r"tests/distributed/(e2e/|test_[n-z])"),
    "others that need a cluster": re.compile(r"tests/distributed/"),
}
