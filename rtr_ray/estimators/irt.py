"""Item response theory: an ability per candidate, a difficulty and a discrimination per query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.logits import Weights, fitted, logit, sigmoid
from rtr_ray.estimators.ridge import unit
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class IRT:
    """logit(accuracy)[q, c] = a_q . theta_c - b_q, both of the query read from its embedding x_q.

    a_q = softplus(x_q A + a_0), at least 0 in every dimension: more ability never hurts. b_q = x_q . B.

    Source:
        IRT-Router (Song et al., ACL '25), its multidimensional form; there abilities come from the
        models' profile texts, here each candidate has its own, since it has outcomes.
    """

    dimensions: int = 4
    penalty: float | None = None  # None: chosen
    seed: int = 0
    kind: ClassVar[str] = "irt"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dimensions < 1 or (self.penalty is not None and not self.penalty > 0):
            raise ConfigError(
                f"irt has dimensions={self.dimensions} and penalty={self.penalty}; "
                "dimensions >= 1 and a penalty above 0 are needed."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedIRT:
        """Abilities, difficulties and discriminations at once."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        centre_D = unit_MD.mean(axis=0)
        width, k = unit_MD.shape[1], self.dimensions
        dice = np.random.default_rng(self.seed)
        level_C1 = logit(mean_of_seen(outcomes.accuracy))[:, None]
        start = {
            "discrimination_DK": dice.normal(0, 0.1, (width, k)),
            "base_K": np.full(k, _inverse_softplus(1 / k)),  # the dimensions together discriminate by 1
            "ability_CK": level_C1 + dice.normal(0, 0.1, (len(level_C1), k)),
            "difficulty_D": np.zeros(width),
        }
        found = fitted(
            _Response(), start, ("base_K", "ability_CK"), unit_MD - centre_D, outcomes.accuracy, outcomes,
            self.penalty, self.seed,
        )  # fmt: skip
        weights: dict[str, Any] = {"centre_D": centre_D, **found}
        return FittedIRT(outcomes.candidates, lengths=Lengths.fit(outcomes, unit_MD), **weights)


def _softplus(value: FloatArray) -> FloatArray:
    found: FloatArray = np.maximum(value, 0) + np.log1p(np.exp(-np.abs(value)))
    return found


def _inverse_softplus(value: float) -> float:
    return float(np.log(np.expm1(value)))


@dataclass(frozen=True, slots=True)
class _Response:
    def scores(self, weights: Weights, features_MD: FloatArray) -> FloatArray:
        discrimination_MK = _softplus(features_MD @ weights["discrimination_DK"] + weights["base_K"])
        found: FloatArray = (
            discrimination_MK @ weights["ability_CK"].T - (features_MD @ weights["difficulty_D"])[:, None]
        )
        return found

    def gradient(self, weights: Weights, features_MD: FloatArray, slope_MN: FloatArray) -> Weights:
        raw_MK = features_MD @ weights["discrimination_DK"] + weights["base_K"]
        back_MK = (slope_MN @ weights["ability_CK"]) * sigmoid(raw_MK)
        return {
            "discrimination_DK": features_MD.T @ back_MK,
            "base_K": back_MK.sum(axis=0),
            "ability_CK": slope_MN.T @ _softplus(raw_MK),
            "difficulty_D": -features_MD.T @ slope_MN.sum(axis=1),
        }


@dataclass(frozen=True, slots=True, eq=False)
class FittedIRT:
    """Abilities, and how difficulty and discrimination are read from an embedding."""

    candidates: tuple[Candidate, ...]
    centre_D: FloatArray
    discrimination_DK: FloatArray
    base_K: FloatArray
    ability_CK: FloatArray
    difficulty_D: FloatArray
    lengths: Lengths
    kind: ClassVar[str] = "irt"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """How probably each candidate's ability is enough."""
        unit_QD = unit(embeddings_QD)
        weights = {name: getattr(self, name) for name in _WEIGHTS[1:]}
        return self.lengths.beside(sigmoid(_Response().scores(weights, unit_QD - self.centre_D)), unit_QD)

    def state(self) -> State:
        """All weights."""
        return State({name: getattr(self, name) for name in _WEIGHTS} | self.lengths.arrays(), {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedIRT:
        """The estimator that `state` was taken from."""
        weights: dict[str, Any] = {name: state.arrays[name] for name in _WEIGHTS}
        return cls(candidates, lengths=Lengths.of(state.arrays), **weights)


_WEIGHTS = ("centre_D", "discrimination_DK", "base_K", "ability_CK", "difficulty_D")
