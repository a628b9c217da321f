"""OpenTelemetry spans of requests, by the API alone: whoever wants them sets up a provider.

The spans are made when a request is over, with the times that it had: so they cost nothing while it
runs, and nothing at all where there is no provider. Serve sets one up in every replica if it is told
to trace (docs/observability.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rtr_ray.online.routing import Routed
from rtr_ray.online.trail import Attempt, Span, Trail

HEADERS = ("traceparent", "tracestate")
_NAME = "rtr_ray.online"
_PARENTS = TraceContextTextMapPropagator()


def trace_request(trail: Trail, provider: trace.TracerProvider | None = None) -> None:
    """Make the spans of a request: `rtr.request`, and below it `rtr.route` and `rtr.generate`.

    Their parent is the client's, by the header `traceparent`.

    Args:
        trail: A request that is over.
        provider: Who gets them; None: the process's own.
    """
    provider = provider or trace.get_tracer_provider()
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return
    tracer = provider.get_tracer(_NAME)
    above = _PARENTS.extract(dict(trail.traced), Context())
    root = tracer.start_span(
        "rtr.request",
        above,
        SpanKind.SERVER,
        {
            "rtr.id": trail.id,
            "rtr.request_id": trail.other_id,
            "rtr.key": trail.caller.name if trail.caller else "",
            "rtr.end": trail.end,
        },
        start_time=trail.span.from_ns,
    )
    here = trace.set_span_in_context(root, above)
    for routed, span in trail.choices:
        _child(tracer, "rtr.route", here, span, _chosen(routed))
    for attempt in trail.attempts:
        _child(tracer, "rtr.generate", here, attempt.span, _generated(attempt), _failed(attempt))
    if trail.end == "failed":
        root.set_status(Status(StatusCode.ERROR, trail.reason))
    root.end(trail.span.until_ns)


def _child(
    tracer: trace.Tracer,
    name: str,
    above: Context,
    span: Span,
    attributes: Mapping[str, Any],
    failed: str = "",
) -> None:
    made = tracer.start_span(name, above, SpanKind.INTERNAL, _known(attributes), start_time=span.from_ns)
    if failed:
        made.set_status(Status(StatusCode.ERROR, failed))
    made.end(span.until_ns)


def _chosen(routed: Routed) -> dict[str, Any]:
    return {
        "rtr.model": routed.candidate.model,
        "rtr.strategy": routed.candidate.strategy,
        "rtr.router": routed.router,
        "rtr.predicted_accuracy": routed.predicted("accuracy"),
        "rtr.predicted_output_tokens": routed.predicted("output_tokens"),
        "rtr.predicted_cost_usd": routed.predicted("cost_usd"),
    }


def _generated(attempt: Attempt) -> dict[str, Any]:
    one, counted = attempt.generation, attempt.generation.counted
    return {
        "rtr.model": one.order.candidate.model,
        "rtr.strategy": one.order.candidate.strategy,
        "rtr.predicted_accuracy": attempt.predicted("accuracy"),
        "rtr.input_tokens": None if counted is None else counted.input_tokens,
        "rtr.output_tokens": None if counted is None else counted.output_tokens,
        "rtr.cost_usd": None if one.spent_usd is None else float(one.spent_usd),
        "rtr.ended": one.ended,
    }


def _failed(attempt: Attempt) -> str:
    return "engine_failed" if attempt.generation.failure is not None else ""


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
