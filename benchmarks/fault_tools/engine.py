"""An engine that thinks nothing, in a real Ray Serve deployment, with a meter; and a slow encoder.

It has the one method of our engines, `answer_chunk`, so that a run takes the same way through
dispatch, ledger and results as with a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ray import serve

from benchmarks.fault_tools.meter import Meter
from rtr_ray.distributed.bundles import bundles
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.types import FloatArray

LATENCY_S = 0.25  # on average


def usage_of(model: str, text: str, samples: int, max_tokens: int) -> dict[str, int]:
    """What an answer takes: the same whenever the same is asked."""
    luck = hashlib.sha256(f"{model}{text}".encode()).digest()
    each = [min(5 + luck[1 + number] % 40, max_tokens) for number in range(samples)]
    return {"input_tokens": len(text.split()), "cached_input_tokens": 1, "output_tokens": sum(each)}


@serve.deployment(max_ongoing_requests=100_000, health_check_period_s=1, ray_actor_options={"num_cpus": 0.1})
class MeteredFake:
    """Answers everything with a number."""

    def __init__(self, model: str, meters: str) -> None:
        self._meter = Meter(Path(meters), model)
        self._model = model
        self._running: set[asyncio.Task[dict[str, Any]]] = set()

    async def answer_chunk(
        self, requests: Sequence[dict[str, Any]], lender: Any = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Replies as they finish; what nobody waits for any more is finished, and paid, all the same."""
        tasks = [asyncio.create_task(self._answer(i, dict(body), lender)) for i, body in enumerate(requests)]
        for task in tasks:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        async for some in bundles(map(asyncio.shield, tasks)):
            yield some

    async def _answer(self, index: int, body: dict[str, Any], lender: Any) -> dict[str, Any]:
        growing = _growing(body, lender)
        asked = self._meter.begin(body)
        text = " ".join(str(message["content"]) for message in body["messages"])
        luck = hashlib.sha256(text.encode()).digest()[0] / 255
        latency_s = LATENCY_S * 4 * luck**3  # few are slow
        await asyncio.sleep(latency_s)
        count = int(body.get("n") or 1)
        usage = usage_of(self._model, text, count, body["max_tokens"])
        whole = usage["output_tokens"]
        if growing is not None:  # token by token, cut where it is not paid for
            tokens = 0
            while tokens < whole and tokens < await growing.limit(tokens):
                tokens += 1
            usage["output_tokens"] = tokens
        if asked is not None:
            self._meter.pay(asked, usage)
        each, rest = divmod(usage["output_tokens"], count)
        choices = [
            {
                "text": "It is \\boxed{7}",
                "finish_reason": "stop" if usage["output_tokens"] == whole else "budget",
                "output_tokens": each + (rest if number == 0 else 0),
            }
            for number in range(count)
        ]
        return {"index": index, "choices": choices, "usage": usage, "latency_s": latency_s}

    def processes(self) -> list[int]:
        """This replica's process."""
        return [os.getpid()]


def _growing(body: dict[str, Any], lender: Any) -> Any:
    """An answer that asks the ledger for more while it grows; None where it is paid for in advance."""
    if "limit" not in body:
        return None
    lending = importlib.import_module("rtr_ray.distributed.lending")
    return lending.Extending.read(body, lender)


@dataclass(frozen=True)
class SlowEncoder:
    """A hash encoder that takes its time, and writes down in which process."""

    folder: str
    pause_s: float = 0.15
    dim: int = 64
    kind: ClassVar[str] = "slow"

    @property
    def identity(self) -> str:
        """Its name."""
        return "slow"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """As `HashEncoder`, later."""
        path = Path(self.folder) / str(os.getpid())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        time.sleep(self.pause_s)
        return HashEncoder(self.dim).encode(texts)
