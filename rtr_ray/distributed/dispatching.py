"""The second pass: plan parts become results, through Ray Data actors that call Serve.

One actor (or several) per deployment takes plan parts one after the other and a few at a time,
so that the engine is never idle between them. A results part is written before its reservations
are settled: it is the settlement, and a run can be recounted from its results alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray import serve
from ray.data import ActorPoolStrategy

from rtr_ray.answers import Answerer
from rtr_ray.cells import SAMPLE
from rtr_ray.config import DispatchKeys, SandboxKeys
from rtr_ray.dispatch import Dispatcher, Gate, Settings, Settlement
from rtr_ray.distributed.cluster import DISPATCH_CPUS
from rtr_ray.distributed.executor import ServeExecutor
from rtr_ray.distributed.ledger_actor import Durable, RemoteBooks
from rtr_ray.distributed.sink import Sink
from rtr_ray.executors.base import Executor
from rtr_ray.grading import Code, Grader
from rtr_ray.parts import queries
from rtr_ray.pool import Deployment, Pool
from rtr_ray.run_folder import RESULTS
from rtr_ray.sandbox import Limits, Sandbox
from rtr_ray.storage import Store, open_store, read_table
from rtr_ray.types import Candidate, Request, Usage

_SETTLING = (
    *("query_id", "status", "model", "strategy", "samples", SAMPLE),
    *("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd"),
)
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
        done = await asyncio.to_thread(durable_results, self._store, name)
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


def _requests(pool: Pool, part: pa.Table, index: dict[str, int], done: Collection[str]) -> Iterator[Request]:
    """The requests of a plan part that are still to be answered; `index` learns the row of each."""
    samples = part[SAMPLE].to_pylist() if SAMPLE in part.column_names else [0] * len(part)
    for row, ((query, candidate), sample) in enumerate(zip(queries(part), samples, strict=True)):
        if f"{query.query_id}|{candidate}|{sample}" not in done:
            request = pool.request(query, candidate, sample)
            index[request.key] = row
            yield request


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
