"""Regression on the words of a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit
from rtr_ray.estimators.evidence import told_by
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.words import Words
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

_SAMPLE = 800  # queries that the directions are found on


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Accuracy and tokens as straight lines in the TF-IDF vector of a query, along its main directions.

    How strong the signal is, the evidence says (see `evidence.told_by`). A text without a known word,
    and a query without its text, gets what an empty vector gets: the intercept.

    Source:
        Latent semantic analysis (Deerwester et al., 1990) for the directions.
    """

    words: int = 4000  # the most frequent ones are looked at
    directions: int = 300
    seed: int = 0
    kind: ClassVar[str] = "vocabulary"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.words, self.directions) < 1:
            raise ConfigError(
                f"vocabulary has words={self.words} and directions={self.directions}; 1 is the least of both."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedVocabulary:
        """Count the words, find the directions, solve."""
        check_fit(outcomes, embeddings_MD)
        words = Words.fit(outcomes.queries, self.words, damped=True)
        vectors_MV = words.vectors(outcomes.queries)
        direction_VK = _main_directions(vectors_MV, self.directions, self.seed)
        features_MK = vectors_MV @ direction_VK
        told, lengths = told_by(features_MK, outcomes.accuracy), Lengths.by_evidence(outcomes, features_MK)
        return FittedVocabulary(
            outcomes.candidates,
            words,
            (direction_VK @ told.weight_DC).astype(np.float32),
            told.mean_C,
            replace(lengths, tokens_DC=(direction_VK @ lengths.tokens_DC).astype(np.float32)),
        )


def _main_directions(vectors_MV: Any, most: int, seed: int) -> FloatArray:
    """(V, K) orthogonal directions in which the vectors of a sample of the queries are longest."""
    drawn_L = np.random.default_rng(seed).permutation(vectors_MV.shape[0])[:_SAMPLE]
    sample_LV = vectors_MV[np.sort(drawn_L)].astype(np.float64)
    square_L, vector_LL = np.linalg.eigh((sample_LV @ sample_LV.T).toarray())
    kept_L = square_L > max(1e-9 * square_L[-1], 1e-300)
    direction_VK: FloatArray = sample_LV.T @ (vector_LL[:, kept_L] / np.sqrt(square_L[kept_L]))
    return direction_VK[:, -most:] if kept_L.any() else np.zeros((sample_LV.shape[1], 1))


@dataclass(frozen=True, slots=True, eq=False)
class FittedVocabulary:
    """A weight for each word and candidate."""

    candidates: tuple[Candidate, ...]
    words: Words
    weight_VC: FloatArray
    accuracy_C: FloatArray  # of an empty text
    lengths: Lengths
    kind: ClassVar[str] = "vocabulary"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """As of empty texts."""
        return self._told(np.zeros((len(embeddings_QD), len(self.words.known))))

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """Two sparse products."""
        return self._told(self.words.vectors(texts))

    def _told(self, vectors_QV: Any) -> Estimate:
        return self.lengths.beside(vectors_QV @ self.weight_VC + self.accuracy_C, vectors_QV)

    def state(self) -> State:
        """The weights; the words beside them."""
        own = {"rarity_V": self.words.rarity_V, "weight_VC": self.weight_VC, "accuracy_C": self.accuracy_C}
        values = {"words": list(self.words.known), "damped": self.words.damped}
        return State(own | self.lengths.arrays(), values)

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedVocabulary:
        """The estimator that `state` was taken from."""
        arrays, values = state.arrays, state.values
        words = Words(tuple(values["words"]), arrays["rarity_V"], bool(values["damped"]))
        return cls(candidates, words, arrays["weight_VC"], arrays["accuracy_C"], Lengths.of(arrays))
