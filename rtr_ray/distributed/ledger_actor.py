"""The ledger as an actor: one set of books for every worker of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import ray

from rtr_ray.dispatch import Reservation, Settlement
from rtr_ray.ledger import Account, Balance, Grant, Ledger
from rtr_ray.types import Candidate


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run has come."""

    balance: Balance
    rows: Mapping[str, int]  # status -> rows that are durable
    sent_again: int  # requests that were sent another time although an earlier one may have been paid
    parts_done: int


@ray.remote(num_cpus=0)
class LedgerActor:
    """Owns the ledger of one run, and counts what has become durable."""

    def __init__(
        self, budget_usd: Decimal | None, accounts: Mapping[Candidate, Account], rows: Mapping[str, int]
    ):
        self._ledger = Ledger(budget_usd)
        for candidate, account in accounts.items():
            self._ledger.book(candidate, account)
        self._rows = Counter(rows)
        self._owners: dict[str, set[str]] = {}  # plan part -> keys that it holds reservations of
        self._sent_again = 0
        self._parts_done = 0

    def begin(self, owner: str) -> None:
        """A worker takes up a plan part: what an earlier one left open there is lost with it."""
        for key in self._owners.pop(owner, set()):
            self._ledger.lose(key)
            self._sent_again += 1
        self._owners[owner] = set()

    def reserve(self, owner: str, reservations: Sequence[Reservation]) -> list[Grant]:
        """Set worst cases aside, in order; one answer each."""
        grants = [self._ledger.reserve(r.key, r.candidate, r.worst_case_usd) for r in reservations]
        self._owners[owner] |= {
            r.key for r, grant in zip(reservations, grants, strict=True) if grant is Grant.GRANTED
        }
        return grants

    def settle(
        self, owner: str, settlements: Sequence[Settlement], rows: Mapping[str, int], sent_again: int
    ) -> None:
        """End reservations; `rows` became durable with them."""
        for one in settlements:
            if one.lost:
                self._ledger.lose(one.key)
            elif one.usage is None:
                self._ledger.release(one.key)
            else:
                self._ledger.settle(one.key, one.usage, one.cost_usd)
            self._owners[owner].discard(one.key)
        self._rows.update(rows)
        self._sent_again += sent_again

    def finish(self, owner: str) -> None:
        """A plan part is done."""
        self.begin(owner)
        del self._owners[owner]
        self._parts_done += 1

    def snapshot(self) -> Snapshot:
        """How far the run has come."""
        return Snapshot(self._ledger.balance(), dict(self._rows), self._sent_again, self._parts_done)


@dataclass(slots=True)
class RemoteBooks:
    """The ledger actor as dispatch sees it, for one plan part."""

    actor: Any
    owner: str

    async def begin(self) -> None:
        """Take up the part."""
        await self.actor.begin.remote(self.owner)

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        """Set worst cases aside; one answer each."""
        grants: list[Grant] = await self.actor.reserve.remote(self.owner, list(reservations))
        return grants

    async def settle(
        self, settlements: Sequence[Settlement], rows: Mapping[str, int] | None = None, sent_again: int = 0
    ) -> None:
        """End reservations; `rows` became durable with them."""
        await self.actor.settle.remote(self.owner, list(settlements), dict(rows or {}), sent_again)

    async def finish(self) -> None:
        """The part is done."""
        await self.actor.finish.remote(self.owner)
