"""Which processes a fault may kill. The only file that knows them by the names that they bear.

Ray writes an actor's class into its process's title; vLLM names its engine process. If a class
of ours is renamed, its pattern here changes and nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil

TITLES = {
    "dispatch": re.compile(r"^ray::.*Dispatch", re.IGNORECASE),
    "ledger": re.compile(r"^ray::\w*Ledger", re.IGNORECASE),
    "encoder": re.compile(r"^ray::.*(TableActor|Encod)", re.IGNORECASE),
    "replica": re.compile(r"^ray::ServeReplica:"),
    "engine": re.compile(r"VLLM::Engine"),
}
OURS = ("dispatch", "ledger", "encoder")
"""Actors of a run: none of them outlives it."""


def find(victim: str, processes: Iterable[psutil.Process], hints: Path | None = None) -> list[int]:
    """The process ids of a kind of victim.

    Args:
        victim: A key of `TITLES`.
        processes: Where to look.
        hints: A folder with a file for each process that is one, whatever its title is.
    """
    named = {int(path.name) for path in hints.iterdir()} if hints is not None and hints.is_dir() else set()
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.pid in named or TITLES[victim].search(title(process)):
                found.append(process.pid)
    return sorted(found)


def title(process: psutil.Process) -> str:
    """What a process calls itself."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()) or process.name()
    return ""


def kill(pid: int) -> bool:
    """SIGKILL; tells whether there was anybody."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
