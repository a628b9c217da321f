"""What an executor is: the one seam between dispatch and whatever answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
