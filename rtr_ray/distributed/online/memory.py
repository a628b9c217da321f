"""The one replica that remembers requests for all ingress replicas, and makes feedback durable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from rtr_ray.distributed.online.budgets import Budgets
from rtr_ray.distributed.online.metrics import ShareNotes
from rtr_ray.errors import StorageError
from rtr_ray.online.live import News, Traffic
from rtr_ray.online.problems import RequestError
from rtr_ray.online.remembering import Remembered
from rtr_ray.storage import open_store

_TOGETHER_S = 0.2  # feedback that becomes durable in one part


class Memory:
    """Rows of outcomes that wait for their score; what all ingress replicas have counted.

    Args:
        feedback: A folder for outcomes.
        keys: The file of keys, as the head node sees it; None: there are none.
    """

    def __init__(self, feedback: str, keys: str | None = None) -> None:
        self._remembered = Remembered(open_store(feedback))
        self._writing: asyncio.Task[int] | None = None
        self._traffic, self._share = Traffic(), ShareNotes()
        self._budgets = None if keys is None else Budgets(keys)

    async def count(self, news: News) -> None:
        """Take in what a replica has counted; an empty one says that it is there."""
        if self._budgets is not None:
            self._budgets.watch()
        if news:
            self._traffic.add(time.monotonic(), news)
            self._share.told(self._traffic.most_chosen())

    async def live(self, key_id: str | None, minutes: int) -> dict[str, Any]:
        """The last minutes, and what is left of a key's budgets.

        Args:
            key_id: Whose; None: everybody's, where there are no keys.
            minutes: How many.
        """
        shown = self._traffic.shown(time.monotonic(), minutes, key_id)
        asked = self._budgets is not None and key_id is not None
        budgets = await self._budgets.of(key_id) if asked else []  # type: ignore[union-attr,arg-type]
        return shown | {"budgets": budgets}

    async def remember(self, rows: Sequence[tuple[dict[str, Any], str]]) -> None:
        """Keep rows, each with another name that feedback may use."""
        for row, name in rows:
            self._remembered.remember(row, name)

    async def score(self, name: str, score: float) -> tuple[int, dict[str, Any]]:
        """Take in feedback; durable when this returns.

        Returns:
            HTTP status and body.
        """
        try:
            query_id = self._remembered.score(name, score)
            if self._writing is None or self._writing.done():
                self._writing = asyncio.create_task(self._write())
            await asyncio.shield(self._writing)
        except RequestError as error:
            return error.status, error.body
        except StorageError as error:
            failed = RequestError(f"The feedback could not be written: {error.message}", status=503)
            return 503, failed.body
        return 200, {"object": "feedback", "id": query_id, "score": score}

    async def _write(self) -> int:
        await asyncio.sleep(_TOGETHER_S)
        return self._remembered.write()
