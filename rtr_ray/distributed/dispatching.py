"""The second pass: plan parts become results, through Ray Data actors that call Serve.

One actor (or several) per deployment takes plan parts one after the other and a few at a time,
so that the engine is never idle between them. A results part is written before its reservations
are settled: it is the settlement, and a run can be recounted from its results alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from ray import serve
from ray.data import ActorPoolStrategy

from rtr_ray.answers import Answerer
from rtr_ray.cells import SAMPLE
from rtr_ray.config import DispatchKeys, SandboxKeys
from rtr_ray.corpus import GOLD, TEXT
from rtr_ray.dispatch import Dispatcher, Gate, Settings, Settlement, settlement
from rtr_ray.distributed.cluster import DISPATCH_CPUS
from rtr_ray.distributed.executor import ServeExecutor
from rtr_ray.distributed.ledger_actor import RemoteBooks
from rtr_ray.executors.base import Executor
from rtr_ray.grading import Code, Grader, Item
from rtr_ray.parts import queries, result_rows
from rtr_ray.pool import Deployment, Pool
from rtr_ray.run_folder import RESULTS
from rtr_ray.sandbox import Limits, Sandbox
from rtr_ray.storage import Store, open_store, read_table, write_table
from rtr_ray.types import Outcome, Request

_PARTS_AT_ONCE = 3  # plan parts that one actor works on: the next begin while the last answers of one run


@dataclass(frozen=True, slots=True)
class DispatchWork:
    """Everything that a dispatch actor must know."""

    pool: Pool
    deployment: Deployment
    handle: tuple[str, str] | None  # deployment and application name; None for an endpoint
    output: str
    keys: DispatchKeys
    sandbox: SandboxKeys
    grader: Grader | None
    ledger: Any  # actor handle


class DispatchActor:
    """Answers plan parts."""

    def __init__(self, work: DispatchWork) -> None:
        self._work = work
        self._store = open_store(work.output)
        replicas = work.deployment.max_replicas
        self._gate = Gate(work.deployment.max_in_flight * replicas + work.keys.chunk)
        self._tools: _Tools | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """One plan part in, its key out when all of its rows are durable."""
        key = str(batch["key"][0])
        await self._answer(key)
        yield {"key": [key]}

    async def _answer(self, key: str) -> None:
        work, tools = self._work, await self._opened()
        part = await asyncio.to_thread(read_table, self._store, key)
        name = part_name(key)
        # rows that a smaller budget skipped are tried again
        await asyncio.to_thread(self._store.delete, f"{RESULTS}{name}-skipped.parquet")
        done = await asyncio.to_thread(answered_keys, self._store, name)
        books = RemoteBooks(work.ledger, name)
        await books.begin()
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
        sink = _Sink(self._store, name, part, index, work, tools, books, lambda: dispatcher.sent_again)
        requests = _requests(work.pool, part, index, done)
        # closed where the sink raises, too: what is on its way is then taken back at once
        async with sink, contextlib.aclosing(dispatcher.run(requests)) as outcomes:
            async for outcome in outcomes:
                await sink.take(outcome)
        await books.finish()

    async def _opened(self) -> _Tools:
        async with self._opening:
            if self._tools is None:
                self._tools = await _Tools.open(self._work)
            return self._tools


@dataclass(slots=True)
class _Tools:
    """What all parts of one actor share."""

    executor: Executor
    answerer: Answerer
    sandbox: Sandbox
    grader: Grader | None

    @classmethod
    async def open(cls, work: DispatchWork) -> _Tools:
        """Connect to the deployment; the sandbox starts with the first program."""
        keys = work.sandbox
        limits = Limits()
        limits = Limits(
            cpu_s=int(keys.cpu_s) if keys.cpu_s else limits.cpu_s,
            wall_s=keys.wall_s or limits.wall_s,
            memory_bytes=keys.memory_mib << 20 if keys.memory_mib else limits.memory_bytes,
        )
        sandbox = Sandbox(keys.mode, limits=limits)

        async def run_program(code: str) -> str | None:
            execution = await sandbox.run(code)
            return execution.stdout if execution.status == "ok" else None

        async def check_program(code: str, tests: str) -> bool:
            return (await sandbox.run(code, check=tests)).status == "ok"

        grader = work.grader
        if isinstance(grader, Code):
            grader = replace(grader, check_program=check_program)
        executor: Executor
        if work.deployment.endpoint is not None:
            from rtr_ray.executors.openai import OpenAIExecutor  # takes a second to import

            executor = OpenAIExecutor(work.deployment.endpoint)
        else:
            assert work.handle is not None
            executor = ServeExecutor(serve.get_deployment_handle(*work.handle))
        return cls(executor, Answerer(work.pool.strategies, run_program, work.pool.thinking), sandbox, grader)


def part_name(key: str) -> str:
    """The short name of a plan part, which its results carry."""
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def answered_keys(store: Store, name: str) -> set[str]:
    """The requests of a plan part whose results are durable."""
    done: set[str] = set()
    for key in store.keys(f"{RESULTS}{name}-"):
        table = read_table(store, key)
        samples = table[SAMPLE].to_pylist() if SAMPLE in table.column_names else [0] * len(table)
        done |= {
            f"{name}|{sample}" for name, sample in zip(table["query_id"].to_pylist(), samples, strict=True)
        }
    return done


def _requests(pool: Pool, part: pa.Table, index: dict[str, int], done: set[str]) -> Iterator[Request]:
    """The requests of a plan part that are still to be answered; `index` learns the row of each."""
    samples = part[SAMPLE].to_pylist() if SAMPLE in part.column_names else [0] * len(part)
    for row, ((query, candidate), sample) in enumerate(zip(queries(part), samples, strict=True)):
        if f"{query.query_id}|{sample}" not in done:
            request = pool.request(query, candidate, sample)
            index[request.key] = row
            yield request


@dataclass(slots=True)
class _Sink:
    """Makes outcomes durable, some at a time: answer, grade, write, then settle."""

    store: Store
    name: str
    part: pa.Table
    index: Mapping[str, int]
    work: DispatchWork
    tools: _Tools
    books: RemoteBooks
    sent_again: Callable[[], int]
    _skipped: list[Outcome] = field(default_factory=list)
    _ready: list[tuple[Outcome, float | None]] = field(default_factory=list)
    _reading: set[asyncio.Task[None]] = field(default_factory=set)
    _since: float = 0.0
    _reported: int = 0
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _ticking: asyncio.Task[None] | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _error: BaseException | None = None

    async def __aenter__(self) -> _Sink:
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        assert self._ticking is not None
        await asyncio.gather(*self._reading, return_exceptions=True)
        # told, not cancelled: a commit between its write and its settlement must not be torn apart
        self._ended.set()
        await self._ticking
        # what has been answered is kept, whatever else went wrong
        await self._commit()
        if kind is None and self._skipped:
            await self._write(f"{RESULTS}{self.name}-skipped.parquet", [(o, None) for o in self._skipped], [])
            await self.books.settle([], {"skipped_budget": len(self._skipped)})
        if kind is None and self._error is not None:
            raise self._error

    async def take(self, outcome: Outcome) -> None:
        """Take an outcome; its answer is read (a program may have to run) while others come in."""
        if self._error is not None:
            raise self._error
        if outcome.status == "skipped_budget":
            self._skipped.append(outcome)
            return
        task = asyncio.create_task(self._read(outcome))
        self._reading.add(task)
        task.add_done_callback(self._read_done)
        if len(self._ready) >= self.work.keys.commit_rows:
            await self._commit()

    def _read_done(self, task: asyncio.Task[None]) -> None:
        self._reading.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error

    async def _read(self, outcome: Outcome) -> None:
        outcome = await self.tools.answerer.read(outcome)
        correct = await self._grade(outcome)
        if not self._ready:
            self._since = time.monotonic()
        self._ready.append((outcome, correct))

    async def _grade(self, outcome: Outcome) -> float | None:
        if self.tools.grader is None or outcome.status != "answered":
            return None
        row = self.index[outcome.key]
        item = Item(
            self.part[TEXT][row].as_py(),
            outcome.candidate,
            outcome.answer,
            outcome.samples[0].text if outcome.samples else "",
            self.part[GOLD][row].as_py(),
        )
        (score,) = await self.tools.grader.grade([item])
        return score

    async def _tick(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self.work.keys.commit_s / 4)
            if self._ready and time.monotonic() - self._since >= self.work.keys.commit_s:
                try:
                    await self._commit()
                except Exception as error:
                    self._error = error
                    return

    async def _commit(self) -> None:
        async with self._writing:
            ready, self._ready = self._ready, []
            again = self.sent_again()
            if not ready and again == self._reported:
                return
            settlements = [settlement(self.work.pool, outcome) for outcome, _ in ready]
            if ready:
                key = f"{RESULTS}{self.name}-{uuid.uuid4().hex[:12]}.parquet"
                await self._write(key, ready, settlements)
            counted = Counter(str(outcome.status) for outcome, _ in ready)
            closing = [one for one in settlements if one is not None]
            await self.books.settle(closing, counted, again - self._reported)
            self._reported = again

    async def _write(
        self,
        key: str,
        ready: Sequence[tuple[Outcome, float | None]],
        settlements: Sequence[Settlement | None],
    ) -> None:
        costs = [one.cost_usd if one and not one.lost else None for one in settlements] or [None] * len(ready)
        rows = [self.index[outcome.key] for outcome, _ in ready]
        table = result_rows(self.part, rows, [o for o, _ in ready], costs, [c for _, c in ready])
        if SAMPLE in self.part.column_names:
            samples = pa.array([outcome.sample for outcome, _ in ready], pa.int32())
            table = table.drop_columns([SAMPLE]).append_column(SAMPLE, samples)
        await asyncio.to_thread(write_table, self.store, key, table)


def answer_parts(work: DispatchWork, keys: Sequence[str], actors: int = 1) -> Iterator[str]:
    """Answer plan parts of one deployment, in this order.

    Yields:
        The key of each part when all of its rows are durable.
    """
    if not keys:
        return
    dataset = ray.data.from_items([{"key": key} for key in keys], override_num_blocks=len(keys))
    parts = dataset.map_batches(
        DispatchActor,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(
            size=min(actors, len(keys)),
            max_tasks_in_flight_per_actor=_PARTS_AT_ONCE,
            max_concurrent_calls_per_actor=_PARTS_AT_ONCE,
        ),
        num_cpus=DISPATCH_CPUS,
    )
    for row in parts.iter_rows():
        yield row["key"]
