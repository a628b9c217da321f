"""The ledger as an actor: one set of books for every worker of a run.

What must outlive the actor lies in the run folder as `ledger.json` (see `rtr_ray.ledger.Record`).
With a budget, nobody hears of a grant or an extension before a record that covers it is durable. A
record covers a step more than was asked, so that not every chunk costs a write; and it is drawn in
again as calls are settled, so that a kill locks up little more than what was really in flight.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import ray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rtr_ray.books import Reservation, Settlement
from rtr_ray.errors import LedgerError, StorageError
from rtr_ray.ledger import ZERO, Account, Balance, Grant, Ledger, Record
from rtr_ray.pool import fingerprint
from rtr_ray.run_folder import LEDGER, RunFolder, insist, taken
from rtr_ray.storage import open_store
from rtr_ray.types import Candidate

Durable = Mapping[str, tuple[str, Settlement | None]]
"""Requests whose results are durable: key -> status, and how the reservation ends."""

# At most so many records until a budget is used up, and those that draw it in again. A kill of the driver
# locks up one step of the budget, beside what was set aside; after a few kills 97% must still be spent.
_STEP = 500
_CHUNKS = 8  # of a run without a budget: so many grants like the last one may follow without a write
_SAVE_S = 1.0  # between two records that nothing waits for
NAMESPACE = "rtr-ray-ledgers"
_PATIENCE_S = 15.0  # for the ledger of a driver that was killed
_CLOSE_S = 30.0  # for the last record


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run has come, over all of its sessions."""

    balance: Balance
    rows: Mapping[str, int]  # status -> rows that are durable
    sent_again: int  # requests that were sent another time although an earlier one may have been paid
    parts_done: int  # in this session


class SharedLedger:
    """Owns the ledger of one run, and counts what has become durable. `LedgerActor`, without Ray."""

    def __init__(self, output: str, budget_usd: Decimal | None) -> None:
        self._folder = RunFolder(open_store(output))
        self._ledger = Ledger(budget_usd)
        self._step_usd = ZERO if budget_usd is None else budget_usd / _STEP
        self._covered_usd = ZERO  # by the record that is durable
        self._saved_s = float("-inf")
        self._valid_until_s = float("inf")  # by the monotonic clock
        self._resumed = self._closed = False
        self._rows: Counter[str] = Counter()
        self._counted: dict[str, Counter[str]] = {}  # plan part -> its rows in `_rows`
        self._owners: dict[str, set[str]] = {}  # plan part -> keys that it holds reservations of
        self._takes: Counter[str] = Counter()  # plan part -> how often it has been taken up
        self._sent_again = 0
        self._parts_done = 0

    def resume(self, accounts: Mapping[Candidate, Account], rows: Mapping[str, int]) -> None:
        """Take over what the results show, and what earlier sessions left in `ledger.json`.

        Raises:
            StorageError: If that cannot be read.
        """
        for candidate, account in accounts.items():
            self._ledger.book(candidate, account)
        self._rows = Counter(rows)
        saved = self._folder.read_json(LEDGER)
        if saved is not None:
            record = Record.from_json(saved)
            self._ledger.recall(record)
            self._sent_again = record.sent_again + record.in_flight
            self._covered_usd = record.committed_usd
        self._resumed = True

    def hold(self, valid_s: float) -> None:
        """The folder is certainly ours for so long: after that nothing is granted, until told again.

        Where the driver stands still, another one may take the folder over, and its ledger spends
        the same budget.
        """
        self._valid_until_s = time.monotonic() + valid_s

    @property
    def _is_ours(self) -> bool:
        return time.monotonic() < self._valid_until_s

    def begin(self, owner: str, durable: Durable) -> int:
        """A worker takes up a plan part; gives the number of the taking.

        What an earlier one left open there is settled where its results are durable (it died
        between the two), and lost where they are not.
        """
        for key in self._owners.pop(owner, set()):
            status, one = durable.get(key, ("", None))
            if status and one is not None and not one.lost:
                self._end(one)
            else:
                self._ledger.lose(key)
                self._sent_again += not status
        self._owners[owner] = set()
        rows = Counter(status for status, _ in durable.values())
        self._rows.update(rows)
        self._rows.subtract(self._counted.get(owner, rows))  # what was durable before was counted then
        self._counted[owner] = rows
        self._takes[owner] += 1
        self._save_now_and_then()
        return self._takes[owner]

    def reserve(self, owner: str, reservations: Sequence[Reservation]) -> list[Grant]:
        """Set money aside, in order; one answer each.

        Raises:
            StorageError: If it cannot be made durable that it may be spent; nothing is granted then.
            LedgerError: If the run has ended, or a request is reserved already; nothing is granted then.
        """
        self._refuse_if_closed()
        if not self._is_ours:
            return [Grant.WAIT] * len(reservations)
        mine, ledger = self._owners[owner], self._ledger
        before = ledger.reserved_usd
        grants: list[Grant] = []
        try:
            for r in reservations:
                grants.append(
                    ledger.reserve(r.key, r.candidate, r.worst_case_usd, r.least_usd, r.grows, r.call)
                )
            self._cover(ledger.reserved_usd - before)
        except BaseException:
            for r, grant in zip(reservations, grants, strict=False):
                if grant.given:
                    ledger.release(r.key)
            raise
        mine.update(r.key for r, grant in zip(reservations, grants, strict=True) if grant.given)
        return grants

    def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        """Set more aside for a call that is running.

        Raises:
            StorageError: If it cannot be made durable that it may be spent; nothing is granted then.
            LedgerError: If the run has ended.
        """
        self._refuse_if_closed()
        if not self._is_ours:
            return Grant.WAIT
        before = self._ledger.reserved_usd
        grant = self._ledger.extend(key, call, usd, least_usd)
        more = self._ledger.reserved_usd - before
        try:
            self._cover(more)
        except BaseException:
            self._ledger.take_back(key, more)
            raise
        return grant

    def trim(self, owner: str, take: int, known: Sequence[tuple[str, Decimal]]) -> None:
        """What some calls have cost is known, though not durable yet: the rest of what was set aside is free.

        Of a worker that was replaced meanwhile it says nothing: the calls are its successor's.
        """
        if take == self._takes[owner]:
            for key, cost_usd in known:
                self._ledger.trim(key, cost_usd)
            self._save_now_and_then()

    def left_usd(self) -> Decimal | None:
        """What is neither spent nor lost; None without a budget."""
        return self._ledger.left_usd

    def settle(
        self, owner: str, settlements: Sequence[Settlement], rows: Mapping[str, int], sent_again: int
    ) -> None:
        """End reservations; `rows` became durable with them."""
        for one in settlements:
            self._end(one)
            self._owners[owner].discard(one.key)
        self._rows.update(rows)
        self._counted[owner].update(rows)
        self._sent_again += sent_again
        self._save_now_and_then()

    def finish(self, owner: str) -> None:
        """A plan part is done."""
        for key in self._owners.pop(owner, set()):
            self._ledger.lose(key)
        self._counted.pop(owner, None)
        self._parts_done += 1

    def unskip(self, rows: int) -> None:
        """Rows that the budget did not reach are tried again, in another plan part."""
        self._rows["skipped_budget"] -= rows

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LedgerError(f"The run in {self._folder.store.uri} has ended; nothing more may be asked.")

    def snapshot(self) -> Snapshot:
        """How far the run has come."""
        return Snapshot(self._ledger.balance(), dict(self._rows), self._sent_again, self._parts_done)

    def close(self) -> Snapshot:
        """The session ends: nothing more is granted, and the record says exactly what is unknown."""
        self._closed = True
        if self._resumed:  # else it ended before it asked anything, and the older record stands
            self._save(self._ledger.committed_usd)
        return self.snapshot()

    def _end(self, one: Settlement) -> None:
        if one.lost:
            self._ledger.lose(one.key)
        elif one.usage is None:
            self._ledger.release(one.key)
        else:
            self._ledger.settle(one.key, one.usage, one.cost_usd)

    def _cover(self, granted_usd: Decimal) -> None:
        """Make durable that what was set aside just now may be spent, unless an earlier record says so."""
        committed = self._ledger.committed_usd
        if not granted_usd or committed <= self._covered_usd:
            return
        covered = self._within(committed + self._ahead_usd(granted_usd))
        if self._ledger.budget_usd is not None:
            self._save(covered)
            return
        with contextlib.suppress(StorageError):  # nothing is bounded by it
            self._save(covered, ())

    def _ahead_usd(self, granted_usd: Decimal = ZERO) -> Decimal:
        """How much a record covers beyond what it must, so that not every grant costs a write."""
        if self._ledger.budget_usd is not None:
            return self._step_usd
        return max(self._ledger.committed_usd / _STEP, granted_usd * _CHUNKS)

    def _within(self, usd: Decimal) -> Decimal:
        # no grant goes over the budget; what is gone already may (it was larger once)
        budget = self._ledger.budget_usd
        return usd if budget is None else max(min(usd, budget), self._ledger.committed_usd)

    def _save_now_and_then(self) -> None:
        """Draw the record in. No harm if that fails: the older one covers more."""
        if time.monotonic() - self._saved_s < _SAVE_S or not self._is_ours:
            return
        more = ZERO if self._closed else self._ahead_usd()
        try:
            self._save(self._within(self._ledger.committed_usd + more), ())
        except StorageError:
            self._saved_s = time.monotonic()

    def _save(self, committed_usd: Decimal, pauses_s: Sequence[float] | None = None) -> None:
        books = self._ledger
        record = Record(
            committed_usd, books.unknown_usd, books.unknown_calls, books.in_flight, self._sent_again
        )
        # a write that fails may have arrived: until one succeeds, the smaller of the two counts
        self._covered_usd = min(self._covered_usd, committed_usd)
        insist(lambda: self._folder.write_json(LEDGER, record.to_json()), pauses_s)
        self._covered_usd, self._saved_s = committed_usd, time.monotonic()


LedgerActor = ray.remote(num_cpus=0)(SharedLedger)


def ledger_name(output: str) -> str:
    """The name of the actor that keeps the ledger of a run folder, in `NAMESPACE`."""
    return f"ledger-{fingerprint(output)}"


def claim(output: str, budget_usd: Decimal | None, patience_s: float = _PATIENCE_S) -> Any:
    """Start the ledger of a run folder, of which a cluster has one at a time.

    It goes when the driver that started it does; that of a driver that was killed just now may
    take some seconds to go.

    Raises:
        DataError: If another run on this cluster works on the folder.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            actor: Any = LedgerActor.options(
                name=ledger_name(output), namespace=NAMESPACE, scheduling_strategy=_beside_the_driver()
            ).remote(output, budget_usd)
            ray.get(actor.snapshot.remote())
            return actor
        except ActorAlreadyExistsError:
            if time.monotonic() > deadline:
                raise taken(output) from None
            time.sleep(0.25)


def _beside_the_driver() -> NodeAffinitySchedulingStrategy:
    # an actor without CPUs lands anywhere, on a node that is taken away in the middle of a run, say; and so
    # does one with a soft affinity (three of four do, on a cluster of four nodes)
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def release(actor: Any, ours: bool = True) -> None:
    """End a ledger, with its last record written if the folder is ours; whatever state it is in."""
    with contextlib.suppress(Exception):
        if ours:
            ray.get(actor.close.remote(), timeout=_CLOSE_S)
    with contextlib.suppress(Exception):
        ray.kill(actor)


@dataclass(slots=True)
class RemoteBooks:
    """The ledger actor as dispatch sees it, for one plan part."""

    actor: Any
    owner: str
    take: int = 0

    async def begin(self, durable: Durable) -> None:
        """Take up the part."""
        self.take = await self.actor.begin.remote(self.owner, dict(durable))

    async def trim(self, known: Sequence[tuple[str, Decimal]]) -> None:
        """What some calls have cost is known."""
        await self.actor.trim.remote(self.owner, self.take, list(known))

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        """Set money aside; one answer each."""
        grants: list[Grant] = await self.actor.reserve.remote(self.owner, list(reservations))
        return grants

    async def settle(
        self, settlements: Sequence[Settlement], rows: Mapping[str, int] | None = None, sent_again: int = 0
    ) -> None:
        """End reservations; `rows` became durable with them."""
        await self.actor.settle.remote(self.owner, list(settlements), dict(rows or {}), sent_again)

    async def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        """Set more aside for a call that is running; asked by the engine's replica."""
        grant: Grant = await self.actor.extend.remote(key, call, usd, least_usd)
        return grant

    async def left_usd(self) -> Decimal | None:
        """What is neither spent nor lost; None without a budget."""
        left: Decimal | None = await self.actor.left_usd.remote()
        return left

    async def finish(self) -> None:
        """The part is done."""
        await self.actor.finish.remote(self.owner)
