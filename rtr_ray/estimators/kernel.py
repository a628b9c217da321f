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

    k(q, p) = exp(-embedding * |e_q - e_p|^2 - wording * sum_f |w_qf - w_pf|^power)

    e is the embedding, w the features of `wording.FEATURES` in units of their spread; both distances are
    in units of their median over pairs of training queries. With a power of 1 what is learned may have
    steps (it is what a forest of random trees learns, on average), with 2 it is smooth. How much there
    is to be told, in which direction, is found by the evidence (see `evidence.told_by`). Without its
    text a query counts as one of average wording.

    Source:
        Rasmussen and Williams (2006); of many queries `landmarks` stand for all, by the method of
        Nystroem (Williams and Seeger, 2001); steps as of trees: Balog et al. (2016), the Mondrian kernel.
    """

    embedding: float = 0.5
    wording: float = 0.5
    power: int = 2  # of the differences of wording
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
        if self.power not in (1, 2):
            raise ConfigError(f"kernel has power={self.power}; 1 and 2 are known.")

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
            [self.embedding / _median(places[0], 2), self.wording / _median(places[1], self.power)]
        )
        near_LL = _near(*places, *places, rates, self.power)
        near_ML = _near(unit_MD, wording_MF, *places, rates, self.power)
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
            self.power,
        )


def _near(
    one_QD: FloatArray,
    one_QF: FloatArray,
    other_LD: FloatArray,
    other_LF: FloatArray,
    rates: FloatArray,
    power: int,
) -> FloatArray:
    """(Q, L) the kernel."""
    near_QL: FloatArray = np.exp(
        -rates[0] * _apart(one_QD, other_LD, 2) - rates[1] * _apart(one_QF, other_LF, power)
    )
    return near_QL


def _apart(one_QD: FloatArray, other_LD: FloatArray, power: int) -> FloatArray:
    """(Q, L) sums over the columns of differences to a power."""
    one_QD, other_LD = one_QD.astype(np.float64), other_LD.astype(np.float64)
    if power == 2:  # by products: several times as quick
        square_QL: FloatArray = (one_QD**2).sum(axis=1)[:, None] + (other_LD**2).sum(axis=1)
        return np.maximum(square_QL - 2 * one_QD @ other_LD.T, 0.0)
    from scipy.spatial.distance import cdist

    apart_QL: FloatArray = cdist(one_QD, other_LD, "cityblock")
    return apart_QL


def _median(place_LD: FloatArray, power: int) -> float:
    apart_LL = _apart(place_LD, place_LD, power)
    apart = apart_LL[np.triu_indices(len(apart_LL), 1)]
    return float(np.median(apart)) if len(apart) and np.median(apart) > 0 else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class FittedKernel:
    """Landmarks, and what being near to each of them says."""

    candidates: tuple[Candidate, ...]
    wording: Wording
    embeddings_LD: FloatArray
    wording_LF: FloatArray
    rates: FloatArray  # (2,) of both distances
    weight_LC: FloatArray
    accuracy_C: FloatArray  # far from everything
    lengths: Lengths
    power: int = 2
    kind: ClassVar[str] = "kernel"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """As of queries of average wording."""
        return self._told(embeddings_QD, np.zeros((len(embeddings_QD), len(FEATURES))))

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """The posterior means."""
        return self._told(embeddings_QD, self.wording.of(texts))

    def _told(self, embeddings_QD: FloatArray, wording_QF: FloatArray) -> Estimate:
        unit_QD = unit(embeddings_QD)
        near_QL = _near(unit_QD, wording_QF, self.embeddings_LD, self.wording_LF, self.rates, self.power)
        return self.lengths.beside(near_QL @ self.weight_LC + self.accuracy_C, near_QL)

    def state(self) -> State:
        """All arrays, and the power."""
        own = {name: getattr(self, name) for name in _ARRAYS}
        wording = {"wording_mean_F": self.wording.mean_F, "wording_scale_F": self.wording.scale_F}
        return State(own | wording | self.lengths.arrays(), {"power": self.power})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedKernel:
        """The estimator that `state` was taken from."""
        arrays = state.arrays
        own: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        wording = Wording(arrays["wording_mean_F"], arrays["wording_scale_F"])
        power = int(state.values.get("power", 2))  # a router of before it could be chosen
        return cls(candidates, wording, lengths=Lengths.of(arrays), power=power, **own)


_ARRAYS = ("embeddings_LD", "wording_LF", "rates", "weight_LC", "accuracy_C")
