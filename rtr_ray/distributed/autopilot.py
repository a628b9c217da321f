"""The plan as it is made and remade while a run answers.

Slices are planned one after the other, just before the engines need them. After each few per cent of
the rows the answers that have come in correct the predictions, and what is left of the budget is
solved for anew over the rows that are left: plan version n + 1. What was planned stays as it is.

When all slices are answered, rows that the budget did not reach are tried again with what still fits:
first by the policy on what is left, then each with its cheapest candidate.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from rtr_ray.distributed.ledger_actor import Snapshot
from rtr_ray.distributed.plan_parts import Part, part_name
from rtr_ray.distributed.planning import SLICES, PlannedSlice, plan_slices
from rtr_ray.distributed.rest import gather_skipped, move, moved_counts, rest_key
from rtr_ray.distributed.steering import Steering
from rtr_ray.slices import Slice
from rtr_ray.storage import several_at_once
from rtr_ray.types import Candidate

_AHEAD_SHARE = 1 / 8  # of all rows may be planned and not answered yet; else nothing is left to correct
_AHEAD_LEAST = 64
_AHEAD_S = 3.0  # of answering: what is planned and handed over meanwhile; engines may be fast
_PACE_S = 8.0  # that the rate of answers is taken over: they become durable by the batch
_ROWS_PER_TASK = 2_000  # of slices that are planned together
_CANCEL_S = 10.0
_ROUNDS = 3  # of rows that the budget did not reach

_Expected = tuple[int, Candidate, float]
"""By which version a plan part was made, for whom, and what it was expected to cost, in dollars."""


@dataclass(slots=True)
class Pace:
    """How fast rows become durable."""

    clock: Callable[[], float] = time.monotonic
    _seen: deque[tuple[float, int]] = field(default_factory=deque)  # when, how many there were

    def rows_per_s(self, rows: int) -> float:
        """Of the last seconds; 0 before there are any.

        Args:
            rows: That are durable by now.
        """
        now = self.clock()
        self._seen.append((now, rows))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _PACE_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return max(rows - before, 0) / (now - since) if now > since else 0.0


def rows_ahead(capacity: int, rows_total: int, rows_per_s: float, budgeted: bool) -> int:
    """How many rows should be planned ahead of the answers.

    Args:
        capacity: Requests that the engines hold at once.
        rows_total: Of the corpus.
        rows_per_s: That become durable.
        budgeted: Whether answers correct what is planned later.
    """
    wanted, soon = capacity + capacity // 4, int(rows_per_s * _AHEAD_S)
    if not budgeted:
        return max(2 * wanted, soon, 1)
    # rows that nobody can take are planned, too: there may be no others
    most = max(int(_AHEAD_SHARE * rows_total), _AHEAD_LEAST)
    return max(min(max(wanted, soon), most), 1)


@dataclass(slots=True)
class Autopilot:
    """Gives a run its plan parts; a `Feed`."""

    steering: Steering
    slices: list[Slice]  # of the corpus
    deployments: frozenset[str]  # that the plan uses
    capacity: int  # requests that the engines hold at once
    unskip: Callable[[int], None]  # told how many rows that the budget did not reach are tried again
    insists: bool = True  # rows that the budget did not reach are tried again at the end
    unrouted: int = 0
    _planned: dict[int, PlannedSlice] = field(default_factory=dict)
    _planning: dict[Any, Sequence[Slice]] = field(default_factory=dict)  # Ray's task -> its slices
    _ready: list[Part] = field(default_factory=list)  # to be given out
    _open: dict[str, _Expected] = field(default_factory=dict)  # by key
    _unread: dict[str, _Expected] = field(default_factory=dict)  # finished, not learned from; by short name
    _pace: Pace = field(default_factory=Pace)
    _round: int = 0
    _answered: int = -1  # rows, at the beginning of the last round
    _over: bool = False

    def resume(self, settled: Mapping[str, int]) -> None:
        """Go on where an earlier session stopped.

        Args:
            settled: Rows that have been answered or failed for good, by the short name of their plan part.
        """
        folder, uri = self.steering.folder, self.steering.folder.store.uri
        keys = folder.store.keys(SLICES)
        found = several_at_once(folder.read_json, keys)
        earlier = [PlannedSlice.from_json(one) for one in found if one is not None]
        if not self.insists:  # of a run that was broken off: a pilot pays for its own rows alone
            mine = {one.number for one in self.slices}
            earlier = [one for one in earlier if one.slice.number in mine]
        for one in earlier:
            if one.slice.ids is not None:  # it may have been broken off just before
                ray.get(move.remote(uri, one.slice.number))
        done = Counter(settled)
        if earlier:
            moved: dict[str, int] = ray.get(moved_counts.remote(uri))
            done.update(moved)
        for one in earlier:
            self._take(one, done)
        # what was planned by an earlier session stays; the rest is solved for what is left
        self.steering.stale = self.steering.stale or bool(earlier)

    @property
    def exhausted(self) -> bool:
        """Whether every row has been planned, and those that the budget did not reach were tried again."""
        return self._over and not (self._ready or self._open)

    def finished(self, part: Part) -> None:
        """Learn from a part."""
        expected = self._open.pop(part.key, None)
        if expected is not None and self.steering.budgeted:
            self._unread[part_name(part.key)] = expected
        self.steering.finished(part_name(part.key), part.rows)

    def rest(self) -> Sequence[Part]:
        """Plan everything at once, by the version that there is."""
        self._plan(self._left())
        self._collect(wait=True)
        self._over = True
        return self._given()

    def abandon(self) -> None:
        """Plan nothing more: who takes the run up again writes the same parts."""
        for task in self._planning:
            ray.cancel(task)
        if self._planning:
            ray.wait(list(self._planning), num_returns=len(self._planning), timeout=_CANCEL_S)
        self._planning.clear()

    def more(self, unfinished_rows: int, snapshot: Snapshot) -> Sequence[Part]:
        """Plan as far ahead as the engines need it, by what has been learned so far."""
        for name in self.steering.learn():
            self._unread.pop(name, None)
        self._collect()
        rows_per_s = self._pace.rows_per_s(sum(snapshot.rows.values()))
        enough = rows_ahead(self.capacity, self.steering.rows_total, rows_per_s, self.steering.budgeted)
        about = self._rows_each
        coming = about * sum(map(len, self._planning.values()))
        ahead = unfinished_rows + sum(part.rows for part in self._ready) + coming
        left = self._left()
        if left:
            waits = ahead >= enough or self._is_blind(coming)
            if not waits and self._settled(left, unfinished_rows, snapshot):
                self._plan(left[: -(-(enough - ahead) // about)])
        elif not (self._planning or self._ready or self._open or self._over):
            self._over = not self._another_round(snapshot)
        return self._given()

    def _left(self) -> list[Slice]:
        under_way = {one.number for some in self._planning.values() for one in some} | self._planned.keys()
        return [one for one in self.slices if one.number not in under_way]

    @property
    def _rows_each(self) -> int:
        """Of a slice, about."""
        return max(self.steering.rows_total // max(len(self.slices), 1), 1)

    def _is_blind(self, coming: int) -> bool:
        """Whether too much is planned that nothing was learned of yet: engines may be faster than we."""
        planned = coming + sum(rows for one in self._planned.values() for _, rows in one.parts.values())
        most = 2 * max(_AHEAD_SHARE * self.steering.rows_total, _AHEAD_LEAST)
        return self.steering.learns and planned - self.steering.rows_learned > most

    def _settled(self, left: Sequence[Slice], unfinished_rows: int, snapshot: Snapshot) -> bool:
        expected: dict[tuple[int, Candidate], float] = {}
        # what finished parts cost is with the ledger, but not yet with what was learned: as if they were open
        for version, candidate, usd in (*self._open.values(), *self._unread.values()):
            expected[version, candidate] = expected.get((version, candidate), 0.0) + usd
        planning = bool(self._planning)
        return self.steering.settled(left, expected, unfinished_rows, snapshot, planning)

    def _plan(self, slices: Sequence[Slice]) -> None:
        """Begin to; small slices several to a task, since a worker that starts costs more than they do."""
        steering, most = self.steering, max(_ROWS_PER_TASK // self._rows_each, 1)
        pilot, others = [one for one in slices if one.is_pilot], [one for one in slices if not one.is_pilot]
        # the pilot by itself: what it teaches should wait for nobody
        for some in filter(None, [pilot, *(others[i : i + most] for i in range(0, len(others), most))]):
            task = plan_slices.remote(steering.folder.store.uri, some, steering.pool, steering.version)
            self._planning[task] = some

    def _collect(self, wait: bool = False) -> None:
        """Take what has been planned."""
        while self._planning:
            done, _ = ray.wait(list(self._planning), timeout=None if wait else 0)
            if not done:
                return
            for task in done:
                del self._planning[task]
                found: list[PlannedSlice] = ray.get(task)
                for planned in found:
                    self.unrouted += planned.unrouted
                    self._take(planned, {})

    def _take(self, planned: PlannedSlice, settled: Mapping[str, int]) -> None:
        self._planned[planned.slice.number] = planned
        pool = self.steering.pool
        for key, (candidate, rows) in planned.parts.items():
            if settled.get(part_name(key), 0) >= rows:
                self.steering.finished(part_name(key), rows)
                continue
            self._ready.append(Part(key, pool.deployment(candidate).id, rows))
            self._open[key] = planned.version, candidate, planned.expected[candidate].cost_usd

    def _given(self) -> Sequence[Part]:
        parts, self._ready = self._ready, []
        return parts

    def _another_round(self, snapshot: Snapshot) -> bool:
        """Try rows again that the budget did not reach; tells whether there is anything to try."""
        steering, skipped = self.steering, snapshot.rows.get("skipped_budget", 0)
        answered = snapshot.rows.get("answered", 0)
        if not (self.insists and steering.budgeted and skipped and self._round < _ROUNDS):
            return False
        if self._round > 1 and answered == self._answered:  # not even the cheapest ones fit any more
            return False
        self._answered, self._round = answered, self._round + 1
        uri, number = steering.folder.store.uri, max(self._planned) + 1
        names = ray.get(gather_skipped.remote(uri, number))
        if not names:
            return False
        sources = [
            one.slice for one in self._planned.values() if any(part_name(key) in names for key in one.parts)
        ]
        tables = sorted({key for one in sources for key in one.tables})
        rest = Slice(number, tuple(tables), ids=rest_key(number))
        steering.solve_rest([rest], snapshot, cheapest=self._round > 1)
        self._plan([rest])
        self._collect(wait=True)
        ray.get(move.remote(uri, number))
        self.unskip(sum(names.values()))
        return True
