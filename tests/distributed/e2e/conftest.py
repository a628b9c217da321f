"""The embedded pool, served once per session by real vLLM."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rtr_ray.config import load_pool, pool_path
from rtr_ray.embedded.questions import draw
from tests.distributed.conftest import MARK, Cluster
from tests.distributed.e2e.serving import Online, online_endpoint
from tests.distributed.workbench import Workbench

_RUNNING = contextlib.ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the engines after the last of the tests that they are for."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _RUNNING.close()


@pytest.fixture(scope="session")
def served(connected: Cluster) -> Iterator[str]:
    """The prefix of the running applications of the embedded pool, one per deployment."""
    try:
        yield _RUNNING.enter_context(_served())
    finally:
        _RUNNING.close()


@contextlib.contextmanager
def _served() -> Iterator[str]:
    from rtr_ray.distributed.demo import APPS
    from rtr_ray.distributed.deployments import Deployments

    everything = list(load_pool("embedded").deployments.values())
    deployments = Deployments(APPS)
    deployments.start(everything)
    try:
        deadline = time.monotonic() + 600
        while not all(deployments.ready(everything).values()):
            assert time.monotonic() < deadline, "the engines did not start within 10 minutes"
            time.sleep(1)
        yield APPS
    finally:
        deployments.stop(everything)


@pytest.fixture(scope="session")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Online]:
    """The embedded `nano`, served by the command line on a cluster of its own."""
    try:
        yield _RUNNING.enter_context(online_endpoint(tmp_path_factory.mktemp("online")))
    finally:
        _RUNNING.close()


@pytest.fixture
def nano(tmp_path: Path, connected: Cluster) -> Workbench:
    """A bench whose pool is the embedded `nano` alone, with held-out questions and their answers."""
    return Workbench(tmp_path, "none")


def embedded_part(bench: Workbench, model: str, strategies: dict[str, Any]) -> None:
    """Write a pool of one embedded model, and a router for it."""
    whole = yaml.safe_load(pool_path("embedded").read_text())
    deployment = whole["deployments"][model]
    deployment["source"] = str(pool_path("embedded").parent / deployment["source"])
    bench.pool(
        deployments={model: deployment},
        models={model: whole["models"][model]},
        strategies={name: whole["strategies"][name] | more for name, more in strategies.items()},
        exclude=[],
    )
    bench.router({model: 0.5})


def questions(
    bench: Workbench, count: int, change: Callable[[int, str], str] = lambda _, query: query
) -> None:
    """Write held-out questions as the bench's corpus."""
    drawn = draw("test", count, seed=7)
    table = pa.table(
        {
            "question": [change(i, one.query) for i, one in enumerate(drawn)],
            "sum": [one.gold for one in drawn],
        }
    )
    pq.write_table(table, bench.folder / "corpus.parquet", row_group_size=200)


def engine_processes(cluster: Cluster) -> set[int]:
    """vLLM's own processes on a cluster, by the names that vLLM gives them; other tests may have theirs."""
    found = set()
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        if "VLLM::" in " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])]):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.environ().get(MARK) == cluster.environment[MARK]:
                    found.add(process.info["pid"])
    return found
