"""A log with one line of JSON for each request. It holds no key, and no prompt unless that is wanted."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from rtr_ray.online.trail import Trail

_MOST_BYTES = 32 * 2**20  # of one file
_MOST_FILES = 16  # of a folder; the oldest go
_MOST_WAITING = 50_000


@dataclass(slots=True)
class RequestLog:
    """Gathers lines, and writes them when it is told to: a request waits for no disk.

    Args:
        folder: Local; each replica has files of its own in it.
        prompts: Whether a line holds what the router read.
        most_bytes: After so many a new file begins.
        most_files: So many stay.
    """

    folder: Path
    prompts: bool = False
    most_bytes: int = _MOST_BYTES
    most_files: int = _MOST_FILES
    lost: int = 0  # lines that could not be kept
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    _file: Path | None = None
    _lock: Lock = field(default_factory=Lock)

    def add(self, trail: Trail) -> None:
        """Keep a request that is over for the next `write`."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(trail.line(self.prompts))
        else:
            self.lost += 1

    def taken(self) -> list[dict[str, Any]]:
        """What was gathered since the last call."""
        lines, self._waiting = self._waiting, []
        return lines

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write lines, in any thread; those that cannot be written (a full disk) are counted as lost."""
        with self._lock:
            try:
                with self._place().open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
            except OSError:
                self._file = None
                self.lost += len(lines)

    def _place(self) -> Path:
        """The file to write to."""
        if self._file is None or (self._file.exists() and self._file.stat().st_size >= self.most_bytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"requests-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = self.folder / name
            self._file.touch(mode=0o600)
            self._forget()
        return self._file

    def _forget(self) -> None:
        files = sorted(self.folder.glob("requests-*.jsonl"), key=os.path.getmtime)
        for old in files[: -self.most_files]:
            with contextlib.suppress(OSError):  # another replica was faster
                old.unlink()
