"""Ledger and dispatch as one state machine: whatever happens, in whatever order, the money adds up.

Real `Dispatcher`s and a real `SharedLedger` run in virtual time before engines that fail, hang,
die, or go on generating when nobody listens any more. Workers are killed and begin again, whole
sessions are killed and resumed from the results and `ledger.json`, the disk is full at times. What
was really paid is metered at the engines, outside of the ledger. After each step it is checked:

1. spent + reserved + unknown <= budget.
2. What the ledger calls spent is the sum of what was settled, and nothing is settled twice.
3. What was really paid is no more than spent + reserved + unknown.
4. Were everything killed now, the next session would know of all that was really paid.

and at the end: every row once, the results add up to what is spent, nothing is reserved any more.
A seed is one interleaving; `benchmarks/interleavings.py` tries many.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from rtr_ray import run_folder
from rtr_ray.books import Reservation, Settlement, settlement
from rtr_ray.dispatch import Dispatcher, Gate, Settings
from rtr_ray.distributed import ledger_actor
from rtr_ray.distributed.ledger_actor import Durable, SharedLedger
from rtr_ray.distributed.lending import Extending, limit_of
from rtr_ray.errors import StorageError
from rtr_ray.executors.base import Failure, Limit, Reply
from rtr_ray.ledger import Account, Grant, Ledger, Record
from rtr_ray.pool import MTOK
from rtr_ray.types import Candidate, Outcome, Request, Sample, Usage
from tests.fakes import pool_of, requests_of, run_virtually

POOL = pool_of(("small:cot", "free:cot"), {"free": ("0", "0")}, max_tokens=400)
SMALL, FREE = POOL.candidates
TOKEN_USD = POOL.price(SMALL).output_usd_per_mtok / MTOK
INPUT_TOKENS = 20
FATES = ["ok"] * 8 + ["busy", "no", "lost", "die", "hang", "mute", "counted"]
ZERO = Decimal(0)


class BrokenError(AssertionError):
    """An invariant does not hold."""


class MemoryStore:
    """One object, or the lack of it; full when told so."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.fails: list[str] = []  # of the next writes: "lost", or "arrived" all the same
        self.uri = "memory"
        self.record = Record()

    def read(self, key: str) -> bytes | None:
        return self.data.get(key)

    def write(self, key: str, data: bytes) -> None:
        how = self.fails.pop() if self.fails else ""
        if how != "lost":
            self.data[key] = data
            self.record = Record.from_json(json.loads(data))
        if how:
            raise StorageError("disk full")


@dataclass
class World:
    """One interleaving."""

    seed: int
    ledger: type[Ledger] = Ledger
    shared: type[SharedLedger] = SharedLedger
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        dice = self.dice = random.Random(self.seed)
        count = dice.randint(1, 7)
        free = dice.random() < 0.2
        requests = [
            replace(request, expected_tokens=dice.choice([None, dice.randint(1, 400), dice.randint(1, 60)]))
            for request in requests_of(POOL, count, FREE if free else SMALL)
        ]
        cut = dice.randint(0, count)
        self.parts = {"a": requests[:cut], "b": requests[cut:]}
        worst = POOL.worst_case_usd(requests[0])
        shares = [None, ZERO, *(dice.randint(2, 50) * worst / 8 for _ in range(6))]
        self.budget = dice.choice(shares)
        self.chunk, self.attempts, self.gate = dice.randint(1, 4), dice.randint(1, 3), dice.randint(1, 6)
        self.delay_s = dice.choice([0.0, 0.01, 0.7])
        self.extending = dice.random() < 0.7
        self.store = MemoryStore()
        self.results: dict[str, dict[str, tuple[str, Settlement | None]]] = {"a": {}, "b": {}}
        self.truth = ZERO  # what was really paid
        self.session = 0
        self.open: dict[str, str] = {}  # key -> part
        self.settled: dict[str, Decimal] = {}
        self.engines: set[asyncio.Task[None]] = set()
        self.books: SharedLedger | None = None
        self.broken: str | None = None

    # --- what is checked ---

    def check(self, after: str) -> None:
        """Remember the first invariant that does not hold: who called must not be able to swallow it."""
        if self.broken is None and self.books is not None and (wrong := self._wrong(self.books)):
            self.broken = f"seed {self.seed}, session {self.session}, after {after}: {wrong}"

    def _wrong(self, books: SharedLedger) -> str | None:
        ledger = books._ledger
        if min(ledger.spent_usd, ledger.reserved_usd, ledger.unknown_usd) < 0:
            return f"something is negative: {ledger.balance()}"
        if ledger.spent_usd != (settled := sum(self.settled.values(), ZERO)):
            return f"{settled} were settled and {ledger.spent_usd} are spent"
        if ledger.in_flight != len(self.open):
            return f"{ledger.in_flight} reservations are open, of {len(self.open)}"
        if self.budget is None:
            return None  # then nothing waits for a record, and what a kill leaves behind is not all known
        if self.truth > ledger.committed_usd:
            return f"{self.truth} were paid, the ledger knows of {ledger.committed_usd}"
        if ledger.committed_usd > self.budget:
            return f"{ledger.committed_usd} are committed of {self.budget}"
        record = self.store.record
        durable = self.durable_usd()
        if self.truth > durable + record.unknown_beside(durable):
            return f"{self.truth} were paid; killed now, {durable} and {record} would be known"
        return None

    def durable_usd(self) -> Decimal:
        """What the results show."""
        rows = [one for part in self.results.values() for _, one in part.values()]
        return sum((one.cost_usd for one in rows if one is not None), ZERO)

    def check_end(self) -> None:
        """Nothing is left, and every row is there."""
        if self.broken is None:
            wrong = self._wrong_at_the_end()
            self.broken = f"seed {self.seed}, at the end: {wrong}" if wrong else None
        if self.broken:
            raise BrokenError(self.broken)

    def _wrong_at_the_end(self) -> str | None:
        assert self.books is not None
        ledger = self.books._ledger
        for part, requests in self.parts.items():
            if set(self.results[part]) != {request.key for request in requests}:
                return f"rows of {part}: {sorted(self.results[part])}"
        if ledger.in_flight or ledger.reserved_usd:
            return f"still reserved: {ledger.reserved_usd} of {ledger.in_flight}"
        if ledger.spent_usd != self.durable_usd():
            return f"the results add up to {self.durable_usd()}, the ledger to {ledger.spent_usd}"
        return None

    # --- what happens ---

    def run(self) -> World:
        """Live through it.

        Raises:
            BrokenError: If an invariant did not hold.
        """
        run_virtually(self._sessions())
        self.check_end()
        return self

    async def _sessions(self) -> None:
        for last in [False] * self.dice.randint(0, 2) + [True]:
            self.session += 1
            await self._session(last)
        for task in self.engines:
            task.cancel()
        await asyncio.gather(*self.engines, return_exceptions=True)

    async def _session(self, last: bool) -> None:
        dice = self.dice
        self.store.fails = (
            [] if last else [dice.choice(["lost", "arrived", "", ""]) for _ in range(dice.choice([0, 0, 4]))]
        )
        ledger_actor._SAVE_S = dice.choice([0.0, 1e9])
        self._resume()
        doors = {part: Door(self, part) for part in self.parts}
        tasks = {part: asyncio.create_task(self._work(door)) for part, door in doors.items()}
        for _ in range(0 if last else dice.randint(0, 3)):
            await asyncio.sleep(dice.choice([0.0, 0.005, 0.4, 1.0, dice.random() * 12]))
            part = dice.choice(["a", "b"])
            if not tasks[part].done():
                self.seen["worker killed"] += 1
                await self._kill(doors[part], tasks[part])
                doors[part] = Door(self, part)
                tasks[part] = asyncio.create_task(self._work(doors[part]))
        if not last and dice.random() < 0.6:
            await asyncio.sleep(dice.choice([0.0, 0.005, 0.4, 1.0, dice.random() * 12]))
            self.seen["session killed"] += 1
            for part, task in tasks.items():
                await self._kill(doors[part], task)
            return
        done = await asyncio.gather(*tasks.values(), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                self.seen[type(error).__name__] += 1
                if last:
                    raise error
        assert self.books is not None
        with contextlib.suppress(StorageError):  # then the older record stands
            self.books.close()
        self.check("the end of a session")

    def _resume(self) -> None:
        self.books = self.shared("unused", self.budget)
        self.books._folder = run_folder.RunFolder(self.store)  # type: ignore[arg-type]
        self.books._ledger = self.ledger(self.budget)
        accounts: dict[Candidate, Account] = {}
        self.settled, self.open = {}, {}
        for part, rows in self.results.items():
            for key, (status, one) in list(rows.items()):
                if status == "skipped_budget":
                    del self.results[part][key]
                if one is not None and one.usage is not None:
                    candidate = Candidate.parse(key.split("|")[1])
                    accounts.setdefault(candidate, Account()).add(one.usage, one.cost_usd)
                    self.settled[key] = one.cost_usd
        self.books.resume(accounts, {})
        self.check("the resumption")

    async def _kill(self, door: Door, task: asyncio.Task[None]) -> None:
        """SIGKILL: nothing that it still does reaches anybody."""
        door.dead = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _work(self, door: Door) -> None:
        part = door.part
        await door.begin(dict(self.results[part]))
        engine = Engine(self, door) if self.extending else Plain(Engine(self, door))
        dispatcher = Dispatcher(
            engine,
            door,
            POOL,
            Gate(self.gate),
            Settings(self.chunk, self.attempts, timeout_s=6.0),
        )
        todo = [request for request in self.parts[part] if request.key not in self.results[part]]
        commits: set[asyncio.Task[None]] = set()
        try:
            async with contextlib.aclosing(dispatcher.run(todo)) as outcomes:
                async for outcome in outcomes:
                    self.seen[outcome.status] += 1
                    self.seen["cut"] += any(s.finish_reason == "budget" for s in outcome.samples)
                    commits.add(asyncio.create_task(self._commit(door, outcome)))
            await asyncio.gather(*commits)
            await door.finish()
        finally:
            for commit in commits:
                if door.dead:
                    commit.cancel()
            await asyncio.gather(*commits, return_exceptions=True)

    async def _commit(self, door: Door, outcome: Outcome) -> None:
        one = settlement(POOL, outcome)
        if one is not None and not one.lost and self.dice.random() < 0.5:
            await asyncio.sleep(self.dice.choice([0.0, 0.5, 3.0]))  # it may come after the settlement
            with contextlib.suppress(ConnectionError):
                await door.trim([(one.key, one.cost_usd)])
        await asyncio.sleep(self.dice.choice([0.0, 0.5, 3.0]))
        if door.dead:
            return
        if outcome.key in self.results[door.part]:
            self.broken = self.broken or f"seed {self.seed}: {outcome.key} is written twice"
        paid = None if one is None or one.lost else one
        self.results[door.part][outcome.key] = (outcome.status, paid)
        self.check("a write")
        if one is not None:
            await door.settle([one])


@dataclass
class Door:
    """The ledger as one worker sees it: some time away, and out of reach once the worker is dead."""

    world: World
    part: str
    dead: bool = False
    take: int = 0

    def __post_init__(self) -> None:
        assert self.world.books is not None
        self.books, self.session = self.world.books, self.world.session

    async def _way(self) -> None:
        if self.world.delay_s:
            await asyncio.sleep(self.world.delay_s / 2)

    def _reach(self, engine: bool = False) -> None:
        if self.session != self.world.session or (self.dead and not engine):
            raise ConnectionError("gone")

    async def begin(self, durable: Durable) -> None:
        world = self.world
        await self._way()
        self._reach()
        for key in [key for key, part in world.open.items() if part == self.part]:
            del world.open[key]
            _, one = durable.get(key, ("", None))
            if one is not None:
                self._settled(key, one.cost_usd)
        self.take = self.books.begin(self.part, durable)
        world.check("begin")
        await self._way()

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        await self._way()
        self._reach()
        try:
            grants = self.books.reserve(self.part, reservations)
        except StorageError:
            self.world.check("a refused write")
            raise
        for one, grant in zip(reservations, grants, strict=True):
            self.world.seen[grant.value] += 1
            if grant.given:
                self.world.open[one.key] = self.part
        self.world.check("reserve")
        await self._way()
        return grants

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._way()
        self._reach()
        for one in settlements:
            self.world.open.pop(one.key)
            if one.usage is not None and not one.lost:
                self._settled(one.key, one.cost_usd)
        self.books.settle(self.part, settlements, {}, 0)
        self.world.check("settle")
        await self._way()

    async def trim(self, known: Sequence[tuple[str, Decimal]]) -> None:
        await self._way()
        if self.session == self.world.session:  # of a dead worker, too: it may have been on its way
            self.books.trim(self.part, self.take, known)
            self.world.check("trim")

    def _settled(self, key: str, cost_usd: Decimal) -> None:
        if key in self.world.settled:
            self.world.broken = self.world.broken or f"seed {self.world.seed}: {key} is settled twice"
        self.world.settled[key] = cost_usd

    async def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        """Asked by an engine, which may outlive the worker."""
        await self._way()
        self._reach(engine=True)
        grant = self.books.extend(key, call, usd, least_usd)
        self.world.seen[f"extension {grant.value}"] += 1
        self.world.check("extend")
        await self._way()
        return grant

    async def left_usd(self) -> Decimal | None:
        self._reach()
        return self.books.left_usd()

    async def finish(self) -> None:
        self._reach()
        self.books.finish(self.part)
        self.world.check("finish")


@dataclass
class Engine:
    """Generates token by token, and meters what it does."""

    world: World
    door: Door

    def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Within what the requests allow."""
        return self.execute_limited(requests, [None] * len(requests), None)

    async def execute_limited(
        self, requests: Sequence[Request], limits: Sequence[Limit | None], lender: Any
    ) -> AsyncIterator[Reply]:
        """Within what is paid for."""
        replies: asyncio.Queue[Reply | Exception] = asyncio.Queue()
        tasks = []
        for request, limit in zip(requests, limits, strict=True):
            task = asyncio.create_task(self._generate(request, limit, lender, replies))
            self.world.engines.add(task)
            task.add_done_callback(self.world.engines.discard)
            tasks.append(task)
        try:
            for _ in requests:
                reply = await replies.get()
                if isinstance(reply, Exception):
                    raise reply
                yield reply
        finally:
            if self.world.dice.random() < 0.5:  # else it goes on, though nobody listens
                for task in tasks:
                    task.cancel()

    def _pay(self, request: Request, usd: Decimal) -> None:
        if request.candidate == SMALL:
            self.world.truth += usd
            self.world.check("a token")

    async def _generate(
        self, request: Request, limit: Limit | None, lender: Any, replies: asyncio.Queue[Any]
    ) -> None:
        dice = self.world.dice
        fate, length = dice.choice(FATES), dice.randint(1, 500)
        await asyncio.sleep(dice.choice([0.0, 0.3, 2.0]))
        if fate in ("busy", "no"):
            return replies.put_nowait(Failure(request.key, fate, fate == "busy", maybe_paid=False))
        self._pay(request, POOL.cost_usd(SMALL, Usage(INPUT_TOKENS, 0)))
        body = {"max_tokens": request.max_tokens}
        growing = Extending.read(
            body | ({} if limit is None else {"limit": limit_of(request.key, limit)}), lender
        )
        tokens, pace = 0, dice.choice([17, 60, 150, 400])
        most, end = request.max_tokens, "stop"
        while tokens < length:
            if growing is not None:
                most = await growing.limit(tokens)
            more = min(pace, most - tokens, length - tokens)
            if more <= 0:
                end = "budget" if most < request.max_tokens else "length"
                break
            self._pay(request, more * TOKEN_USD)
            tokens += more
            await asyncio.sleep(0.005 * more)
        if fate == "hang":
            return await asyncio.Event().wait() and None
        if fate == "die":
            return replies.put_nowait(ConnectionResetError("the replica died"))
        usage = Usage(INPUT_TOKENS, tokens)
        if fate in ("lost", "counted"):
            known = usage if fate == "counted" else None
            return replies.put_nowait(Failure(request.key, fate, True, maybe_paid=True, usage=known))
        samples = (Sample("x", end, tokens),)
        known = None if fate == "mute" else usage
        replies.put_nowait(
            Outcome(request.query_id, request.candidate, samples, usage=known, sample=request.sample)
        )
        return None

    async def aclose(self) -> None:
        """Nothing is held."""


@dataclass
class Plain:
    """The same engine behind a door that knows no extension."""

    engine: Engine

    def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Within what the requests allow."""
        return self.engine.execute(requests)

    async def aclose(self) -> None:
        """Nothing is held."""


@contextlib.contextmanager
def without_pauses() -> Iterator[None]:
    """Writes that fail are not tried again; what the tests change of the ledger's pace is undone."""
    before = run_folder.WRITE_PAUSES_S, ledger_actor._SAVE_S
    run_folder.WRITE_PAUSES_S = ()
    try:
        yield
    finally:
        run_folder.WRITE_PAUSES_S, ledger_actor._SAVE_S = before


def survive(seeds: range, **parts: Any) -> Counter[str]:
    """Live through many interleavings; how often what happened.

    Raises:
        BrokenError: At the first one in which an invariant does not hold.
    """
    seen: Counter[str] = Counter()
    with without_pauses():
        for seed in seeds:
            seen += World(seed, **parts).run().seen
    return seen
