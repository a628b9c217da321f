"""The second pass: plan parts become results, through actors that call Serve.

One actor per deployment takes plan parts one after the other and as many at a time as keep the
engine full, so that it is never idle between them. A results part is written before its
reservations are settled: it is the settlement, and a run can be recounted from its results alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray import serve

from rtr_ray.answers import Answerer
from rtr_ray.cells import SAMPLE
from rtr_ray.config import DispatchKeys, SandboxKeys
from rtr_ray.corpus import QUERY_ID
from rtr_ray.dispatch import Dispatcher, Gate, Settings, Settlement
from rtr_ray.distributed.cluster import DISPATCH_CPUS
from rtr_ray.distributed.executor import ServeExecutor
from rtr_ray.distributed.ledger_actor import Durable, RemoteBooks
from rtr_ray.distributed.plan_parts import MOVED, Part, part_name
from rtr_ray.distributed.programs import runner, sandbox_of, with_checker
from rtr_ray.distributed.sink import Sink
from rtr_ray.executors.base import Executor
from rtr_ray.grading import Grader
from rtr_ray.parts import queries
from rtr_ray.pool import Deployment, Pool
from rtr_ray.run_folder import RESULTS
from rtr_ray.storage import Store, open_store, read_table
from rtr_ray.terms import Terms
from rtr_ray.types import Candidate, Request, Usage

_LONGEST = "predicted_output_tokens_p95"
_SETTLING = (
    *("query_id", "status", "model", "strategy", "samples", SAMPLE),
    *("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd"),
)
_LEAST_PARTS = 3  # that an actor works on at a time: the next begin while the last answers of one run
_MOST_PARTS = 48  # however small they are


def most_in_flight(deployment: Deployment, keys: DispatchKeys) -> int:
    """Requests that may be at a deployment at once."""
    return deployment.max_in_flight * deployment.max_replicas + keys.chunk


@dataclass(frozen=True, slots=True)
class DispatchWork:
    """Everything that a dispatch actor must know."""

    pool: Pool
    deployment: Deployment
    output: str
    keys: DispatchKeys
    sandbox: SandboxKeys
    grader: Grader | None
    ledger: Any  # actor handle
    settings: str | None = None  # the column with the rows' own terms


class DispatchActor:
    """Answers plan parts."""

    def __init__(self, work: DispatchWork) -> None:
        self._work = work
        self._store = open_store(work.output)
        self._gate = Gate(most_in_flight(work.deployment, work.keys))
        self._tools: _Tools | None = None
        self._opening = asyncio.Lock()
        self._running: list[Dispatcher] = []
        self._draining = False

    async def answer(self, key: str, handle: tuple[str, str] | None) -> bool:
        """Answer a plan part; tells whether all of it is durable now.

        Args:
            key: Of the part.
            handle: Deployment and application name of the engine; None for an endpoint.
        """
        work, tools = self._work, await self._opened(handle)
        part = await asyncio.to_thread(read_table, self._store, key)
        name = part_name(key)
        # rows that a smaller budget skipped are tried again
        await asyncio.to_thread(self._store.delete, f"{RESULTS}{name}-skipped.parquet")
        done = await asyncio.to_thread(durable_results, self._store, name)
        moved = await asyncio.to_thread(moved_rows, self._store, name)
        books = RemoteBooks(work.ledger, name)
        await books.begin(done)
        index: dict[str, int] = {}
        dispatcher = Dispatcher(
            tools.executor,
            books,
            work.pool,
            self._gate,
            Settings(
                work.keys.chunk,
                work.keys.attempts,
                work.keys.backoff_s,
                work.keys.max_backoff_s,
                work.keys.timeout_s,
            ),
        )
        sink = Sink(
            self._store,
            name,
            part,
            index,
            work.pool,
            work.keys,
            tools.answerer,
            tools.grader,
            books,
            dispatcher,
        )
        requests = open_requests(work.pool, part, index, done, moved, work.settings)
        self._running.append(dispatcher)
        if self._draining:
            dispatcher.drain()
        try:
            # closed where the sink raises, too: what is on its way is then taken back at once
            async with sink, contextlib.aclosing(dispatcher.run(requests)) as outcomes:
                async for outcome in outcomes:
                    await sink.take(outcome)
        finally:
            self._running.remove(dispatcher)
        await books.finish()
        return not self._draining

    async def drain(self) -> None:
        """Send nothing more; what has been sent is waited for and made durable."""
        self._draining = True
        for dispatcher in self._running:
            dispatcher.drain()

    async def _opened(self, handle: tuple[str, str] | None) -> _Tools:
        async with self._opening:
            if self._tools is None:
                self._tools = await _Tools.open(self._work, handle)
            return self._tools


@dataclass(slots=True)
class _Tools:
    """What all parts of one actor share."""

    executor: Executor
    answerer: Answerer
    grader: Grader | None

    @classmethod
    async def open(cls, work: DispatchWork, handle: tuple[str, str] | None) -> _Tools:
        """Connect to the deployment; the sandbox starts with the first program."""
        sandbox = sandbox_of(work.sandbox)
        grader = None if work.grader is None else with_checker(work.grader, sandbox)
        executor: Executor
        if work.deployment.endpoint is not None:
            from rtr_ray.executors.openai import OpenAIExecutor  # takes a second to import

            executor = OpenAIExecutor(work.deployment.endpoint)
        else:
            assert handle is not None
            executor = ServeExecutor(serve.get_deployment_handle(*handle))
        return cls(executor, Answerer(work.pool.strategies, runner(sandbox), work.pool.thinking), grader)


def durable_results(store: Store, name: str) -> Durable:
    """What is durable of a plan part: the requests that need not be sent, and what each was paid."""
    done: dict[str, tuple[str, Settlement | None]] = {}
    for key in store.keys(f"{RESULTS}{name}-"):
        table = read_table(store, key)
        for row in table.select([c for c in _SETTLING if c in table.column_names]).to_pylist():
            candidate = Candidate(row["model"], row["strategy"], row["samples"])
            request = f"{row['query_id']}|{candidate}|{row.get(SAMPLE, 0)}"
            paid = None
            if row["cost_usd"] is not None:
                tokens = Usage(row["input_tokens"], row["output_tokens"], row["cached_input_tokens"] or 0)
                paid = Settlement(request, tokens, row["cost_usd"])
            done[request] = (row["status"], paid)
    return done


def moved_rows(store: Store, name: str) -> frozenset[str]:
    """The queries of a plan part that were put into another one, since the budget did not reach them."""
    ids: set[str] = set()
    for key in store.keys(f"{MOVED}{name}-"):
        ids.update(read_table(store, key, [QUERY_ID])[QUERY_ID].to_pylist())
    return frozenset(ids)


def open_requests(
    pool: Pool,
    part: pa.Table,
    index: dict[str, int],
    done: Collection[str],
    moved: Collection[str] = (),
    settings: str | None = None,
) -> Iterator[Request]:
    """The requests of a plan part that are still to be answered; `index` learns the row of each."""
    samples = part[SAMPLE].to_pylist() if SAMPLE in part.column_names else [0] * len(part)
    longest = [None if tokens is None else math.ceil(tokens) for tokens in part[_LONGEST].to_pylist()]
    terms = [None] * len(part) if settings is None else part[settings].to_pylist()
    asked = enumerate(zip(queries(part), samples, longest, terms, strict=True))
    for row, ((query, candidate), sample, expected, own) in asked:
        if query.query_id not in moved and f"{query.query_id}|{candidate}|{sample}" not in done:
            request = Terms.read(own).applied(pool.request(query, candidate, sample, expected), pool)
            index[request.key] = row
            yield request


@dataclass(slots=True)
class Crew:
    """The actor that dispatches to one deployment, and the plan parts that wait for it.

    An actor that dies comes back and takes its parts up again, each where it stopped.
    """

    work: DispatchWork
    handle: tuple[str, str] | None = None  # deployment and application name, once the engine is up
    waiting: deque[Part] = field(default_factory=deque)
    running: dict[Any, Part] = field(default_factory=dict)  # what Ray gives for a call -> its part
    _actor: Any = None

    @property
    def rows(self) -> int:
        """Of all parts that are not durable yet."""
        return sum(part.rows for part in (*self.waiting, *self.running.values()))

    def start(self) -> None:
        """Begin to start the actor: that takes seconds, and needs no engine."""
        if self._actor is None:
            self._actor = _RemoteDispatch.options(max_concurrency=_MOST_PARTS + 2).remote(self.work)

    def push(self) -> None:
        """Give the actor as many parts as keep the engine full."""
        if self.waiting:
            self.start()
        enough = 2 * most_in_flight(self.work.deployment, self.work.keys)
        while self.waiting and len(self.running) < _MOST_PARTS:
            sent = sum(part.rows for part in self.running.values())
            if len(self.running) >= _LEAST_PARTS and sent >= enough:
                break
            part = self.waiting.popleft()
            self.running[self._actor.answer.remote(part.key, self.handle)] = part

    def finished(self) -> list[tuple[Part, bool]]:
        """The parts that have ended since, and whether all of their rows are durable.

        Raises:
            RayError: Around what a part failed with.
        """
        if not self.running:
            return []
        done, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        return [(self.running.pop(one), ray.get(one)) for one in done]

    def drain(self) -> None:
        """Send nothing more to the deployment."""
        self.waiting.clear()
        if self._actor is not None:
            self._actor.drain.remote()

    def stop(self) -> None:
        """End the actor."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


_RemoteDispatch = ray.remote(num_cpus=DISPATCH_CPUS, max_restarts=-1, max_task_retries=-1)(DispatchActor)
