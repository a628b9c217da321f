"""What an estimator is, and what several of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from rtr_ray.errors import DataError, RouterError
from rtr_ray.types import BoolArray, Candidate, Estimate, FloatArray, IntArray, Outcomes

_TURNS = 30
_LEVEL_CELLS = 1.0  # noise of a cell over the variance of rows' levels


@dataclass(frozen=True, slots=True, eq=False)
class Profiles:
    """The embedded profile texts of models and strategies: the frozen part of Eq. 2 and 3."""

    models: Mapping[str, FloatArray]  # id -> (D,)
    strategies: Mapping[str, FloatArray]  # id -> (D,)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a fitted estimator is saved as: arrays, and JSON beside them. No pickle."""

    arrays: Mapping[str, npt.NDArray[Any]]
    values: Mapping[str, Any]


@runtime_checkable
class FittedEstimator(Protocol):
    """What is learned. Predicts from embeddings alone; sees no reference answer."""

    kind: ClassVar[str]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The columns of what it predicts."""
        ...

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The routing table's accuracy and tokens, (Q, C) each."""
        ...

    def state(self) -> State:
        """What `from_state` makes the same estimator from."""
        ...

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> Self:
        """The estimator that `state` was taken from."""
        ...


@runtime_checkable
class ReadsTexts(Protocol):
    """A fitted estimator that looks at a query's text beside its embedding.

    Its `predict` says what it can without the text.
    """

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """As `predict`, with the Q texts that were encoded."""
        ...


def predicted(fitted: FittedEstimator, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
    """What an estimator says of queries, by their texts too where it reads them."""
    if isinstance(fitted, ReadsTexts):
        return fitted.predict_texts(embeddings_QD, texts)
    return fitted.predict(embeddings_QD)


@runtime_checkable
class Extendable(Protocol):
    """A fitted estimator that can take in a candidate it has never seen, by profile text alone."""

    def extended(self, candidates: Sequence[Candidate], profiles: Profiles) -> FittedEstimator:
        """The same estimator with further columns behind its own."""
        ...


@runtime_checkable
class Estimator(Protocol):
    """A recipe: a frozen dataclass of hyperparameters."""

    kind: ClassVar[str]

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedEstimator:
        """Learn from recorded outcomes.

        Args:
            outcomes: M queries and C candidates; cells may be missing (NaN), no column may be empty.
            embeddings_MD: One row per query, in the same order.
            profiles: The embedded profiles of every model and strategy among the candidates.

        Raises:
            DataError: If a candidate has no outcome at all, or the shapes do not fit.
        """
        ...


def check_fit(outcomes: Outcomes, embeddings_MD: FloatArray) -> None:
    """Refuse outcomes that no estimator can learn from.

    Raises:
        DataError: Naming the candidate without outcomes, or the shapes that do not fit.
    """
    if not outcomes.query_ids or not outcomes.candidates:
        raise DataError("There are no outcomes to learn from.")
    if len(embeddings_MD) != len(outcomes.query_ids):
        raise DataError(f"{len(outcomes.query_ids)} queries came with {len(embeddings_MD)} embeddings.")
    if not np.isfinite(embeddings_MD).all():
        raise DataError("An embedding holds NaN or infinity.")
    for name in ("accuracy", "output_tokens"):
        empty_C = np.isnan(getattr(outcomes, name)).all(axis=0)
        if empty_C.any():
            lacking = ", ".join(str(outcomes.candidates[c]) for c in np.flatnonzero(empty_C))
            raise DataError(
                f"No outcome has a value of {name} for {lacking}. Collect some, or leave the candidate out."
            )


def mean_of_seen(values_MC: FloatArray) -> FloatArray:
    """(C,) the mean of each column's recorded cells."""
    mean_C: FloatArray = np.nanmean(values_MC, axis=0)
    return mean_C


def level_means(values_MC: FloatArray) -> FloatArray:
    """(C,) the mean that each column would have, had all of its cells been run; of whole rows, their mean.

    Where candidates were run on different queries the one with the easier ones would pass for the better
    one: rows have levels of their own, drawn to 0 as rows with few cells deserve it.

    Source:
        Henderson (1975): best linear unbiased prediction with rows as random effects, by turns.
    """
    mean_C = mean_of_seen(values_MC)
    seen_MC = ~np.isnan(values_MC)
    if seen_MC.all():
        return mean_C
    count_M = seen_MC.sum(axis=1)
    for _ in range(_TURNS):
        level_M = np.where(seen_MC, values_MC - mean_C, 0.0).sum(axis=1) / (count_M + _LEVEL_CELLS)
        mean_C = mean_of_seen(values_MC - level_M[:, None])
    return mean_C


def validation_split(outcomes: Outcomes, share: float, seed: int) -> BoolArray:
    """(M,) true for the part of train that is held out for early stopping and calibration.

    Queries of one group, and queries with the same text, stay on the same side.
    """
    part_M = related(outcomes)
    parts = int(part_M.max()) + 1
    order = np.random.default_rng(seed).permutation(parts)
    held_out = np.zeros(parts, dtype=bool)
    held_out[order[: round(share * parts)]] = True
    held_out_M: BoolArray = held_out[part_M]
    return held_out_M


def related(outcomes: Outcomes) -> IntArray:
    """(M,) the same number for queries that share a group or a text, also by way of others."""
    groups = outcomes.group_ids or ("",) * len(outcomes.queries)
    first: dict[tuple[str, str], int] = {}
    leader = list(range(len(outcomes.queries)))

    def leader_of(row: int) -> int:
        while leader[row] != row:
            row = leader[row] = leader[leader[row]]
        return row

    for row, (group, text) in enumerate(zip(groups, outcomes.queries, strict=True)):
        for key in (("text", text), *([("group", group)] if group else [])):
            one, other = sorted((leader_of(row), leader_of(first.setdefault(key, row))))
            leader[other] = one
    part_M: IntArray = np.unique([leader_of(row) for row in range(len(leader))], return_inverse=True)[1]
    return part_M


def columns_of(known: Sequence[Candidate], wanted: Sequence[Candidate]) -> IntArray:
    """Where each wanted candidate stands among the known ones.

    Raises:
        RouterError: Naming the first one that is not known.
    """
    place = {candidate: column for column, candidate in enumerate(known)}
    for candidate in wanted:
        if candidate not in place:
            raise RouterError(
                f"{candidate} is not among the trained candidates: {', '.join(map(str, known))}."
            )
    return np.array([place[candidate] for candidate in wanted], dtype=np.intp)
