"""One classifier over all candidates: which is the best for this query?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.logits import LinearForm, choice_entropy, fitted, softmax
from rtr_ray.estimators.ridge import unit
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

_SHRINKAGE = 10.0  # imaginary queries in each class that show the candidate's mean


@dataclass(frozen=True, slots=True)
class NClass:
    """Multinomial regression of the best candidate: right most often, of equals the cheapest.

    The published form takes the likeliest class and knows no trade-off. Here a class also stands for
    what every candidate did on its queries: accuracy[q, c] = sum over classes k of
    P(k is best | q) * (mean accuracy of c where k was best). So the table is filled, and calibrated.

    Source:
        N-class routing of BEST-Route (ICML '25), Appendix A.2; a frozen encoder under a linear layer.
    """

    penalty: float | None = None  # None: chosen
    seed: int = 0
    kind: ClassVar[str] = "nclass"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty > 0:
            raise ConfigError(f"nclass has penalty={self.penalty}; a number above 0 is needed.")

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedNClass:
        """Name the best of each query, fit the classifier, take the means of each class."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        centre_D = unit_MD.mean(axis=0)
        best_MC = best_of(outcomes)
        share_C = (np.nansum(best_MC, axis=0) + 1) / (np.nansum(best_MC) + best_MC.shape[1])
        start = {"weight_DN": np.zeros((unit_MD.shape[1], best_MC.shape[1])), "bias_N": np.log(share_C)}
        found = fitted(
            LinearForm(), start, ("bias_N",), unit_MD - centre_D, best_MC, outcomes, self.penalty, self.seed,
            choice_entropy,
        )  # fmt: skip
        mean_C = mean_of_seen(outcomes.accuracy)
        is_best_CM, seen_MC = np.nan_to_num(best_MC).T, ~np.isnan(outcomes.accuracy)
        total_KC = is_best_CM @ np.nan_to_num(outcomes.accuracy) + _SHRINKAGE * mean_C
        return FittedNClass(
            outcomes.candidates,
            found["weight_DN"],
            found["bias_N"] - centre_D @ found["weight_DN"],
            total_KC / (is_best_CM @ seen_MC + _SHRINKAGE),
            Lengths.fit(outcomes, unit_MD),
        )


def best_of(outcomes: Outcomes) -> FloatArray:
    """(M, C) 1 for who was right most often, of equals the cheapest; NaN where none was graded."""
    paid_MC = outcomes.output_tokens if np.isnan(outcomes.cost_usd).all() else outcomes.cost_usd
    with np.errstate(invalid="ignore"):
        cost_C = np.array([np.nanmean(c) if not np.isnan(c).all() else np.inf for c in paid_MC.T])
    accuracy_MC = np.where(np.isnan(outcomes.accuracy), -1.0, outcomes.accuracy)
    order_C = np.argsort(cost_C, kind="stable")
    winner_M = order_C[accuracy_MC[:, order_C].argmax(axis=1)]
    best_MC: FloatArray = (winner_M[:, None] == np.arange(len(cost_C))).astype(np.float64)
    best_MC[(accuracy_MC < 0).all(axis=1)] = np.nan
    return best_MC


@dataclass(frozen=True, slots=True, eq=False)
class FittedNClass:
    """How likely each candidate is the best, and what the others do then."""

    candidates: tuple[Candidate, ...]
    weight_DC: FloatArray
    bias_C: FloatArray
    accuracy_KC: FloatArray  # of C where K is the best
    lengths: Lengths
    kind: ClassVar[str] = "nclass"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The mean over the classes."""
        unit_QD = unit(embeddings_QD)
        best_QK = softmax(unit_QD @ self.weight_DC + self.bias_C)
        return self.lengths.beside(best_QK @ self.accuracy_KC, unit_QD)

    def state(self) -> State:
        """The matrices."""
        own = {name: getattr(self, name) for name in ("weight_DC", "bias_C", "accuracy_KC")}
        return State(own | self.lengths.arrays(), {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedNClass:
        """The estimator that `state` was taken from."""
        own: dict[str, Any] = {name: state.arrays[name] for name in ("weight_DC", "bias_C", "accuracy_KC")}
        return cls(candidates, lengths=Lengths.of(state.arrays), **own)
