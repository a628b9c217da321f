"""Where to stop buying: one cut through the upgrades of all tables, and how good it is.

The linear relaxation of the multiple-choice knapsack takes upgrades by falling rate until the
budget is spent. Here the order is by bin and, within a bin, by hash; the cut lies between two
cells of a sketch. Lagrangian duality bounds what any other plan could reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtr_ray.policies.hull import HASH_BITS, lower_edge
from rtr_ray.policies.upgrades import PER_POINT, PER_UNIT, WHOLE, cells_of
from rtr_ray.types import IntArray


@dataclass(frozen=True, slots=True)
class Cut:
    """All bins above one are bought, and of that one the queries whose hash is below a share."""

    place: int  # which bin, counted from the highest rate; the number of bins: everything is bought
    share: int  # of WHOLE
    cost: float  # expected; exact unless the cut goes through a cell
    accuracy: float  # expected correct answers, likewise
    accuracy_least: float  # without the cells that are cut


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The upgrades of all tables in the order in which they are bought; B bins."""

    unit: int  # whole numbers per dollar or token
    base_cost: int
    base_accuracy: int
    bins: IntArray  # (B,) falling
    cost: IntArray  # (B,) of a bin and all above
    accuracy: IntArray  # (B,)
    ends: IntArray  # (B,) of the cells of a bin in the arrays below
    first: IntArray  # (cells,) the lowest hash of a cell
    width: IntArray  # (cells,) how many hashes it holds
    cell_cost: IntArray
    cell_accuracy: IntArray

    @classmethod
    def of(cls, sketch: Mapping[str, Any]) -> Frontier:
        """Read a sketch."""
        keys, cost, accuracy = (column[::-1] for column in cells_of(sketch))
        bins, level, index = keys >> (HASH_BITS + 5), (keys >> HASH_BITS) & 31, keys & (WHOLE - 1)
        ends = np.flatnonzero(np.diff(bins, append=-1)) + 1
        return cls(
            PER_UNIT[sketch["unit"]],
            sketch["base_cost"],
            sketch["base_accuracy"],
            bins[ends - 1],
            np.cumsum(cost)[ends - 1],
            np.cumsum(accuracy)[ends - 1],
            ends,
            index << (HASH_BITS - level),
            1 << (HASH_BITS - level),
            cost,
            accuracy,
        )

    def cheapest(self) -> Cut:
        """No upgrade at all."""
        return self._cut(0, 0) if len(self.bins) else self.everything()

    def everything(self) -> Cut:
        """All upgrades: nothing more accurate can be bought."""
        if not len(self.bins):
            right = self.base_accuracy / PER_POINT
            return Cut(0, WHOLE, self.base_cost / self.unit, right, right)
        right = (self.base_accuracy + int(self.accuracy[-1])) / PER_POINT
        cost = (self.base_cost + int(self.cost[-1])) / self.unit
        return Cut(len(self.bins), WHOLE, cost, right, right)

    def at_cost(self, cost: float) -> Cut | None:
        """The last cut that costs no more, whatever part of a cell lies before it; None: none does."""
        room = int(min(cost * self.unit, 2.0**62)) - self.base_cost
        if room < 0:
            return None
        place = int(np.searchsorted(self.cost, room, side="right"))
        if place == len(self.bins):
            return self.everything()
        room -= int(self.cost[place - 1]) if place else 0
        cells = self._cells(place)
        order = cells[np.argsort(self.first[cells], kind="stable")]
        over = int(np.searchsorted(np.cumsum(self.cell_cost[order]), room, side="right"))
        return self._cut(place, int(self.first[order[over]]))

    def at_accuracy(self, accuracy: float) -> Cut | None:
        """The first cut with so many correct answers, by whole cells before it; None: none has."""
        lack = int(np.ceil(accuracy * PER_POINT)) - self.base_accuracy
        place = int(np.searchsorted(self.accuracy, lack, side="left")) if lack > 0 else 0
        if place == len(self.bins):
            return self.everything() if lack <= 0 else None
        if lack <= 0:
            return self._cut(0, 0)
        lack -= int(self.accuracy[place - 1]) if place else 0
        cells = self._cells(place)
        order = cells[np.argsort((self.first + self.width)[cells], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(self.cell_accuracy[order]), lack, side="left"))
        return self._cut(place, int((self.first + self.width)[order[enough]]))

    def price(self, cut: Cut) -> float:
        """Accuracy per unit of cost at the cut; 0 where more money buys nothing."""
        return lower_edge(int(self.bins[cut.place])) if cut.place < len(self.bins) else 0.0

    def bound(self, cut: Cut, budget: float) -> float:
        """What no plan within the budget exceeds, in expected correct answers.

        For every price p >= 0: sum over queries of max(accuracy - p * cost) + p * budget. Both
        edges of the bin that is cut are tried, and p = 0.
        """
        every = self.base_accuracy + int(self.accuracy[-1] if len(self.bins) else 0)
        bounds = [every / PER_POINT]
        for place in (cut.place, cut.place - 1):
            if cut.place < len(self.bins):
                price = lower_edge(int(self.bins[cut.place]) + (place < cut.place))
                cost = self.base_cost + (int(self.cost[place]) if place >= 0 else 0)
                right = self.base_accuracy + (int(self.accuracy[place]) if place >= 0 else 0)
                bounds.append(right / PER_POINT + price * (budget - cost / self.unit))
        return min(bounds)

    def _cut(self, place: int, share: int) -> Cut:
        cells = self._cells(place)
        bought = np.clip((share - self.first[cells]) / self.width[cells], 0, 1)
        cost = self.base_cost + (int(self.cost[place - 1]) if place else 0)
        right = self.base_accuracy + (int(self.accuracy[place - 1]) if place else 0)
        cell_right = self.cell_accuracy[cells]
        return Cut(
            place,
            share,
            (cost + float(bought @ self.cell_cost[cells])) / self.unit,
            (right + float(bought @ cell_right)) / PER_POINT,
            (right + int(cell_right[bought == 1].sum())) / PER_POINT,
        )

    def _cells(self, place: int) -> IntArray:
        """Which cells a bin has."""
        return np.arange(self.ends[place - 1] if place else 0, self.ends[place])
