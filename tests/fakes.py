"""Fakes that obey the real protocols and record what they got, and a clock that nobody waits for."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np

from rtr_ray.books import Reservation, Settlement
from rtr_ray.executors.base import Failure, Reply
from rtr_ray.ledger import Grant, Ledger
from rtr_ray.pool import Deployment, ModelSpec, Pool, Price
from rtr_ray.strategies import Strategy
from rtr_ray.types import (
    Candidate,
    FloatArray,
    Outcome,
    Query,
    Request,
    RoutingTable,
    Sample,
    Usage,
)


class DeadlockError(AssertionError):
    """Every task waits, and nothing will ever wake one of them."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of waiting for it.

    Hours pass at once, a run is the same every time, and where nothing can happen any more it
    raises instead of hanging.
    """

    def __init__(self, until_s: float = 1e6) -> None:
        self._now_s, self._until_s, self._turns = 0.0, until_s, 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Virtual seconds since the loop began."""
        return self._now_s

    def turn(self) -> None:
        """One more turn at the same moment."""
        self._turns += 1
        if self._turns > 50_000:
            raise DeadlockError(f"runs in circles, {self._now_s:g} virtual seconds after the start")

    def jump(self, seconds: float | None) -> None:
        """Nothing is ready: go to the next timer."""
        self._turns = 0
        if seconds is None:
            raise DeadlockError("nothing is ready and no timer is set")
        self._now_s += seconds
        if self._now_s > self._until_s:
            raise DeadlockError(f"still not done after {self._until_s:g} virtual seconds")


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            self._loop.turn()
        else:
            self._loop.jump(timeout)
        return ready


def run_virtually(work: Coroutine[Any, Any, Any], until_s: float = 1e6) -> Any:
    """Run a coroutine to its end on a clock of its own."""
    loop = VirtualLoop(until_s)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)


def pool_of(
    candidates: Iterable[str] = ("small:cot",),
    prices: Mapping[str, tuple[str, str]] | None = None,
    context_tokens: int | None = None,
    profiles: Mapping[str, str] | None = None,
    max_tokens: int = 100,
) -> Pool:
    """A pool with just these candidates; every model has an endpoint of its own.

    Args:
        candidates: "model:strategy" or "model:strategy@samples".
        prices: model -> dollars per million input and output tokens; "1", "4" where absent.
        context_tokens: Of every deployment.
        profiles: model or strategy -> what the router reads about it.
        max_tokens: Of every strategy.
    """
    wanted = [Candidate.parse(text) for text in candidates]
    models = list(dict.fromkeys(c.model for c in wanted))
    strategies = list(dict.fromkeys(c.strategy for c in wanted))
    said = dict(profiles or {})
    deployments = {}
    for model in models:
        input_usd, output_usd = (prices or {}).get(model, ("1", "4"))
        deployments[model] = Deployment(
            model,
            Price(Decimal(input_usd), Decimal(output_usd)),
            source=f"hub/{model}",
            context_tokens=context_tokens,
        )
    drawn: dict[str, tuple[int, ...]] = {
        s: tuple(sorted({c.samples for c in wanted if c.strategy == s})) for s in strategies
    }
    pairs = {(c.model, c.strategy) for c in wanted}
    return Pool(
        deployments,
        {m: ModelSpec(m, m, said.get(m, f"the model {m}")) for m in models},
        {
            s: Strategy(
                s,
                said.get(s, f"the strategy {s}"),
                max_tokens,
                samples=drawn[s],
                select="majority" if max(drawn[s]) > 1 else "first",
            )
            for s in strategies
        },
        frozenset((m, s) for m in models for s in strategies if (m, s) not in pairs),
    )


def requests_of(pool: Pool, count: int, candidate: Candidate | None = None) -> list[Request]:
    """Requests q0, q1, ... to one candidate."""
    whom = candidate or pool.candidates[0]
    return [pool.request(Query(f"q{i}", f"question {i}"), whom) for i in range(count)]


def answer(request: Request, output_tokens: int = 10, input_tokens: int = 20) -> Outcome:
    """An answer with these tokens."""
    return Outcome(
        request.query_id,
        request.candidate,
        (Sample("42", "stop", output_tokens),),
        usage=Usage(input_tokens, output_tokens),
        sample=request.sample,
    )


@dataclass
class LocalBooks:
    """A real ledger behind the asynchronous protocol; checks the budget after every step.

    `delay_s` stands for the way to another process: between a call and its answer, others run.
    """

    ledger: Ledger
    delay_s: float = 0.0
    asked: list[tuple[str, Grant]] = field(default_factory=list)
    reservations: list[Reservation] = field(default_factory=list)
    extended: list[tuple[str, Grant]] = field(default_factory=list)
    settled: list[Settlement] = field(default_factory=list)
    broken_after: int | None = None  # calls until it raises
    calls: int = 0

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        """Ask the ledger."""
        await self._travel()
        grants = [
            self.ledger.reserve(r.key, r.candidate, r.worst_case_usd, r.least_usd, r.grows, r.call)
            for r in reservations
        ]
        self.reservations += reservations
        self.asked += [(r.key, grant) for r, grant in zip(reservations, grants, strict=True)]
        self.check()
        await self._back()
        return grants

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Tell the ledger."""
        await self._travel()
        for one in settlements:
            if one.lost:
                self.ledger.lose(one.key)
            elif one.usage is None:
                self.ledger.release(one.key)
            else:
                self.ledger.settle(one.key, one.usage, one.cost_usd)
            self.settled.append(one)
        self.check()
        await self._back()

    async def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        """Ask the ledger for more."""
        await self._travel()
        grant = self.ledger.extend(key, call, usd, least_usd)
        self.extended.append((key, grant))
        self.check()
        await self._back()
        return grant

    async def left_usd(self) -> Decimal | None:
        """Ask the ledger."""
        await self._travel()
        await self._back()
        return self.ledger.left_usd

    def check(self) -> None:
        """Nothing is negative, and the budget holds."""
        books = self.ledger
        assert min(books.spent_usd, books.reserved_usd, books.unknown_usd) >= 0
        if books.budget_usd is not None:
            assert books.spent_usd + books.reserved_usd + books.unknown_usd <= books.budget_usd

    async def _travel(self) -> None:
        self.calls += 1
        if self.broken_after is not None and self.calls > self.broken_after:
            raise ConnectionError("the ledger is gone")
        if self.delay_s:
            await asyncio.sleep(self.delay_s / 2)

    async def _back(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s / 2)


Act = Callable[[Request, int], AsyncIterator[Reply]]
"""What happens to one request the n-th time that it is sent; may raise, hang, or give any replies."""


@dataclass
class ScriptedExecutor:
    """Does to each request what its script says; counts what is at it at every moment.

    A script is a list of words, one per attempt (the last one stays): `ok`, `slow`, `again` (a
    transient failure), `later` (one with Retry-After), `paid` (one that may have cost something),
    `no` (a permanent failure), `counted` (one whose usage is known), `failed` (an outcome that
    failed), `raise`, `hang`, `die` (the stream ends early), `twice`, `stranger` (a reply that
    nobody asked for), `unsent` (it never left).
    """

    scripts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # query id -> words
    usual: Sequence[str] = ("ok",)
    latency_s: Callable[[Request], float] = lambda request: 1.0
    tried: dict[str, int] = field(default_factory=dict)
    chunks: list[list[str]] = field(default_factory=list)
    there: int = 0
    most: int = 0  # at the same time
    open_streams: int = 0
    closed: bool = False
    kind: ClassVar[str] = "scripted"

    async def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Play the scripts; replies come in the order of their latency."""
        self.chunks.append([r.query_id for r in requests])
        self.there += len(requests)
        self.most = max(self.most, self.there)
        self.open_streams += 1
        left = len(requests)
        now = 0.0
        plays = []
        for order, request in enumerate(requests):
            count = self.tried[request.query_id] = self.tried.get(request.query_id, 0) + 1
            script = self.scripts.get(request.query_id, self.usual)
            word = script[min(count, len(script)) - 1]
            wait = self.latency_s(request) * (50 if word == "slow" else 1)
            plays.append((wait, order, request, word))
        try:
            for wait, _, request, word in sorted(plays, key=lambda play: play[:2]):
                if wait > now:
                    await asyncio.sleep(wait - now)
                    now = wait
                if word == "hang":
                    await asyncio.Event().wait()
                if word == "die":
                    return
                if word == "raise":
                    raise ConnectionResetError("the replica died")
                left -= 1
                self.there -= 1
                for reply in _replies(request, word):
                    yield reply
        finally:
            self.there -= left
            self.open_streams -= 1

    async def aclose(self) -> None:
        """Remember it."""
        self.closed = True


def _replies(request: Request, word: str) -> list[Reply]:
    failures = {
        "again": Failure(request.key, "busy", True, False),
        "later": Failure(request.key, "busy", True, False, retry_after_s=77.0),
        "paid": Failure(request.key, "cut off", True, True),
        "no": Failure(request.key, "too long", False, False),
        "counted": Failure(request.key, "refused at the end", True, False, Usage(20, 5)),
    }
    if word in failures:
        return [failures[word]]
    if word == "unsent":
        return [Failure(request.key, "no turn yet", True, False, retry_after_s=60.0, sent=False)]
    if word == "failed":
        return [Outcome(request.query_id, request.candidate, error="recorded so", status="failed")]
    if word == "twice":
        return [answer(request), answer(request)]
    if word == "stranger":
        return [answer(request), Outcome("nobody", request.candidate)]
    return [answer(request)]


@dataclass(frozen=True, slots=True)
class LookupEncoder:
    """Embeddings by hand: a text is embedded as what the table says; counts its calls in `calls`."""

    table: Mapping[str, Sequence[float]]
    name: str = "lookup"
    calls: list[tuple[str, ...]] = field(default_factory=list, compare=False)
    kind: ClassVar[str] = "lookup"

    @property
    def dim(self) -> int:
        """The length of the first row."""
        return len(next(iter(self.table.values())))

    @property
    def identity(self) -> str:
        """Its name."""
        return f"lookup:{self.name}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) float32."""
        self.calls.append(tuple(texts))
        return np.array([self.table[text] for text in texts], dtype=np.float32).reshape(-1, self.dim)


def random_table(
    seed: int, queries: int = 40, candidates: int = 6, allowed_share: float = 0.9, ties: bool = False
) -> RoutingTable:
    """A random routing table; candidates are m0:s0, m0:s1, m1:s0, ...

    Args:
        seed: Same seed, same table.
        queries: Q.
        candidates: C.
        allowed_share: Of all cells.
        ties: Draw from few values, so that many cells are equal.
    """
    dice = np.random.default_rng(seed)
    shape = (queries, candidates)

    def draw() -> FloatArray:
        values: FloatArray = dice.integers(0, 3, shape) / 2 if ties else dice.random(shape)
        return values.astype(np.float32)

    tokens_QC = np.round(draw() * 500)
    return RoutingTable(
        tuple(f"q{seed}-{i}" for i in range(queries)),
        tuple(Candidate(f"m{c // 2}", f"s{c % 2}") for c in range(candidates)),
        draw(),
        tokens_QC,
        tokens_QC * 2,
        (draw() * 0.01).astype(np.float32),
        dice.random(shape) < allowed_share,
    )
