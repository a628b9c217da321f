"""Ridge regression on the embedding: how hard a query is for all, and for whom it is easier than that.

Only the second matters to a choice, and there is less to be learned of it: hence two penalties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.ridge import together, unit
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class Linear:
    """Ridge regressions: one for what a query is like to all candidates, one for each candidate's own part.

    Each penalty is the one with the least squared error of leaving each query out, which a ridge
    regression knows without being fitted again; an endless one leaves the candidate's mean.

    Source:
        Hoerl and Kennard (1970); leaving one out in closed form: Allen's PRESS (1974).
    """

    penalty: float | None = None  # None: chosen
    kind: ClassVar[str] = "linear"
    fits_at_once: ClassVar[bool] = True  # so that cross-validation costs little

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty > 0:
            raise ConfigError(f"linear has penalty={self.penalty}; a number above 0 is needed.")

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedLinear:
        """Solve all of them."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        accuracy = together(unit_MD, outcomes.accuracy, self.penalty)
        return FittedLinear(
            outcomes.candidates,
            accuracy.weight_DC.astype(np.float32),
            accuracy.mean_C.astype(np.float32),
            Lengths.fit(outcomes, unit_MD, self.penalty),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedLinear:
    """A matrix per quantity."""

    candidates: tuple[Candidate, ...]
    accuracy_DC: FloatArray
    accuracy_C: FloatArray
    lengths: Lengths
    kind: ClassVar[str] = "linear"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """Two products."""
        unit_QD = unit(embeddings_QD)
        return self.lengths.beside(unit_QD @ self.accuracy_DC + self.accuracy_C, unit_QD)

    def state(self) -> State:
        """The matrices."""
        own = {"accuracy_DC": self.accuracy_DC, "accuracy_C": self.accuracy_C}
        return State(own | self.lengths.arrays(), {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedLinear:
        """The estimator that `state` was taken from."""
        arrays = state.arrays
        return cls(candidates, arrays["accuracy_DC"], arrays["accuracy_C"], Lengths.of(arrays))
