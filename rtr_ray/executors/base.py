"""What an executor is: the one seam between dispatch and whatever answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

from rtr_ray.errors import ExecutionError
from rtr_ray.types import Outcome, Request, Usage


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was not answered, and what dispatch must know to go on."""

    key: str  # of the request
    message: str  # no prompt, no key in it
    transient: bool  # the same request may well be answered if it is sent again
    maybe_paid: bool  # something may have been generated, and nobody knows how much
    usage: Usage | None = None  # what it cost, where that is known
    retry_after_s: float | None = None  # when to send it again, where the server says
    sent: bool = True  # False: it never left, and so this was no attempt


class StreamError(ExecutionError):
    """The service does not answer, or no further.

    Args:
        message: What went wrong, with nothing of the prompt.
        status: What it answered; 503 where it did not.
        transient: Another time it may.
        maybe_paid: It may have generated something.
    """

    def __init__(
        self, message: str, status: int = 503, *, transient: bool = True, maybe_paid: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.transient, self.maybe_paid = status, transient, maybe_paid


Reply = Outcome | Failure


@runtime_checkable
class Executor(Protocol):
    """A chunk of requests in, one reply each, in any order, as they come.

    Retries, concurrency and bad rows are the business of `rtr_ray.dispatch`. An exception out of
    the iterator means that every request without a reply may or may not have been answered.
    """

    def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """Answer them."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and processes."""
        ...


@dataclass(frozen=True, slots=True)
class Limit:
    """How long an answer may get, since no more has been set aside for it."""

    tokens: int
    usd_per_token: Decimal  # of every token that is asked for on top
    call: str  # which sending of the request this is; the ledger lends to this one alone


@runtime_checkable
class ExtendingExecutor(Executor, Protocol):
    """An executor whose answers can ask for more while they are generated.

    To any other executor dispatch gives a request whose `max_tokens` is what was set aside.
    """

    def execute_limited(
        self, requests: Sequence[Request], limits: Sequence[Limit | None], lender: Any
    ) -> AsyncIterator[Reply]:
        """Answer them; those with a limit ask `lender` before they go over it, or are cut there.

        Args:
            requests: As for `execute`.
            limits: One each; None where the worst case has been set aside.
            lender: The ledger; it has `extend(key, call, usd, least_usd)`, and can be sent to
                another process.
        """
        ...
