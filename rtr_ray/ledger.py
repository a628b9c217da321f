"""Money: reserve the worst case, settle what was used, release the rest.

At every moment `spent + reserved + unknown <= budget`: a request goes out only after the most
that it can cost has been set aside. All amounts are exact decimals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any

from rtr_ray.errors import LedgerError, StorageError
from rtr_ray.types import Candidate, Usage

ZERO = Decimal(0)


class Grant(Enum):
    """What a reservation is answered with."""

    GRANTED = "granted"
    WAIT = "wait"  # it would fit once other reservations are released
    NEVER = "never"  # it exceeds the budget even if nothing else were in flight


@dataclass(slots=True)
class Account:
    """What one candidate has used."""

    rows: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = ZERO

    def add(self, usage: Usage, cost_usd: Decimal) -> None:
        """Book one answered call."""
        self.rows += 1
        self.input_tokens += usage.input_tokens
        self.cached_input_tokens += usage.cached_input_tokens
        self.output_tokens += usage.output_tokens
        self.cost_usd += cost_usd

    def merge(self, other: Account) -> None:
        """Both together."""
        self.rows += other.rows
        self.input_tokens += other.input_tokens
        self.cached_input_tokens += other.cached_input_tokens
        self.output_tokens += other.output_tokens
        self.cost_usd += other.cost_usd


@dataclass(frozen=True, slots=True)
class Balance:
    """The state of a ledger at one moment."""

    budget_usd: Decimal | None  # None: unlimited
    spent_usd: Decimal
    reserved_usd: Decimal
    unknown_usd: Decimal  # worst case of calls whose reply was lost
    unknown_calls: int
    in_flight: int
    accounts: Mapping[Candidate, Account]


@dataclass(frozen=True, slots=True)
class Record:
    """What must be remembered of a ledger beside the results, so that a later session keeps to the budget.

    Results tell what was spent. They do not tell what was lost, nor what was in flight when a
    session was killed. So `committed_usd` is written before it is exceeded: at no moment had more
    than that been spent, lost and set aside together. Whatever of it the results do not show as
    spent when the run goes on may have been paid for nothing, and counts as unknown from then on.
    After a session that ended by itself nothing is set aside, and what is unknown is exact.

    The counts bind nothing: after a kill they are those of the last record.
    """

    committed_usd: Decimal = ZERO
    unknown_usd: Decimal = ZERO
    lost: int = 0  # calls whose reply was lost
    in_flight: int = 0  # calls that were out
    sent_again: int = 0

    def unknown_beside(self, spent_usd: Decimal) -> Decimal:
        """What may have been paid beside what the results show as spent."""
        return max(self.unknown_usd, self.committed_usd - spent_usd)

    def to_json(self) -> dict[str, Any]:
        """Money as exact strings."""
        return {
            "schema_version": 1,
            "committed_usd": f"{self.committed_usd:f}",
            "unknown_usd": f"{self.unknown_usd:f}",
            "lost": self.lost,
            "in_flight": self.in_flight,
            "sent_again": self.sent_again,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Record:
        """The record that was saved.

        Raises:
            StorageError: If it is none. To go on as if nothing had been lost could exceed the budget.
        """
        try:
            return cls(
                Decimal(found["committed_usd"]),
                Decimal(found["unknown_usd"]),
                *(int(found[name]) for name in ("lost", "in_flight", "sent_again")),
            )
        except (KeyError, TypeError, ValueError, InvalidOperation) as error:
            raise StorageError(
                f"ledger.json is damaged ({type(error).__name__}: {error}). Restore it, or begin anew with "
                "--fresh."
            ) from error


@dataclass(slots=True)
class Ledger:
    """The books of one run. Not thread-safe: one owner at a time (an actor, when distributed).

    Example:
        >>> ledger = Ledger(budget_usd=Decimal("1.00"))
        >>> small = Candidate("small", "cot")
        >>> ledger.reserve("q1", small, Decimal("0.70")).name
        'GRANTED'
        >>> ledger.reserve("q2", small, Decimal("0.70")).name
        'WAIT'
        >>> ledger.settle("q1", Usage(100, 20), Decimal("0.10"))
        >>> ledger.reserve("q2", small, Decimal("0.70")).name
        'GRANTED'
    """

    budget_usd: Decimal | None = None
    spent_usd: Decimal = ZERO
    reserved_usd: Decimal = ZERO
    unknown_usd: Decimal = ZERO
    unknown_calls: int = 0
    accounts: dict[Candidate, Account] = field(default_factory=dict)
    _open: dict[str, tuple[Candidate, Decimal]] = field(default_factory=dict)

    def book(self, candidate: Candidate, account: Account) -> None:
        """Take over what an earlier part of the same run has spent."""
        self.accounts.setdefault(candidate, Account()).merge(account)
        self.spent_usd += account.cost_usd

    def recall(self, record: Record) -> None:
        """Take over what earlier sessions have lost; after `book`."""
        self.unknown_usd = record.unknown_beside(self.spent_usd)
        self.unknown_calls = record.lost + record.in_flight

    @property
    def committed_usd(self) -> Decimal:
        """Spent, set aside, and perhaps lost."""
        return self.spent_usd + self.reserved_usd + self.unknown_usd

    @property
    def in_flight(self) -> int:
        """How many reservations are open."""
        return len(self._open)

    def reserve(self, key: str, candidate: Candidate, worst_case_usd: Decimal) -> Grant:
        """Set the worst case of a call aside, before it goes out.

        Raises:
            LedgerError: If the key holds a reservation already, or the amount is negative.
        """
        if key in self._open:
            raise LedgerError(f"The request {key} is reserved already; settle, release or lose it first.")
        if worst_case_usd < 0:
            raise LedgerError(
                f"The request {key} asks for {worst_case_usd} dollars; an amount is not negative."
            )
        if self.budget_usd is not None and worst_case_usd > 0:
            gone = self.spent_usd + self.unknown_usd
            if gone + worst_case_usd > self.budget_usd:
                return Grant.NEVER
            if gone + self.reserved_usd + worst_case_usd > self.budget_usd:
                return Grant.WAIT
        self._open[key] = (candidate, worst_case_usd)
        self.reserved_usd += worst_case_usd
        return Grant.GRANTED

    def settle(self, key: str, usage: Usage, cost_usd: Decimal) -> None:
        """Book what a call has used, and give back the rest of its reservation."""
        candidate, reserved = self._close(key)
        self.reserved_usd -= reserved
        self.spent_usd += cost_usd
        self.accounts.setdefault(candidate, Account()).add(usage, cost_usd)

    def release(self, key: str) -> None:
        """Give back the reservation of a call that cost nothing."""
        _, reserved = self._close(key)
        self.reserved_usd -= reserved

    def lose(self, key: str) -> None:
        """Book the worst case of a call whose reply was lost: it may have been paid, and nobody knows."""
        _, reserved = self._close(key)
        self.reserved_usd -= reserved
        self.unknown_usd += reserved
        self.unknown_calls += 1

    def balance(self) -> Balance:
        """What has been spent, is set aside, and may have been lost."""
        return Balance(
            self.budget_usd,
            self.spent_usd,
            self.reserved_usd,
            self.unknown_usd,
            self.unknown_calls,
            self.in_flight,
            {candidate: replace(account) for candidate, account in self.accounts.items()},
        )

    def _close(self, key: str) -> tuple[Candidate, Decimal]:
        try:
            return self._open.pop(key)
        except KeyError:
            raise LedgerError(
                f"The request {key} holds no reservation; it was closed twice or never made."
            ) from None
