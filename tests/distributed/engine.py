"""An engine that thinks nothing: a real Ray Serve deployment with ChunkServer's one method.

It answers sums, right or wrong as its skill decides, writes down every answer before it gives it
(a meter outside of our ledger), and does odd things when a query says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ray import serve

from rtr_ray.distributed.bundles import bundles
from rtr_ray.distributed.lending import Extending, Lender

_SUM = re.compile(r"(\d+) \+ (\d+)")


@serve.deployment(max_ongoing_requests=100_000, health_check_period_s=1, ray_actor_options={"num_cpus": 0.1})
class FakeEngine:
    """Answers `a + b`; right for as large a share of the queries as its skill."""

    def __init__(
        self,
        name: str,
        skill: float,
        meter: str,
        latency_s: float = 0.0,
        slow_one: float = 1.0,
        together: int = 1,
        hold_after: int | None = None,
    ) -> None:
        """`slow_one`: how many times as long one replica takes; `together`: so many must have come first.

        `hold_after`: once all have given so many answers, no other is given before `let_go`.
        """
        self._name, self._skill, self._latency_s = name, skill, latency_s
        self._process, self._together = os.getpid(), together
        self._hold_after, self._held = hold_after, 0
        self._meter = Path(meter)
        if slow_one != 1.0:
            with contextlib.suppress(FileExistsError):  # who comes first is the slow one
                self._meter.with_suffix(f".{name}-slow").touch(exist_ok=False)
                self._latency_s *= slow_one
        self._meter.with_suffix(f".{name}-{self._process}").touch()
        self._seen: set[str] = set()

    async def answer_chunk(
        self, requests: Sequence[dict[str, Any]], lender: Lender | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """As ChunkServer does; what nobody waits for any more is answered all the same."""
        tasks = [asyncio.create_task(self._answer(i, dict(body), lender)) for i, body in enumerate(requests)]
        async for some in bundles(map(asyncio.shield, tasks)):
            yield some

    async def _answer(self, index: int, body: dict[str, Any], lender: Lender | None) -> dict[str, Any]:
        growing = Extending.read(body, lender)
        text = " ".join(str(message["content"]) for message in body["messages"])
        for _ in range(1200 if self._together > 1 else 0):
            if len(list(self._meter.parent.glob(f"*.{self._name}-[0-9]*"))) >= self._together:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(self._latency_s * (20 if "SLOW" in text else 1))
        if "POISON" in text:
            return {"index": index, "error": "refused: POISON", "transient": False, "maybe_paid": False}
        if "FLAKY" in text and text not in self._seen:
            self._seen.add(text)
            return {"index": index, "error": "try again", "transient": True, "maybe_paid": False}
        count = body.get("n", 1)
        choices = [self._choice(text, body, number) for number in range(count)]
        if growing is not None:
            choices = [await self._grown(choices[0], growing)]
        await self._hold()
        usage = {
            "input_tokens": len(text.split()),
            "cached_input_tokens": 1,
            "output_tokens": sum(choice["output_tokens"] for choice in choices),
        }
        told = {
            "engine": self._name,
            "process": self._process,
            "text": text,
            "max_tokens": body["max_tokens"],
        }
        line = json.dumps(told | usage)
        with self._meter.open("a") as file:  # appended in one write: several replicas share it
            file.write(line + "\n")
        return {"index": index, "choices": choices, "usage": usage, "latency_s": self._latency_s}

    async def _hold(self) -> None:
        self._held += 1
        for _ in range(3000):
            if self._hold_after is None or self._meter.with_suffix(".go").exists():
                break
            if not self._meter.exists() or self._meter.read_bytes().count(b"\n") < self._hold_after:
                break
            await asyncio.sleep(0.1)
        self._held -= 1

    def _choice(self, text: str, body: dict[str, Any], number: int) -> dict[str, Any]:
        found = _SUM.search(text)
        luck = hashlib.sha256(f"{self._name}{text}{number}".encode()).digest()
        right = luck[0] / 255 < self._skill or "EASY" in text
        total = sum(map(int, found.groups())) if found else 0
        answer = total if right else total + 1
        program = "Python program" in text
        words = f"```python\nprint({answer})\n```" if program else f"I think it is \\boxed{{{answer}}}"
        tokens = min(5 + luck[1] % 40, body["max_tokens"])
        finish = "length" if tokens == body["max_tokens"] else "stop"
        return {"text": words, "finish_reason": finish, "output_tokens": tokens}

    async def _grown(self, whole: dict[str, Any], growing: Extending) -> dict[str, Any]:
        """The answer token by token, cut where it is not paid for."""
        total = whole["output_tokens"]
        for tokens in range(total):
            if tokens >= await growing.limit(tokens):
                text = whole["text"][: len(whole["text"]) * tokens // total]
                return {"text": text, "finish_reason": "budget", "output_tokens": tokens}
        return whole

    def processes(self) -> list[int]:
        """This replica's process."""
        return [os.getpid()]

    def held(self) -> int:
        """How many answers this replica keeps back."""
        return self._held


def start(prefix: str, engines: dict[str, dict[str, Any]], meter: Path) -> None:
    """Run one application per engine, named as the jobs that attach to them expect."""
    serve.start(proxy_location="Disabled")
    for name, options in engines.items():
        serve.run(
            FakeEngine.options(num_replicas=options.pop("replicas", 1)).bind(
                name, meter=str(meter), **options
            ),
            name=f"{prefix}-{name}",
            route_prefix=None,
        )


def stop(prefix: str, engines: dict[str, dict[str, Any]]) -> None:
    """Take them down."""
    for name in engines:
        serve.delete(f"{prefix}-{name}")


def metered(meter: Path) -> list[dict[str, Any]]:
    """What the engines say that they have answered."""
    text = meter.read_text() if meter.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # one may be half written


def let_go(meter: Path) -> None:
    """What engines keep back (`hold_after`) is given now."""
    meter.with_suffix(".go").touch()


def wait_for_lines(meter: Path, count: int, timeout_s: float = 120.0) -> None:
    """Until so many answers were given."""
    deadline = time.monotonic() + timeout_s
    while len(metered(meter)) < count:
        assert time.monotonic() < deadline, f"only {len(metered(meter))} answers in {timeout_s} s"
        time.sleep(0.05)
