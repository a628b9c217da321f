"""No routing at all: one constant per candidate. The floor for every other estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class Prior:
    """Each candidate's mean accuracy and mean tokens, whatever the query."""

    kind: ClassVar[str] = "prior"
    fits_at_once: ClassVar[bool] = True  # so that cross-validation costs nothing

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedPrior:
        """Take the means over the recorded cells."""
        check_fit(outcomes, embeddings_MD)
        return FittedPrior(
            outcomes.candidates,
            mean_of_seen(outcomes.accuracy),
            mean_of_seen(outcomes.output_tokens),
            np.nanquantile(outcomes.output_tokens, 0.95, axis=0),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedPrior:
    """One constant per candidate."""

    candidates: tuple[Candidate, ...]
    accuracy_C: FloatArray
    output_tokens_C: FloatArray
    output_tokens_p95_C: FloatArray
    kind: ClassVar[str] = "prior"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The same row for every query."""
        shape = (len(embeddings_QD), len(self.candidates))
        return Estimate(
            *(
                np.broadcast_to(constant_C, shape).astype(np.float32)
                for constant_C in (self.accuracy_C, self.output_tokens_C, self.output_tokens_p95_C)
            )
        )

    def state(self) -> State:
        """The three rows of constants."""
        return State(
            {name: getattr(self, name) for name in ("accuracy_C", "output_tokens_C", "output_tokens_p95_C")},
            {},
        )

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedPrior:
        """The estimator that `state` was taken from."""
        return cls(candidates, **state.arrays)
