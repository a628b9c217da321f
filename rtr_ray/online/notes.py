"""What is kept of requests that were answered: for metrics, and for feedback that may come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rtr_ray.online.engines import Generation
from rtr_ray.online.reply import Named
from rtr_ray.online.routing import Routed
from rtr_ray.online.trail import Trail
from rtr_ray.types import Query


@dataclass(slots=True, eq=False)
class Note:
    """One request, as far as an outcome of it can be made once somebody says whether it was right."""

    query: Query
    text: str  # what the router read
    named: Named
    caller: str
    request_id: str  # another name, by which feedback may come
    finish_reason: str | None = None
    row: dict[str, Any] = field(default_factory=dict)

    def seen(self, chunk: Mapping[str, Any]) -> None:
        """Take in a chunk that was passed on."""
        for choice in chunk["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def ended(self, choices: Sequence[Mapping[str, Any]], generation: Generation) -> None:
        """Take in a whole answer."""
        self.finish_reason = choices[0].get("finish_reason") if choices else None
        self.counted(generation)

    def counted(self, generation: Generation) -> None:
        """Take in what it came to; a row of outcomes but for `correct`."""
        counted, candidate = generation.counted, self.named.candidate
        assert counted is not None
        self.row = {
            "query_id": self.named.id,
            "query": self.text,
            "model": candidate.model,
            "strategy": candidate.strategy,
            "samples": candidate.samples,
            "sample": 0,
            "input_tokens": counted.input_tokens,
            "output_tokens": counted.output_tokens,
            "cost_usd": generation.cost_usd,
            "max_tokens": generation.order.body.get("max_tokens"),
            "temperature": generation.order.body.get("temperature"),
            "finish_reason": self.finish_reason,
        }


class Notes:
    """Does nothing with them: the base of those that do."""

    def add(self, note: Note) -> None:
        """A request was answered to its end."""

    def closed(self, generation: Generation, caller: str) -> None:
        """A generation's money was settled or released."""

    def chosen(self, took_s: float) -> None:
        """A candidate was chosen, in so many seconds."""

    def shadow(self, routed: Routed) -> None:
        """What a second router would have chosen."""

    def over(self, trail: Trail) -> None:
        """A request is over, whatever came of it."""
