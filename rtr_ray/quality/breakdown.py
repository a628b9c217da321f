"""Where a router's figures come from: by dataset, by how hard a query was believed to be, bin by bin.

A router is looked at where it costs as much as the best single candidate, or less: at the price at which it
is right most often there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtr_ray.quality.curves import Curve
from rtr_ray.quality.trial import Part, Scored, rounded
from rtr_ray.types import BoolArray, FloatArray

LEVELS = 5  # of difficulty, with as many queries each
TOKEN_BINS = 8  # of predicted tokens, with as many cells each
CALIBRATION_BINS = 10
GRID = 33  # costs at which a curve and its interval are told


@dataclass(frozen=True, slots=True, eq=False)
class Rivals:
    """The ways not to route that a router is shown beside, on the queries of a part."""

    part: Part
    best: int  # column of the best single candidate, as chosen in training
    cheapest: int


def grid(low: float, high: float) -> FloatArray:
    """(G,) costs over a range; by equal factors where it is wide, so that the cheap end is seen."""
    if low > 0 and high / low > 5:
        return np.geomspace(low, high, GRID)
    return np.linspace(low, high, GRID)


def traced(curves: Sequence[Curve], cost_G: FloatArray) -> list[list[float | None]]:
    """A curve as (cost, accuracy, low, high), with the 95% interval of its resamples.

    Args:
        curves: The curve itself, then those of the resamples.
        cost_G: Where.
    """
    height_BG = np.array([np.interp(cost_G, curve.cost, curve.accuracy) for curve in curves])
    low_G, high_G = (
        np.quantile(height_BG[1:], [0.025, 0.975], axis=0)
        if len(curves) > 1
        else np.full((2, len(cost_G)), np.nan)
    )
    columns = np.stack([cost_G, height_BG[0], low_G, high_G], axis=1)
    return [[rounded(value) for value in row] for row in columns]


def operating_point(cost_L: FloatArray, accuracy_L: FloatArray, most: float) -> int:
    """The price (its number) at which a router is most often right for a cost; of equals the cheapest."""
    within_L = cost_L <= most * (1 + 1e-9)
    if not within_L.any():
        return int(np.nanargmin(cost_L))
    return int(np.lexsort((cost_L, -np.where(within_L, accuracy_L, -np.inf)))[0])


def by_dataset(rivals: Rivals, scored: Scored, point: int) -> dict[str, Any]:
    """Routing beside two ways not to route, for the queries of each dataset."""
    names = np.array(rivals.part.outcomes.datasets, dtype=object)
    if not len(names):
        return {}
    return {str(name): _beside(rivals, scored, point, names == name) for name in sorted(set(names))}


def by_difficulty(rivals: Rivals, scored: Scored, point: int) -> list[dict[str, Any]]:
    """The same from the queries that all candidates are believed to answer to those that none is."""
    assert scored.estimate is not None
    believed_Q = scored.estimate.accuracy.astype(np.float64).mean(axis=1)
    rank_Q = np.argsort(np.argsort(-believed_Q, kind="stable"), kind="stable")
    level_Q = rank_Q * LEVELS // max(len(rank_Q), 1)
    return [
        {
            "predicted_accuracy": _mean(believed_Q[level_Q == level]),
            **_beside(rivals, scored, point, level_Q == level),
        }
        for level in range(LEVELS)
    ]


def _beside(rivals: Rivals, scored: Scored, point: int, mask_Q: BoolArray) -> dict[str, Any]:
    """Means over some queries."""
    part = rivals.part
    return {
        "queries": int(mask_Q.sum()),
        "accuracy": _mean(scored.accuracy[mask_Q, point]),
        "cost_usd": _mean(scored.cost[mask_Q, point]),
        "output_tokens": _mean(scored.output_tokens[mask_Q, point]),
        **{
            f"{name}_{figure}": _mean(values[mask_Q, column])
            for name, column in (("best_single", rivals.best), ("cheapest", rivals.cheapest))
            for figure, values in (
                ("accuracy", part.outcomes.accuracy),
                ("cost_usd", part.costs),
                ("output_tokens", part.outcomes.output_tokens),
            )
        },
    }


def calibration_bins(believed: FloatArray, right: FloatArray) -> list[list[float | None]]:
    """Of each tenth of belief: (mean belief, mean truth, cells)."""
    bins = np.clip((believed * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
    return [
        [_mean(believed[bins == one]), _mean(right[bins == one]), float((bins == one).sum())]
        for one in range(CALIBRATION_BINS)
    ]


def token_bins(part: Part, scored: Scored, column: int) -> list[list[float | None]]:
    """Of each eighth of a candidate's cells, by predicted tokens: (mean predicted, mean actual)."""
    assert scored.estimate is not None
    real_Q = part.outcomes.output_tokens[:, column]
    seen_Q = ~np.isnan(real_Q)
    told_Q, real_Q = scored.estimate.output_tokens[seen_Q, column].astype(np.float64), real_Q[seen_Q]
    rank_Q = np.argsort(np.argsort(told_Q, kind="stable"), kind="stable")
    bin_Q = rank_Q * TOKEN_BINS // max(len(rank_Q), 1)
    return [[_mean(told_Q[bin_Q == one]), _mean(real_Q[bin_Q == one])] for one in range(TOKEN_BINS)]


def _mean(values: FloatArray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
