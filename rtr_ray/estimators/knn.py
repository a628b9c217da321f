"""Nearest neighbours: what happened on the most similar training queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.types import Candidate, Estimate, FloatArray, IntArray, Outcomes

_BLOCK = 1024  # queries at a time: bounds the similarity matrix
_ROUNDING = 1e-5  # more than a product of unit vectors in single precision is ever off
_EQUAL = 1e-12  # less than two products of different rows differ, and more than doubles are off


@dataclass(frozen=True, slots=True)
class KNN:
    """The mean over the `k` nearest training queries by cosine similarity.

    Source:
        Route-To-Reason (WWW '26), Appendix A.1, has k = 10 as a baseline. `shrinkage` adds so
        many imaginary neighbours with the candidate's mean; 0 is the published form.
    """

    k: int = 40
    shrinkage: float = 4.0
    kind: ClassVar[str] = "knn"
    fits_at_once: ClassVar[bool] = True  # so that cross-validation costs nothing

    def __post_init__(self) -> None:
        if self.k < 1 or self.shrinkage < 0:
            raise ConfigError(
                f"knn has k={self.k} and shrinkage={self.shrinkage}; k >= 1 and shrinkage >= 0 are needed."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedKNN:
        """Keep the training queries as they are."""
        check_fit(outcomes, embeddings_MD)
        return FittedKNN(
            outcomes.candidates,
            _unit(embeddings_MD),
            outcomes.accuracy.astype(np.float32),
            outcomes.output_tokens.astype(np.float32),
            mean_of_seen(outcomes.accuracy),
            mean_of_seen(outcomes.output_tokens),
            np.nanquantile(outcomes.output_tokens, 0.95, axis=0),
            self.k,
            self.shrinkage,
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedKNN:
    """The training queries, and how many of them to ask."""

    candidates: tuple[Candidate, ...]
    embeddings_MD: FloatArray  # unit length
    accuracy_MC: FloatArray
    output_tokens_MC: FloatArray
    mean_accuracy_C: FloatArray
    mean_tokens_C: FloatArray
    tokens_p95_C: FloatArray
    k: int
    shrinkage: float
    kind: ClassVar[str] = "knn"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The neighbours' means, drawn towards each candidate's own mean."""
        blocks = [
            self._block(_unit(embeddings_QD[start : start + _BLOCK]))
            for start in range(0, len(embeddings_QD), _BLOCK)
        ]
        empty = np.zeros((0, len(self.candidates)), dtype=np.float32)
        parts = [np.concatenate([empty, *part]) for part in zip(*blocks, strict=True)] or [empty] * 3
        return Estimate(parts[0], parts[1], parts[2])

    def _block(self, unit_QD: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        nearest_QK = _nearest(unit_QD, self.embeddings_MD, min(self.k, len(self.embeddings_MD)))
        accuracy_QC = self._mean(self.accuracy_MC[nearest_QK], self.mean_accuracy_C)
        tokens_QKC = self.output_tokens_MC[nearest_QK]
        tokens_QC = self._mean(tokens_QKC, self.mean_tokens_C)
        # the neighbours are too few for a quantile of their own: the candidate's tail, scaled
        tail_C = self.tokens_p95_C / np.maximum(self.mean_tokens_C, 1e-9)
        p95_QC = np.maximum(tokens_QC * tail_C, tokens_QC)
        return tuple(part.astype(np.float32) for part in (accuracy_QC, tokens_QC, p95_QC))  # type: ignore[return-value]

    def _mean(self, values_QKC: FloatArray, mean_C: FloatArray) -> FloatArray:
        seen_QKC = ~np.isnan(values_QKC)
        total_QC = np.where(seen_QKC, values_QKC, 0).sum(axis=1, dtype=np.float64) + self.shrinkage * mean_C
        weight_QC = seen_QKC.sum(axis=1) + self.shrinkage
        drawn_QC: FloatArray = np.where(weight_QC > 0, total_QC / np.maximum(weight_QC, 1e-9), mean_C)
        return drawn_QC

    def state(self) -> State:
        """The training queries and the two settings."""
        names = [name for name in self.__dataclass_fields__ if name.endswith(("_MD", "_MC", "_C"))]
        return State(
            {name: getattr(self, name) for name in names}, {"k": self.k, "shrinkage": self.shrinkage}
        )

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedKNN:
        """The estimator that `state` was taken from."""
        fields: dict[str, Any] = {**state.arrays, **state.values}
        return cls(candidates, **fields)


def _nearest(unit_QD: FloatArray, known_MD: FloatArray, k: int) -> IntArray:
    """(Q, k) the most similar rows, by number; of equal ones those that come first.

    A product of matrices rounds differently with other rows beside a row, and so would tell apart, in
    one batch or another, what is equally near. Those that may be among the nearest are compared once
    more, in doubles, row by row: a query has the same neighbours in whatever batch.
    """
    similarity_QM = unit_QD @ known_MD.T
    first = similarity_QM.shape[1] - k
    edge_Q = np.partition(similarity_QM, first, axis=1)[:, first] - _ROUNDING
    nearest_QK = np.empty((len(unit_QD), k), dtype=np.intp)
    for row, unit_D in enumerate(unit_QD.astype(np.float64)):
        near_N = np.flatnonzero(similarity_QM[row] >= edge_Q[row])
        rank_N = np.rint(known_MD[near_N].astype(np.float64) @ unit_D / _EQUAL)
        kept_K = near_N[np.lexsort((near_N, -rank_N))[:k]]
        nearest_QK[row] = np.sort(kept_K)  # sums of the same numbers in the same order
    return nearest_QK


def _unit(rows_QD: FloatArray) -> FloatArray:
    norm_Q = np.linalg.norm(rows_QD, axis=1, keepdims=True)
    unit_QD: FloatArray = (rows_QD / np.where(norm_Q == 0, 1, norm_Q)).astype(np.float32)
    return unit_QD
