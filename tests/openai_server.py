"""A real HTTP server on this machine that speaks OpenAI's chat completions, and misbehaves when told to.

What it does is scripted per query, as with `tests.fakes.ScriptedExecutor`: one reply per attempt,
the last one stays. It writes down what it got and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rtr_ray.dispatch import Dispatcher, Gate, Settings, settlement
from rtr_ray.executors.openai import OpenAIExecutor
from rtr_ray.ledger import Ledger
from rtr_ray.pool import Endpoint, Pool
from rtr_ray.types import Outcome, Request
from tests.fakes import LocalBooks, pool_of, requests_of

KEY = "sk-very-secret-0123456789"
INPUT_TOKENS, OUTPUT_TOKENS = 20, 10  # of every answer

_QUERY = re.compile(r"question (\d+)")


@dataclass(frozen=True)
class Answer:
    """What goes over the wire."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: bool = False  # the connection ends in the middle of the body
    held: bool = False  # nothing comes before the server ends


Say = Callable[[dict[str, Any]], Answer]
"""From the body of a request to what is answered."""


@dataclass(frozen=True)
class Arrival:
    """One request, as it came."""

    query_id: str
    at_s: float  # by the clock of the server
    at_unix_s: float
    body: dict[str, Any]
    headers: Mapping[str, str]


@dataclass
class Service:
    """The service behind a base URL."""

    scripts: Mapping[str, Sequence[Say]] = field(default_factory=dict)  # query id -> one per attempt
    usual: Say = field(default_factory=lambda: completed())
    clock: Callable[[], float] = time.monotonic
    arrivals: list[Arrival] = field(default_factory=list)
    most: int = 0  # requests at the same time
    base_url: str = ""
    _there: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    def came(self, query_id: str) -> list[Arrival]:
        """The arrivals of one query, in order."""
        return [arrival for arrival in self.arrivals if arrival.query_id == query_id]

    def answer(self, body: dict[str, Any], headers: Mapping[str, str]) -> Answer:
        """Write a request down, and decide what becomes of it."""
        text = str(body["messages"][-1]["content"])
        found = _QUERY.search(text)
        query_id = f"q{found[1]}" if found else ""
        with self._lock:
            script = self.scripts.get(query_id, (self.usual,))
            attempt = len(self.came(query_id))
            self.arrivals.append(Arrival(query_id, self.clock(), time.time(), body, headers))
            self._there += 1
            self.most = max(self.most, self._there)
        try:
            said = script[min(attempt, len(script) - 1)](body)
            if said.held:
                self._ended.wait(60)
            return said
        finally:
            with self._lock:
                self._there -= 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[Service]:
        """On a free port of this machine."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30  # of an idle connection

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = json.loads(self.rfile.read(length))
                assert self.path == "/v1/chat/completions", self.path
                _send(self, service.answer(body, {k.lower(): v for k, v in self.headers.items()}))

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        server = _Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield self
        finally:
            self._ended.set()
            server.shutdown()
            server.server_close()
            thread.join(10)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client has hung up: that is often the point of a test."""


def _send(handler: BaseHTTPRequestHandler, said: Answer) -> None:
    if said.held:
        handler.close_connection = True
        return
    handler.send_response(said.status)
    handler.send_header("content-type", said.content_type)
    handler.send_header("content-length", str(len(said.body)))
    for name, value in said.headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(said.body[: len(said.body) // 2] if said.cut else said.body)
    handler.wfile.flush()
    if said.cut:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)


def _completion(body: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    count = body.get("n", 1)
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "42"}}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": i, **choice} for i in range(count)],
        "usage": usage(output_tokens=OUTPUT_TOKENS * count),
    } | changes


def usage(
    input_tokens: Any = INPUT_TOKENS, output_tokens: Any = OUTPUT_TOKENS, **more: Any
) -> dict[str, Any]:
    """The usage of a completion, as the API writes it."""
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, **more}


def completed(without: Sequence[str] = (), **changes: Any) -> Say:
    """A chat completion, with other values for some of its keys, or without them."""

    def say(body: dict[str, Any]) -> Answer:
        content = _completion(body, **changes)
        return Answer(json.dumps({k: v for k, v in content.items() if k not in without}).encode())

    return say


def cut_off() -> Say:
    """A chat completion that breaks off in the middle."""
    return lambda body: Answer(json.dumps(_completion(body)).encode(), cut=True)


def silent() -> Say:
    """Nothing at all, for longer than anyone waits."""
    return lambda body: Answer(b"", held=True)


def failed(status: int, code: str | None = None, retry_after: str | Callable[[], str] | None = None) -> Say:
    """An error as the API writes it; its text quotes the prompt and the key, as some services do."""

    def say(body: dict[str, Any]) -> Answer:
        error = {"message": f"{KEY} asked {body['messages']}", "type": "an_error", "code": code}
        value = retry_after() if callable(retry_after) else retry_after
        headers = {} if value is None else {"retry-after": value}
        return Answer(json.dumps({"error": error}).encode(), status, headers)

    return say


def raw(body: bytes, content_type: str = "application/json") -> Say:
    """These bytes, as a success."""
    return lambda _: Answer(body, content_type=content_type)


POOL = pool_of()
QUICK = Settings(chunk=4, attempts=3, backoff_s=0.01, timeout_s=30.0)


@dataclass
class Clock:
    """A clock that nobody waits for: whoever sleeps sets it to the end of the sleep."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        await asyncio.sleep(0)
        self.now_s = max(self.now_s, until_s)


def executor_of(service: Service, clock: Clock | None = None, **changes: Any) -> OpenAIExecutor:
    endpoint = replace(Endpoint(service.base_url, "big", "TEST_API_KEY", timeout_s=20.0), **changes)
    return OpenAIExecutor(endpoint, clock, clock.sleep) if clock else OpenAIExecutor(endpoint)


@dataclass
class Bench:
    """A dispatcher with a real ledger before a service."""

    service: Service
    settings: Settings = QUICK
    budget_usd: Decimal | None = None
    clock: Clock | None = None
    pool: Pool = POOL
    expected_tokens: int | None = None
    sent_again: int = 0
    gate: Gate = field(default_factory=lambda: Gate(8))

    def __post_init__(self) -> None:
        self.books = LocalBooks(Ledger(self.budget_usd))  # checks the budget after every step

    def run(self, count: int, **changes: Any) -> dict[str, Outcome]:
        """So many requests; each ends exactly once, and nothing is left behind."""
        with self.service.listening():
            requests = [
                replace(request, expected_tokens=self.expected_tokens)
                for request in requests_of(self.pool, count)
            ]
            found = asyncio.run(self._run(requests, changes))
        assert Counter(o.query_id for o in found) == Counter(f"q{i}" for i in range(count))
        balance = self.books.ledger.balance()
        assert (balance.in_flight, balance.reserved_usd, self.gate.taken) == (0, 0, 0)
        assert Counter(one.key for one in self.books.settled) == Counter(
            key for key, grant in self.books.asked if grant.given
        )
        assert all(KEY not in (o.error or "") and "question" not in (o.error or "") for o in found)
        return {o.query_id: o for o in found}

    async def _run(self, requests: Sequence[Request], changes: Mapping[str, Any]) -> list[Outcome]:
        executor = executor_of(self.service, self.clock, **changes)
        sleep = self.clock.sleep if self.clock else asyncio.sleep
        dispatcher = Dispatcher(executor, self.books, self.pool, self.gate, self.settings, sleep)
        found: list[Outcome] = []
        async with contextlib.aclosing(dispatcher.run(requests)) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
                if (closing := settlement(self.pool, outcome)) is not None:
                    await self.books.settle([closing])
        await executor.aclose()
        self.sent_again = dispatcher.sent_again
        return found


def most_in_a_minute(passed: Sequence[tuple[float, int]]) -> tuple[int, int]:
    """The most requests, and the most tokens, that any minute holds."""
    windows = [[(at, tokens) for at, tokens in passed if start <= at < start + 60] for start, _ in passed]
    return max(map(len, windows)), max(sum(tokens for _, tokens in window) for window in windows)
