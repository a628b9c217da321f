"""Money: reserve what a call may cost, settle what was used, release the rest.

At every moment `spent + reserved + unknown <= budget`: a request goes out only after the most
that it can cost has been set aside. Where worst cases would leave no room for others, less is set
aside, and the call may cost no more than that until it gets an extension. All amounts are exact
decimals.
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
# Of what is left: as long as less is reserved, nobody has to do with less than a worst case. No more, since
# what is reserved when a worker dies counts as spent.
PLENTY = Decimal("0.005")
HEADROOM = Decimal("0.1")  # of what is left: kept from new calls, for those that must be extended


class Grant(Enum):
    """What a reservation, or an extension, is answered with."""

    GRANTED = "granted"  # all that was asked for
    LEAST = "least"  # the smaller amount: the call may cost no more than that
    WAIT = "wait"  # it would fit once other reservations are released
    NEVER = "never"  # it exceeds the budget even if nothing else were in flight

    @property
    def given(self) -> bool:
        """Whether something was set aside."""
        return self in (Grant.GRANTED, Grant.LEAST)


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
    unknown_usd: Decimal  # set aside for calls whose reply was lost
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
class _Open:
    """A reservation that is not closed yet."""

    candidate: Candidate
    usd: Decimal
    call: str


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
    _open: dict[str, _Open] = field(default_factory=dict)

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

    @property
    def left_usd(self) -> Decimal | None:
        """What is neither spent nor lost, whether it is set aside or not; None without a budget."""
        return None if self.budget_usd is None else self.budget_usd - self.spent_usd - self.unknown_usd

    def reserve(
        self,
        key: str,
        candidate: Candidate,
        worst_case_usd: Decimal,
        least_usd: Decimal | None = None,
        grows: bool = False,
        call: str = "",
    ) -> Grant:
        """Set money aside for a call, before it goes out: its worst case, or less where that is scarce.

        A call that grows gets its worst case while little of what is left is set aside (`PLENTY`),
        and the smaller amount after that; a share of what is left (`HEADROOM`) is kept for
        extensions. One that does not grow would be cut, so it waits for its worst case, and gets the
        smaller amount only where the worst case exceeds all that is left.

        Args:
            key: Of the request.
            candidate: Whose account will be charged.
            worst_case_usd: The most that the call can cost.
            least_usd: What it will hardly exceed; None where it cannot be held to that.
            grows: Whether the call can get more while it runs (see `extend`).
            call: Which sending of the request this is; an extension must name the same.

        Raises:
            LedgerError: If the key holds a reservation already, or an amount is negative.
        """
        if key in self._open:
            raise LedgerError(f"The request {key} is reserved already; settle, release or lose it first.")
        least = worst_case_usd if least_usd is None else min(least_usd, worst_case_usd)
        if least < 0:
            raise LedgerError(f"The request {key} asks for {least} dollars; an amount is not negative.")
        grant = self._grant(worst_case_usd, least, grows and least < worst_case_usd)
        if grant.given:
            usd = worst_case_usd if grant is Grant.GRANTED else least
            self._open[key] = _Open(candidate, usd, call)
            self.reserved_usd += usd
        return grant

    def _grant(self, worst: Decimal, least: Decimal, grows: bool) -> Grant:
        left = self.left_usd
        if left is None or worst == 0:
            return Grant.GRANTED
        if least > left:
            return Grant.NEVER
        if grows:
            if self.reserved_usd + worst <= PLENTY * left:
                return Grant.GRANTED
            # a call that is alone has nobody to wait for
            fits = self.reserved_usd == 0 or self.reserved_usd + least <= (1 - HEADROOM) * left
            return Grant.LEAST if fits else Grant.WAIT
        free = left - self.reserved_usd
        if worst <= left:
            return Grant.GRANTED if worst <= free else Grant.WAIT
        return Grant.LEAST if least <= free else Grant.WAIT

    def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal | None = None) -> Grant:
        """Set more aside for a call that is running.

        Args:
            key: Of the request.
            call: As it was reserved; a call that was given up meanwhile gets no more.
            usd: What it would like to have on top.
            least_usd: What would help it, too.

        Raises:
            LedgerError: If an amount is negative.
        """
        least = usd if least_usd is None else min(least_usd, usd)
        if least < 0:
            raise LedgerError(f"The request {key} asks for {least} dollars more; an amount is not negative.")
        held = self._open.get(key)
        if held is None or held.call != call:
            return Grant.NEVER
        left = self.left_usd
        if left is not None:
            free = left - self.reserved_usd
            if least > free:
                return Grant.WAIT if held.usd + least <= left else Grant.NEVER
            grant = Grant.GRANTED if usd <= free else Grant.LEAST
        else:
            grant = Grant.GRANTED
        more = usd if grant is Grant.GRANTED else least
        held.usd += more
        self.reserved_usd += more
        return grant

    def take_back(self, key: str, usd: Decimal) -> None:
        """Give back a part of a reservation: an extension that its call never heard of."""
        held = self._open[key]
        held.usd -= usd
        self.reserved_usd -= usd

    def trim(self, key: str, cost_usd: Decimal) -> None:
        """A call was answered, its cost is known: no more than that stays set aside until it is settled."""
        held = self._open.get(key)
        if held is not None and cost_usd < held.usd:
            self.reserved_usd -= held.usd - cost_usd
            held.usd = cost_usd

    def settle(self, key: str, usage: Usage, cost_usd: Decimal) -> None:
        """Book what a call has used, and give back the rest of its reservation."""
        held = self._close(key)
        self.spent_usd += cost_usd
        self.accounts.setdefault(held.candidate, Account()).add(usage, cost_usd)

    def release(self, key: str) -> None:
        """Give back the reservation of a call that cost nothing."""
        self._close(key)

    def lose(self, key: str) -> None:
        """Book all that was set aside for a call whose reply was lost: nobody knows what was paid of it."""
        self.unknown_usd += self._close(key).usd
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

    def _close(self, key: str) -> _Open:
        try:
            held = self._open.pop(key)
        except KeyError:
            raise LedgerError(
                f"The request {key} holds no reservation; it was closed twice or never made."
            ) from None
        self.reserved_usd -= held.usd
        return held
