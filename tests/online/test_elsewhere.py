"""Deployments of somebody else's beside engines of one's own, over a real HTTP server that streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from rtr_ray.executors.openai_stream import OpenAIStream
from rtr_ray.online.elsewhere import Elsewhere, Mixed
from rtr_ray.pool import Endpoint, Pool
from tests.online.bench import Bench, pool, read, said

WORDS = ("It ", "is ", "\\boxed{7}")


@dataclass
class Service:
    """What the server does, and what it got."""

    port: int = 0
    status: int = 200
    counts: bool = True
    cut_after: int = 100  # events
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    """An OpenAI-compatible server on this machine."""
    found = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            if found.status != 200:
                self.send_response(found.status)
                self.end_headers()
                self.wfile.write(b'{"error": {"message": "no", "code": "nope"}}')
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            last = len(WORDS) - 1
            events: list[Any] = [
                {
                    "id": "x",
                    "object": "chat.completion.chunk",
                    "created": 1,
                    "model": "theirs",
                    "choices": [
                        {
                            "index": 0,
                            "delta": {"content": word},
                            "finish_reason": "stop" if place == last else None,
                        }
                    ],
                }
                for place, word in enumerate(WORDS)
            ]
            usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
            if found.counts:
                events.append({**events[0], "choices": [], "usage": usage})
            for event in events[: found.cut_after]:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            if found.cut_after >= len(events):
                self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    found.port = server.server_address[1]
    yield found
    server.shutdown()
    server.server_close()


def bench(service: Service, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """`strong` is theirs, `weak` is ours."""
    monkeypatch.setenv("THEIR_KEY", "sk-secret")
    endpoint = Endpoint(f"http://127.0.0.1:{service.port}/v1", "theirs", "THEIR_KEY")
    found = Bench.of(pool=abroad(endpoint), lam=0.9)
    # by a clock that stands still: who has failed stays suspect, however long a test takes
    theirs = Elsewhere({"strong": OpenAIStream(endpoint)}, {"strong": 8}, clock=lambda: 0.0)
    found.endpoint.engines = Mixed.of((found.engines, frozenset({"weak"})), (theirs, frozenset({"strong"})))
    found.engines.down = {"strong"}
    return found


def abroad(endpoint: Endpoint) -> Pool:
    own = pool()
    strong = replace(own.deployments["strong"], source=None, endpoint=endpoint)
    return replace(own, deployments={**own.deployments, "strong": strong})


async def test_somebody_elses_model_answers_whole_and_streamed_and_is_paid_by_its_count(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    made = bench(service, monkeypatch)
    reply = await made.ask()
    assert (reply.status, reply.body["model"], said(reply)) == (200, "strong:cot", "It is \\boxed{7}")
    paid = (11 * Decimal("0.03") + 3 * Decimal("1.3")) / 1_000_000
    assert Decimal(reply.body["usage"]["cost_usd"]) == paid
    events = await read(await made.ask(stream=True, stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    assert Decimal(events[-2]["usage"]["cost_usd"]) == paid
    assert made.settled() == [("strong:cot", paid, 14, False)] * 2
    sent = service.bodies[0]
    assert (sent["model"], sent["stream"], sent["max_tokens"]) == ("theirs", True, 60)
    assert service.headers[0]["authorization"] == "Bearer sk-secret"


async def test_what_nobody_counted_is_settled_at_its_worst_and_said_to_be_unknown(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    service.counts = False
    made = bench(service, monkeypatch)
    reply = await made.ask()
    assert reply.body["usage"]["cost_usd"] is None
    events = await read(await made.ask(stream=True, stream_options={"include_usage": True}))
    assert events[-2]["usage"]["cost_usd"] is None
    assert [(spent > 0, unknown) for _, spent, _, unknown in made.settled()] == [(True, True)] * 2


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_where_they_do_not_answer_our_own_model_does(
    service: Service, monkeypatch: pytest.MonkeyPatch, status: int
):
    service.status = status
    made = bench(service, monkeypatch)
    reply = await made.ask()
    assert (reply.status, reply.body["model"]) == (200, "weak:vanilla")
    assert "strong" not in made.endpoint.engines.up()
    named = await made.ask(model="strong:cot")
    assert (named.status, "secret" in json.dumps(named.body)) == (503, False)
    assert all(unknown == (status >= 500) for who, _, _, unknown in made.settled() if who == "strong:cot")


async def test_what_they_refuse_is_refused_and_what_they_cut_off_is_paid_at_its_worst(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    service.status = 400
    made = bench(service, monkeypatch)
    assert (await made.ask(model="strong:cot")).status == 400
    service.status, service.cut_after = 200, 2
    events = await read(await made.ask(model="strong:cot", stream=True))
    assert "error" in events[-1]
    assert [unknown for _, _, _, unknown in made.settled()] == [False, True]
