"""Figures of one router on one part, each with a paired bootstrap over queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rtr_ray.quality.breakdown import (
    Rivals,
    by_dataset,
    by_difficulty,
    calibration_bins,
    grid,
    operating_point,
    token_bins,
    traced,
)
from rtr_ray.quality.curves import Curve
from rtr_ray.quality.trial import LAMBDAS, Part, Scored, rounded
from rtr_ray.types import FloatArray

_BINS = 10  # of predicted accuracy, for the calibration error
TOLERANCES = (200, 600)  # tokens


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """What all routers of a part are measured against, on the queries as they are and in B resamples of them.

    Rows 0 of all arrays belong to the queries as they are.
    """

    part: Part
    best: int  # the best single candidate, chosen in training
    weights: FloatArray  # (1 + B, Q) how often each query counts
    cost: FloatArray  # (1 + B, C) of each candidate
    accuracy: FloatArray  # (1 + B, C)
    oracle: tuple[Curve, ...]  # 1 + B

    @classmethod
    def of(cls, part: Part, fixed: Scored, oracle: Scored, best: int, resamples: int, seed: int) -> Yardstick:
        """With resamples of its own."""
        count = len(fixed.cost)
        draw = np.random.default_rng(seed)
        drawn_BQ = draw.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
        weights = np.concatenate([np.ones((1, count)), drawn_BQ])
        cost, accuracy = fixed.means(weights)
        return cls(part, best, weights, cost, accuracy, _curves(oracle, weights, cost, accuracy))

    def anchors(self) -> dict[str, Any]:
        """The ways not to route, and the way that nobody can."""
        cost_C, accuracy_C, oracle = self.cost[0], self.accuracy[0], self.oracle[0]
        names = [str(candidate) for candidate in self.part.outcomes.candidates]

        def single(column: int) -> dict[str, Any]:
            return {
                "candidate": names[column],
                "accuracy": rounded(accuracy_C[column]),
                "cost_usd": rounded(cost_C[column]),
            }

        low, high = self._range(0)
        return {
            "candidates": [single(column) for column in range(len(names))],
            "best_single": single(self.best),
            "cheapest": single(int(np.nanargmin(cost_C))),
            "random": {
                "accuracy": rounded(np.nanmean(accuracy_C)),
                "cost_usd": rounded(np.nanmean(cost_C)),
            },
            "static_hull": {
                "aiq": Curve.over(cost_C, accuracy_C).height(low, high),
                "curve": traced(
                    [Curve.over(x, y) for x, y in zip(self.cost, self.accuracy, strict=True)], grid(low, high)
                ),
            },
            "oracle": {
                "curve": traced(self.oracle, grid(low, high)),
                "aiq": oracle.height(low, high),
                "accuracy": rounded(oracle.accuracy[-1]),
                "cost_usd": rounded(oracle.cost[-1]),
                "cross_fitted": self.part.halves is not None,
            },
        }

    def measured(self, scored: Scored) -> dict[str, Any]:
        """All figures of one router."""
        curves = _curves(scored, self.weights, self.cost, self.accuracy)
        found, *drawn = (self._figures(number, curve) for number, curve in enumerate(curves))

        def interval(name: str) -> list[float | None]:
            values = np.array([np.nan if one[name] is None else one[name] for one in drawn], np.float64)
            if not len(values) or np.isnan(values).mean() > 0.5:
                return [None, None]
            low, high = np.nanquantile(values, [0.025, 0.975])
            return [float(low), float(high)]

        (cost_L,), (accuracy_L,) = scored.means(self.weights[:1])
        point = operating_point(cost_L, accuracy_L, float(self.cost[0, self.best]))
        return {
            "name": scored.name,
            **found,
            **{f"{name}_interval": interval(name) for name in found},
            "points": [
                [rounded(x), rounded(y), lam] for x, y, lam in zip(cost_L, accuracy_L, LAMBDAS, strict=True)
            ],
            "curve": traced(curves, grid(*self._range(0))),
            "shares": self._shares(scored),
            "at_best_single_cost": {
                "lam": LAMBDAS[point],
                "accuracy": rounded(accuracy_L[point]),
                "cost_usd": rounded(cost_L[point]),
            },
            "by_dataset": by_dataset(self._rivals, scored, point),
            "fit_s": scored.fit_s,
            "predict_us_per_query": scored.predict_us_per_query,
            "fit_cpu_s": scored.fit_cpu_s,
            "predict_cpu_us_per_query": scored.predict_cpu_us_per_query,
            **({} if scored.estimate is None else self._predictions(scored, point)),
        }

    @property
    def _rivals(self) -> Rivals:
        return Rivals(self.part, self.best, int(np.nanargmin(self.cost[0])))

    def _range(self, number: int) -> tuple[float, float]:
        return float(np.nanmin(self.cost[number])), float(np.nanmax(self.cost[number]))

    def _figures(self, number: int, curve: Curve) -> dict[str, float | None]:
        """Those that a bootstrap makes sense of, in one resample."""
        low, high = self._range(number)
        aiq, oracle = curve.height(low, high), self.oracle[number].height(low, high)
        hull = Curve.over(self.cost[number], self.accuracy[number]).height(low, high)
        best_cost = float(self.cost[number, self.best])
        best_accuracy = float(self.accuracy[number, self.best])
        return {
            "aiq": aiq,
            "aiq_over_hull": aiq - hull,
            "gap_closed": (aiq - hull) / (oracle - hull) if oracle > hull else None,
            "best_accuracy": rounded(curve.accuracy[-1]),
            "best_accuracy_over_best_single": rounded(curve.accuracy[-1] - best_accuracy),
            "accuracy_at_best_single_cost": rounded(curve.at(best_cost)),
            "cost_saved_at_best_single": _saved(curve, best_cost, best_accuracy),
            "cost_saved_within_1pt": _saved(curve, best_cost, best_accuracy - 0.01),
        }

    def _shares(self, scored: Scored) -> dict[str, list[float]]:
        """How many of the queries each candidate gets along the curve: does the router collapse?"""
        width = len(self.part.outcomes.candidates)
        count = max(int((scored.choice[:, 0] >= 0).sum()), 1)
        return {
            str(candidate): [float(share) for share in (scored.choice == column).sum(axis=0) / count]
            for column, candidate in enumerate(self.part.outcomes.candidates[:width])
        }

    def _predictions(self, scored: Scored, point: int) -> dict[str, Any]:
        """How well accuracy and tokens were predicted, over all cells that were observed."""
        estimate, outcomes = scored.estimate, self.part.outcomes
        assert estimate is not None
        seen_QC = self.part.observed
        believed, right = estimate.accuracy[seen_QC].astype(np.float64), outcomes.accuracy[seen_QC]
        by_candidate = {}
        for column, candidate in enumerate(outcomes.candidates):
            seen_Q = ~np.isnan(outcomes.output_tokens[:, column])
            told_Q = estimate.output_tokens[seen_Q, column].astype(np.float64)
            real_Q = outcomes.output_tokens[seen_Q, column]
            by_candidate[str(candidate)] = {
                "tokens_predicted_over_actual": rounded(told_Q.sum() / real_Q.sum())
                if real_Q.sum()
                else None,
                **{
                    f"within_{most}": rounded((np.abs(told_Q - real_Q) <= most).mean())
                    if len(real_Q)
                    else None
                    for most in TOLERANCES
                },
                "bins": token_bins(self.part, scored, column),
            }
        return {
            "calibration": {
                "ece": calibration_error(believed, right),
                "brier": rounded(((believed - right) ** 2).mean()),
                "auroc": auroc(believed, right),
                "bins": calibration_bins(believed, right),
            },
            "tokens": by_candidate,
            "by_difficulty": by_difficulty(self._rivals, scored, point),
        }


def _curves(
    scored: Scored, weight_BQ: FloatArray, cost_BC: FloatArray, accuracy_BC: FloatArray
) -> tuple[Curve, ...]:
    """In each resample the hull of a router's points and the cheapest candidate's: that can be had anyway."""
    cost_BL, accuracy_BL = scored.means(weight_BQ)
    cheapest_B = np.nanargmin(cost_BC, axis=1)[:, None]
    cost_BL = np.concatenate([cost_BL, np.take_along_axis(cost_BC, cheapest_B, 1)], axis=1)
    accuracy_BL = np.concatenate([accuracy_BL, np.take_along_axis(accuracy_BC, cheapest_B, 1)], axis=1)
    return tuple(Curve.over(x, y) for x, y in zip(cost_BL, accuracy_BL, strict=True))


def _saved(curve: Curve, cost: float, accuracy: float) -> float | None:
    """The share of a cost that is saved at an accuracy; None where it is not reached."""
    needed = curve.cost_of(accuracy)
    return None if needed is None or not cost > 0 else 1 - needed / cost


def calibration_error(believed: FloatArray, right: FloatArray) -> float | None:
    """The mean distance of belief and truth over ten bins of belief, weighted by their cells."""
    if not len(believed):
        return None
    bins = np.clip((believed * _BINS).astype(int), 0, _BINS - 1)
    count, told, seen = (np.bincount(bins, values, _BINS) for values in (None, believed, right))
    return float(np.abs(told - seen).sum() / count.sum())


def auroc(believed: FloatArray, right: FloatArray) -> float | None:
    """How often a right cell is believed more than a wrong one; a cell that is right in part counts as both.

    Source:
        The statistic of Mann and Whitney (1947); a tie counts as half.
    """
    values, place = np.unique(believed, return_inverse=True)
    right_sum, wrong_sum = right.sum(), (1 - right).sum()
    if not (right_sum > 0 and wrong_sum > 0):
        return None
    won_by, lost_by = (np.bincount(place, weight, len(values)) for weight in (right, 1 - right))
    below = np.cumsum(lost_by) - lost_by
    return float((won_by * (below + lost_by / 2)).sum() / (right_sum * wrong_sum))
