"""What dispatch and the ledger say to each other; between them may be another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

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


def settlement(pool: Pool, outcome: Outcome) -> Settlement | None:
    """How the reservation of a finished outcome ends; None where it holds none any more."""
    if outcome.usage is None:
        return Settlement(outcome.key, lost=True) if outcome.status == "answered" else None
    return Settlement(outcome.key, outcome.usage, pool.cost_usd(outcome.candidate, outcome.usage))
