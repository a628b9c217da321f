"""From requests to outcomes: how many are in flight, what is sent again, and what becomes of bad rows.

Every request is reserved in the ledger before it goes out: its worst case, or where that is scarce
what it will hardly exceed, and then it is held to that. Outcomes come back as they finish, with
their reservation still open: whoever makes them durable settles them (see `settlement`).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, field, replace
from decimal import Decimal

from rtr_ray.books import Books as Books
from rtr_ray.books import Reservation as Reservation
from rtr_ray.books import Settlement as Settlement
from rtr_ray.books import is_open
from rtr_ray.books import settlement as settlement
from rtr_ray.errors import ConfigError, RtrError, TransientError
from rtr_ray.executors.base import Executor, ExtendingExecutor, Failure, Limit, Reply
from rtr_ray.ledger import Grant
from rtr_ray.pool import MTOK, Pool
from rtr_ray.types import Outcome, Request, Sample


@dataclass(frozen=True, slots=True)
class Settings:
    """How hard to push, and how long to insist."""

    chunk: int = 64  # requests that travel together
    attempts: int = 8  # how often one request is sent at most
    backoff_s: float = 1.0  # before the second attempt; doubles each time
    max_backoff_s: float = 30.0
    timeout_s: float = 600.0  # without any reply to a chunk before it is given up

    def __post_init__(self) -> None:
        for name in ("chunk", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"dispatch.{name} is {getattr(self, name)}; 1 is the least.")
        for name in ("backoff_s", "max_backoff_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"dispatch.{name} is {getattr(self, name)}; a positive number is needed.")


@dataclass(slots=True)
class Gate:
    """How many requests may be at one deployment; shared by the dispatchers that send to it.

    So a dispatcher whose last long answers are running leaves its room to the next one.
    """

    limit: int
    taken: int = 0
    listeners: list[Callable[[], None]] = field(default_factory=list)  # told when there is room again

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"{self.limit} requests may be in flight at once; 1 is the least.")

    @property
    def room(self) -> int:
        """How many more may go."""
        return self.limit - self.taken

    def leave(self, count: int) -> None:
        """So many have come back."""
        self.taken -= count
        for tell in self.listeners:
            tell()


@dataclass(slots=True)
class _Attempt:
    request: Request
    number: int = 1  # 1: the first time
    limit: Limit | None = None  # None: its worst case has been set aside


@dataclass(slots=True)
class Dispatcher:
    """Sends requests to one executor. One use: `run` once.

    Attributes:
        sent_again: Requests that were sent another time although an earlier one may have been paid.
    """

    executor: Executor
    books: Books
    pool: Pool
    gate: Gate
    settings: Settings = field(default_factory=Settings)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    sent_again: int = 0
    _pending: deque[_Attempt] = field(default_factory=deque)
    _source: Iterator[Request] = field(default_factory=lambda: iter(()))
    _done: asyncio.Queue[Outcome | None] = field(default_factory=asyncio.Queue)  # None: look again
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _flying: set[str] = field(default_factory=set)  # at the executor, in the gate
    _reserved: set[str] = field(default_factory=set)  # ours to close: nobody else knows of them yet
    _settling: set[asyncio.Future[None]] = field(default_factory=set)
    _exhausted: bool = False  # the source has given its last request
    _starved: bool = False  # the last that were asked for wait for the budget
    _broken: BaseException | None = None
    _waiting: int = 0  # requests that wait to be sent again
    _draining: bool = False
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _asked: int = 0  # reservations
    _extends: bool = field(init=False, default=False)  # whether answers can ask for more

    def __post_init__(self) -> None:
        self._extends = isinstance(self.executor, ExtendingExecutor)

    async def run(self, requests: Iterable[Request]) -> AsyncGenerator[Outcome, None]:
        """One outcome per request, as they finish.

        Closed early (see `contextlib.aclosing`), it takes back what is on its way: those
        reservations are lost.

        Args:
            requests: Taken in order and only as fast as they can be sent.
        """
        self._source = iter(requests)
        self.gate.listeners.append(self._wake)
        try:
            while True:
                refused = [] if self._broken else await self._send()
                for outcome in refused:
                    yield outcome
                if refused:
                    continue
                if self._idle():
                    break
                if (done := await self._next()) is not None:
                    self._reserved.discard(done.key)  # who takes the outcome settles it
                    yield done
            if self._broken is not None:
                raise self._broken
        finally:
            self.gate.listeners.remove(self._wake)
            await self._stop()

    def fail(self, error: BaseException) -> None:
        """End the run with an error: what has been answered is given out first, nothing more is sent."""
        if self._broken is None:
            self._broken = error
        self._done.put_nowait(None)  # it may wait for replies, or for a budget that nobody will free any more

    def drain(self) -> None:
        """End the run early: nothing more is sent, what has been sent is waited for."""
        self._draining = self._exhausted = True
        self._source = iter(())
        self._pending.clear()
        self._done.put_nowait(None)

    def _idle(self) -> bool:
        """Whether no outcome will come any more."""
        again = self._waiting and not self._draining
        left = self._flying or again or self._pending or not self._exhausted
        return self._done.empty() and (not left or self._broken is not None)

    async def _stop(self) -> None:
        """End all tasks, leave the gate, close the reservations that nobody else will close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._settling, return_exceptions=True)
        self.gate.leave(len(self._flying))
        self._flying.clear()
        lost = [Settlement(key, lost=True) for key in self._reserved]
        self._reserved.clear()
        if lost:
            with contextlib.suppress(Exception):  # the ledger may be what broke
                await self.books.settle(lost)

    def _wake(self) -> None:
        # room is not what a starved dispatcher lacks; and two of them would wake each other for ever
        if self._done.empty() and not self._starved:
            self._done.put_nowait(None)

    async def _next(self) -> Outcome | None:
        if not self._starved:
            return await self._done.get()
        # the budget may be freed by other dispatchers, of whom nobody tells us
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STARVED_S):
                return await self._done.get()
        return None

    async def _send(self) -> list[Outcome]:
        """Send as much as may be in flight; gives the outcomes of what cannot be paid."""
        refused: list[Outcome] = []
        blocked: list[_Attempt] = []
        while not refused and not blocked and not self._broken and (room := self._room()) > 0:
            chunk = self._take(min(room, self.settings.chunk))
            if not chunk:
                break
            self.gate.taken += len(chunk)  # before anything is awaited: others look at the gate too
            granted: list[_Attempt] = []
            never: list[tuple[_Attempt, Reservation]] = []
            try:
                reservations, grants = await self._reserve(chunk)
                for attempt, asked, grant in zip(chunk, reservations, grants, strict=True):
                    if grant is Grant.NEVER:
                        never.append((attempt, asked))
                    elif grant is Grant.WAIT:
                        blocked.append(attempt)
                    else:
                        attempt.limit = self._limit(attempt, asked) if grant is Grant.LEAST else None
                        granted.append(attempt)
            finally:
                self._starved = bool(blocked)
                keys = {attempt.request.key for attempt in granted}
                self._flying |= keys
                self._reserved |= keys
                if len(granted) < len(chunk):
                    self.gate.leave(len(chunk) - len(granted))
            if not self._draining:
                self._pending.extendleft(reversed(blocked))
            if granted:
                self._start(self._execute(granted))
            if never:
                left_usd = await self.books.left_usd()
                refused = [_skipped(attempt, asked, left_usd) for attempt, asked in never]
        return refused

    def _room(self) -> int:
        """How many may be sent now; 0 until a whole chunk may, lest every reply send one request."""
        # outcomes that nobody has fetched yet count too: a slow consumer slows the sending down
        room = self.gate.room - self._done.qsize() // 2
        whole = room >= min(self.settings.chunk, self.gate.limit)
        return room if whole or not self._flying else 0

    def _take(self, count: int) -> list[_Attempt]:
        if self._pending:
            # one request may have brought down all that travelled with it: less company each time
            tried = self._pending[0].number - 1
            alone = tried and tried + 1 >= self.settings.attempts
            count = min(count, 1 if alone else max(1, self.settings.chunk >> tried))
        taken: list[_Attempt] = []
        while len(taken) < count:
            if self._pending:
                taken.append(self._pending.popleft())
            elif (request := next(self._source, None)) is not None:
                taken.append(_Attempt(request))
            else:
                self._exhausted = True
                break
        return taken

    async def _reserve(self, chunk: Sequence[_Attempt]) -> tuple[list[Reservation], list[Grant]]:
        """Ask for money. Cancelled meanwhile, give back what is granted: nothing was sent."""
        reservations = [self._reservation(attempt.request) for attempt in chunk]
        asking = asyncio.ensure_future(self.books.reserve(reservations))
        try:
            return reservations, await asyncio.shield(asking)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # the ledger may be what broke
                grants = zip(reservations, await asking, strict=True)
                await self.books.settle([Settlement(r.key) for r, grant in grants if grant.given])
            raise

    def _reservation(self, request: Request) -> Reservation:
        worst, tokens = self.pool.worst_case_usd(request), request.expected_tokens
        if tokens is None or tokens >= request.max_tokens or request.candidate.samples > 1:
            return Reservation(request.key, request.candidate, worst)
        least = self.pool.price(request.candidate).worst_case_usd(request.max_input_tokens, max(tokens, 1))
        self._asked += 1
        call = f"{self._name}-{self._asked}"
        return Reservation(request.key, request.candidate, worst, least, self._extends, call)

    def _limit(self, attempt: _Attempt, asked: Reservation) -> Limit:
        price = self.pool.price(attempt.request.candidate)
        tokens = max(attempt.request.expected_tokens or 0, 1)
        return Limit(tokens, price.output_usd_per_mtok / MTOK, asked.call)

    async def _settle(self, one: Settlement) -> None:
        """Close a reservation: once, even if we are cancelled meanwhile."""
        self._reserved.discard(one.key)
        settling = asyncio.ensure_future(self.books.settle([one]))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        await asyncio.shield(settling)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error  # the ledger is gone, say: nothing can go on without it
            self._done.put_nowait(None)

    async def _execute(self, chunk: Sequence[_Attempt]) -> None:
        """Send a chunk; every request of it ends as an outcome or goes back to the queue."""
        open_ = {attempt.request.key: attempt for attempt in chunk}
        replies: AsyncIterator[Reply] | None = None
        reason, transient = "the executor ended without a reply", True
        try:
            while open_:
                patience = asyncio.timeout(self.settings.timeout_s)
                try:
                    if replies is None:
                        replies = self._replies(chunk)
                    async with patience:
                        reply = await anext(replies)
                except StopAsyncIteration:
                    break
                except RtrError as error:
                    reason, transient = error.message, isinstance(error, TransientError)
                    break
                except Exception as error:  # an executor may fail in any way; its requests must not be lost
                    reason = _told(error)
                    if isinstance(error, TimeoutError) and patience.expired():
                        reason = f"no reply within {self.settings.timeout_s:g} s"
                    break
                if reply.key not in open_:
                    reason = "the executor replied twice, or to a request that it was not given"
                    break
                await self._finish(open_.pop(reply.key), reply)
        finally:
            await _closed(replies)
        for key, attempt in open_.items():
            await self._finish(attempt, Failure(key, reason, transient, maybe_paid=True))

    def _replies(self, chunk: Sequence[_Attempt]) -> AsyncIterator[Reply]:
        if any(attempt.limit for attempt in chunk) and isinstance(self.executor, ExtendingExecutor):
            requests, limits = [a.request for a in chunk], [a.limit for a in chunk]
            return self.executor.execute_limited(requests, limits, self.books)
        return self.executor.execute(
            [replace(a.request, max_tokens=a.limit.tokens) if a.limit else a.request for a in chunk]
        )

    async def _finish(self, attempt: _Attempt, reply: Reply) -> None:
        """What a reply means: an outcome, or another attempt. In flight until that is decided."""
        key = reply.key
        if isinstance(reply, Outcome):
            outcome = reply if reply.attempts == attempt.number else replace(reply, attempts=attempt.number)
            if attempt.limit is not None and not self._extends:
                outcome = replace(outcome, samples=tuple(map(_cut_by_budget, outcome.samples)))
            if not is_open(outcome):  # it failed, and nobody will settle it later
                await self._settle(Settlement(key, lost=outcome.status == "failed"))
            self._done.put_nowait(outcome)
        else:
            if reply.usage is None:
                await self._settle(Settlement(key, lost=reply.maybe_paid))
            tried = reply.sent and attempt.number >= self.settings.attempts
            # what is known to have been paid belongs in a row: it is not sent again
            if not reply.transient or reply.usage is not None or tried:
                self._done.put_nowait(_failed(attempt, reply))
            else:
                self.sent_again += reply.maybe_paid
                self._waiting += 1
                self._start(self._later(attempt, reply))
        self._flying.discard(key)
        self.gate.leave(1)

    async def _later(self, attempt: _Attempt, failure: Failure) -> None:
        pause = min(self.settings.backoff_s * 2 ** (attempt.number - 1), self.settings.max_backoff_s)
        await self.sleep(pause if failure.retry_after_s is None else failure.retry_after_s)
        if not self._draining:
            self._pending.append(_Attempt(attempt.request, attempt.number + failure.sent))
        self._waiting -= 1
        self._done.put_nowait(None)


_STARVED_S = 0.25  # between two looks whether the budget has room again


def _told(error: Exception) -> str:
    # of a traceback from another process the last line says what went wrong
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason was given'}"[:300]


async def _closed(replies: AsyncIterator[Reply] | None) -> None:
    if isinstance(replies, AsyncGenerator):
        with contextlib.suppress(Exception):  # whatever it was, it has been dealt with
            await replies.aclose()


def _failed(attempt: _Attempt, failure: Failure) -> Outcome:
    request = attempt.request
    return Outcome(
        request.query_id,
        request.candidate,
        usage=failure.usage,
        attempts=attempt.number,
        error=failure.message,
        sample=request.sample,
        status="failed",
    )


def _skipped(attempt: _Attempt, asked: Reservation, left_usd: Decimal | None) -> Outcome:
    request = attempt.request
    least = "" if asked.least_usd is None else f", and ${asked.least_usd:f} with the answer that is expected"
    return Outcome(
        request.query_id,
        request.candidate,
        attempts=attempt.number - 1,
        error=(
            f"the budget does not cover this request: it may cost ${asked.worst_case_usd:f}{least}; "
            f"${left_usd or 0:f} are left"
        ),
        sample=request.sample,
        status="skipped_budget",
    )


def _cut_by_budget(sample: Sample) -> Sample:
    # the request itself allowed more: only the money did not
    return replace(sample, finish_reason="budget") if sample.finish_reason == "length" else sample
