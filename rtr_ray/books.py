"""What dispatch and the ledger say to each other; between them may be another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from rtr_ray.ledger import Grant
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, Outcome, Usage


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a request may cost, to be set aside."""

    key: str
    candidate: Candidate
    worst_case_usd: Decimal
    least_usd: Decimal | None = None  # what it will hardly exceed; None: it cannot be held to less
    grows: bool = False  # whether it can get more while it runs
    call: str = ""  # which sending of the request this is

    def __reduce__(self) -> tuple[Any, ...]:
        # takes less than half the time of what a frozen dataclass does by itself
        fields = (self.key, self.candidate, self.worst_case_usd, self.least_usd, self.grows, self.call)
        return Reservation, fields


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a reservation ends."""

    key: str
    usage: Usage | None = None  # None: nothing was used, or nobody knows
    cost_usd: Decimal = Decimal(0)
    lost: bool = False  # something may have been used, and nobody knows how much

    def __reduce__(self) -> tuple[Any, ...]:
        return _settlement, (self.key, _counts(self.usage), self.cost_usd, self.lost)


class Books(Protocol):
    """The ledger as dispatch sees it; behind it may be another process."""

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        """Set money aside; one answer each."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """End reservations."""
        ...

    async def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        """Set more aside for a call that is running."""
        ...

    async def left_usd(self) -> Decimal | None:
        """What is neither spent nor lost; None without a budget."""
        ...


def _counts(usage: Usage | None) -> tuple[int | None, ...] | None:
    if usage is None:
        return None
    return usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens


def _settlement(key: str, counts: tuple[Any, ...] | None, cost_usd: Decimal, lost: bool) -> Settlement:
    return Settlement(key, None if counts is None else Usage(*counts), cost_usd, lost)


def is_open(outcome: Outcome) -> bool:
    """Whether the reservation of a finished outcome is still held, until its `settlement`."""
    return outcome.usage is not None or outcome.status == "answered"


def settlement(pool: Pool, outcome: Outcome) -> Settlement | None:
    """How the reservation of a finished outcome ends; None where it holds none any more."""
    if not is_open(outcome):
        return None
    if outcome.usage is None:
        return Settlement(outcome.key, lost=True)
    return Settlement(outcome.key, outcome.usage, pool.cost_usd(outcome.candidate, outcome.usage))
