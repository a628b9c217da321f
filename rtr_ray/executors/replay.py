"""Answers from recorded outcomes: no model is called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rtr_ray.errors import DataError
from rtr_ray.executors.base import Reply
from rtr_ray.types import Outcome, Request


@dataclass(frozen=True, slots=True)
class ReplayExecutor:
    """Replays what was recorded for each request; raises where nothing was, never invents."""

    recorded: Mapping[str, Outcome]  # by Request.key
    kind: ClassVar[str] = "replay"

    async def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """The recorded outcomes, in the order of the requests.

        Raises:
            DataError: If a request was not recorded, or its answer was longer than now allowed.
        """
        for request in requests:
            outcome = self.recorded.get(request.key)
            if outcome is None:
                raise DataError(f"Nothing was recorded for the request {request.key}.")
            longest = max((sample.output_tokens or 0 for sample in outcome.samples), default=0)
            if longest > request.max_tokens:
                raise DataError(
                    f"The recorded answer of {request.key} has {longest} tokens; "
                    f"max_tokens={request.max_tokens} would have cut it."
                )
            yield outcome

    async def aclose(self) -> None:
        """Nothing is held."""
