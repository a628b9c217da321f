"""What the serving side writes down by itself: which requests came, and which were answered and so paid.

The meter is the campaign's ground truth. It knows nothing of the ledger: an engine appends a line
when a request reaches it (`begun.jsonl`) and another before it gives the answer (`paid.jsonl`).
A query is known by its text, which carries its id between brackets.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN = "[a-z0-9-]+"  # how a run may be named
_TAG = re.compile(rf"\[(?P<run>{RUN})/(?P<row>\d+)\]")
_BEGINNINGS = {"Reason": "cot", "Draft": "cod", "Write a Python": "pal"}  # of the embedded pool's systems


def tag(run: str, row: int) -> str:
    """What a query's text carries, so that the meter knows it."""
    return f"[{run}/{row}]"


def query_id(run: str, row: int) -> str:
    """The id of a corpus row."""
    return f"{run}-{row:05d}"


def strategy_of(messages: Sequence[dict[str, Any]]) -> str:
    """The strategy that a conversation was made by, read off its system message."""
    system = next((str(m["content"]) for m in messages if m["role"] == "system"), "")
    named = re.search(r"\[strategy (\w+)\]", system)
    if named:
        return named[1]
    return next((name for begin, name in _BEGINNINGS.items() if system.startswith(begin)), "vanilla")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it reached an engine."""

    run: str
    query_id: str
    candidate: str
    attempt: int  # the how manieth of this query that reached a replica of this deployment

    def line(self, **more: Any) -> str:
        """As it is written down."""
        return json.dumps(
            {"query_id": self.query_id, "candidate": self.candidate, "attempt": self.attempt, **more}
        )


@dataclass(slots=True)
class Meter:
    """The engine's side: appends lines, each in one write, to two files for each run."""

    folder: Path
    model: str
    _files: dict[Path, int] = field(default_factory=dict)
    _asked: dict[str, Counter[str]] = field(default_factory=dict)

    def begin(self, body: dict[str, Any]) -> Asked | None:
        """Write down that a request came; None if its query carries no id."""
        text = str(body["messages"][-1]["content"])
        found = _TAG.search(text)
        if found is None:
            return None
        run, name = found["run"], query_id(found["run"], int(found["row"]))
        samples = int(body.get("n") or 1)
        candidate = f"{self.model}:{strategy_of(body['messages'])}" + (f"@{samples}" if samples > 1 else "")
        if run not in self._asked:  # a replica that took the place of a dead one goes on counting
            self._asked[run] = Counter(line["query_id"] for line in lines(self.folder / run / "begun.jsonl"))
        self._asked[run][name] += 1
        asked = Asked(run, name, candidate, self._asked[run][name])
        self._append(run, "begun.jsonl", asked.line())
        return asked

    def pay(self, asked: Asked, usage: dict[str, int]) -> None:
        """Write down that a request was answered, before the answer is given."""
        self._append(asked.run, "paid.jsonl", asked.line(model=self.model, at=time.time(), **usage))

    def _append(self, run: str, name: str, line: str) -> None:
        path = self.folder / run / name
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self._files[path], (line + "\n").encode())


def lines(path: Path) -> list[dict[str, Any]]:
    """What a meter's file says; an unfinished last line, of an engine that was killed, is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


@dataclass(frozen=True, slots=True)
class Reading:
    """The campaign's side: what the meters say of one run."""

    folder: Path  # of the run

    def begun(self) -> list[dict[str, Any]]:
        """Requests that reached an engine."""
        return lines(self.folder / "begun.jsonl")

    def paid(self) -> list[dict[str, Any]]:
        """Requests that were answered."""
        return lines(self.folder / "paid.jsonl")

    def paid_count(self) -> int:
        """How many were answered; cheap."""
        path = self.folder / "paid.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def quiet(self, still_s: float = 1.0, most_s: float = 20.0) -> None:
        """Wait until nothing more is written: an engine goes on with what nobody waits for any more."""
        deadline, last, since = time.monotonic() + most_s, -1, time.monotonic()
        while time.monotonic() < deadline:
            count = self.paid_count()
            if count != last:
                last, since = count, time.monotonic()
            elif time.monotonic() - since >= still_s:
                return
            time.sleep(0.1)
