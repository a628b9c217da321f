"""OpenTelemetry spans of requests, as a provider of the SDK gets them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rtr_ray.distributed.online.spans import trace_request
from rtr_ray.online.engines import Failure
from rtr_ray.online.notes import Notes
from rtr_ray.online.trail import Trail
from tests.online.bench import Bench

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "the violet elephant"}]}'


class Traced(Notes):
    """Makes spans of what is over."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._trace = partial(trace_request, provider=provider)

    def over(self, trail: Trail) -> None:
        self._trace(trail)

    def spans(self) -> dict[str, Any]:
        """By name; of one name the last."""
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Traced:
    """Notes that trace."""
    return Traced()


async def test_a_request_is_three_spans_below_that_of_its_client(traced: Traced) -> None:
    bench = Bench.of(notes=traced)
    reply = await bench.endpoint.chat(BODY, None, "mine", {"traceparent": CLIENT})
    spans = traced.spans()
    assert set(spans) == {"rtr.request", "rtr.route", "rtr.generate"}
    root = spans["rtr.request"]
    assert f"{root.context.trace_id:032x}" == CLIENT.split("-")[1]
    assert f"{root.parent.span_id:016x}" == CLIENT.split("-")[2]
    for name in ("rtr.route", "rtr.generate"):
        assert spans[name].parent.span_id == root.context.span_id
        assert spans[name].context.trace_id == root.context.trace_id
    assert root.attributes["rtr.id"] == reply.body["id"]
    assert (root.attributes["rtr.key"], root.attributes["rtr.end"]) == ("tester", "answered")
    route, generate = spans["rtr.route"], spans["rtr.generate"]
    for one in (route, generate):
        assert (one.attributes["rtr.model"], one.attributes["rtr.strategy"]) == ("strong", "cot")
        assert 0.7 < one.attributes["rtr.predicted_accuracy"] < 0.9
    assert route.attributes["rtr.predicted_cost_usd"] > 0
    assert (generate.attributes["rtr.input_tokens"], generate.attributes["rtr.output_tokens"]) == (12, 5)
    assert generate.attributes["rtr.cost_usd"] == float(reply.body["usage"]["cost_usd"])
    assert root.start_time <= route.start_time <= route.end_time <= generate.start_time
    assert generate.start_time <= generate.end_time <= root.end_time
    assert "violet" not in repr([dict(span.attributes) for span in spans.values()])


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
async def test_without_a_parent_that_can_be_read_a_request_begins_a_trace(
    traced: Traced, header: str
) -> None:
    await Bench.of(notes=traced).endpoint.chat(BODY, traced={"traceparent": header})
    assert traced.spans()["rtr.request"].parent is None


async def test_an_attempt_that_failed_is_a_span_of_its_own(traced: Traced) -> None:
    bench = Bench.of(notes=traced)
    bench.engines.failing = {"strong": Failure("it died", 503)}
    await bench.ask()
    names = [span.name for span in traced.exporter.get_finished_spans()]
    assert names.count("rtr.generate") == names.count("rtr.route") == 2
    first = next(span for span in traced.exporter.get_finished_spans() if span.name == "rtr.generate")
    assert not first.status.is_ok
    assert traced.spans()["rtr.request"].attributes["rtr.end"] == "answered"


async def test_who_is_asked_for_by_name_is_not_routed_and_who_is_refused_generates_nothing(
    traced: Traced,
) -> None:
    bench = Bench.of(notes=traced)
    await bench.ask(model="weak")
    assert "rtr.route" not in traced.spans()
    traced.exporter.clear()
    await bench.ask(model="nobody")
    assert set(traced.spans()) == {"rtr.request"}


async def test_without_a_provider_nothing_is_made() -> None:
    class Untraced(Notes):
        def over(self, trail: Trail) -> None:
            trace_request(trail)

    assert (await Bench.of(notes=Untraced()).ask()).status == 200
