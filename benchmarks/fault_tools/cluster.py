"""A local cluster of several nodes: a head without room for work, and nodes that may be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(slots=True)
class LocalCluster:
    """A head and some nodes on this machine, each with its own raylet.

    The head has no CPUs: what a job starts lands on the nodes, so that the death of a node hits
    something. As on a cloud, a node that died is replaced.
    """

    nodes: int = 2
    node_cpus: int = 4
    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""
    _folder: Path = Path()
    _head: subprocess.Popen[bytes] | None = None
    _workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> LocalCluster:
        self._folder = Path(tempfile.mkdtemp(prefix="rtr-f-"))  # short: sockets lie below it
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else a busy machine starves the workers, and nothing else
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **self.environment,
        }
        (gcs, client) = free_ports(2)
        self.address = f"127.0.0.1:{gcs}"
        self._head = self._start(
            "head", "--head", f"--port={gcs}", f"--ray-client-server-port={client}", "--num-cpus=0",
            "--include-dashboard=false", f"--temp-dir={self._folder}",
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self._head.poll() is not None:
                raise RuntimeError(f"ray start ended: {self._log('head')}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", gcs), timeout=1).close()
                break
            time.sleep(0.2)
        for _ in range(self.nodes):
            self.add_node()
        return self

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        listen, grpc, metrics = free_ports(3)
        with open(self._folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [
                    str(BIN / "ray"), "start", "--block", "--disable-usage-stats",
                    *arguments, f"--dashboard-agent-listen-port={listen}",
                    f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}",
                    "--object-store-memory=200000000", "--node-ip-address=127.0.0.1",
                ],
                env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()[-2000:]

    def add_node(self) -> None:
        """Start a node; does not wait until it has joined."""
        self._workers.append(self._start("node", f"--address={self.address}", f"--num-cpus={self.node_cpus}"))

    def wait_for_nodes(self, timeout_s: float = 240.0) -> None:
        """Until all nodes have joined, again if need be: on a busy machine a node may give up.

        This process must be a driver.
        """
        import ray

        deadline = time.monotonic() + timeout_s
        wanted = self.nodes * self.node_cpus
        while ray.cluster_resources().get("CPU", 0) < wanted:  # type: ignore[no-untyped-call]
            for one in [one for one in self._workers if one.poll() is not None]:
                self._workers.remove(one)
                self.add_node()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{wanted} CPUs did not join: {self._log('node')}")
            time.sleep(0.3)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs below the head and the nodes."""
        found: list[psutil.Process] = []
        for one in (self._head, *self._workers):
            if one is not None and one.poll() is None:
                found += _tree(one.pid)
        return found

    def kill_node(self, number: int) -> int:
        """End a node as a power cut does: its raylet and all below it; gives the raylet's process id.

        Another node takes its place.
        """
        victim = self._workers.pop(number % len(self._workers))
        tree = _tree(victim.pid)
        raylet = next((p.pid for p in tree if _name(p) == "raylet"), victim.pid)
        for one in [p for p in tree if p.pid == raylet] + [p for p in tree if p.pid != raylet]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        victim.wait(10)
        self.add_node()
        return raylet

    def __exit__(self, *why: Any) -> None:
        import ray

        ray.shutdown()
        mine = self.processes()
        for one in (*self._workers, self._head):
            if one is not None and one.poll() is None:
                one.terminate()
        _, alive = psutil.wait_procs(mine, timeout=5)
        for left in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        for started in (*self._workers, self._head):
            if started is not None:
                started.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
