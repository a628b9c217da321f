"""The policy of Route-To-Reason: a weighted score of accuracy and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.policies.base import Sketch, best_column
from rtr_ray.types import Plan, RoutingTable

_ATTO = 10**18


@dataclass(frozen=True, slots=True)
class Score:
    """Weigh accuracy against cost with `lam`, dollars in units of their mean over all tables.

    Source:
        Route-To-Reason (WWW '26), Eq. 9 and 10; C is the global mean cost, as they suggest.
    """

    lam: float  # in [0, 1]: 1 looks at accuracy alone, 0 at cost alone
    normaliser_usd: float | None = None  # None: the mean predicted cost over all allowed cells
    kind: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise ConfigError(
                f"policy.lam is {self.lam}; it lies between 0 (cost alone) and 1 (accuracy alone)."
            )
        if self.normaliser_usd is not None and not self.normaliser_usd > 0:
            raise ConfigError(f"policy.normaliser_usd is {self.normaliser_usd}; a positive amount is needed.")

    def sketch(self, table: RoutingTable) -> Sketch:
        """The sum of predicted dollars over all allowed cells, and their number.

        The sum is a whole number of 1e-18 dollars: floats would add up to another normaliser in
        another order of merging, and a tie might then fall to another candidate.
        """
        sum_usd = float(table.cost_usd[table.allowed].sum(dtype=np.float64))
        return {"sum_attousd": round(sum_usd * _ATTO), "cells": int(table.allowed.sum())}

    def merge(self, one: Sketch, other: Sketch) -> Sketch:
        """Both sums, both numbers."""
        return {key: one[key] + other[key] for key in ("sum_attousd", "cells")}

    def freeze(self, sketch: Sketch | None) -> FittedScore:
        """The policy with its normaliser; where everything is free, accuracy alone decides."""
        if self.normaliser_usd is not None:
            return FittedScore(self.lam, self.normaliser_usd)
        mean = sketch["sum_attousd"] / (sketch["cells"] * _ATTO) if sketch and sketch["cells"] else 0.0
        return FittedScore(self.lam, mean or 1.0)


@dataclass(frozen=True, slots=True)
class FittedScore:
    """The frozen policy: a weight and a unit."""

    lam: float
    normaliser_usd: float
    kind: ClassVar[str] = "score"

    def choose(self, table: RoutingTable) -> Plan:
        """Choose, for each query, the candidate with the best trade-off of accuracy and cost.

        score[q, c] = lam * accuracy[q, c] - (1 - lam) * cost_usd[q, c] / normaliser_usd

        Ties go to the cheaper candidate, then to the more accurate one, then by a stable hash of
        `query_id`, so a plan is a pure function of its table.

        Args:
            table: Predictions for Q queries and C >= 1 candidates.

        Returns:
            A plan over the same table, one column per query.

        Source:
            Route-To-Reason (WWW '26), Eq. 9 and 10.
        """
        accuracy_QC, cost_QC = table.accuracy.astype(np.float64), table.cost_usd.astype(np.float64)
        score_QC = self.lam * accuracy_QC - (1 - self.lam) * (cost_QC / self.normaliser_usd)
        return Plan(table, best_column(score_QC, table))
