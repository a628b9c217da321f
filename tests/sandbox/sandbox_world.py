"""A sandbox that plain tests can call, and a world around it in which every escape would leave a trace."""

import asyncio
import gc
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rtr_ray.sandbox import Execution, Isolation, Limits, Sandbox

T = TypeVar("T")

ISOLATIONS = {
    "namespaces": Isolation("namespaces", seccomp=True),
    "namespaces-bare": Isolation("namespaces", seccomp=False),
    "seccomp": Isolation("seccomp", seccomp=True),
    "rlimits-only": Isolation("rlimits-only", seccomp=False),
}
SLOTS = 16
PATIENT = Limits(cpu_s=10, wall_s=60.0)
"""Of every program that a test gives no limits: a machine that stands still for a while ends none."""


class Box:
    """A sandbox that a plain test can call."""

    def __init__(self, name: str, runner: asyncio.Runner) -> None:
        self.name = name
        self.isolation = ISOLATIONS[name]
        self.sandbox = Sandbox(self.isolation, limits=PATIENT, concurrency=SLOTS)
        self._runner = runner
        self._others = frozenset(sandbox_processes())  # of tests before, in this process

    def run(self, code: str, stdin: str = "", **options: Any) -> Execution:
        return self._runner.run(self.sandbox.run(code, stdin, **options))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def gather(self, *runs: Coroutine[Any, Any, Execution]) -> list[Execution]:
        async def all_of_them() -> list[Execution]:
            return list(await asyncio.gather(*runs))

        return self.wait(all_of_them())

    def processes(self) -> tuple[int, int]:
        """The launcher and the zygote: the two that stay."""
        launcher = self.sandbox.launcher_pid
        assert launcher is not None
        (zygote,) = children(launcher)
        return launcher, zygote

    @property
    def gets_no_threads(self) -> bool:
        """Where its processes are counted together with all others of the user."""
        return os.geteuid() != 0 and self.isolation.mode != "namespaces"

    def only_it_is_left(self, everywhere: bool = False) -> bool:
        """Whether no process but launcher and zygote remains, soon."""
        mode, filtering = self.isolation.mode, "filter" if self.isolation.seccomp else "bare"
        launcher, zygote = self.processes()
        return eventually(lambda: children(zygote) == []) and (
            not everywhere
            or eventually(
                lambda: (
                    {*sandbox_processes(mode=mode, filtering=filtering)} - self._others == {launcher, zygote}
                )
            )
        )

    def works(self) -> bool:
        return self.run("print(6 * 7)").stdout == "42\n"


@dataclass(frozen=True)
class World:
    """What an escape would touch."""

    secret: str
    folder: Path
    planted: Path
    tcp: socket.socket
    unix: socket.socket
    abstract: socket.socket
    sibling: "subprocess.Popen[bytes]"
    shared: int
    """The key of a System V shared memory segment that all may read and write."""

    def described(self, **more: object) -> str:
        """For a program's standard input: where to strike."""
        return json.dumps(
            {
                "planted": str(self.planted),
                "folder": str(self.folder),
                "port": self.tcp.getsockname()[1],
                "unix": self.unix.getsockname(),
                "abstract": self.abstract.getsockname()[1:].decode(),
                "parent": os.getpid(),
                "sibling": self.sibling.pid,
                "shared": self.shared,
                **more,
            }
        )

    def traces(self) -> list[str]:
        """What changed; empty where every escape failed. What is found is cleaned up."""
        found = []
        for listener in (self.tcp, self.unix, self.abstract):
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    break
                found.append(f"a connection to {listener.getsockname()!r}")
        for path in self.folder.iterdir():
            if path not in (self.planted, Path(self.unix.getsockname())):
                found.append(f"a new file {path.name}")
                path.unlink()
        if self.planted.read_text() != self.secret:
            found.append("the planted file changed")
        if self.sibling.poll() is not None:
            found.append("the sibling died")
        return found


def sandbox_processes(parent: int | None = None, mode: str = "", filtering: str = "") -> list[int]:
    """Every process that a sandbox of `parent` (this process) started: forks keep the command line."""
    wanted = [str(parent or os.getpid()).encode(), mode.encode(), filtering.encode()]
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = any(b"rtr_ray.sandbox.zygote" in word for word in line)
        if ours and all(want in (b"", word) for want, word in zip(wanted, line[-4:-1], strict=True)):
            found.append(int(pid))
    return found


def children(pid: int) -> list[int]:
    """The processes whose parent this is."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors() -> int:
    """How many this process holds, without those of what nobody refers to any more."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Whether it becomes true; polled, because the kernel takes a namespace apart in its own time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
