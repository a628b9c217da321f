"""Candidates that came after training, beside an estimator that stays as it is, and some that left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rtr_ray import registry
from rtr_ray.errors import DataError, RouterError
from rtr_ray.estimators.base import FittedEstimator, Profiles, State, columns_of, predicted
from rtr_ray.estimators.few import Around, around
from rtr_ray.estimators.relatives import ACCURACY, LENGTH, blend
from rtr_ray.estimators.ridge import unit
from rtr_ray.types import Candidate, Estimate, FloatArray, IntArray, Outcomes

_LEAST_TOKENS = 1e-3
_FURTHEST = 3.0  # times the longest known candidate, or below the shortest
_TAIL_ROWS = 20  # so many rows' weight has the tail of those that it resembles
_ACCURACY_NOISE, _LOG_TOKENS_NOISE = 0.2, 0.2  # variances, to begin with
_ACCURACY_APART = (0.01, 0.03, 0.1, 0.3)  # of those, the variance of how far a mean is from the blend; tried
_LOG_TOKENS_APART = (0.1, 0.3, 1.0, 5.0)


@dataclass(frozen=True, slots=True, eq=False)
class FittedExtended:
    """An estimator whose columns are kept as they are, or left out, and heads of new ones behind them.

    What is said of a new candidate is a blend of what the estimator says of those that it resembles
    (`relatives.blend`), and, where it has outcomes, a correction that is linear in three groups of
    features: a constant, what is said of the known candidates, the query's embedding. No part of the
    estimator changes, so that all else is predicted as before, bit for bit.
    """

    candidates: tuple[Candidate, ...]
    base: FittedEstimator
    kept_K: IntArray  # columns of the base
    blend_NC: FloatArray  # accuracy: N new candidates, C of the base
    blend_tokens_NC: FloatArray
    accuracy_NF: FloatArray  # F features: 1, C, D; zeros without outcomes
    tokens_NF: FloatArray  # of the logarithm
    centre_NC: FloatArray  # what was said of the base's candidates, on average, where there are outcomes
    ratio_N: FloatArray  # tokens: mean over what the logarithm says
    tail_N: FloatArray  # on the 95% quantile
    kind: ClassVar[str] = "rtr_ray.estimators.extended:FittedExtended"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The base's columns, then the new ones."""
        return self._beside(self.base.predict(embeddings_QD), embeddings_QD)

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """The same, for a base that reads texts."""
        return self._beside(predicted(self.base, embeddings_QD, texts), embeddings_QD)

    def _beside(self, told: Estimate, embeddings_QD: FloatArray) -> Estimate:
        new = self._new(told, embeddings_QD)
        return Estimate(
            *(
                np.concatenate([getattr(told, name)[:, self.kept_K], getattr(new, name)], axis=1)
                for name in ("accuracy", "output_tokens", "output_tokens_p95")
            )
        )

    def _new(self, told: Estimate, embeddings_QD: FloatArray) -> Estimate:
        accuracy_QN, log_QN, tail_QN = _blended(told, self.blend_NC, self.blend_tokens_NC)
        unit_QD = unit(embeddings_QD)
        for n in range(len(self.blend_NC)):
            features_QF = _features(told, self.centre_NC[n], unit_QD)
            accuracy_QN[:, n] += features_QF @ self.accuracy_NF[n]
            log_QN[:, n] += features_QF @ self.tokens_NF[n]
        longest = _FURTHEST * float(told.output_tokens.max(initial=1.0))
        tokens_QN = np.clip(np.exp(np.minimum(log_QN, 60.0)) * self.ratio_N, _LEAST_TOKENS, longest)
        parts = (np.clip(accuracy_QN, 0, 1), tokens_QN, tokens_QN * np.maximum(tail_QN * self.tail_N, 1.0))
        return Estimate(*(part.astype(np.float32) for part in parts))

    def state(self) -> State:
        """That of the base, and the heads."""
        below = self.base.state()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"base_{name}": array for name, array in below.arrays.items()}
        return State(
            arrays,
            {
                "base": self.base.kind,
                "base_candidates": [str(c) for c in self.base.candidates],
                "base_values": dict(below.values),
            },
        )

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedExtended:
        """The estimator that `state` was taken from."""
        from rtr_ray.estimators import FITTED

        values = state.values
        known = tuple(Candidate.parse(text) for text in values["base_candidates"])
        arrays = {
            name.removeprefix("base_"): array
            for name, array in state.arrays.items()
            if name.startswith("base_")
        }
        kind: Any = registry.load(values["base"], FITTED, "estimator")
        base = kind.from_state(known, State(arrays, values["base_values"]))
        return cls(candidates, base, **{name: state.arrays[name] for name in _ARRAYS})


_ARRAYS = (
    "kept_K",
    "blend_NC",
    "blend_tokens_NC",
    "accuracy_NF",
    "tokens_NF",
    "centre_NC",
    "ratio_N",
    "tail_N",
)


def by_profile(
    base: FittedEstimator, new: Sequence[Candidate], profiles: Profiles, dim: int
) -> FittedExtended:
    """Take in candidates by their profile texts alone.

    Args:
        base: Any fitted estimator.
        new: Candidates that it does not know.
        profiles: Of the models and strategies of all.
        dim: Of the embeddings.

    Raises:
        RouterError: If it knows one of them already, or a profile is missing.
    """
    known = [candidate for candidate in new if candidate in base.candidates]
    if known:
        raise RouterError(
            f"The router knows {', '.join(map(str, known))} already. Remove it first, or train again."
        )
    width, count = len(base.candidates), len(new)
    return FittedExtended(
        (*base.candidates, *new),
        base,
        np.arange(width),
        blend(base.candidates, new, profiles, ACCURACY),
        blend(base.candidates, new, profiles, LENGTH),
        np.zeros((count, 1 + width + dim)),
        np.zeros((count, 1 + width + dim)),
        np.zeros((count, width)),
        np.ones(count),
        np.ones(count),
    )


def by_outcomes(extended: FittedExtended, outcomes: Outcomes, embeddings_MD: FloatArray) -> FittedExtended:
    """Learn the heads of new candidates from few outcomes; nothing else.

    Args:
        extended: From `by_profile`.
        outcomes: Of M queries; only columns of new candidates are looked at.
        embeddings_MD: Of those queries.

    Raises:
        DataError: If it has none of any new candidate.
    """
    new = extended.candidates[len(extended.kept_K) :]
    told = predicted(extended.base, embeddings_MD, outcomes.queries)
    accuracy_MN, log_MN, tail_MN = _blended(told, extended.blend_NC, extended.blend_tokens_NC)
    unit_MD = unit(embeddings_MD)
    heads: dict[str, FloatArray] = {name: getattr(extended, name).copy() for name in _ARRAYS[3:]}
    seen = False
    for n, candidate in enumerate(new):
        if candidate not in outcomes.candidates:
            continue
        column = outcomes.candidates.index(candidate)
        right_M, tokens_M = outcomes.accuracy[:, column], outcomes.output_tokens[:, column]
        known_M = ~(np.isnan(right_M) & np.isnan(tokens_M))
        if not known_M.any():
            continue
        seen = True
        centre_C = told.accuracy[known_M].mean(axis=0, dtype=np.float64)
        features_MF = _features(told, centre_C, unit_MD)
        groups = (slice(0, 1), slice(1, 1 + len(centre_C)), slice(1 + len(centre_C), None))
        heads["centre_NC"][n] = centre_C
        lengths = Around(_LOG_TOKENS_NOISE, groups, _LOG_TOKENS_APART)
        accuracy = Around(_ACCURACY_NOISE, groups, _ACCURACY_APART)
        heads["accuracy_NF"][n] = around(accuracy, features_MF, right_M - accuracy_MN[:, n])
        with np.errstate(divide="ignore"):
            apart_M = np.log(np.maximum(tokens_M, _LEAST_TOKENS)) - log_MN[:, n]
        heads["tokens_NF"][n] = around(lengths, features_MF, apart_M)
        told_M = np.exp(log_MN[:, n] + features_MF @ heads["tokens_NF"][n])
        heads["ratio_N"][n], heads["tail_N"][n] = _lengths(tokens_M, told_M, tail_MN[:, n])
    changed: dict[str, Any] = heads
    if not seen:
        raise DataError(
            f"The outcomes have none of {', '.join(map(str, new))}. Name the file with theirs, or leave "
            "--outcomes out: then the profile alone speaks."
        )
    return replace(extended, **changed)


def without(base: FittedEstimator, gone: Sequence[Candidate]) -> FittedExtended:
    """Leave candidates out; nothing is learned again.

    Raises:
        RouterError: If one is not known, or none would be left.
    """
    columns_of(base.candidates, gone)
    kept = [column for column, candidate in enumerate(base.candidates) if candidate not in gone]
    if not kept:
        raise RouterError("All candidates would be removed. Keep one at least.")
    width = len(base.candidates)
    none = np.zeros((0, 1)), np.zeros((0, 1))
    return FittedExtended(
        tuple(base.candidates[column] for column in kept),
        base,
        np.array(kept, dtype=np.int64),
        np.zeros((0, width)),
        np.zeros((0, width)),
        *none,
        np.zeros((0, width)),
        np.ones(0),
        np.ones(0),
    )


def _blended(
    told: Estimate, blend_NC: FloatArray, tokens_NC: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(Q, N) accuracy, logarithm of tokens, and 95% quantile over mean of those that are resembled."""
    tokens_QC = np.maximum(told.output_tokens.astype(np.float64), _LEAST_TOKENS)
    log_QC = np.log(tokens_QC)
    log_QN = log_QC @ tokens_NC.T
    reach = np.log(_FURTHEST)
    log_QN = np.clip(
        log_QN, log_QC.min(axis=1, keepdims=True) - reach, log_QC.max(axis=1, keepdims=True) + reach
    )
    share_NC = np.maximum(tokens_NC, 0)
    share_NC = share_NC / np.maximum(share_NC.sum(axis=1, keepdims=True), 1e-9)
    tail_QN = (told.output_tokens_p95 / tokens_QC) @ share_NC.T
    accuracy_QN = np.clip(told.accuracy.astype(np.float64) @ blend_NC.T, 0.0, 1.0)
    return accuracy_QN, log_QN, np.maximum(tail_QN, 1.0)


def _features(told: Estimate, centre_C: FloatArray, unit_QD: FloatArray) -> FloatArray:
    ones_Q1 = np.ones((len(unit_QD), 1))
    return np.concatenate([ones_Q1, told.accuracy - centre_C, unit_QD], axis=1)


def _lengths(tokens_M: FloatArray, told_M: FloatArray, tail_M: FloatArray) -> tuple[float, float]:
    """Factors that set right the sum of the tokens, and their 95% quantile; near 1 where there are few."""
    seen_M = ~np.isnan(tokens_M)
    count = int(seen_M.sum())
    if not count:
        return 1.0, 1.0
    actual_N, believed_N = tokens_M[seen_M], told_M[seen_M]
    spread = float(np.exp(np.log(np.maximum(actual_N, 1) / np.maximum(believed_N, 1)).var() / 2))
    prior = _TAIL_ROWS * float(believed_N.mean())
    ratio = (float(actual_N.sum()) + prior * min(spread, 2.0)) / (float(believed_N.sum()) + prior)
    above = float(np.quantile(actual_N / np.maximum(believed_N * ratio * tail_M[seen_M], 1e-9), 0.95))
    return ratio, (count * above + _TAIL_ROWS) / (count + _TAIL_ROWS)
