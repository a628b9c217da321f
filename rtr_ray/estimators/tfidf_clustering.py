"""Clusters of queries by their words: the one estimator that reads the text and not the embedding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.estimators.kmeans import cluster_means, kmeans
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

_WORD = re.compile(r"\w\w+")


@dataclass(frozen=True, slots=True)
class TfidfClustering:
    """k-means on TF-IDF vectors, then a mean per cluster and candidate.

    A word weighs its count in the query times log((1 + M) / (1 + queries that have it)) + 1, and
    vectors are brought to length 1.

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
        has_word = Counter(word for text in outcomes.queries for word in set(_words(text)))
        common = sorted(has_word, key=lambda word: (-has_word[word], word))[: self.words]
        rarity_V = np.array([np.log((1 + len(outcomes.queries)) / (1 + has_word[w])) + 1 for w in common])
        vectors_MV = _vectors(outcomes.queries, {w: v for v, w in enumerate(common)}, rarity_V)
        if common:
            centre_KV = kmeans(vectors_MV, self.clusters, self.seed)
        else:
            centre_KV = np.zeros((1, 0), dtype=np.float32)
        cluster_M = (vectors_MV @ centre_KV.T).argmax(axis=1)
        tokens_MC = outcomes.output_tokens
        accuracy_C, tokens_C = mean_of_seen(outcomes.accuracy), np.maximum(mean_of_seen(tokens_MC), 1e-9)
        count = len(centre_KV)
        return FittedTfidfClustering(
            outcomes.candidates,
            tuple(common),
            rarity_V,
            centre_KV,
            cluster_means(outcomes.accuracy, cluster_M, count, accuracy_C, self.shrinkage),
            cluster_means(tokens_MC, cluster_M, count, tokens_C, self.shrinkage),
            accuracy_C,
            tokens_C,
            np.maximum(np.nanquantile(tokens_MC, 0.95, axis=0) / tokens_C, 1.0),
        )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _vectors(texts: Sequence[str], place: dict[str, int], rarity_V: FloatArray) -> Any:
    """(Q, V), sparse, rows of length 1; a text without a known word is zero."""
    from scipy.sparse import csr_matrix

    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        counted = Counter(place[word] for word in _words(text) if word in place)
        weight_N = np.array([n * rarity_V[v] for v, n in counted.items()])
        rows += [row] * len(counted)
        columns += list(counted)
        values += list(weight_N / np.linalg.norm(weight_N)) if counted else []
    shape = (len(texts), len(rarity_V))
    return csr_matrix((np.array(values, dtype=np.float32), (rows, columns)), shape=shape)


@dataclass(frozen=True, slots=True, eq=False)
class FittedTfidfClustering:
    """The words, the centres, and what happened around each."""

    candidates: tuple[Candidate, ...]
    words: tuple[str, ...]  # V
    rarity_V: FloatArray
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
        vectors_QV = _vectors(texts, {w: v for v, w in enumerate(self.words)}, self.rarity_V)
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
        names = [name for name in self.__dataclass_fields__ if name.endswith(("_V", "_KV", "_KC", "_C"))]
        return State({name: getattr(self, name) for name in names}, {"words": list(self.words)})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedTfidfClustering:
        """The estimator that `state` was taken from."""
        return cls(candidates, tuple(state.values["words"]), **state.arrays)
