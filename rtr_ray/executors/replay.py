"""Answers from recorded outcomes: no model is called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rtr_ray.executors.base import Failure, Reply
from rtr_ray.types import Outcome, Request


@dataclass(frozen=True, slots=True)
class ReplayExecutor:
    """Replays what was recorded for each request; fails where nothing was, never invents."""

    recorded: Mapping[str, Outcome]  # by Request.key
    kind: ClassVar[str] = "replay"

    async def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """The recorded outcomes, in the order of the requests.

        A request fails for good if it was not recorded, or its answer was longer than now allowed.
        """
        for request in requests:
            outcome = self.recorded.get(request.key)
            longest = (
                max((sample.output_tokens or 0 for sample in outcome.samples), default=0) if outcome else 0
            )
            if outcome is None:
                lacking = f"Nothing was recorded for the request {request.key}."
                yield Failure(request.key, lacking, transient=False, maybe_paid=False)
            elif longest > request.max_tokens:
                cut = (
                    f"The recorded answer of {request.key} has {longest} tokens; "
                    f"max_tokens={request.max_tokens} would have cut it."
                )
                yield Failure(request.key, cut, transient=False, maybe_paid=False)
            else:
                yield outcome

    async def aclose(self) -> None:
        """Nothing is held."""
