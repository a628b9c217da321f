"""Prometheus metrics of the endpoint, and what of its requests goes to the memory."""

from __future__ import annotations

import logging
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from rtr_ray.distributed.online.spans import trace_request
from rtr_ray.online.engines import Generation
from rtr_ray.online.live import News
from rtr_ray.online.notes import Note, Notes
from rtr_ray.online.request_log import RequestLog
from rtr_ray.online.routing import Routed
from rtr_ray.online.trail import Trail

_LOG = logging.getLogger("ray.serve")
_MS = [1.0, 2, 5, 10, 15, 20, 30, 40, 60, 100, 200, 500, 1000, 5000]
_WHO: tuple[Any, ...] = ("model", "strategy", "key")  # Ray says tuple[str], and means several
_WHY: tuple[Any, ...] = ("reason", "key")
_MOST_WAITING = 10_000


class ServeNotes(Notes):
    """Counts what is answered, and keeps rows and counts until they are sent to the memory.

    Args:
        log: Where a line for each request goes; None: nowhere.
    """

    def __init__(self, log: RequestLog | None = None) -> None:
        self.waiting: list[tuple[dict[str, Any], str]] = []
        self.news, self.log = News(), log
        self._requests = Counter("rtr_requests_total", "Generations by how they ended.", (*_WHO, "end"))
        self._tokens = Counter("rtr_tokens_total", "Tokens that were paid.", (*_WHO, "kind"))
        self._usd = Counter("rtr_cost_usd_total", "Dollars that were settled.", (*_WHO, "known"))
        self._shadow = Counter("rtr_shadow_total", "What a second router would have chosen.", _WHO[:2])
        self._routing = Histogram("rtr_routing_ms", "Milliseconds until a candidate is chosen.", _MS)
        self._refused = Counter("rtr_refused_total", "Requests without an answer by the error's code.", _WHY)
        self._predicted = Counter(
            "rtr_predicted_output_tokens_total", "Predicted for routed requests that were answered.", _WHO[:2]
        )
        self._actual = Counter("rtr_actual_output_tokens_total", "What those requests came to.", _WHO[:2])

    def add(self, note: Note) -> None:
        """A request was answered to its end."""
        if note.row and len(self.waiting) < _MOST_WAITING:
            self.waiting.append((note.row, note.request_id))

    def closed(self, generation: Generation, caller: str) -> None:
        """A generation's money was settled or released."""
        candidate, counted = generation.order.candidate, generation.counted
        who = {"model": candidate.model, "strategy": candidate.strategy, "key": caller}
        end = "answered" if generation.ended else ("failed" if generation.failure else "cancelled")
        self._requests.inc(1, who | {"end": end})
        if counted is not None:
            for kind, tokens in (("input", counted.input_tokens), ("output", counted.output_tokens)):
                if tokens:
                    self._tokens.inc(tokens, who | {"kind": kind})
        usd = generation.order.offer.worst_usd if generation.unknown else generation.spent_usd
        if usd:
            self._usd.inc(float(usd), who | {"known": str(not generation.unknown).lower()})

    def shadow(self, routed: Routed) -> None:
        """What a second router would have chosen."""
        candidate = routed.candidate
        self._shadow.inc(1, {"model": candidate.model, "strategy": candidate.strategy})
        _LOG.info(
            "shadow request=%s choice=%s predicted_accuracy=%.4f predicted_cost_usd=%.9f",
            routed.plan.table.query_ids[0],
            candidate,
            routed.predicted("accuracy"),
            routed.predicted("cost_usd"),
        )

    def chosen(self, took_s: float) -> None:
        """A candidate was chosen."""
        self._routing.observe(1000 * took_s)

    def over(self, trail: Trail) -> None:
        """A request is over, whatever came of it."""
        self.news.add(trail)
        if self.log is not None:
            self.log.add(trail)
        if trail.end in ("refused", "failed"):
            key = "" if trail.caller is None else trail.caller.name
            self._refused.inc(1, {"reason": trail.reason, "key": key})
        last = trail.last
        predicted = None if last is None else last.predicted("output_tokens")
        if last is not None and predicted is not None and trail.end == "answered":
            candidate, counted = last.generation.order.candidate, last.generation.counted
            if counted is not None and counted.output_tokens > 0:
                who = {"model": candidate.model, "strategy": candidate.strategy}
                self._actual.inc(counted.output_tokens, who)
                if predicted > 0:
                    self._predicted.inc(predicted, who)
        trace_request(trail)


class ShareNotes:
    """How much of the traffic the most chosen candidate takes: near 1, the router may have collapsed."""

    def __init__(self) -> None:
        self._share = Gauge(
            "rtr_most_chosen_share", "Share of the most chosen candidate in the router's last choices."
        )

    def told(self, most: tuple[str, float, int] | None) -> None:
        """The candidate, its share, and of how many choices."""
        if most is not None:
            self._share.set(most[1])
