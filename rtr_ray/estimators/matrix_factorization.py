"""A vector per candidate and one per query: how well they fit is how probably the answer is right."""

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
class MatrixFactorization:
    """logit(accuracy)[q, c] = (x_q W) . v_c + b_c, with x_q the embedding less the mean one.

    Source:
        EmbedLLM (Zhuang et al., ICLR '25): a learned vector per model, a projection of the query's
        embedding, a linear classifier of their product by elements (whose weights are part of v_c
        here). There 232 dimensions and 36,000 questions; here few, and a penalty that is chosen.
    """

    rank: int = 8
    penalty: float | None = None  # None: chosen
    seed: int = 0
    kind: ClassVar[str] = "matrix_factorization"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.penalty is not None and not self.penalty > 0):
            raise ConfigError(
                f"matrix_factorization has rank={self.rank} and penalty={self.penalty}; "
                "rank >= 1 and a penalty above 0 are needed."
            )

    def fit(
        self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles
    ) -> FittedMatrixFactorization:
        """Both factors at once."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        centre_D = unit_MD.mean(axis=0)
        dice = np.random.default_rng(self.seed)
        rank = min(self.rank, len(outcomes.candidates))  # more would say nothing more
        start = {
            "query_DK": dice.normal(0, 0.1, (unit_MD.shape[1], rank)),
            "candidate_CK": dice.normal(0, 1, (len(outcomes.candidates), rank)),
            "bias_C": logit(mean_of_seen(outcomes.accuracy)),
        }
        found = fitted(
            _Product(), start, ("bias_C",), unit_MD - centre_D, outcomes.accuracy, outcomes, self.penalty,
            self.seed,
        )  # fmt: skip
        bias_C = found["bias_C"] - centre_D @ found["query_DK"] @ found["candidate_CK"].T
        return FittedMatrixFactorization(
            outcomes.candidates,
            found["query_DK"],
            found["candidate_CK"],
            bias_C,
            Lengths.fit(outcomes, unit_MD),
        )


@dataclass(frozen=True, slots=True)
class _Product:
    def scores(self, weights: Weights, features_MD: FloatArray) -> FloatArray:
        found: FloatArray = (features_MD @ weights["query_DK"]) @ weights["candidate_CK"].T + weights[
            "bias_C"
        ]
        return found

    def gradient(self, weights: Weights, features_MD: FloatArray, slope_MN: FloatArray) -> Weights:
        return {
            "query_DK": features_MD.T @ (slope_MN @ weights["candidate_CK"]),
            "candidate_CK": slope_MN.T @ (features_MD @ weights["query_DK"]),
            "bias_C": slope_MN.sum(axis=0),
        }


@dataclass(frozen=True, slots=True, eq=False)
class FittedMatrixFactorization:
    """The factors."""

    candidates: tuple[Candidate, ...]
    query_DK: FloatArray
    candidate_CK: FloatArray
    bias_C: FloatArray
    lengths: Lengths
    kind: ClassVar[str] = "matrix_factorization"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """How well each candidate fits."""
        unit_QD = unit(embeddings_QD)
        score_QC = (unit_QD @ self.query_DK) @ self.candidate_CK.T + self.bias_C
        return self.lengths.beside(sigmoid(score_QC), unit_QD)

    def state(self) -> State:
        """The factors."""
        own = {name: getattr(self, name) for name in ("query_DK", "candidate_CK", "bias_C")}
        return State(own | self.lengths.arrays(), {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedMatrixFactorization:
        """The estimator that `state` was taken from."""
        own: dict[str, Any] = {name: state.arrays[name] for name in ("query_DK", "candidate_CK", "bias_C")}
        return cls(candidates, lengths=Lengths.of(state.arrays), **own)
