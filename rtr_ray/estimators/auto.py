"""Several estimators averaged, and believed as far as cross-validation bears them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rtr_ray import registry
from rtr_ray.errors import ConfigError, DataError
from rtr_ray.estimators.base import (
    Estimator,
    FittedEstimator,
    Profiles,
    State,
    check_fit,
    level_means,
    predicted,
    related,
)
from rtr_ray.types import Candidate, Estimate, FloatArray, IntArray, Outcomes

MEMBERS: tuple[dict[str, Any], ...] = (
    {"kind": "linear"},
    {"kind": "kernel", "embedding": 1.0, "wording": 0.0},
    {"kind": "kernel", "embedding": 0.0, "wording": 0.5},
    {"kind": "kernel", "embedding": 0.0, "wording": 0.5, "power": 1},
    {"kind": "kernel", "embedding": 0.5, "wording": 0.5},
    {"kind": "vocabulary"},
)
_MOST = 1.5  # each member draws to the means by itself, so that the mean of them may say too little
_SURE = 2.0  # standard errors: what the members say of a choice is used if it helped by so many
_TOKEN_ROWS = 20  # so many rows' weight has the belief that tokens are predicted right


@dataclass(frozen=True, slots=True)
class Auto:
    """The mean of its members, as far from each candidate's own mean as is borne out.

    What the members say of a query falls into two parts: how hard it is for all candidates, and
    for whom it is easier than that. Each part is multiplied by the factor in [0, 1.5] that fits best
    what happened to queries that the members had not seen; the second, which alone moves a choice,
    is dropped where it did not help by two standard errors. Then it is `prior`: no routing.

    Source:
        Stacking: Wolpert (1992); here with one weight for all members, since few labels do not
        tell how much each deserves.
    """

    members: Sequence[dict[str, Any]] = MEMBERS
    folds: int = 5
    seed: int = 0
    kind: ClassVar[str] = "auto"
    fits_at_once: ClassVar[bool] = True  # as its members do

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("auto has no members; name some, or leave the field out.")
        if self.folds < 2:
            raise ConfigError(f"auto has folds={self.folds}; 2 is the least.")
        object.__setattr__(self, "members", tuple(self.members))
        self._recipes()

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedAuto:
        """Fit all members to everything, and once more to all but each fold."""
        check_fit(outcomes, embeddings_MD)
        recipes = self._recipes()
        accuracy_MC, tokens_MC = self._unseen(recipes, outcomes, embeddings_MD, profiles)
        mean_C = level_means(outcomes.accuracy)
        seen_MC = ~np.isnan(outcomes.accuracy) & ~np.isnan(accuracy_MC)
        # both over the same cells: against all candidates, the one cell of a row would be nobody's own
        happened, told = (
            _parts(np.where(seen_MC, one - mean_C, np.nan)) for one in (outcomes.accuracy, accuracy_MC)
        )
        common, _ = _factor(happened[0], told[0], seen_MC.any(axis=1))
        own, sure = _factor(happened[1], told[1], seen_MC)
        return FittedAuto(
            outcomes.candidates,
            tuple(one.fit(outcomes, embeddings_MD, profiles) for one in recipes),
            mean_C,
            np.array([common, own if sure >= _SURE else 0.0]),
            _ratios(outcomes.output_tokens, tokens_MC),
        )

    def _recipes(self) -> list[Estimator]:
        from rtr_ray.estimators import KNOWN

        return [registry.build(spec, KNOWN, "estimator") for spec in self.members]

    def _unseen(
        self,
        recipes: Sequence[Estimator],
        outcomes: Outcomes,
        embeddings_MD: FloatArray,
        profiles: Profiles,
    ) -> tuple[FloatArray, FloatArray]:
        """(M, C) accuracy and tokens by members that had not seen the query; NaN where no fold allowed it."""
        fold_M = self._folds(related(outcomes))
        accuracy_MC, tokens_MC = (np.full(outcomes.accuracy.shape, np.nan) for _ in range(2))
        for fold in range(self.folds):
            held_M = fold_M == fold
            if not held_M.any() or held_M.all():
                continue
            known, at_MD = outcomes.rows(~held_M), embeddings_MD[~held_M]
            try:
                fitted = [one.fit(known, at_MD, profiles) for one in recipes]
            except DataError:  # a candidate with so few outcomes that a fold has all of them
                continue
            texts = outcomes.rows(held_M).queries
            made = [predicted(one, embeddings_MD[held_M], texts) for one in fitted]
            accuracy_MC[held_M] = np.mean([one.accuracy for one in made], axis=0)
            tokens_MC[held_M] = np.mean([one.output_tokens for one in made], axis=0)
        return accuracy_MC, tokens_MC

    def _folds(self, part_M: IntArray) -> IntArray:
        parts = int(part_M.max()) + 1
        fold_P = np.empty(parts, dtype=np.intp)
        fold_P[np.random.default_rng(self.seed).permutation(parts)] = np.arange(parts) % self.folds
        fold_M: IntArray = fold_P[part_M]
        return fold_M


def _parts(apart_MC: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(M,) what is common to a query's candidates, and (M, C) what is each one's own."""
    seen_MC = ~np.isnan(apart_MC)
    count_M = seen_MC.sum(axis=1)
    common_M = np.where(count_M > 0, np.nansum(apart_MC, axis=1) / np.maximum(count_M, 1), np.nan)
    return common_M, apart_MC - common_M[:, None]


def _factor(happened: FloatArray, told: FloatArray, seen: Any) -> tuple[float, float]:
    """The factor in [0, 1.5] on what was told that fits best, and by how many standard errors it is above 0.

    Cells of one query are no independent evidence: their products are added up first.
    """
    product = np.where(seen, happened * told, 0.0)
    square = np.where(seen, told**2, 0.0)
    if product.ndim == 2:
        product, square = product.sum(axis=1), square.sum(axis=1)
    total = float(np.nansum(square))
    if not total > 0:
        return 0.0, 0.0
    slope = float(np.nansum(product)) / total
    error = float(np.sqrt(np.nansum((product - slope * square) ** 2))) / total
    return min(max(slope, 0.0), _MOST), slope / error if error > 0 else np.inf


def _ratios(actual_MC: FloatArray, told_MC: FloatArray) -> FloatArray:
    """(C,) how much longer answers are than was told, drawn to 1 where there are few."""
    seen_MC = ~np.isnan(actual_MC) & ~np.isnan(told_MC)
    rows_C = seen_MC.sum(axis=0)
    actual_C, told_C = (np.where(seen_MC, one, 0.0).sum(axis=0) for one in (actual_MC, told_MC))
    prior_C = _TOKEN_ROWS * told_C / np.maximum(rows_C, 1)
    below_C = told_C + prior_C
    ratio_C: FloatArray = np.where(below_C > 0, (actual_C + prior_C) / np.maximum(below_C, 1e-9), 1.0)
    return ratio_C


@dataclass(frozen=True, slots=True, eq=False)
class FittedAuto:
    """Fitted members, and how far they are believed."""

    candidates: tuple[Candidate, ...]
    members: tuple[FittedEstimator, ...]
    mean_C: FloatArray  # accuracy
    factors: FloatArray  # (2,) on what is common to a query's candidates, and on what is each one's own
    token_ratio_C: FloatArray
    kind: ClassVar[str] = "auto"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The members' mean, drawn towards each candidate's own; of queries whose texts are not known."""
        return self._drawn([one.predict(embeddings_QD) for one in self.members])

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """The members' mean, drawn towards each candidate's own."""
        return self._drawn([predicted(one, embeddings_QD, texts) for one in self.members])

    def _drawn(self, made: Sequence[Estimate]) -> Estimate:
        accuracy_QC, tokens_QC, p95_QC = (
            np.mean([getattr(one, name) for one in made], axis=0, dtype=np.float64)
            for name in ("accuracy", "output_tokens", "output_tokens_p95")
        )
        common_Q, own_QC = _parts(accuracy_QC - self.mean_C)
        accuracy_QC = self.mean_C + self.factors[0] * common_Q[:, None] + self.factors[1] * own_QC
        tokens_QC = tokens_QC * self.token_ratio_C
        p95_QC = np.maximum(p95_QC * self.token_ratio_C, tokens_QC)
        return Estimate(
            np.clip(accuracy_QC, 0, 1).astype(np.float32),
            tokens_QC.astype(np.float32),
            p95_QC.astype(np.float32),
        )

    def state(self) -> State:
        """Those of the members, numbered, and its own."""
        arrays = {name: getattr(self, name) for name in ("mean_C", "factors", "token_ratio_C")}
        values = []
        for number, one in enumerate(self.members):
            state = one.state()
            arrays |= {f"{number}_{name}": array for name, array in state.arrays.items()}
            values.append({"kind": one.kind, "values": dict(state.values), "arrays": list(state.arrays)})
        return State(arrays, {"members": values})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedAuto:
        """The estimator that `state` was taken from."""
        from rtr_ray.estimators import FITTED

        members = []
        for number, one in enumerate(state.values["members"]):
            arrays = {name: state.arrays[f"{number}_{name}"] for name in one["arrays"]}
            kind: Any = registry.load(one["kind"], FITTED, "estimator")
            members.append(kind.from_state(candidates, State(arrays, one["values"])))
        own = {name: state.arrays[name] for name in ("mean_C", "factors", "token_ratio_C")}
        return cls(candidates, tuple(members), **own)
