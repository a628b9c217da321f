"""From a routing table and what really happened to the points of a trade-off curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtr_ray.types import BoolArray, FloatArray, IntArray, Outcomes

_WEIGHTS = 10.0 ** np.linspace(-3.5, 3.0, 53)  # of a mean cost, against one right answer
PRICES = np.concatenate([[0.0], _WEIGHTS, [np.inf]])
"""L dual prices, in accuracy per mean cost: from accuracy alone to cost alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What a token costs at each candidate: learned from recorded dollars, for want of a price list."""

    input_usd: FloatArray  # (C,) per token
    output_usd: FloatArray  # (C,)
    in_tokens: bool  # no dollars were recorded: an output token counts as the unit

    @classmethod
    def fit(cls, outcomes: Outcomes) -> Costs:
        """Least squares over the cells of each candidate; no price is negative."""
        width = len(outcomes.candidates)
        if np.isnan(outcomes.cost_usd).all():
            return cls(np.zeros(width), np.ones(width), True)
        from scipy.optimize import nnls

        input_C, output_C = np.zeros((2, width))
        for column in range(width):
            cost_M = outcomes.cost_usd[:, column]
            x_MK = np.nan_to_num(
                np.stack([outcomes.input_tokens[:, column], outcomes.output_tokens[:, column]], axis=1)
            )
            seen_M = ~(np.isnan(cost_M) | np.isnan(outcomes.output_tokens[:, column]))
            if seen_M.any():
                scale = float(np.abs(cost_M[seen_M]).mean()) or 1.0
                (input_C[column], output_C[column]), _ = nnls(x_MK[seen_M], cost_M[seen_M] / scale)
                input_C[column] *= scale
                output_C[column] *= scale
        return cls(input_C, output_C, False)

    def of(self, input_tokens_QC: FloatArray, output_tokens_QC: FloatArray) -> FloatArray:
        """(Q, C) what is predicted to be paid."""
        cost_QC: FloatArray = input_tokens_QC * self.input_usd + output_tokens_QC * self.output_usd
        return cost_QC


def choices(accuracy_QC: FloatArray, cost_QC: FloatArray, allowed_QC: BoolArray) -> IntArray:
    """(Q, L) the column chosen at each price: the most of accuracy - price * cost / mean cost.

    Ties go to the cheaper column. Rows without an allowed column get -1.
    """
    unit = float(cost_QC.mean(where=allowed_QC)) if allowed_QC.any() else 1.0
    relative_QC = np.where(allowed_QC, cost_QC / (unit or 1.0), np.inf)
    best_Q = np.where(allowed_QC, accuracy_QC, -np.inf)
    found_QL = np.empty((len(cost_QC), len(PRICES)), dtype=np.int64)
    for number, price in enumerate(PRICES):
        if np.isinf(price):
            found_QL[:, number] = np.lexsort((-best_Q, relative_QC), axis=1)[:, 0]
        else:
            with np.errstate(invalid="ignore"):
                score_QC = np.where(allowed_QC, best_Q - price * relative_QC, -np.inf)
            top_Q = score_QC.max(axis=1, keepdims=True)
            found_QL[:, number] = np.where(score_QC >= top_Q, relative_QC, np.inf).argmin(axis=1)
    found_QL[~allowed_QC.any(axis=1)] = -1
    return found_QL


def chosen(values_QC: FloatArray, choice_QL: IntArray) -> FloatArray:
    """(Q, L) the value at each choice; NaN where there is none."""
    taken_QL: FloatArray = np.take_along_axis(values_QC, np.maximum(choice_QL, 0), axis=1)
    return np.where(choice_QL >= 0, taken_QL, np.nan)
