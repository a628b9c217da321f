"""Clusters of queries: each candidate's mean in the cluster that a query falls into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.estimators.kmeans import cluster_means, cluster_sums, kmeans
from rtr_ray.estimators.ridge import unit
from rtr_ray.types import Candidate, Estimate, FloatArray, IntArray, Outcomes

TRIED = (4, 8, 16, 32, 64)
_LEAST_PER_CLUSTER = 4  # queries, on average: with fewer the means are noise


@dataclass(frozen=True, slots=True)
class Clustering:
    """k-means on the embeddings, then a mean per cluster and candidate, drawn to the candidate's own.

    Without `clusters` their number is the one whose means predict best a query that is taken out of
    its cluster: clusters are made without a look at outcomes, so that this needs no further fit.

    Source:
        UniRoute (Jitkrittum et al., 2025): a candidate as its error per cluster; Avengers-Pro
        (Zhang et al., 2025), the same with a trade-off. `shrinkage` is ours; 0 is the published form.
    """

    clusters: int | None = None  # None: chosen
    shrinkage: float = 10.0  # imaginary queries in each cluster that show the candidate's mean
    seed: int = 0
    kind: ClassVar[str] = "clustering"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.clusters is not None and self.clusters < 1) or not self.shrinkage >= 0:
            raise ConfigError(
                f"clustering has clusters={self.clusters} and shrinkage={self.shrinkage}; "
                "clusters >= 1 and shrinkage >= 0 are needed."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedClustering:
        """Cluster the queries and take the means."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        most = max(1, len(unit_MD) // _LEAST_PER_CLUSTER)
        tried = [self.clusters] if self.clusters else [k for k in TRIED if k <= most] or [1]
        made = [kmeans(unit_MD, k, self.seed) for k in tried]
        best = min(made, key=lambda centre_KD: self._left_out(centre_KD, unit_MD, outcomes.accuracy))
        cluster_M, count = (unit_MD @ best.T).argmax(axis=1), len(best)
        tokens_MC = outcomes.output_tokens
        tokens_C = np.maximum(mean_of_seen(tokens_MC), 1e-9)
        tail_C = np.maximum(np.nanquantile(tokens_MC, 0.95, axis=0) / tokens_C, 1.0)
        accuracy_C = mean_of_seen(outcomes.accuracy)
        return FittedClustering(
            outcomes.candidates,
            best,
            cluster_means(outcomes.accuracy, cluster_M, count, accuracy_C, self.shrinkage),
            cluster_means(tokens_MC, cluster_M, count, tokens_C, self.shrinkage),
            tail_C,
        )

    def _left_out(self, centre_KD: FloatArray, unit_MD: FloatArray, accuracy_MC: FloatArray) -> float:
        """The squared error for queries of which their own cluster does not know."""
        cluster_M: IntArray = (unit_MD @ centre_KD.T).argmax(axis=1)
        total_KC, count_KC = cluster_sums(accuracy_MC, cluster_M, len(centre_KD))
        mean_C = mean_of_seen(accuracy_MC)
        weight_MC = count_KC[cluster_M] - 1 + self.shrinkage
        rest_MC = total_KC[cluster_M] - accuracy_MC + self.shrinkage * mean_C
        told_MC = np.where(weight_MC > 0, rest_MC / np.where(weight_MC > 0, weight_MC, 1), mean_C)
        return float(np.nansum((accuracy_MC - told_MC) ** 2))


@dataclass(frozen=True, slots=True, eq=False)
class FittedClustering:
    """Centres, and what happened around each."""

    candidates: tuple[Candidate, ...]
    centre_KD: FloatArray
    accuracy_KC: FloatArray
    tokens_KC: FloatArray
    tail_C: FloatArray  # 95% quantile over mean
    kind: ClassVar[str] = "clustering"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """What happened around the nearest centre."""
        cluster_Q = (unit(embeddings_QD) @ self.centre_KD.T).argmax(axis=1)
        tokens_QC = self.tokens_KC[cluster_Q]
        parts = (self.accuracy_KC[cluster_Q], tokens_QC, tokens_QC * self.tail_C)
        return Estimate(*(part.astype(np.float32) for part in parts))

    def state(self) -> State:
        """The centres and the means."""
        names = ("centre_KD", "accuracy_KC", "tokens_KC", "tail_C")
        return State({name: getattr(self, name) for name in names}, {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedClustering:
        """The estimator that `state` was taken from."""
        return cls(candidates, **state.arrays)
