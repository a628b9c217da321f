"""Work that is done together: whatever waits while a batch is on its way makes up the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


class Together(Generic[Given, Made]):
    """Runs a function over batches in a thread of its own, off the event loop.

    Nobody waits for a batch to fill: one begins as soon as the thread is free, with all that waits.

    Args:
        work: A batch in, one result each out; an exception among the results is raised to its caller
            alone, one that is raised goes to all.
        most: Items of one batch at most.
    """

    def __init__(self, work: Callable[[Sequence[Given]], Sequence[Made | Exception]], most: int = 64) -> None:
        self._work, self._most = work, most
        self._waiting: deque[tuple[Given, asyncio.Future[Made]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="route")
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def __call__(self, item: Given) -> Made:
        """The result of one item."""
        future: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [(item, future) for item, future in batch if not future.done()]  # gone meanwhile
            if not batch:
                continue
            try:
                made: Sequence[Made | Exception] = await loop.run_in_executor(
                    self._thread, self._work, [item for item, _ in batch]
                )
            except Exception as error:
                made = [error] * len(batch)
            for (_, future), one in zip(batch, made, strict=True):
                if future.done():
                    continue
                if isinstance(one, Exception):
                    future.set_exception(one)
                else:
                    future.set_result(one)

    def close(self) -> None:
        """Let go of the thread, once the batch that is under way is done."""
        self._thread.shutdown(wait=False)
