"""A run on a thousand replicas, in simulated time, driven by the dispatcher that runs in earnest.

    python benchmarks/fleet.py
    python benchmarks/fleet.py --replicas 1000 --rows 400000 --only grows

Real `Dispatcher`s behind one `Gate`, as many at a time as a dispatch actor has, over the real ledger, on a
clock that jumps from event to event. What answers is simulated: replicas with slots, answers of lognormal
length, Serve's choice of the emptier of two replicas for each call, its limit of calls per replica, its
autoscaling. Scenes:

- `even`: all replicas are up and alike.
- `stragglers`: one in fifty takes twice as long, one in two hundred fifty times.
- `failures`: each replica dies every half hour on average, and is back after two minutes.
- `grows`: one in ten is up; Serve starts others as calls pile up, which takes two to four minutes each.
- `all`: everything of the above.

Told for each: the slots' busy share until fewer rows are left than there are slots; the time over that of a
fleet that is never idle; how long those last rows took; what was sent again and what of it may have been paid
twice; dispatch's own CPU seconds per 1,000 rows (the simulation's included), by which it is known how many
replicas one dispatch actor feeds at most. Writes benchmarks/out/fleet.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from rtr_ray.dispatch import Dispatcher, Gate, Settings, settlement
from rtr_ray.executors.base import Reply
from rtr_ray.ledger import Ledger
from rtr_ray.pool import Pool
from rtr_ray.types import Outcome, Query, Request, Sample, Usage
from tests.fakes import LocalBooks, pool_of, run_virtually

PARTS = 48  # plan parts that a dispatch actor works on at a time at most (rtr_ray/distributed/dispatching.py)
LEDGER_S = 0.002  # there and back to the ledger actor
SCENES = ("even", "stragglers", "failures", "grows", "all")


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated."""

    replicas: int = 1000
    slots: int = 32  # sequences that an engine generates at once
    max_in_flight: int = 32  # requests that may be at a replica, as the pool says
    chunk: int = 8
    calls: int | None = None  # that Serve lets a replica have; None: any number
    rows: int = 320_000
    part_rows: int = 4_000
    tokens_per_s: float = 20.0  # of one sequence
    median_tokens: float = 300.0
    spread: float = 0.6
    max_tokens: int = 4096
    slower: tuple[tuple[float, float], ...] = ()  # (share of the replicas, times as slow)
    lifetime_s: float | None = None  # mean, of a replica; None: it lives
    restart_s: float = 120.0
    up: int | None = None  # replicas at the beginning; None: all
    start_s: tuple[float, float] = (120.0, 240.0)
    timeout_s: float = 600.0
    seed: int = 0

    def scene(self, name: str) -> Fleet:
        """The fleet with what a scene adds."""
        slower: dict[str, Any] = {"slower": ((0.02, 2.0), (0.005, 50.0))}
        dying: dict[str, Any] = {"lifetime_s": 1800.0}
        growing: dict[str, Any] = {"up": max(1, self.replicas // 10)}
        added = {
            "even": {},
            "stragglers": slower,
            "failures": dying,
            "grows": growing,
            "all": slower | dying | growing,
        }
        return replace(self, **added[name])


@dataclass(slots=True, eq=False)
class _Call:
    """One chunk at a replica."""

    requests: Sequence[Request]
    replies: asyncio.Queue[Reply | Exception] = field(default_factory=asyncio.Queue)
    replica: _Replica | None = None
    left: int = 0
    gone: bool = False  # nobody listens any more

    def __post_init__(self) -> None:
        self.left = len(self.requests)


@dataclass(slots=True, eq=False)
class _Replica:
    """One engine: its slots, and what waits for them."""

    slow: float = 1.0
    up: bool = True
    calls: set[_Call] = field(default_factory=set)
    waiting: deque[tuple[_Call, Request]] = field(default_factory=deque)
    running: dict[tuple[_Call, str], asyncio.TimerHandle] = field(default_factory=dict)

    @property
    def load(self) -> int:
        return len(self.calls)


class SimulatedServe:
    """An executor: calls go to replicas as Serve would send them."""

    kind = "simulated"

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.dice = fleet, random.Random(fleet.seed)
        self.loop = asyncio.get_running_loop()
        self.replicas = [_Replica() for _ in range(fleet.replicas)]
        shuffled = self.dice.sample(self.replicas, len(self.replicas))
        for share, times in fleet.slower:
            for _ in range(round(share * len(self.replicas))):
                shuffled.pop().slow = times
        up = fleet.replicas if fleet.up is None else fleet.up
        for one in self.replicas[up:]:
            one.up = False
        self.wanted = up
        self.live = [one for one in self.replicas if one.up]
        self.queue: deque[_Call] = deque()
        self.lengths = np.random.default_rng(fleet.seed)
        self.tokens: dict[str, int] = {}
        self.busy_s = self.there_s = 0.0  # slot-seconds used, and had
        self.at_s = 0.0
        self.running = 0
        self.answered = Counter[str]()
        self.deaths = 0
        self.calls_open = 0

    async def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """A chunk in, replies as they finish."""
        call = _Call(requests)
        self.calls_open += 1
        self._place(call)
        try:
            for _ in requests:
                found = await call.replies.get()
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            self.calls_open -= 1
            self._leave(call)

    async def aclose(self) -> None:
        """Nothing is held."""

    # --- Serve ---

    def _place(self, call: _Call) -> None:
        """To the emptier of two replicas; where both have as many calls as they may, it waits."""
        most = self.fleet.calls or math.inf
        for _ in range(4):
            if not self.live:
                break
            two = [self.dice.choice(self.live) for _ in range(2)]
            best = min(two, key=lambda one: one.load)
            if best.load < most:
                self._give(call, best)
                return
        free = next((one for one in self.live if one.load < most), None) if len(self.live) < 64 else None
        if free is not None:
            self._give(call, free)
        else:
            self.queue.append(call)

    def _give(self, call: _Call, to: _Replica) -> None:
        call.replica = to
        to.calls.add(call)
        to.waiting.extend((call, request) for request in call.requests)
        self._start(to)

    def _room(self, at: _Replica) -> None:
        """A replica may have another call."""
        while self.queue and at.up and at.load < (self.fleet.calls or math.inf):
            call = self.queue.popleft()
            if not call.gone:
                self._give(call, at)

    def _leave(self, call: _Call) -> None:
        """Nobody listens any more: the engine stops what is left of it."""
        call.gone = True
        at = call.replica
        if at is None or call not in at.calls:
            return
        at.calls.discard(call)
        if call.left:
            at.waiting = deque(pair for pair in at.waiting if pair[0] is not call)
            for key in [key for key in at.running if key[0] is call]:
                at.running.pop(key).cancel()
                self._count(-1)
            self._start(at)
        self._room(at)

    # --- an engine ---

    def _start(self, at: _Replica) -> None:
        while at.up and at.waiting and len(at.running) < self.fleet.slots:
            call, request = at.waiting.popleft()
            took_s = at.slow * self.length(request.key) / self.fleet.tokens_per_s
            timer = self.loop.call_later(took_s, self._finish, at, call, request)
            at.running[call, request.key] = timer
            self._count(1)

    def _finish(self, at: _Replica, call: _Call, request: Request) -> None:
        del at.running[call, request.key]
        self._count(-1)
        self.answered[request.key] += 1
        call.left -= 1
        tokens = self.length(request.key)
        sample = Sample("", "stop", tokens)
        usage = Usage(100, tokens)
        call.replies.put_nowait(Outcome(request.query_id, request.candidate, (sample,), usage=usage))
        if not call.left:  # before the listener hears of it: the place is free
            at.calls.discard(call)
            self._room(at)
        self._start(at)

    def length(self, key: str) -> int:
        """Of the answer to a request: the same each time."""
        if key not in self.tokens:
            drawn = self.fleet.median_tokens * math.exp(self.fleet.spread * self.lengths.standard_normal())
            self.tokens[key] = min(max(int(drawn), 1), self.fleet.max_tokens)
        return self.tokens[key]

    def _count(self, more: int) -> None:
        now = self.loop.time()
        self.busy_s += self.running * (now - self.at_s)
        self.there_s += self.fleet.slots * len(self.live) * (now - self.at_s)
        self.at_s, self.running = now, self.running + more

    # --- what goes wrong, and what grows ---

    async def dying(self) -> None:
        """Replicas die, and come back."""
        assert self.fleet.lifetime_s is not None
        while True:
            await asyncio.sleep(self.dice.expovariate(max(len(self.live), 1) / self.fleet.lifetime_s))
            if self.live:
                self._die(self.dice.choice(self.live))

    def _die(self, one: _Replica) -> None:
        self.deaths += 1
        self._count(0)
        one.up = False
        self.live.remove(one)
        one.waiting.clear()
        for timer in one.running.values():
            timer.cancel()
            self._count(-1)
        one.running.clear()
        calls, one.calls = list(one.calls), set()
        for call in calls:
            call.replies.put_nowait(ConnectionResetError("the replica died"))
        self.loop.call_later(self.fleet.restart_s, self._rise, one)

    def _rise(self, one: _Replica) -> None:
        self._count(0)
        one.up = True
        self.live.append(one)
        self._room(one)

    async def scaling(self, least: int) -> None:
        """Serve's autoscaler: calls over what a replica should have, every 10 s after 30 s of load."""
        per_replica = self.fleet.max_in_flight / self.fleet.chunk
        starting = iter(self.replicas[least:])
        await asyncio.sleep(30)
        while True:
            wanted = min(math.ceil(self.calls_open / per_replica), self.fleet.replicas)
            while self.wanted < wanted:
                self.wanted += 1
                self.loop.call_later(self.dice.uniform(*self.fleet.start_s), self._rise, next(starting))
            await asyncio.sleep(10)


def parts_of(fleet: Fleet, pool: Pool) -> Iterator[list[Request]]:
    """Plan parts, each with the rows that are expected to be longest first."""
    dice = np.random.default_rng(fleet.seed + 1)
    for first in range(0, fleet.rows, fleet.part_rows):
        numbers = range(first, min(first + fleet.part_rows, fleet.rows))
        requests = [pool.request(Query(f"q{number}", "?"), pool.candidates[0]) for number in numbers]
        dice.shuffle(requests)  # nobody knows the lengths here: the worst for the tail
        yield requests


async def simulate(fleet: Fleet) -> dict[str, Any]:
    """One scene to its end."""
    pool = pool_of(max_tokens=fleet.max_tokens)
    serve = SimulatedServe(fleet)
    books = LocalBooks(Ledger(None), LEDGER_S)
    gate = Gate(fleet.max_in_flight * fleet.replicas + fleet.chunk)
    settings = Settings(chunk=fleet.chunk, timeout_s=fleet.timeout_s)
    loop, parts = asyncio.get_running_loop(), parts_of(fleet, pool)
    dispatchers: list[Dispatcher] = []
    at_last: dict[str, float] = {}  # when fewer rows were left than there are slots
    statuses, began_cpu_s = Counter[str](), time.process_time()

    async def worker() -> None:
        for requests in parts:
            dispatcher = Dispatcher(serve, books, pool, gate, settings)
            dispatchers.append(dispatcher)
            async with contextlib.aclosing(dispatcher.run(requests)) as outcomes:
                async for outcome in outcomes:
                    statuses[str(outcome.status)] += 1
                    closing = settlement(pool, outcome)
                    if closing is not None:
                        books.ledger.settle(closing.key, closing.usage or Usage(0, 0), closing.cost_usd)
                    if not at_last and fleet.rows - statuses.total() < fleet.slots * fleet.replicas:
                        serve._count(0)
                        at_last.update(s=loop.time(), busy=serve.busy_s, there=serve.there_s)

    beside = [asyncio.create_task(serve.scaling(len(serve.live)))] if fleet.up is not None else []
    if fleet.lifetime_s is not None:
        beside.append(asyncio.create_task(serve.dying()))
    await asyncio.gather(*(worker() for _ in range(PARTS)))
    for task in beside:
        task.cancel()
    cpu_s = time.process_time() - began_cpu_s
    whole_s = loop.time()
    work_s = sum(serve.tokens.values()) / fleet.tokens_per_s
    doubled = sum(count - 1 for count in serve.answered.values())
    return {
        "rows": dict(statuses),
        "makespan_s": whole_s,
        "over_ideal": whole_s / (work_s / (fleet.slots * fleet.replicas)),
        "busy": at_last["busy"] / at_last["there"],
        "last_rows_s": whole_s - at_last["s"],
        "sent_again": sum(one.sent_again for one in dispatchers),
        "answered_twice": doubled,
        "lost_usd_share": float(books.ledger.unknown_usd / books.ledger.spent_usd),
        "deaths": serve.deaths,
        "rows_per_s": fleet.rows / whole_s,
        "cpu_s_per_1000_rows": 1000 * cpu_s / fleet.rows,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Simulate a run on many replicas.")
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=320_000)
    parser.add_argument("--only", nargs="*", choices=SCENES, default=SCENES)
    parser.add_argument("--depth", type=float, default=1.0, help="requests at a replica, over its slots")
    parser.add_argument("--calls", type=int, help="that Serve lets a replica have; none: any number")
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--out", type=Path, default=OUT / "fleet.json")
    options = parser.parse_args()
    size = {"replicas": 20, "rows": 4_000, "part_rows": 500} if options.small else {
        "replicas": options.replicas, "rows": options.rows
    }  # fmt: skip
    fleet, found = Fleet(calls=options.calls, **size), {}
    fleet = replace(fleet, max_in_flight=round(options.depth * fleet.slots))
    table = Table(title=f"{fleet.rows:,} rows on {fleet.replicas:,} replicas of {fleet.slots} slots")
    columns = (
        "scene",
        "busy",
        "over ideal",
        "last rows",
        "sent again",
        "twice",
        "deaths",
        "CPU s/1,000",
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "scene" else "right")
    for name in options.only:
        one = found[name] = run_virtually(simulate(fleet.scene(name)), until_s=1e6)
        table.add_row(
            name,
            f"{one['busy']:.1%}",
            f"{one['over_ideal']:.2f}",
            f"{one['last_rows_s']:,.0f} s",
            f"{one['sent_again']:,}",
            f"{one['answered_twice']:,}",
            f"{one['deaths']:,}",
            f"{one['cpu_s_per_1000_rows']:.2f}",
        )
    Console().print(table)
    first = found[options.only[0]]
    report(
        "fleet",
        first["busy"],
        "slots that are never idle (the busy share of ours over it; the first scene)",
        {"scenes": found, "settings": {"calls": options.calls, "depth": options.depth, **size}},
        ("numpy",),
        options.out,
    )


if __name__ == "__main__":
    main()
