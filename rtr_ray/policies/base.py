"""What a policy is: a rule that reads a routing table and chooses one candidate per query.

A policy has two steps. `sketch` looks at one table and gives a few numbers; sketches `merge`
in any order, so that they are made wherever the tables are (Ray tasks, say) and nobody holds
all tables. `freeze` turns the merged sketch into a fitted policy, which is frozen numbers: its
`choose` is pure and works row by row, so that batch actors and an online endpoint agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from rtr_ray.pool import Pool
from rtr_ray.types import FloatArray, IntArray, Plan, RoutingTable

Sketch = Mapping[str, Any]  # JSON


@runtime_checkable
class FittedPolicy(Protocol):
    """Frozen numbers that choose. A dataclass whose fields are JSON."""

    kind: ClassVar[str]

    def choose(self, table: RoutingTable) -> Plan:
        """One choice per query; -1 where none is possible."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A recipe: what to optimise. A frozen dataclass; its fields are its configuration."""

    kind: ClassVar[str]

    def sketch(self, table: RoutingTable) -> Sketch:
        """What must be known of one table."""
        ...

    def merge(self, one: Sketch, other: Sketch) -> Sketch:
        """What must be known of two tables; the order does not matter."""
        ...

    def freeze(self, sketch: Sketch | None) -> FittedPolicy:
        """The policy for the tables of a sketch; None where there was no table."""
        ...


@runtime_checkable
class Budgeted(Protocol):
    """A policy that divides an amount among rows, and so can be solved anew for the rows that are left."""

    @property
    def divides_usd(self) -> bool:
        """Whether it is dollars that this one divides."""
        ...

    @property
    def needs_usd(self) -> bool:
        """Whether it can do nothing without an amount."""
        ...

    def within(self, budget_usd: float, refuse: bool = False, part: float = 1.0) -> Policy:
        """The same recipe for an amount.

        Args:
            budget_usd: What the rows may be expected to cost together.
            refuse: What `freeze` does where even the cheapest plan costs more: refuse, or give every
                row its cheapest candidate.
            part: Of all rows, those that it is for: what else it divides among all rows, these get so
                much of.
        """
        ...


@runtime_checkable
class Grounded(Protocol):
    """A policy that must know the pool: its speeds, say."""

    def on(self, pool: Pool) -> Policy:
        """The same recipe for a pool."""
        ...


def fit(policy: Policy, tables: Iterable[RoutingTable]) -> FittedPolicy:
    """Fit a policy in one pass over a stream of tables."""
    return policy.freeze(merged(policy, (policy.sketch(table) for table in tables)))


def merged(policy: Policy, sketches: Iterable[Sketch]) -> Sketch | None:
    """All sketches in one, None where there was none."""
    total: Sketch | None = None
    for sketch in sketches:
        total = sketch if total is None else policy.merge(total, sketch)
    return total


def with_runner_up(fitted: FittedPolicy, table: RoutingTable) -> Plan:
    """The plan, and for each query what would be chosen if the choice were not allowed."""
    plan = fitted.choose(table)
    allowed_QC = table.allowed.copy()
    rows_Q = np.flatnonzero(plan.routed)
    allowed_QC[rows_Q, plan.choice[rows_Q]] = False
    second = fitted.choose(
        RoutingTable(
            table.query_ids,
            table.candidates,
            table.accuracy,
            table.output_tokens,
            table.output_tokens_p95,
            table.cost_usd,
            allowed_QC,
        )
    )
    return Plan(table, plan.choice, second.choice)


def best_column(score_QC: FloatArray, table: RoutingTable) -> IntArray:
    """The allowed column with the highest score, per row; -1 where none is allowed.

    Ties go to the cheaper candidate, then to the more accurate one, then by a stable hash of the
    query id.
    """
    score_QC = np.where(table.allowed, score_QC, -np.inf)
    choice_Q: IntArray = score_QC.argmax(axis=1)
    tied_QC = (score_QC == score_QC.max(axis=1, keepdims=True)) & table.allowed
    for row in np.flatnonzero(tied_QC.sum(axis=1) > 1):
        columns = np.flatnonzero(tied_QC[row])
        for worth in (-table.cost_usd[row], table.accuracy[row]):
            columns = columns[worth[columns] == worth[columns].max()]
        choice_Q[row] = columns[stable_hash(table.query_ids[row]) % len(columns)]
    choice_Q[~table.allowed.any(axis=1)] = -1
    return choice_Q


def stable_hash(text: str) -> int:
    """64 bits that are the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
