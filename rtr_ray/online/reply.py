"""What goes back to a client: headers, one JSON object, or the events of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rtr_ray.online.asking import Asked
from rtr_ray.online.engines import Failure
from rtr_ray.online.folding import Counted, usage_of
from rtr_ray.online.problems import RequestError
from rtr_ray.online.routing import Routed
from rtr_ray.types import Candidate

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True, eq=False)
class Reply:
    """A response: `body`, or `events` that come one after the other.

    `close` is called on every way out of a stream, whether it was begun, read to its end, or not.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    events: AsyncGenerator[bytes, None] | None = None
    close: Callable[[], Awaitable[None]] | None = None

    @classmethod
    def of(cls, problem: RequestError) -> Reply:
        """What is wrong, as a response."""
        return cls(problem.status, problem.headers, problem.body)


@dataclass(frozen=True, slots=True)
class Named:
    """Who answers which request, as responses, chunks and headers say it."""

    id: str
    created: int
    asked: Asked
    candidate: Candidate
    routed: Routed | None

    @property
    def model(self) -> str:
        """A name that, as `model`, gets the same again."""
        return self.asked.model or str(self.candidate)

    @property
    def headers(self) -> dict[str, str]:
        """What is known before anything is generated."""
        found = {"x-rtr-model": self.candidate.model}
        if self.asked.model is None:
            found["x-rtr-strategy"] = self.candidate.strategy
        if self.candidate.samples > 1:
            found["x-rtr-samples"] = str(self.candidate.samples)
        if self.routed is not None:
            accuracy = self.routed.predicted("accuracy", self.candidate)
            found["x-rtr-predicted-accuracy"] = f"{accuracy:.4f}"
            found["x-rtr-predicted-cost-usd"] = plain_usd(self.routed.predicted("cost_usd", self.candidate))
            found["x-rtr-router"] = self.routed.router
            if self.routed.unfamiliar is not None:
                found["x-rtr-unfamiliar"] = str(self.routed.unfamiliar).lower()
        return found

    def response(
        self,
        choices: Sequence[Mapping[str, Any]],
        counted: Counted,
        cost_usd: Decimal | None,
        more: Mapping[str, Any] | None = None,
    ) -> Reply:
        """A whole completion."""
        raw = self.asked.prompt is not None
        body = {
            "id": self.id,
            "object": "text_completion" if raw else "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [_raw_choice(one) for one in choices] if raw else list(choices),
            "usage": usage_of(counted, cost_usd),
            "rtr": self._told() | dict(more or {}),
        }
        paid = {} if cost_usd is None else {"x-rtr-cost-usd": f"{cost_usd:f}"}
        return Reply(200, self.headers | paid, body)

    def chunk(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """One event of a stream."""
        return {
            "id": self.id,
            "object": "chat.completion.chunk" if self.asked.prompt is None else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            **more,
        }

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = {"model": self.candidate.model, "strategy": self.candidate.strategy}
        if self.candidate.samples > 1:
            told["samples"] = self.candidate.samples
        return told


def _raw_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice of a chat completion as that of a raw one."""
    return {
        "index": choice["index"],
        "text": choice["message"].get("content") or "",
        "logprobs": choice.get("logprobs"),
        "finish_reason": choice.get("finish_reason"),
    }


def event(chunk: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(
        errors="replace"
    )


def failed(failure: Failure) -> RequestError:
    """A failure that nobody else can make good, as a client hears of it."""
    if failure.transient:
        return RequestError(
            failure.message, status=503, kind="unavailable", code="engine_failed", retry_after_s=2.0
        )
    status = failure.status if 400 <= failure.status < 500 else 503
    retry = 2.0 if status == 503 else None
    return RequestError(failure.message, status=status, kind=failure.kind, retry_after_s=retry)


def plain_usd(value: float) -> str:
    """A predicted amount of dollars, without an exponent."""
    return f"{value:.12f}".rstrip("0").rstrip(".") or "0"
