"""What a router can reach at each cost: the hull of its points, and its mean height.

Between two points that a system can reach it reaches every mixture, by sending a share of the
queries each way; and it never has to take a point that costs more and is right less often. So its
curve is the least non-decreasing concave function above its points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rtr_ray.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The corners of a non-decreasing hull, from the cheapest to the most accurate."""

    cost: FloatArray  # (K,) rising
    accuracy: FloatArray  # (K,) rising

    @classmethod
    def over(cls, cost: Iterable[float], accuracy: Iterable[float]) -> Curve:
        """The hull of points; those that are not numbers are left out."""
        points = np.stack([np.asarray(cost, np.float64), np.asarray(accuracy, np.float64)], axis=1)
        points = points[np.isfinite(points).all(axis=1)]
        corners: list[tuple[float, float]] = []
        for x, y in points[np.lexsort((-points[:, 1], points[:, 0]))]:
            if corners and y <= corners[-1][1]:
                continue
            while len(corners) > 1 and _is_below(corners[-2], corners[-1], (x, y)):
                corners.pop()
            corners.append((float(x), float(y)))
        found = np.array(corners).reshape(-1, 2)
        return cls(found[:, 0], found[:, 1])

    def at(self, cost: float) -> float:
        """The accuracy for a mean cost; that of the cheapest point below it."""
        return float(np.interp(cost, self.cost, self.accuracy))

    def cost_of(self, accuracy: float) -> float | None:
        """The least mean cost for an accuracy; None where it is not reached."""
        if not len(self.cost) or accuracy > self.accuracy[-1]:
            return None
        return float(np.interp(accuracy, self.accuracy, self.cost))

    def height(self, low: float, high: float) -> float:
        """The mean accuracy over a range of costs (AIQ, where the range is that of the candidates).

        Source:
            RouterBench (Hu et al., 2024), Average Improvement in Quality.
        """
        if not high > low:
            return self.at(high)
        inside = self.cost[(self.cost > low) & (self.cost < high)]
        at = np.concatenate([[low], inside, [high]])
        return float(np.trapezoid(np.interp(at, self.cost, self.accuracy), at) / (high - low))


def _is_below(one: tuple[float, float], middle: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the middle point lies on or below the line between its neighbours."""
    left = (middle[1] - one[1]) * (other[0] - one[0])
    return left <= (other[1] - one[1]) * (middle[0] - one[0])
