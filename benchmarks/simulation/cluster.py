"""A Ray cluster and an S3 server of one's own, started as a user would start them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster."""

    address: str
    dashboard: str
    head: int  # process

    def processes(self, fits: Callable[[str], bool]) -> list[psutil.Process]:
        """Those of the cluster whose command line fits."""
        found = []
        for one in psutil.Process(self.head).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if fits(" ".join(one.cmdline())):
                    found.append(one)
        return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextlib.contextmanager
def cluster(cpus: int = 8) -> Iterator[Cluster]:
    """A head node with so many logical CPUs; its workers find the folder of the benchmarks."""
    gcs, dashboard, client, agent = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="rtr-ray-"))  # short: sockets lie below it
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [
        "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", "--num-gpus=0",
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}",
        "--object-store-memory=500000000",
    ]  # fmt: skip
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", *arguments],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        found = Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", process.pid)
        _wait(f"{found.dashboard}/api/version", process, folder / "start.log")
        yield found
    finally:
        import ray

        ray.shutdown()
        mine = [psutil.Process(process.pid)] if process.poll() is None else []
        mine += [child for one in mine for child in one.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        # `ray start` waits half a minute for each of its processes: end them ourselves, these and no others
        _, alive = psutil.wait_procs(mine, timeout=3)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def bucket(name: str) -> Iterator[Mapping[str, str]]:
    """A real S3 server on this machine with one bucket; gives the variables that lead to it."""
    from rtr_ray.storage import s3_client, s3_filesystem

    (port,) = free_ports(1)
    server = subprocess.Popen(
        [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ |= variables
    s3_client.cache_clear()
    s3_filesystem.cache_clear()
    try:
        for _ in range(240):
            with contextlib.suppress(Exception):  # until it listens
                s3_client().create_bucket(Bucket=name)
                break
            time.sleep(0.25)
        yield variables
    finally:
        server.terminate()
        server.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ray start ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.5)
    raise RuntimeError("no dashboard after 240 s")
