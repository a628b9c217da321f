"""An engine that generates nothing: a real Ray Serve deployment with ChunkServer's one method.

What it answers, and at what length, is looked up or drawn (see `Source`). It writes down every answer
before it gives it: a meter outside of our ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve

from benchmarks.simulation.source import Source
from rtr_ray.distributed.bundles import bundles
from rtr_ray.distributed.lending import Extending, Lender


class SimulatedEngine:
    """Answers as its source says; cuts an answer where it is not paid for, as ChunkServer does."""

    def __init__(self, name: str, source: Source, meter: str, s_per_token: float) -> None:
        self._name, self._answers, self._s_per_token = name, source.open(), s_per_token
        self._meter = os.open(meter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # several replicas share it

    async def answer_chunk(
        self, requests: Sequence[dict[str, Any]], lender: Lender | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """As ChunkServer does."""
        work = (self._answer(i, dict(body), lender) for i, body in enumerate(requests))
        async with contextlib.aclosing(bundles(work)) as replies:
            async for some in replies:
                yield some

    async def _answer(self, index: int, body: dict[str, Any], lender: Lender | None) -> dict[str, Any]:
        growing = Extending.read(body, lender)
        system, text = (message["content"] for message in body["messages"])
        answer = self._answers(system, text)
        if answer.output_tokens > body["max_tokens"]:
            told = f"the answer has {answer.output_tokens} tokens, and max_tokens is {body['max_tokens']}"
            return {"index": index, "error": told, "transient": False, "maybe_paid": False}
        tokens = await self._generated(answer.output_tokens, growing)
        whole = tokens == answer.output_tokens
        line = f"{text.partition(chr(10))[0]}\t{self._name}\t{answer.input_tokens}\t{tokens}\n"
        os.write(self._meter, line.encode())
        choice = {
            "text": answer.text if whole else "",
            "finish_reason": "stop" if whole else "budget",
            "output_tokens": tokens,
        }
        usage = {"input_tokens": answer.input_tokens, "cached_input_tokens": 0, "output_tokens": tokens}
        took_s = self._s_per_token * tokens
        return {"index": index, "choices": [choice], "usage": usage, "latency_s": took_s}

    async def _generated(self, total: int, growing: Extending | None) -> int:
        """How many tokens there are in the end, in the time that they take."""
        made = 0
        while made < total:
            at = total
            if growing is not None:  # up to where it asks for more, or has to end
                held = growing.allowance
                at = min(total, max(made + 1, min(held.ask_at, held.tokens)))
            await asyncio.sleep(self._s_per_token * (at - made))
            made = at
            if growing is not None and made < total and made >= await growing.limit(made):
                break
        return made

    def processes(self) -> list[int]:
        """This replica's process."""
        return [os.getpid()]


@dataclass(frozen=True, slots=True)
class Metered:
    """One line of the meter."""

    row: str  # the first line of the text
    engine: str
    input_tokens: int
    output_tokens: int


def metered(meter: Path, after: int = 0) -> Iterator[Metered]:
    """What the engines say that they have answered, from a byte of the file on."""
    with meter.open() as file:
        file.seek(after)
        for line in file:
            row, engine, before, behind = line.rstrip("\n").split("\t")
            yield Metered(row, engine, int(before), int(behind))


@contextmanager
def serving(
    prefix: str, sources: Mapping[str, Source], meter: Path, s_per_token: float = 1e-4
) -> Iterator[None]:
    """With an application per deployment, named as the jobs that attach to them expect."""
    meter.touch()
    engine = serve.deployment(max_ongoing_requests=100_000, ray_actor_options={"num_cpus": 0.1})(
        SimulatedEngine
    )
    serve.start(proxy_location="Disabled")
    for name, source in sources.items():
        app = engine.bind(name, source, str(meter), s_per_token)
        serve.run(app, name=f"{prefix}-{name}", route_prefix=None)
    try:
        yield
    finally:
        for name in sources:
            serve.delete(f"{prefix}-{name}")
