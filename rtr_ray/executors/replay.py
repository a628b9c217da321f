"""Answers from recorded outcomes: no model is called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rtr_ray.executors.base import Failure, Limit, Reply
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
            yield self._reply(request)

    async def execute_limited(
        self, requests: Sequence[Request], limits: Sequence[Limit | None], lender: Any
    ) -> AsyncIterator[Reply]:
        """The same; what is longer than its limit is extended at once, or may be asked for again."""
        for request, limit in zip(requests, limits, strict=True):
            reply = self._reply(request)
            more = _longest(reply) - limit.tokens if limit and isinstance(reply, Outcome) else 0
            if limit and more > 0:
                usd = more * limit.usd_per_token
                if not (await lender.extend(request.key, limit.call, usd, usd)).given:
                    lacking = f"The recorded answer has {more} tokens more than the budget has room for now."
                    reply = Failure(request.key, lacking, transient=True, maybe_paid=False)
            yield reply

    def _reply(self, request: Request) -> Reply:
        outcome = self.recorded.get(request.key)
        if outcome is None:
            lacking = f"Nothing was recorded for the request {request.key}."
            return Failure(request.key, lacking, transient=False, maybe_paid=False)
        if _longest(outcome) <= request.max_tokens:
            return outcome
        cut = (
            f"The recorded answer of {request.key} has {_longest(outcome)} tokens; "
            f"max_tokens={request.max_tokens} would have cut it."
        )
        return Failure(request.key, cut, transient=False, maybe_paid=False)

    async def aclose(self) -> None:
        """Nothing is held."""


def _longest(outcome: Outcome) -> int:
    return max((sample.output_tokens or 0 for sample in outcome.samples), default=0)
