"""One classifier per candidate: is it capable of this query?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.logits import LinearForm, fitted, logit, sigmoid
from rtr_ray.estimators.ridge import unit
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class NLabel:
    """Logistic regressions of "most of the candidate's runs were right" on the embedding.

    Source:
        N-label routing of BEST-Route (ICML '25), Appendix A.2, after Srivatsa et al. (2024): the
        cheapest capable candidate. There a finetuned encoder, here a frozen one under a linear layer;
        which of the capable ones is taken is the policy's affair.
    """

    penalty: float | None = None  # None: chosen
    seed: int = 0
    kind: ClassVar[str] = "nlabel"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty > 0:
            raise ConfigError(f"nlabel has penalty={self.penalty}; a number above 0 is needed.")

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedNLabel:
        """Label the cells and fit all classifiers with one penalty."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        centre_D = unit_MD.mean(axis=0)
        with np.errstate(invalid="ignore"):
            # half of the runs: neither most nor few
            label_MC = np.where(
                np.isnan(outcomes.accuracy), np.nan, np.sign(outcomes.accuracy - 0.5) / 2 + 0.5
            )
        start = {
            "weight_DN": np.zeros((unit_MD.shape[1], label_MC.shape[1])),
            "bias_N": logit(np.nanmean(label_MC, axis=0)),
        }
        found = fitted(
            LinearForm(), start, ("bias_N",), unit_MD - centre_D, label_MC, outcomes, self.penalty, self.seed
        )
        bias_C = found["bias_N"] - centre_D @ found["weight_DN"]
        lengths = Lengths.fit(outcomes, unit_MD)
        return FittedNLabel(outcomes.candidates, found["weight_DN"], bias_C, lengths)


@dataclass(frozen=True, slots=True, eq=False)
class FittedNLabel:
    """A logit per candidate, linear in the embedding."""

    candidates: tuple[Candidate, ...]
    weight_DC: FloatArray
    bias_C: FloatArray
    lengths: Lengths
    kind: ClassVar[str] = "nlabel"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """How probably each candidate is capable."""
        unit_QD = unit(embeddings_QD)
        return self.lengths.beside(sigmoid(unit_QD @ self.weight_DC + self.bias_C), unit_QD)

    def state(self) -> State:
        """The matrices."""
        own = {"weight_DC": self.weight_DC, "bias_C": self.bias_C}
        return State(own | self.lengths.arrays(), {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedNLabel:
        """The estimator that `state` was taken from."""
        arrays = state.arrays
        return cls(candidates, arrays["weight_DC"], arrays["bias_C"], Lengths.of(arrays))
