"""A Gaussian process over what a query means and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit
from rtr_ray.estimators.evidence import told_by
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.ridge import unit
from rtr_ray.estimators.wording import FEATURES, Wording
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

_LEAST_SHARE = 1e-6  # of the largest eigenvalue: smaller ones are rounding


@dataclass(frozen=True, slots=True)
class Kernel:
    """Accuracy and tokens as a Gaussian process over the queries.

    k(q, p) = exp(-embedding * |e_q - e_p|^2 - wording * |w_q - w_p|^2)

    e is the embedding, w the features of `wording.FEATURES` in units of their spread; both squares are
    in units of their median over pairs of training queries. How much there is to be told, in which
    direction, is found by the evidence (see `evidence.told_by`). Without its text a query counts as one
    of average wording.

    Source:
        Rasmussen and Williams (2006); of many queries `landmarks` stand for all, by the method of
        Nystroem (Williams and Seeger, 2001).
    """

    embedding: float = 0.5
    wording: float = 0.5
    landmarks: int = 400
    seed: int = 0
    kind: ClassVar[str] = "kernel"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.embedding, self.wording) < 0 or self.embedding + self.wording == 0 or self.landmarks < 1:
            raise ConfigError(
                f"kernel has embedding={self.embedding}, wording={self.wording}, landmarks={self.landmarks}; "
                "at least one landmark is needed, and weights of which one is above 0 and none below."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedKernel:
        """Place the landmarks, find the strength of the signal, solve."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        wording = Wording.fit(outcomes.queries)
        wording_MF = wording.of(outcomes.queries)
        count = min(self.landmarks, len(unit_MD))
        rows_L = np.sort(np.random.default_rng(self.seed).permutation(len(unit_MD))[:count])
        places = unit_MD[rows_L].astype(np.float32), wording_MF[rows_L].astype(np.float32)
        rates = np.array(
            [
                rate / _median(place)
                for rate, place in zip((self.embedding, self.wording), places, strict=True)
            ]
        )
        near_LL, near_ML = _near(*places, *places, rates), _near(unit_MD, wording_MF, *places, rates)
        size_L, vector_LL = np.linalg.eigh(near_LL)
        kept_L = size_L > _LEAST_SHARE * size_L[-1]
        root_LR = vector_LL[:, kept_L] / np.sqrt(size_L[kept_L])
        features_MR = near_ML @ root_LR
        told, lengths = told_by(features_MR, outcomes.accuracy), Lengths.by_evidence(outcomes, features_MR)
        return FittedKernel(
            outcomes.candidates,
            wording,
            *places,
            rates,
            root_LR @ told.weight_DC,
            told.mean_C,
            replace(lengths, tokens_DC=(root_LR @ lengths.tokens_DC).astype(np.float32)),
        )


def _near(
    one_QD: FloatArray, one_QF: FloatArray, other_LD: FloatArray, other_LF: FloatArray, rates: FloatArray
) -> FloatArray:
    """(Q, L) the kernel."""
    near_QL: FloatArray = np.exp(
        -rates[0] * _squares(one_QD, other_LD) - rates[1] * _squares(one_QF, other_LF)
    )
    return near_QL


def _squares(one_QD: FloatArray, other_LD: FloatArray) -> FloatArray:
    one_QD, other_LD = one_QD.astype(np.float64), other_LD.astype(np.float64)
    square_QL: FloatArray = (one_QD**2).sum(axis=1)[:, None] + (other_LD**2).sum(axis=1)
    return np.maximum(square_QL - 2 * one_QD @ other_LD.T, 0.0)


def _median(place_LD: FloatArray) -> float:
    square_LL = _squares(place_LD, place_LD)
    apart = square_LL[np.triu_indices(len(square_LL), 1)]
    return float(np.median(apart)) if len(apart) and np.median(apart) > 0 else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class FittedKernel:
    """Landmarks, and what being near to each of them says."""

    candidates: tuple[Candidate, ...]
    wording: Wording
    embeddings_LD: FloatArray
    wording_LF: FloatArray
    rates: FloatArray  # (2,) of the squares of both distances
    weight_LC: FloatArray
    accuracy_C: FloatArray  # far from everything
    lengths: Lengths
    kind: ClassVar[str] = "kernel"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """As of queries of average wording."""
        return self._told(embeddings_QD, np.zeros((len(embeddings_QD), len(FEATURES))))

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """The posterior means."""
        return self._told(embeddings_QD, self.wording.of(texts))

    def _told(self, embeddings_QD: FloatArray, wording_QF: FloatArray) -> Estimate:
        unit_QD = unit(embeddings_QD)
        near_QL = _near(unit_QD, wording_QF, self.embeddings_LD, self.wording_LF, self.rates)
        return self.lengths.beside(near_QL @ self.weight_LC + self.accuracy_C, near_QL)

    def state(self) -> State:
        """All arrays."""
        own = {name: getattr(self, name) for name in _ARRAYS}
        wording = {"wording_mean_F": self.wording.mean_F, "wording_scale_F": self.wording.scale_F}
        return State(own | wording | self.lengths.arrays(), {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedKernel:
        """The estimator that `state` was taken from."""
        arrays = state.arrays
        own: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        wording = Wording(arrays["wording_mean_F"], arrays["wording_scale_F"])
        return cls(candidates, wording, lengths=Lengths.of(arrays), **own)


_ARRAYS = ("embeddings_LD", "wording_LF", "rates", "weight_LC", "accuracy_C")
