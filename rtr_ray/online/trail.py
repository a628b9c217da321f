"""One request from its first byte to its end, for those who count, log and trace.

A trail only gathers what the endpoint knows anyway, and is told of once: when the reply has gone out
and the money of every generation is closed. So whatever watches costs a request nothing while it runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rtr_ray.gate import Caller
from rtr_ray.online.engines import Generation
from rtr_ray.online.problems import RequestError
from rtr_ray.online.reply import Reply
from rtr_ray.online.routing import Routed

_LOG = logging.getLogger("rtr_ray.online")


@dataclass(slots=True)
class Span:
    """A part of a request's time, in nanoseconds of the wall clock; `until_ns` 0: it goes on."""

    from_ns: int
    until_ns: int = 0


@dataclass(slots=True)
class Attempt:
    """One generation, and the choice that it came of."""

    generation: Generation
    routed: Routed | None
    span: Span

    def predicted(self, name: str) -> float | None:
        """A prediction for who answers, by its name in the table; None where nothing was routed."""
        candidate = self.generation.order.candidate
        return None if self.routed is None else self.routed.predicted(name, candidate)


@dataclass(slots=True, eq=False)
class Trail:
    """What is known of one request.

    Args:
        told: Gets the trail when everything is over.
        other_id: The name that the client gave the request.
        traced: The headers of W3C's trace context, as they came.
    """

    told: Callable[[Trail], None]
    other_id: str = ""
    traced: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    text: str = ""  # what the router reads
    caller: Caller | None = None
    choices: list[tuple[Routed, Span]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    problem: RequestError | None = None
    broken: str = ""  # the class of an error that nobody had foreseen
    span: Span = field(default_factory=lambda: Span(time.time_ns()))
    _streams: bool = False
    _over: bool = False
    _open: int = 0

    def __enter__(self) -> Trail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, RequestError):
            self.problem = error
        elif isinstance(error, Exception):
            self.broken = type(error).__name__
        if not self._streams:
            self.over()

    @property
    def known(self) -> Caller:
        """Who asks, once the gate has said so."""
        assert self.caller is not None
        return self.caller

    def chosen(self, routed: Routed | None, from_ns: int) -> None:
        """The router has chosen; None: somebody was asked for by name."""
        if routed is not None:
            self.choices.append((routed, Span(from_ns, time.time_ns())))

    def begun(self, generation: Generation, routed: Routed | None) -> None:
        """A generation begins."""
        self.attempts.append(Attempt(generation, routed, Span(time.time_ns())))
        self._open += 1

    def closed(self, generation: Generation) -> None:
        """A generation's money is closed."""
        for attempt in self.attempts:
            if attempt.generation is generation:
                attempt.span.until_ns = time.time_ns()
        self._open -= 1
        self._tell()

    def handed(self, reply: Reply) -> Reply:
        """A reply goes out; of a stream the end is when it is closed."""
        close = reply.close
        if reply.events is None or close is None:
            return reply

        async def closed() -> None:
            try:
                await close()
            finally:
                self.over()

        self._streams, reply.close = True, closed
        return reply

    def over(self) -> None:
        """The reply has gone out, or nobody waits for it any more."""
        self._over = True
        self._tell()

    def _tell(self) -> None:
        if not self._over or self._open > 0 or self.span.until_ns:
            return
        self.span.until_ns = time.time_ns()
        try:
            self.told(self)
        except Exception as error:  # who counts and logs never breaks an answer
            _LOG.error("a request was not counted: %s", type(error).__name__)

    @property
    def last(self) -> Attempt | None:
        """The generation that the reply came of."""
        return self.attempts[-1] if self.attempts else None

    @property
    def end(self) -> str:
        """`answered`, `refused` (before anything was generated), `failed` or `cancelled`."""
        if self.broken:
            return "failed"
        if self.problem is not None:
            return "failed" if self.attempts else "refused"
        if self.last is None or not (self.last.generation.ended or self.last.generation.failure):
            return "cancelled"
        return "answered" if self.last.generation.ended else "failed"

    @property
    def reason(self) -> str:
        """Why there is no answer, as the error's code; empty where there is one, or the client left."""
        if self.problem is not None:
            return self.problem.code or self.problem.kind
        failure = None if self.last is None else self.last.generation.failure
        return self.broken or ("" if failure is None else "engine_failed")

    def line(self, prompts: bool = False) -> dict[str, Any]:
        """The request as a line of a log.

        Args:
            prompts: Whether what the router reads of the prompt may be part of it.
        """
        last, caller = self.last, self.caller
        found: dict[str, Any] = {
            "at": _iso(self.span.from_ns),
            "id": self.id or None,
            "request_id": self.other_id or None,
            "key": None if caller is None else caller.name,
            "end": self.end,
            "reason": self.reason or None,
            "ms": round((self.span.until_ns - self.span.from_ns) / 1e6, 3),
            "attempts": len(self.attempts),
        }
        if last is not None:
            candidate, counted = last.generation.order.candidate, last.generation.counted
            usd = last.generation.spent_usd
            found |= {
                "model": candidate.model,
                "strategy": candidate.strategy,
                "samples": candidate.samples,
                "predicted_accuracy": _rounded(last.predicted("accuracy")),
                "predicted_output_tokens": _rounded(last.predicted("output_tokens")),
                "predicted_cost_usd": last.predicted("cost_usd"),
                "input_tokens": None if counted is None else counted.input_tokens,
                "output_tokens": None if counted is None else counted.output_tokens,
                "cost_usd": None if usd is None else f"{usd:f}",
            }
        if self.choices:
            found["routing_ms"] = round(sum(one.until_ns - one.from_ns for _, one in self.choices) / 1e6, 3)
        if prompts:
            found["prompt"] = self.text
        return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _iso(at_ns: int) -> str:
    seconds, rest = divmod(at_ns, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 10**6:03d}Z"
