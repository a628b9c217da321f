"""Bradley-Terry strengths of the candidates around each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.estimators.base import Profiles, State, check_fit
from rtr_ray.estimators.lengths import Lengths
from rtr_ray.estimators.logits import sigmoid
from rtr_ray.estimators.ridge import unit
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

_BLOCK = 1024  # queries at a time
_ROUNDS = 100
_PRIOR_WINS = 0.5  # imaginary wins each way, so that nobody is infinitely strong


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """A Bradley-Terry model for each query, in which similar training queries weigh more.

    A training query weighs base^(1 + its cosine as a share of the largest one), and a candidate wins
    against another where it is right and the other wrong: then logit(accuracy) is its strength plus
    what is common to all (the conditional likelihood of a Rasch model), and that is set so that the
    weighted mean accuracy around the query comes out right.

    Source:
        RouteLLM (Ong et al., ICLR '25), section 4: similarity-weighted ranking, there with battles
        between chat models and base = 10.
    """

    base: float = 10.0
    kind: ClassVar[str] = "bradley_terry"
    fits_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.base >= 1:
            raise ConfigError(
                f"bradley_terry has base={self.base}; 1 (all queries weigh alike) is the least."
            )

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedBradleyTerry:
        """Keep who was right."""
        check_fit(outcomes, embeddings_MD)
        unit_MD = unit(embeddings_MD)
        accuracy_MC = outcomes.accuracy.astype(np.float32)
        lengths = Lengths.fit(outcomes, unit_MD)
        return FittedBradleyTerry(outcomes.candidates, unit_MD, accuracy_MC, lengths, self.base)


@dataclass(frozen=True, slots=True, eq=False)
class FittedBradleyTerry:
    """The training queries: a Bradley-Terry model is fitted for each query that is asked for."""

    candidates: tuple[Candidate, ...]
    embeddings_MD: FloatArray  # unit length
    accuracy_MC: FloatArray
    lengths: Lengths
    base: float
    kind: ClassVar[str] = "bradley_terry"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """Strengths around each query."""
        unit_QD = unit(embeddings_QD)
        right_MC = np.nan_to_num(self.accuracy_MC.astype(np.float64))
        wrong_MC = np.nan_to_num(1 - self.accuracy_MC.astype(np.float64))
        wins_MCC = right_MC[:, :, None] * wrong_MC[:, None, :]
        seen_MC = ~np.isnan(self.accuracy_MC)
        blocks: list[FloatArray] = [np.zeros((0, len(self.candidates)))]
        for start in range(0, len(unit_QD), _BLOCK):
            cosine_QM = unit_QD[start : start + _BLOCK].astype(np.float64) @ self.embeddings_MD.T
            most_Q = np.maximum(cosine_QM.max(axis=1, keepdims=True), 1e-9)
            # the constant exponent 1 is left out: weights count relative to their mean
            weight_QM = self.base ** np.clip(cosine_QM / most_Q, -1, 1)
            weight_QM /= weight_QM.mean(axis=1, keepdims=True)
            wins_QCC = np.tensordot(weight_QM, wins_MCC, axes=1)
            mean_QC = (weight_QM @ right_MC) / np.maximum(weight_QM @ seen_MC, 1e-9)
            blocks.append(_levelled(strengths(wins_QCC), mean_QC.mean(axis=1)))
        return self.lengths.beside(np.concatenate(blocks), unit_QD)

    def state(self) -> State:
        """The training queries."""
        own = {"embeddings_MD": self.embeddings_MD, "accuracy_MC": self.accuracy_MC}
        return State(own | self.lengths.arrays(), {"base": self.base})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedBradleyTerry:
        """The estimator that `state` was taken from."""
        arrays = state.arrays
        lengths, base = Lengths.of(arrays), float(state.values["base"])
        return cls(candidates, arrays["embeddings_MD"], arrays["accuracy_MC"], lengths, base)


def strengths(wins_QCC: FloatArray) -> FloatArray:
    """(Q, C) Bradley-Terry strengths, as logarithms that add up to 0: P(i beats j) = sigmoid(s_i - s_j).

    Args:
        wins_QCC: How often (or with what weight) the first beat the second.

    Source:
        The minorising steps of Hunter (2004).
    """
    count = wins_QCC.shape[1]
    apart_CC = 1 - np.eye(count)
    wins_QCC = (wins_QCC + _PRIOR_WINS) * apart_CC
    played_QCC = wins_QCC + wins_QCC.transpose(0, 2, 1)
    strength_QC = np.ones(wins_QCC.shape[:2])
    for _ in range(_ROUNDS if count > 1 else 0):
        below_QC = (played_QCC / (strength_QC[:, :, None] + strength_QC[:, None, :])).sum(axis=2)
        before_QC, strength_QC = strength_QC, wins_QCC.sum(axis=2) / below_QC
        strength_QC /= np.exp(np.log(strength_QC).mean(axis=1, keepdims=True))
        if np.abs(strength_QC - before_QC).max(initial=0.0) < 1e-9:
            break
    found: FloatArray = np.log(strength_QC)
    return found


def _levelled(strength_QC: FloatArray, mean_Q: FloatArray) -> FloatArray:
    """(Q, C) accuracies with these differences of logits and this mean, by halving."""
    low_Q, high_Q = np.full(len(mean_Q), -30.0), np.full(len(mean_Q), 30.0)
    for _ in range(50):
        middle_Q = (low_Q + high_Q) / 2
        below_Q = sigmoid(strength_QC + middle_Q[:, None]).mean(axis=1) < mean_Q
        low_Q, high_Q = np.where(below_Q, middle_Q, low_Q), np.where(below_Q, high_Q, middle_Q)
    return sigmoid(strength_QC + ((low_Q + high_Q) / 2)[:, None])
