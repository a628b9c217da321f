"""Clusters of queries by their words: the one estimator that reads the text and not the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.estimators.kmeans import cluster_means, kmeans
from rtr_ray.estimators.words import Words
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class TfidfClustering:
    """k-means on TF-IDF vectors, then a mean per cluster and candidate.

    Source:
        Srivatsa et al. (2024), as BEST-Route (ICML '25), Appendix A.2, has it: K = 50 and the most
        effective candidate of each cluster. Here the cluster's means fill the table, so that there is
        a trade-off; `shrinkage` draws them to the candidate's mean, and 0 is the published form.
    """

    clusters: int = 50
    shrinkage: float = 10.0
    words: int = 5000  # the most frequent ones are looked at
    seed: int = 0
    kind: ClassVar[str] = "tfidf_clustering"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.clusters, self.words) < 1 or not self.shrinkage >= 0:
            raise ConfigError(
                f"tfidf_clustering has clusters={self.clusters}, words={self.words} and "
                f"shrinkage={self.shrinkage}; clusters and words >= 1 and shrinkage >= 0 are needed."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedTfidfClustering:
        """Count the words, cluster the queries, take the means."""
        check_fit(outcomes, embeddings_MD)
        words = Words.fit(outcomes.queries, self.words)
        vectors_MV = words.vectors(outcomes.queries)
        centre_KV = kmeans(vectors_MV, self.clusters, self.seed)
        cluster_M = (vectors_MV @ centre_KV.T).argmax(axis=1)
        tokens_MC = outcomes.output_tokens
        accuracy_C, tokens_C = mean_of_seen(outcomes.accuracy), np.maximum(mean_of_seen(tokens_MC), 1e-9)
        count = len(centre_KV)
        return FittedTfidfClustering(
            outcomes.candidates,
            words,
            centre_KV,
            cluster_means(outcomes.accuracy, cluster_M, count, accuracy_C, self.shrinkage),
            cluster_means(tokens_MC, cluster_M, count, tokens_C, self.shrinkage),
            accuracy_C,
            tokens_C,
            np.maximum(np.nanquantile(tokens_MC, 0.95, axis=0) / tokens_C, 1.0),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedTfidfClustering:
    """The words, the centres, and what happened around each."""

    candidates: tuple[Candidate, ...]
    words: Words
    centre_KV: FloatArray
    accuracy_KC: FloatArray
    tokens_KC: FloatArray
    accuracy_C: FloatArray
    tokens_C: FloatArray
    tail_C: FloatArray  # 95% quantile over mean
    kind: ClassVar[str] = "tfidf_clustering"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """Each candidate's mean: without its text a query lies in no cluster."""
        shape = (len(embeddings_QD), len(self.candidates))
        return self._told(np.broadcast_to(self.accuracy_C, shape), np.broadcast_to(self.tokens_C, shape))

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """What happened around the nearest centre; the means for a text without a known word."""
        vectors_QV = self.words.vectors(texts)
        cluster_Q = (vectors_QV @ self.centre_KV.T).argmax(axis=1)
        known_Q1 = (np.diff(vectors_QV.indptr) > 0)[:, None]
        return self._told(
            np.where(known_Q1, self.accuracy_KC[cluster_Q], self.accuracy_C),
            np.where(known_Q1, self.tokens_KC[cluster_Q], self.tokens_C),
        )

    def _told(self, accuracy_QC: FloatArray, tokens_QC: FloatArray) -> Estimate:
        parts = (accuracy_QC, tokens_QC, tokens_QC * self.tail_C)
        return Estimate(*(part.astype(np.float32) for part in parts))

    def state(self) -> State:
        """The centres and the means; the words beside them."""
        own = {name: getattr(self, name) for name in _ARRAYS}
        return State({"rarity_V": self.words.rarity_V, **own}, {"words": list(self.words.known)})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedTfidfClustering:
        """The estimator that `state` was taken from."""
        words = Words(tuple(state.values["words"]), state.arrays["rarity_V"])
        return cls(candidates, words, *(state.arrays[name] for name in _ARRAYS))


_ARRAYS = ("centre_KV", "accuracy_KC", "tokens_KC", "accuracy_C", "tokens_C", "tail_C")
