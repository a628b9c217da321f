"""The sink without Ray: what was answered is paid, and kept whatever breaks behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtr_ray import run_folder
from rtr_ray.answers import Answerer
from rtr_ray.config import DispatchKeys
from rtr_ray.corpus import GOLD, MESSAGES, QUERY_ID, ROW_ERROR, TEXT
from rtr_ray.dispatch import Dispatcher, Gate, Reservation, Settings, Settlement
from rtr_ray.distributed.dispatching import durable_results, open_requests
from rtr_ray.distributed.ledger_actor import SharedLedger
from rtr_ray.distributed.sink import Sink
from rtr_ray.errors import ExecutionError, StorageError
from rtr_ray.ledger import Grant
from rtr_ray.schemas import PREDICTIONS
from rtr_ray.storage import LocalStore
from rtr_ray.types import Usage
from tests.fakes import ScriptedExecutor, pool_of, requests_of

POOL = pool_of()
WORST = POOL.worst_case_usd(requests_of(POOL, 1)[0])
ACTUAL = Decimal("0.00006")


def part_of(count: int) -> pa.Table:
    """A plan part: q0, q1, ..."""
    columns: dict[str, Any] = {
        QUERY_ID: [f"q{i}" for i in range(count)],
        TEXT: [f"question {i}" for i in range(count)],
        MESSAGES: pa.nulls(count, pa.string()),
        GOLD: ["42"] * count,
        ROW_ERROR: pa.nulls(count, pa.string()),
    }
    fixed = {"model": "small", "strategy": "cot", "samples": 1}
    for one in PREDICTIONS:
        columns[one.name] = pa.array([fixed.get(one.name)] * count, one.type)
    return pa.table(columns)


@dataclass
class Books:
    """The shared ledger, called directly."""

    shared: SharedLedger
    take: int = 0
    trimmed: list[str] = field(default_factory=list)

    async def begin(self, durable: Any) -> None:
        self.take = self.shared.begin("part", durable)

    async def trim(self, known: Sequence[tuple[str, Decimal]]) -> None:
        self.trimmed += [key for key, _ in known]
        self.shared.trim("part", self.take, known)

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        return self.shared.reserve("part", reservations)

    async def left_usd(self) -> Decimal | None:
        return self.shared.left_usd()

    async def settle(self, settlements: Sequence[Settlement], rows: Any = None, sent_again: int = 0) -> None:
        self.shared.settle("part", settlements, dict(rows or {}), sent_again)


@dataclass
class Grader:
    """Grades everything as right; from some answer on it raises, takes its time, or waits for something."""

    good: int = 10**9
    seconds: float = 0.0
    waits_for: Callable[[], bool] = lambda: True
    graded: int = 0
    at_once: int = 0
    most: int = 0

    async def grade(self, items: Sequence[Any]) -> list[float | None]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        for _ in range(500):
            if self.waits_for():
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(self.seconds)
        self.at_once -= 1
        self.graded += 1
        if self.graded > self.good:
            raise ValueError("the secret answer is 42")
        return [1.0]


@dataclass
class Bench:
    """One plan part from its requests to its results."""

    folder: Path
    budget_usd: Decimal | None = None
    grader: Any = None
    keys: DispatchKeys = field(default_factory=lambda: DispatchKeys(chunk=2, commit_s=0.05, commit_rows=100))
    count: int = 8
    gate: int = 4
    books: Any = None

    async def answer(self) -> None:
        """As a dispatch actor does."""
        store = LocalStore(str(self.folder))
        self.shared = SharedLedger(str(self.folder), self.budget_usd)
        self.shared.resume({}, {})
        books: Any = Books(self.shared)
        self.books = books
        part, index = part_of(self.count), dict[str, int]()
        done = durable_results(store, "name")
        await books.begin(done)
        self.executor = ScriptedExecutor(latency_s=lambda r: 0.02)
        dispatcher = Dispatcher(self.executor, books, POOL, Gate(self.gate), Settings(chunk=self.keys.chunk))
        answerer = Answerer(POOL.strategies, None, POOL.thinking)
        sink = Sink(store, "name", part, index, POOL, self.keys, answerer, self.grader, books, dispatcher)
        requests = open_requests(POOL, part, index, done)
        async with sink, contextlib.aclosing(dispatcher.run(requests)) as outcomes:
            async for outcome in outcomes:
                await sink.take(outcome)

    def run(self) -> None:
        """To its end, which must come soon."""
        asyncio.run(asyncio.wait_for(self.answer(), 30))

    def results(self) -> list[dict[str, Any]]:
        """What is durable."""
        files = sorted((self.folder / "results").glob("*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def broken(monkeypatch):
    """Makes writes of results fail: so many; before or after they arrive."""
    monkeypatch.setattr(run_folder, "WRITE_PAUSES_S", (0.01, 0.01))
    write = LocalStore.write
    keys: list[str] = []

    def breaks(times: int, arrives: bool = False) -> list[str]:
        def failing(self: LocalStore, key: str, data: bytes) -> None:
            if not key.startswith("results/"):
                return write(self, key, data)
            keys.append(key)
            if arrives or len(keys) > times:
                write(self, key, data)
            if len(keys) <= times:
                raise StorageError("Cannot write there: No space left on device.")
            return None

        monkeypatch.setattr(LocalStore, "write", failing)
        return keys

    return breaks


def test_every_answer_is_read_graded_written_and_settled(tmp_path):
    bench = Bench(tmp_path, grader=Grader())
    bench.run()
    rows = bench.results()
    assert sorted(row["query_id"] for row in rows) == [f"q{i}" for i in range(8)]
    assert {row["correct"] for row in rows} == {1.0}
    found = bench.shared.close()
    assert (found.balance.in_flight, found.balance.spent_usd) == (0, 8 * ACTUAL)
    assert found.rows == {"answered": 8}


@pytest.mark.parametrize("arrives", [False, True])
def test_a_write_that_fails_for_a_while_loses_nothing_and_writes_nothing_twice(tmp_path, broken, arrives):
    keys = broken(2, arrives)
    bench = Bench(tmp_path)
    bench.run()
    assert keys[0] == keys[1] == keys[2]
    assert sorted(row["query_id"] for row in bench.results()) == [f"q{i}" for i in range(8)]
    assert bench.shared.snapshot().balance.spent_usd == 8 * ACTUAL


def test_a_disk_that_stays_full_ends_the_run_though_it_waits_for_the_budget(tmp_path, broken):
    # two fit into the budget at a time: unsettled, they would be waited for for ever
    broken(10**9)
    bench = Bench(tmp_path, budget_usd=WORST * 2)
    with pytest.raises(StorageError, match="No space left on device"):
        bench.run()
    assert bench.results() == []
    # a later session counts them as unknown; a third may have been sent, once what those cost was known
    balance, sent = bench.shared.snapshot().balance, sum(map(len, bench.executor.chunks))
    assert balance.in_flight + balance.unknown_calls == sent >= 2
    assert (balance.spent_usd, balance.in_flight >= 2) == (0, True)


def test_what_could_not_be_written_is_written_at_the_end_if_there_is_room_again(tmp_path, broken):
    broken(3)  # as often as a commit tries
    bench = Bench(tmp_path, budget_usd=WORST * 2)
    with pytest.raises(StorageError, match="No space left on device"):
        bench.run()
    balance = bench.shared.snapshot().balance
    # two fit into the budget by their worst cases, more where what those cost was known before the commit
    assert len(bench.results()) >= 2
    assert (balance.spent_usd, balance.in_flight) == (len(bench.results()) * ACTUAL, 0)


def test_answers_that_cannot_be_graded_are_kept_and_the_run_says_who_is_to_blame(tmp_path):
    bench = Bench(tmp_path, grader=Grader(good=3), count=100)
    with pytest.raises(ExecutionError) as caught:
        bench.run()
    message = str(caught.value)
    assert message.startswith("Reading or grading an answer failed: ValueError in test_sink.py, line ")
    assert "secret" not in message
    rows = bench.results()
    assert [row["correct"] for row in rows].count(1.0) == 3
    assert 3 < len(rows) < 100
    balance = bench.shared.snapshot().balance
    assert (balance.spent_usd, balance.in_flight) == (len(rows) * ACTUAL, 0)
    # the others are not asked again
    later = Bench(tmp_path, grader=Grader(), count=100)
    later.run()
    assert len({row["query_id"] for row in later.results()}) == len(later.results()) == 100


def test_where_grading_is_slower_than_answering_the_sending_waits(tmp_path):
    grader = Grader(seconds=0.05)
    grader.waits_for = lambda: grader.most >= 5
    keys = DispatchKeys(chunk=2, commit_s=0.05, commit_rows=5)
    bench = Bench(tmp_path, grader=grader, keys=keys, count=60, gate=8)
    bench.run()
    assert len(bench.results()) == 60
    assert grader.most == 5


def test_what_is_durable_is_known_with_what_it_cost(tmp_path):
    bench = Bench(tmp_path, count=2)
    bench.run()
    found = durable_results(LocalStore(str(tmp_path)), "name")
    key = "q0|small:cot|0"
    assert found[key] == ("answered", Settlement(key, Usage(20, 10), ACTUAL))
    assert set(found) == {key, "q1|small:cot|0"}


def test_what_an_answer_cost_is_told_before_its_row_is_durable(tmp_path):
    first = {f"q{i}|small:cot|0" for i in range(4)}
    # so long they are in, and not written
    grader = Grader(waits_for=lambda: first <= set(bench.books.trimmed))
    bench = Bench(tmp_path, Decimal("1"), grader)
    asyncio.run(bench.answer())
    assert first <= set(bench.books.trimmed)
    assert bench.shared.snapshot().balance.spent_usd == 8 * ACTUAL
