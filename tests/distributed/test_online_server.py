"""What a replica says of a call that is stopped: all that its engine will have counted, and no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytestmark = pytest.mark.ray


class Tokens:
    """An engine's stream, a token at a time; notes how many it has counted when it is closed."""

    def __init__(self) -> None:
        self.counted = 0
        self.closed_at: int | None = None
        self.go_on = asyncio.Event()

    async def lines(self) -> AsyncIterator[str]:
        try:
            for number in range(1, 1000):
                await asyncio.wait_for(self.go_on.wait(), 30)
                await asyncio.sleep(0)
                self.counted = number
                choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
                usage = {"prompt_tokens": 7, "completion_tokens": number, "total_tokens": 7 + number}
                yield f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n"
        finally:
            self.closed_at = self.counted


@pytest.fixture
async def server() -> Any:
    """A server without vLLM."""
    from rtr_ray.distributed.online.server import OnlineServer

    class Talking(OnlineServer):
        tokens = Tokens()

        async def _source(self, body: dict[str, Any]) -> Any:
            return self.tokens.lines()

    return Talking.__new__(Talking)


async def test_what_a_stopped_call_is_said_to_have_generated_is_all_that_the_engine_counts(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtr_ray.distributed.online.server._HALT_S", 60.0)
    seen: list[Any] = []

    async def read() -> None:
        async for piece in server.generate("a", {"messages": []}, True):
            seen.append(piece["counted"])
            if len(seen) == 3:
                server.tokens.go_on.clear()

    server.tokens.go_on.set()
    reading = asyncio.create_task(read())
    while len(seen) < 3:
        await asyncio.sleep(0)
    stopping = asyncio.create_task(server.stop("a"))
    await asyncio.sleep(0.05)
    assert not stopping.done()  # a token is on its way
    server.tokens.go_on.set()
    assert await stopping == (7, 0, server.tokens.closed_at)
    assert server.tokens.closed_at == 4
    await reading
    assert await server.stop("a") == (7, 0, 4)


async def test_a_call_that_is_stopped_before_it_comes_never_begins(server: Any) -> None:
    assert await server.stop("b") is None
    assert [piece async for piece in server.generate("b", {"messages": []}, True)] == []
    assert server.tokens.closed_at is None


async def test_an_engine_that_stands_still_is_not_waited_for(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtr_ray.distributed.online.server._HALT_S", 0.05)
    pieces = server.generate("c", {"messages": []}, True)
    first = asyncio.create_task(anext(pieces))
    await asyncio.sleep(0.05)
    assert await server.stop("c") == (0, 0, 0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
