"""Predicted output tokens, for estimators whose paper says nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rtr_ray.estimators.base import mean_of_seen
from rtr_ray.estimators.evidence import Telling, told_by
from rtr_ray.estimators.ridge import Ridge, together
from rtr_ray.types import Estimate, FloatArray, Outcomes

_LEAST_TOKENS = 0.1  # of a candidate's mean: a straight line knows no zero


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Straight lines in features: embeddings of unit length, or what an estimator makes of a query."""

    tokens_DC: FloatArray
    tokens_C: FloatArray
    least_tokens_C: FloatArray
    tail_C: FloatArray  # 95% quantile over mean

    @classmethod
    def fit(cls, outcomes: Outcomes, unit_MD: FloatArray, penalty: float | None = None) -> Lengths:
        """Learn from the recorded cells.

        Args:
            outcomes: M queries.
            unit_MD: Their embeddings, of unit length.
            penalty: None: the one that leaves out best.
        """
        return cls._learned(outcomes, lambda values_MC: together(unit_MD, values_MC, penalty))

    @classmethod
    def by_evidence(cls, outcomes: Outcomes, features_MF: FloatArray) -> Lengths:
        """As `fit`, of any features; the signal's strength by the evidence."""
        return cls._learned(outcomes, lambda values_MC: told_by(features_MF, values_MC))

    @classmethod
    def _learned(cls, outcomes: Outcomes, learn: Callable[[FloatArray], Ridge | Telling]) -> Lengths:
        tokens_MC = outcomes.output_tokens
        # in units of a candidate's mean, so that long-winded candidates do not choose the penalty alone
        mean_C = np.maximum(mean_of_seen(tokens_MC), 1e-9)
        tokens = learn(tokens_MC / mean_C)
        told_MC = np.maximum(tokens.left_out_MC, _LEAST_TOKENS) * mean_C
        with np.errstate(invalid="ignore"):
            tail_C = np.nanquantile(tokens_MC / told_MC, 0.95, axis=0)
        return cls(
            (tokens.weight_DC * mean_C).astype(np.float32),
            (tokens.mean_C * mean_C).astype(np.float32),
            (_LEAST_TOKENS * mean_C).astype(np.float32),
            np.maximum(tail_C, 1.0).astype(np.float32),
        )

    def beside(self, accuracy_QC: FloatArray, features_QD: FloatArray) -> Estimate:
        """What is believed of the accuracy, with the tokens of the same queries."""
        tokens_QC = np.maximum(features_QD @ self.tokens_DC + self.tokens_C, self.least_tokens_C)
        parts = (np.clip(accuracy_QC, 0, 1), tokens_QC, tokens_QC * self.tail_C)
        return Estimate(*(part.astype(np.float32) for part in parts))

    def arrays(self) -> dict[str, FloatArray]:
        """By their names, to be saved among an estimator's own."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of(cls, arrays: Mapping[str, FloatArray]) -> Lengths:
        """From among an estimator's arrays."""
        return cls(*(arrays[name] for name in cls.__dataclass_fields__))
