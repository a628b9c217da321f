"""The one replica that remembers requests for all ingress replicas, and makes feedback durable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rtr_ray.errors import StorageError
from rtr_ray.online.problems import RequestError
from rtr_ray.online.remembering import Remembered
from rtr_ray.storage import open_store

_TOGETHER_S = 0.2  # feedback that becomes durable in one part


class Memory:
    """Rows of outcomes that wait for their score."""

    def __init__(self, feedback: str) -> None:
        self._remembered = Remembered(open_store(feedback))
        self._writing: asyncio.Task[int] | None = None

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
