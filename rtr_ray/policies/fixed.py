"""No routing: the same candidate for every query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.policies.base import Sketch
from rtr_ray.types import Candidate, Plan, RoutingTable


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every query goes to one candidate; the baseline that routing must beat."""

    candidate: str  # "model:strategy" or "model:strategy@samples"
    kind: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        Candidate.parse(self.candidate)

    def sketch(self, table: RoutingTable) -> Sketch:
        """Nothing needs to be known."""
        return {}

    def merge(self, one: Sketch, other: Sketch) -> Sketch:
        """Nothing needs to be known."""
        return {}

    def freeze(self, sketch: Sketch | None) -> FittedFixed:
        """The same, frozen."""
        return FittedFixed(self.candidate)


@dataclass(frozen=True, slots=True)
class FittedFixed:
    """Every query goes to one candidate."""

    candidate: str
    kind: ClassVar[str] = "fixed"

    def choose(self, table: RoutingTable) -> Plan:
        """Choose the candidate wherever it is allowed; a query that it cannot take goes nowhere.

        Raises:
            ConfigError: If the table has no such candidate.
        """
        candidate = Candidate.parse(self.candidate)
        if candidate not in table.candidates:
            known = ", ".join(map(str, table.candidates))
            raise ConfigError(
                f"The policy is fixed to {candidate}, which is not in the pool. Known: {known}."
            )
        column = table.candidates.index(candidate)
        return Plan(table, np.where(table.allowed[:, column], column, -1))
