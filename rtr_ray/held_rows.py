"""How far held-out predictions were off, for the rows that a policy would choose: ratios and their spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rtr_ray.held_out import HeldOut
from rtr_ray.policies.base import FittedPolicy
from rtr_ray.pool import Pool
from rtr_ray.types import BoolArray, FloatArray, IntArray

QUANTITIES = ("cost_usd", "accuracy", "output_tokens")
LEAST_GROUPS = 8  # of related held-out rows; fewer say nothing of spread
_PULL = 10  # rows' worth of weight that a candidate's ratio is drawn to the common one with


@dataclass(frozen=True, slots=True, eq=False)
class ChosenRows:
    """The held-out rows under the plan's policy."""

    choice: IntArray  # (M,) -1: none
    group: IntArray  # (M,) 0, 1, 2...
    cluster: IntArray  # (M,)
    predicted: Mapping[str, FloatArray]  # (M, C)
    seen: Mapping[str, FloatArray]  # (M, C)
    luck: FloatArray  # (M, C) variance of one answer's correctness about the cell's mean
    trained: BoolArray  # (C,)

    @classmethod
    def of(cls, held_out: HeldOut, policy: FittedPolicy, pool: Pool) -> ChosenRows:
        table = held_out.table(pool)
        seen = held_out.seen(pool)
        accuracy_MC = seen["accuracy"]
        # a mean over runs hides the luck of one; of a cell that was run once nothing is hidden, since its
        # accuracy is 0 or 1
        return cls(
            policy.choose(table).choice,
            np.unique(held_out.group, return_inverse=True)[1].reshape(-1),
            held_out.cluster,
            {name: np.asarray(getattr(table, name), dtype=np.float64) for name in QUANTITIES},
            seen,
            accuracy_MC * (1 - accuracy_MC),
            np.array([candidate in held_out.candidates for candidate in pool.candidates]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class HeldRows:
    """One quantity of the held-out rows whose chosen cell was run, and sums over all cells that were."""

    chosen: bool  # False: too few of the chosen cells were run, and these are all that were
    column: IntArray  # (H,)
    group: IntArray  # (H,)
    cluster: IntArray  # (H,)
    amount: FloatArray  # (H,) predicted
    seen: FloatArray  # (H,)
    luck: FloatArray  # (H,)
    groups: int  # G
    all_amount: FloatArray  # (G, C) predicted, summed over the group's cells that were run
    all_seen: FloatArray  # (G, C)
    trained: BoolArray  # (C,)

    @classmethod
    def of(cls, held: ChosenRows, name: str) -> HeldRows:
        """The cells that the policy chooses and that were run; where these are too few, all that were run."""
        predicted_MC, seen_MC = held.predicted[name], held.seen[name]
        ran_MC = ~np.isnan(seen_MC)
        rows_M = np.arange(len(held.choice))
        keep_M = (held.choice >= 0) & ran_MC[rows_M, held.choice]
        row_H, column_H = rows_M[keep_M], held.choice[keep_M]
        chosen = len(np.unique(held.group[row_H])) >= LEAST_GROUPS
        if not chosen:
            row_H, column_H = np.nonzero(ran_MC)
        groups = int(held.group.max(initial=-1)) + 1
        luck_MC = held.luck if name == "accuracy" else np.zeros_like(seen_MC)
        return cls(
            chosen,
            column_H,
            held.group[row_H],
            held.cluster[row_H],
            predicted_MC[row_H, column_H],
            seen_MC[row_H, column_H],
            luck_MC[row_H, column_H],
            groups,
            _by_group(np.where(ran_MC, predicted_MC, 0), held.group, groups),
            _by_group(np.where(ran_MC, seen_MC, 0), held.group, groups),
            held.trained,
        )

    @property
    def enough(self) -> bool:
        return len(np.unique(self.group)) >= LEAST_GROUPS

    def by_candidate(self, values_H: FloatArray) -> FloatArray:
        """(G, C) sums of a value of the chosen cells."""
        shape = self.all_amount.shape
        cell_H = self.group * shape[1] + self.column
        sums = np.bincount(cell_H, values_H, shape[0] * shape[1]).astype(np.float64)
        return sums.reshape(shape)


def _by_group(values_MC: FloatArray, group_M: IntArray, groups: int) -> FloatArray:
    order_M = np.argsort(group_M, kind="stable")
    first_G = np.searchsorted(group_M[order_M], np.arange(groups))
    sums_GC: FloatArray = np.add.reduceat(values_MC[order_M], first_G, axis=0)
    return sums_GC


def ratios(held: HeldRows, mean_C: FloatArray, weight_BG: FloatArray) -> FloatArray:
    """(B, C) what happened over what was predicted, by candidate, for each weighting of the groups.

    Args:
        mean_C: What the plan predicts for one row of each candidate.
    """
    amount_BC = weight_BG @ held.by_candidate(held.amount)
    seen_BC = weight_BG @ held.by_candidate(held.seen)
    all_amount_BC, all_seen_BC = weight_BG @ held.all_amount, weight_BG @ held.all_seen
    pool_B1 = _over(all_seen_BC.sum(axis=1, keepdims=True), all_amount_BC.sum(axis=1, keepdims=True), 1.0)
    pull = _PULL * float(held.amount.mean())
    common_B1 = (seen_BC.sum(axis=1, keepdims=True) + pull * pool_B1) / np.maximum(
        amount_BC.sum(axis=1, keepdims=True) + pull, 1e-300
    )
    pull_C = _PULL * mean_C
    # a candidate's cells that were run though not chosen say how it differs from the others; how
    # choosing differs from not choosing is what all candidates say together
    own_BC = _over(all_seen_BC + pull_C * pool_B1, all_amount_BC + pull_C, pool_B1)
    drawn_BC = own_BC * _over(common_B1, pool_B1, 1.0)
    ratio_BC: FloatArray = _over(seen_BC + pull_C * drawn_BC, amount_BC + pull_C, common_B1)
    return ratio_BC


def _over(one: FloatArray, other: FloatArray, otherwise: FloatArray | float) -> FloatArray:
    quotient: FloatArray = np.where(other > 0, one / np.where(other > 0, other, 1), otherwise)
    return quotient


def noise_of(held: HeldRows, ratio_C: FloatArray, mean_C: FloatArray) -> FloatArray:
    """(C,) the variance that one row of the corpus adds, about its corrected prediction.

    Related rows err alike, so that their errors add up: the variance is larger by as much as that
    of the held-out groups' sums is.
    """
    error_H = held.seen - ratio_C[held.column] * held.amount
    square_H = error_H**2 + held.luck
    count_C = np.bincount(held.column, minlength=len(mean_C))
    square_C = np.bincount(held.column, square_H, len(mean_C))
    amount_C = np.bincount(held.column, held.amount**2, len(mean_C))
    relative = float(square_H.sum() / max((held.amount**2).sum(), 1e-300))
    typical_C = np.where(count_C > 0, amount_C / np.maximum(count_C, 1), mean_C**2)
    relative_C = (square_C + _PULL * relative * typical_C) / np.maximum(amount_C + _PULL * typical_C, 1e-300)
    # a row's squared prediction is larger than the square of their mean, in the corpus as here
    own_C = np.bincount(held.column, held.amount, len(mean_C)) / np.maximum(count_C, 1)
    scale_C = np.where(own_C > 0, mean_C / np.where(own_C > 0, own_C, 1), 1.0) ** 2 * typical_C
    alike = float((np.bincount(held.group, error_H) ** 2).sum() / max((error_H**2).sum(), 1e-300))
    noise_C: FloatArray = relative_C * scale_C * max(1.0, alike)
    return noise_C


def spread_of_candidates(held: HeldRows) -> float:
    """How much the candidates' ratios differ, relative to their mean: for one that is not known."""
    amount_C, seen_C = held.all_amount.sum(axis=0), held.all_seen.sum(axis=0)
    ratio_C = (seen_C / np.where(amount_C > 0, amount_C, 1))[amount_C > 0]
    return float(ratio_C.std(ddof=1) / max(ratio_C.mean(), 1e-12)) if len(ratio_C) > 1 else 0.0


def spread_of_clusters(held: HeldRows, ratio_C: FloatArray) -> float:
    """The relative standard deviation of the error that rows of one cluster share.

    By moments: what the clusters' sums of errors vary more than rows that err alone would.
    """
    fair_H = ratio_C[held.column] * held.amount
    error_H = held.seen - fair_H
    error_K, square_K = np.bincount(held.cluster, error_H), np.bincount(held.cluster, error_H**2)
    fair_K = np.bincount(held.cluster, fair_H)
    more = float((error_K**2 - square_K).sum()) / max(float((fair_K**2).sum()), 1e-300)
    return float(max(more, 0.0) ** 0.5)
