"""From requests to outcomes: how many are in flight, what is sent again, and what becomes of bad rows.

Every request is reserved in the ledger before it goes out. Outcomes come back as they finish,
with their reservation still open: whoever makes them durable settles them (see `settlement`).
"""

from __future__ import annotations

import asyncio
import contextlib
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
from typing import Protocol

from rtr_ray.errors import ConfigError, TransientError
from rtr_ray.executors.base import Executor, Failure, Reply
from rtr_ray.ledger import Grant
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, Outcome, Request, Usage


@dataclass(frozen=True, slots=True)
class Reservation:
    """A request's worst case, to be set aside."""

    key: str
    candidate: Candidate
    worst_case_usd: Decimal


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reservation ends."""

    key: str
    usage: Usage | None = None  # None: nothing was used, or nobody knows
    cost_usd: Decimal = Decimal(0)
    lost: bool = False  # something may have been used, and nobody knows how much


class Books(Protocol):
    """The ledger as dispatch sees it; behind it may be another process."""

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        """Set worst cases aside; one answer each."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """End reservations."""
        ...


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


def settlement(pool: Pool, outcome: Outcome) -> Settlement | None:
    """How the reservation of a finished outcome ends; None where it holds none any more."""
    if outcome.usage is None:
        return Settlement(outcome.key, lost=True) if outcome.status == "answered" else None
    return Settlement(outcome.key, outcome.usage, pool.cost_usd(outcome.candidate, outcome.usage))


@dataclass(slots=True)
class Gate:
    """How many requests may be at one deployment; shared by the dispatchers that send to it.

    So a dispatcher whose last long answers are running leaves its room to the next one.
    """

    limit: int
    taken: int = 0
    listeners: list[Callable[[], None]] = field(default_factory=list)  # told when there is room again

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
    _in_flight: int = 0  # of this dispatcher's requests, at the executor
    _exhausted: bool = False  # the source has given its last request
    _broken: BaseException | None = None
    _waiting: int = 0  # requests that wait to be sent again

    async def run(self, requests: Iterable[Request]) -> AsyncIterator[Outcome]:
        """One outcome per request, as they finish.

        Args:
            requests: Taken in order and only as fast as they can be sent.
        """
        self._source = iter(requests)
        self.gate.listeners.append(self._wake)
        try:
            while True:
                refused = await self._send()
                for outcome in refused:
                    yield outcome
                if refused:
                    continue
                if self._idle():
                    return
                outcome_or_wake = await self._next(bool(self._pending))
                if outcome_or_wake is not None:
                    yield outcome_or_wake
        finally:
            self.gate.listeners.remove(self._wake)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _idle(self) -> bool:
        left = self._in_flight or self._waiting or self._pending or not self._exhausted
        return not left and self._done.empty()

    def _wake(self) -> None:
        if self._done.empty():
            self._done.put_nowait(None)

    async def _next(self, starved: bool) -> Outcome | None:
        # requests that wait for the budget may be freed by other dispatchers, of whom nobody tells us
        try:
            outcome = await asyncio.wait_for(self._done.get(), 0.25 if starved else None)
        except TimeoutError:
            return None
        if self._broken is not None:
            raise self._broken
        return outcome

    async def _send(self) -> list[Outcome]:
        """Send as much as may be in flight; gives the outcomes of what cannot be paid."""
        refused: list[Outcome] = []
        while (room := self._room()) > 0:
            chunk = self._take(min(room, self.settings.chunk))
            if not chunk:
                break
            self.gate.taken += len(chunk)  # before anything is awaited: others look at the gate too
            grants = await self.books.reserve(
                [
                    Reservation(a.request.key, a.request.candidate, self.pool.worst_case_usd(a.request))
                    for a in chunk
                ]
            )
            granted = [a for a, grant in zip(chunk, grants, strict=True) if grant is Grant.GRANTED]
            blocked = [a for a, grant in zip(chunk, grants, strict=True) if grant is Grant.WAIT]
            refused += [_skipped(a.request) for a, g in zip(chunk, grants, strict=True) if g is Grant.NEVER]
            self._pending.extendleft(reversed(blocked))
            if len(granted) < len(chunk):
                self.gate.leave(len(chunk) - len(granted))
            if granted:
                self._in_flight += len(granted)
                self._start(self._execute(granted))
            if blocked or refused:
                break
        return refused

    def _room(self) -> int:
        """How many may be sent now; 0 until a whole chunk may, lest every reply send one request."""
        # outcomes that nobody has fetched yet count too: a slow consumer slows the sending down
        room = self.gate.room - self._done.qsize() // 2
        whole = room >= min(self.settings.chunk, self.gate.limit)
        return room if whole or not self._in_flight else 0

    def _take(self, count: int) -> list[_Attempt]:
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
        reason = "the executor ended without a reply"
        replies = self.executor.execute([attempt.request for attempt in chunk])
        try:
            while open_:
                reply = await asyncio.wait_for(anext(replies), self.settings.timeout_s)
                attempt = open_.pop(reply.key)
                await self._finish(attempt, reply)
        except StopAsyncIteration:
            pass
        except TimeoutError:
            reason = f"no reply within {self.settings.timeout_s:g} s"
        except asyncio.CancelledError:
            await self.books.settle([Settlement(key, lost=True) for key in open_])
            self._back(len(open_))
            raise
        except TransientError as error:
            reason = error.message
        except Exception as error:  # an executor may fail in any way; its requests must not be lost
            reason = f"{type(error).__name__}: {error}"[:300]
        finally:
            await _closed(replies)
        for key, attempt in open_.items():
            await self._finish(attempt, Failure(key, reason, transient=True, maybe_paid=True))

    def _back(self, count: int) -> None:
        self._in_flight -= count
        self.gate.leave(count)

    async def _finish(self, attempt: _Attempt, reply: Reply) -> None:
        self._back(1)
        if isinstance(reply, Outcome):
            self._done.put_nowait(replace(reply, attempts=attempt.number))
            return
        if reply.usage is None:
            await self.books.settle([Settlement(reply.key, lost=reply.maybe_paid)])
        # what is known to have been paid belongs in a row: it is not sent again
        if not reply.transient or reply.usage is not None or attempt.number >= self.settings.attempts:
            self._done.put_nowait(_failed(attempt, reply))
            return
        self.sent_again += reply.maybe_paid
        self._waiting += 1
        self._start(self._later(attempt, reply.retry_after_s))

    async def _later(self, attempt: _Attempt, retry_after_s: float | None) -> None:
        pause = min(self.settings.backoff_s * 2 ** (attempt.number - 1), self.settings.max_backoff_s)
        await self.sleep(pause if retry_after_s is None else retry_after_s)
        self._pending.append(_Attempt(attempt.request, attempt.number + 1))
        self._waiting -= 1
        self._done.put_nowait(None)


async def _closed(replies: AsyncIterator[Reply]) -> None:
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


def _skipped(request: Request) -> Outcome:
    return Outcome(
        request.query_id,
        request.candidate,
        attempts=0,
        error="the rest of the budget does not cover the worst case of this request",
        sample=request.sample,
        status="skipped_budget",
    )
