"""One real Ray cluster for all tests of a session, started as a user would: `ray start --head`."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

# A handle of Serve looks after itself in a thread, also when its cluster has gone; without this (read when
# Ray is imported) Ray would start a new cluster for it, beside the tests that come then.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
import ray

del os.environ["RAY_ENABLE_AUTO_CONNECT"]  # of this process alone

ROOT = Path(__file__).resolve().parents[2]
_CHANGED = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "HF_HUB_OFFLINE")  # of this process's environment


MARK = "RTR_TEST_CLUSTER"  # in the environment of all of a cluster's processes: which one it is


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    address: str
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now.

    The kernel gives none of these to whoever asks for any, as every connection does, and every worker of
    another cluster: it takes seconds until those are bound that asked here.
    """
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.SystemRandom().sample(range(20_000, 32_000), 1_000):
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"not {count} free ports among a thousand")


_RUNNING = contextlib.ExitStack()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the cluster after the last of the tests that it is for: an idle one takes a part of a core."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _RUNNING.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A head with 8 logical CPUs and 2 logical GPUs; its own ports and folder; ended by its own process."""
    try:
        yield _RUNNING.enter_context(_started())
    finally:
        _RUNNING.close()


@contextlib.contextmanager
def _started() -> Iterator[Cluster]:
    gcs, dashboard, client, agent = free_ports(4)
    folder = tempfile.mkdtemp(prefix="rtr-ray-")  # short: sockets lie below it
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        MARK: folder,
    }
    arguments = [
        "--head", "--block", "--disable-usage-stats", "--num-cpus=8", "--num-gpus=2",
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}",
        "--min-worker-port=0", "--max-worker-port=0",  # any: another cluster has the usual ones, perhaps
        "--object-store-memory=500000000",
    ]  # fmt: skip
    log = open(Path(folder) / "start.log", "w")  # noqa: SIM115
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), "start", *arguments],
        env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    before = dict(os.environ)
    os.environ.update({name: environment[name] for name in _CHANGED})
    try:
        found = Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
        _wait(found, process, Path(folder) / "start.log")
        yield found
    finally:
        for name in _CHANGED:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        _leave(60)
        # `ray start` waits half a minute for each of its processes: end them ourselves, these and no others
        head = _process(process.pid)
        mine = [head, *head.children(recursive=True)] if head else []
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(mine, timeout=3)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(30)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _leave(patience_s: float) -> None:
    """Stop being a driver; one that cannot let go must not keep the tests behind it."""
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(patience_s)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _wait(cluster: Cluster, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ray start ended: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{cluster.dashboard}/api/version", timeout=2) as reply:
                assert reply.status == 200
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no dashboard after 180 s: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def connected(cluster: Cluster) -> Cluster:
    """This process is a driver of the cluster."""
    import logging

    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    return cluster


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Writes a YAML file into the test's folder."""
    import yaml

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write
