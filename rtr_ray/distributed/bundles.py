"""Replies that travel together: what has finished since the last message makes up the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable
from typing import TypeVar

Made = TypeVar("Made")

# a message costs a millisecond or so on either side; what one step of an engine ends comes within that time
GATHER_S = 0.002


async def bundles(
    work: Iterable[Awaitable[Made]], gather_s: float = GATHER_S
) -> AsyncGenerator[list[Made], None]:
    """Do things at once, and give what comes of them as they finish; a slow one never holds the others.

    Closed early, it cancels those that are running. What one raises is raised, after the results before it.

    Args:
        work: All of it begins now.
        gather_s: How long what has finished waits for company.

    Yields:
        The results that have come since, at least one.
    """
    ready: list[Made] = []
    raised: list[BaseException] = []
    come = asyncio.Event()

    async def run(one: Awaitable[Made]) -> None:
        try:
            ready.append(await one)
        except Exception as error:
            raised.append(error)
        come.set()

    tasks = [asyncio.create_task(run(one)) for one in work]
    left = len(tasks)
    try:
        while left:
            await come.wait()
            if left > len(ready) and not raised:
                await asyncio.sleep(gather_s)
            come.clear()
            some = ready[:]
            ready.clear()
            left -= len(some)
            if some:
                yield some
            if raised:
                raise raised[0]
    finally:
        for task in tasks:
            task.cancel()
