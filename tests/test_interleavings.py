"""Ledger and dispatch under many interleavings, and ledgers that are broken on purpose under the same."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest

from rtr_ray.books import Reservation
from rtr_ray.distributed.ledger_actor import SharedLedger
from rtr_ray.ledger import Grant, Ledger
from rtr_ray.types import Usage
from tests.interleavings import BrokenError, survive


def test_in_every_interleaving_the_money_adds_up() -> None:
    seen = survive(range(1500))  # benchmarks/interleavings.py tries 100,000
    for what in (
        *("answered", "failed", "skipped_budget", "cut"),
        *("granted", "least", "wait", "never"),
        *("extension granted", "extension least", "extension wait", "extension never"),
        *("worker killed", "session killed", "StorageError"),
    ):
        assert seen[what] >= 20, f"{what}: {seen[what]}; the dice are loaded"


class Forgets(Ledger):
    """Gives a settled reservation back, and books nothing."""

    def settle(self, key: str, usage: Usage, cost_usd: Decimal) -> None:
        self.release(key)


class ReleasesTwice(Ledger):
    """Gives back twice what a call had set aside."""

    def release(self, key: str) -> None:
        self.reserved_usd -= self._open[key].usd
        super().release(key)


class LosesNothing(Ledger):
    """Takes a call whose reply was lost for one that cost nothing."""

    def lose(self, key: str) -> None:
        self.release(key)


class ChecksThenActs(Ledger):
    """Looks at what is spent, and not at what is on its way."""

    def _grant(self, worst: Decimal, least: Decimal, grows: bool) -> Grant:
        left = self.left_usd
        return Grant.GRANTED if left is None or worst <= left else Grant.NEVER


class ExtendsForNothing(Ledger):
    """Lets a running call go on, and sets nothing aside for it."""

    def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal | None = None) -> Grant:
        return Grant.GRANTED


class ExtendsAnybody(Ledger):
    """Does not ask which sending of a request it is that wants more."""

    def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal | None = None) -> Grant:
        held = self._open.get(key)
        return super().extend(key, held.call if held else call, usd, least_usd)


class RecordsAfterwards(SharedLedger):
    """Tells of a grant first, and makes it durable with the next one."""

    _owed = Decimal(0)

    def _cover(self, granted_usd: Decimal) -> None:
        super()._cover(self._owed)
        self._owed = granted_usd
        self._covered_usd = max(self._covered_usd, self._ledger.committed_usd)


class GrantsWhatItCouldNotRecord(SharedLedger):
    """Reserves before it writes, and leaves it so where the write fails."""

    def reserve(self, owner: str, reservations: Sequence[Reservation]) -> list[Grant]:
        try:
            return super().reserve(owner, reservations)
        except OSError:
            return [self._ledger.reserve(r.key, r.candidate, r.worst_case_usd) for r in reservations]


@pytest.mark.parametrize(
    "broken", [Forgets, ReleasesTwice, LosesNothing, ChecksThenActs, ExtendsForNothing, ExtendsAnybody]
)
def test_a_ledger_that_is_broken_on_purpose_is_found_out(broken: type[Ledger]) -> None:
    with pytest.raises(BrokenError):
        survive(range(6000), ledger=broken)  # it ends at the first one


@pytest.mark.parametrize("broken", [RecordsAfterwards, GrantsWhatItCouldNotRecord])
def test_a_record_that_comes_too_late_is_found_out(broken: type[SharedLedger]) -> None:
    with pytest.raises(BrokenError):
        survive(range(1500), shared=broken)
