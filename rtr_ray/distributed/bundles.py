"""Replies that travel together: what has finished since the last message makes up the next one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable
from typing import TypeVar

Made = TypeVar("Made")

# A message costs a millisecond or so on either side. What one step of an engine ends comes within the least
# time; and answers that take seconds lose nothing by a small part of what they have taken already.
GATHER_S, GATHER_SHARE, GATHER_MOST_S = 0.002, 1 / 20, 0.25


async def bundles(
    work: Iterable[Awaitable[Made]], gather_s: float = GATHER_S
) -> AsyncGenerator[list[Made], None]:
    """Do things at once, and give what comes of them as they finish; a slow one never holds the others.

    Closed early, it cancels those that are running. What one raises is raised, after the results before it.

    Args:
        work: All of it begins now.
        gather_s: How long what has finished waits for company at least; with time it is more, see
            `GATHER_SHARE` and `GATHER_MOST_S`.

    Yields:
        The results that have come since, at least one.
    """
    ready: list[Made] = []
    raised: list[BaseException] = []
    come, complete = asyncio.Event(), asyncio.Event()  # one; all that are left, or an error

    async def run(one: Awaitable[Made]) -> None:
        try:
            ready.append(await one)
        except asyncio.CancelledError as error:
            raised.append(error)
            raise
        except Exception as error:
            raised.append(error)
        finally:
            come.set()
            if raised or len(ready) == left:
                complete.set()

    began_s = time.monotonic()
    tasks = [asyncio.create_task(run(one)) for one in work]
    left = len(tasks)
    try:
        while left:
            await come.wait()
            waits_s = max(gather_s, min(GATHER_SHARE * (time.monotonic() - began_s), GATHER_MOST_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(waits_s):
                    await complete.wait()
            come.clear()
            some = ready[:]
            ready.clear()
            left -= len(some)
            if some:
                yield some
            elif raised:
                raise raised[0]
            if raised:
                come.set()  # the error comes next, after what came with it
    finally:
        for task in tasks:
            task.cancel()
