"""What a plan is made by, from version to version: solved once, and again as answers come in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import ray

from rtr_ray.corrections import Bucket, Corrections, Seen
from rtr_ray.corrections import merged as merged_seen
from rtr_ray.distributed.ledger_actor import Snapshot
from rtr_ray.distributed.planning import looking_back, sketching
from rtr_ray.parts import Version
from rtr_ray.policies.base import Budgeted, Policy, Sketch, merged
from rtr_ray.pool import Pool
from rtr_ray.run_folder import RunFolder
from rtr_ray.slices import Slice
from rtr_ray.types import Candidate
from rtr_ray.versions import price_of, save, saved

_SHARE = 1 / 25  # of all rows: so many new answers are worth a new solution
_LEAST_ROWS = 40
# Of the budget, not planned with while rows are left: answers that are under way may be longer than
# expected, and a row that nobody can pay loses more than what so little money buys elsewhere. So many
# standard deviations of what is under way (a row's is about its mean), within two bounds. What is left of
# it goes to rows that the budget did not reach.
_DEVIATIONS = 2.0
_KEPT_LEAST, _KEPT_MOST = 1 / 500, 1 / 100


@dataclass(slots=True)
class Steering:
    """The version that slices are planned by now, and what may make another one."""

    folder: RunFolder
    pool: Pool
    policy: Policy
    budget_usd: Decimal | None
    rows_total: int
    version: Version
    steer: bool = True  # False: the first solution stands, whatever comes
    stale: bool = False  # the version was made for another budget, or before the run was broken off
    _corrections: dict[int, Corrections] = field(default_factory=dict)  # by version
    _seen: dict[Bucket, Seen] = field(default_factory=dict)
    _spent_usd: float = 0.0  # of the parts that were looked back at
    _rows: int = 0  # of those parts
    _solved_at: int = 0  # so many of them
    _unread: list[tuple[str, int]] = field(default_factory=list)  # finished parts by short name, their rows
    _reading: tuple[Any, list[tuple[str, int]]] | None = None  # what Ray gives for a look back, its parts
    _sketches: list[Any] = field(default_factory=list)
    _next: Corrections = field(default_factory=Corrections)  # of the version that is being made

    def __post_init__(self) -> None:
        self._corrections = {number: one.corrections for number, one in saved(self.folder).items()}
        self._corrections[self.version.number] = self.version.corrections

    @property
    def budgeted(self) -> bool:
        """Whether the policy divides an amount among the rows."""
        policy = self.policy
        return self.budget_usd is not None and isinstance(policy, Budgeted) and policy.divides_usd

    @property
    def learns(self) -> bool:
        """Whether answers make other versions."""
        return self.budgeted and self.steer

    @property
    def rows_learned(self) -> int:
        """Rows of the parts that were looked back at."""
        return self._rows

    def finished(self, name: str, rows: int) -> None:
        """A plan part has been answered: there is something to learn from it."""
        if self.budgeted:
            self._unread.append((name, rows))

    def learn(self) -> list[str]:
        """Look back at what has been answered; does not wait. Gives the parts that it has learned from."""
        learned: list[str] = []
        if self._reading is not None and ray.wait([self._reading[0]], timeout=0)[0]:
            (seen, spent_usd), parts = ray.get(self._reading[0]), self._reading[1]
            self._seen = merged_seen([self._seen, seen])
            self._spent_usd += spent_usd
            self._rows += sum(rows for _, rows in parts)
            self._reading = None
            learned = [name for name, _ in parts]
        if self._reading is None and self._unread:
            parts, self._unread = self._unread, []
            task = looking_back(self.folder.store.uri, [name for name, _ in parts], self.pool)
            self._reading = task, parts
        return learned

    def settled(
        self,
        left: Sequence[Slice],
        expected_usd: Mapping[tuple[int, Candidate], float],
        open_rows: int,
        now: Snapshot,
        planning: bool = False,
    ) -> bool:
        """Whether slices may be planned by the version; else a better one is on its way.

        Args:
            left: The slices that are not planned.
            expected_usd: What parts that are planned and were not learned from were expected to cost, by
                version and candidate.
            open_rows: How many rows these parts have.
            now: The ledger.
            planning: Whether other slices are being planned: what those promise is not known yet, and no
                version is solved before it is.
        """
        if not self._sketches:
            if not self._due():
                return True
            if self.stale and (self._unread or self._reading is not None):
                return False  # first what an earlier session has learned
            self._next = Corrections.of(self._seen) if self.steer else Corrections()
            self._sketches = sketching(self.folder.store.uri, left, self.pool, self.policy, self._next)
        sketched, _ = ray.wait(self._sketches, num_returns=len(self._sketches), timeout=0)
        if planning or len(sketched) < len(self._sketches):
            return False
        sketches, self._sketches = ray.get(self._sketches), []
        left_usd = self._left_usd(expected_usd, now) - self._kept_usd(open_rows)
        self._take(self.policy, sketches, max(left_usd, 0.0), self._next)
        return True

    def solve_rest(self, slices: Sequence[Slice], now: Snapshot, cheapest: bool) -> None:
        """Solve for rows that the budget did not reach, when nothing else is under way.

        Each is counted at its 95% quantile, since that is what must be set aside for it; a cap for each row
        is on what it is expected to cost, as before.
        """
        policy, cap = self.policy, getattr(self.policy, "max_row_usd", None)
        if cap is not None:
            policy = replace(policy, max_row_usd=None)  # type: ignore[type-var]
        corrections = replace(Corrections.of(self._seen), cautious=True, max_row_usd=cap)
        sketches = ray.get(sketching(self.folder.store.uri, slices, self.pool, policy, corrections))
        self._take(policy, sketches, 0.0 if cheapest else self._left_usd({}, now), corrections)

    def _due(self) -> bool:
        if not self.budgeted:
            return False
        fresh = self._rows - self._solved_at
        return self.stale or (self.steer and fresh >= max(_LEAST_ROWS, _SHARE * self.rows_total))

    def _left_usd(self, expected_usd: Mapping[tuple[int, Candidate], float], now: Snapshot) -> float:
        """What rows that are not planned may cost: the budget, less all that is gone or promised."""
        assert self.budget_usd is not None
        promised = sum(
            usd * self._next.factor(candidate) / self._corrections[version].factor(candidate)
            for (version, candidate), usd in expected_usd.items()
        )
        under_way = float(now.balance.spent_usd) - self._spent_usd
        gone = self._spent_usd + max(promised, under_way) + float(now.balance.unknown_usd)
        return max(float(self.budget_usd) - gone, 0.0)

    def _kept_usd(self, open_rows: int) -> float:
        """What is not planned with, for the noise of what is under way."""
        assert self.budget_usd is not None
        noise = _DEVIATIONS * math.sqrt(open_rows) / max(self.rows_total, 1)
        return float(self.budget_usd) * min(max(noise, _KEPT_LEAST), _KEPT_MOST)

    def _take(
        self, policy: Policy, sketches: Iterable[Sketch | None], left_usd: float, corrections: Corrections
    ) -> None:
        assert isinstance(policy, Budgeted)
        sketch = merged(policy, (one for one in sketches if one is not None))
        rows = sketch["rows"] if sketch else 0
        part = min(rows / self.rows_total, 1.0) if rows and self.rows_total else 1.0
        fitted = policy.within(left_usd, part=part).freeze(sketch)
        self.version = Version(fitted, self.version.number + 1, corrections, price_of(fitted))
        self._corrections[self.version.number] = corrections
        save(self.folder, self.version, left_usd)
        self.stale, self._solved_at = False, self._rows
