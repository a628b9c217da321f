"""Strong against weak: how probably the strong candidate wins where a cheaper one loses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit, mean_of_seen
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.logits import LinearForm, fitted, logit, sigmoid
from rtr_ray.estimators.ridge import unit
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class Binary:
    """Win probabilities turned into a table; the strong candidate is the most accurate one in training.

    For each other candidate a logistic regression of "the strong one is right and this one is wrong".
    The strong one is given its mean everywhere; another one is given its own mean, less how much
    likelier than usual it loses. With two candidates the order of queries is the published router's.

    Source:
        RouteLLM (Ong et al., ICLR '25), sections 2 and 4: a strong and a weak model; here a strong one
        and any number of weaker ones, each with a classifier of its own.
    """

    penalty: float | None = None  # None: chosen
    seed: int = 0
    kind: ClassVar[str] = "binary"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty > 0:
            raise ConfigError(f"binary has penalty={self.penalty}; a number above 0 is needed.")

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedBinary:
        """Learn who loses where the strong one is right."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        mean_C = mean_of_seen(outcomes.accuracy)
        strong = int(mean_C.argmax())
        loses_MC = outcomes.accuracy[:, [strong]] * (1 - outcomes.accuracy)
        loses_MC[:, strong] = np.nan
        usual_C = np.array([np.nanmean(c) if not np.isnan(c).all() else 0.0 for c in loses_MC.T])
        centre_D = unit_MD.mean(axis=0)
        start = {"weight_DN": np.zeros((unit_MD.shape[1], len(mean_C))), "bias_N": logit(usual_C)}
        found = fitted(
            LinearForm(), start, ("bias_N",), unit_MD - centre_D, loses_MC, outcomes, self.penalty, self.seed
        )
        bias_C = found["bias_N"] - centre_D @ found["weight_DN"]
        told_MC = sigmoid(unit_MD @ found["weight_DN"] + bias_C)
        # what each candidate has where it loses as often as usual
        level_C = mean_C + told_MC.mean(axis=0)
        level_C[strong] = mean_C[strong]
        is_weak_C = (np.arange(len(mean_C)) != strong).astype(np.float64)
        return FittedBinary(
            outcomes.candidates,
            found["weight_DN"],
            bias_C,
            level_C,
            is_weak_C,
            Lengths.fit(outcomes, unit_MD),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedBinary:
    """How probably each candidate loses against the strong one."""

    candidates: tuple[Candidate, ...]
    weight_DC: FloatArray
    bias_C: FloatArray
    level_C: FloatArray  # accuracy where it never loses
    is_weak_C: FloatArray  # 0 for the strong one, 1 for the others
    lengths: Lengths
    kind: ClassVar[str] = "binary"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The strong one's mean; less where another one loses."""
        unit_QD = unit(embeddings_QD)
        loses_QC = sigmoid(unit_QD @ self.weight_DC + self.bias_C) * self.is_weak_C
        return self.lengths.beside(self.level_C - loses_QC, unit_QD)

    def state(self) -> State:
        """The matrices."""
        return State({name: getattr(self, name) for name in _ARRAYS} | self.lengths.arrays(), {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedBinary:
        """The estimator that `state` was taken from."""
        own: dict[str, Any] = {name: state.arrays[name] for name in _ARRAYS}
        return cls(candidates, lengths=Lengths.of(state.arrays), **own)


_ARRAYS = ("weight_DC", "bias_C", "level_C", "is_weak_C")
