"""What a budget policy must know of all tables: which upgrades there are, at what rate.

An upgrade is a step of `hull.climb`. They are taken in one order: the bin of the rate from high to
low, within a bin by the hash of the query id. A sketch counts upgrades in cells: a bin, or where a
bin is heavy a range of hashes within it. So a cut between two cells is a plan whose cost is known.

Sums are whole numbers, so that sketches merge to the same in any order.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rtr_ray.errors import DataError
from rtr_ray.policies.hull import HASH_BITS, bin_of, climb, share_hash
from rtr_ray.types import BoolArray, FloatArray, IntArray, RoutingTable

Unit = str  # a key of PER_UNIT
PER_UNIT = {"usd": 10**11, "output_tokens": 10**6}
"""Whole numbers per dollar, and per token: nine figures left of the point for dollars."""
PER_POINT = 2**32  # whole numbers per correct answer; a float32 above 2**-8 is exact
WHOLE = 2**HASH_BITS  # a share of all queries
_BIN_SHIFT = HASH_BITS + 5  # a key: bin, number of bits of the hash, those bits

_PARTS = 512  # of the budget that would be spent where a cell lies: no cell holds two of them
_RANGE = 200  # as long as that budget is no less than so small a part of the dearest plan
_FEW = 4096  # upgrades that are kept one by one
_MOST = 2**62  # a sum fits into 64 bits, twice
_ADDED = (
    *("rows", "routed", "allowed", "allowed_cost"),
    *("base_cost", "base_accuracy", "top_cost", "top_accuracy", "upgrades"),
)

Cells = tuple[IntArray, IntArray, IntArray]  # keys, rising; cost; accuracy


def sketch(table: RoutingTable, unit: Unit, max_row_usd: float | None) -> dict[str, Any]:
    """The upgrades of one table, as JSON.

    Raises:
        DataError: If the costs of a table are beyond all measure.
    """
    allowed_QC = allowed(table, max_row_usd)
    cost_QC = costs(table, unit)
    finite_QC = allowed_QC & np.isfinite(cost_QC)
    dearest = float(cost_QC.max(initial=0, where=finite_QC))
    _check_sum(dearest * PER_UNIT[unit] * len(cost_QC))

    hash_Q = share_hash(table.query_ids)
    cost_Q = np.zeros(len(cost_QC), dtype=np.int64)  # of where a row stands
    right_Q = cost_Q.copy()
    routed = 0
    steps: list[tuple[IntArray, ...]] = [(cost_Q[:0],) * 4]

    def count(rows: IntArray, to: IntArray, rates: FloatArray) -> BoolArray:
        nonlocal routed
        before = cost_Q[rows], right_Q[rows]
        cost_Q[rows] = np.ceil(cost_QC[rows, to].astype(np.float64) * PER_UNIT[unit])
        right_Q[rows] = np.rint(table.accuracy[rows, to].astype(np.float64) * PER_POINT)
        if len(rates) and rates[0] == np.inf:
            routed += len(rows)
        else:
            steps.append((bin_of(rates), hash_Q[rows], cost_Q[rows] - before[0], right_Q[rows] - before[1]))
        return np.ones(len(rows), dtype=bool)

    climb(cost_QC, table.accuracy, allowed_QC, count)
    bins, hashes, cost, right = (np.concatenate(column) for column in zip(*steps, strict=True))
    top_cost, top_accuracy = int(cost.sum()), int(right.sum())
    base_cost = int(cost_Q.sum()) - top_cost
    few = len(bins) <= _FEW
    return {
        "unit": unit,
        "max_row_usd": max_row_usd,
        "rows": len(cost_QC),
        "routed": routed,
        "allowed": int(finite_QC.sum()),
        "allowed_cost": round(float(cost_QC.sum(where=finite_QC, dtype=np.float64)) * PER_UNIT[unit]),
        "base_cost": base_cost,
        "base_accuracy": int(right_Q.sum()) - top_accuracy,
        "top_cost": top_cost,
        "top_accuracy": top_accuracy,
        "upgrades": len(bins),
        "cells": _packed(_cells(bins, hashes, cost, right, base_cost)),
        "singles": _packed(_single(bins, hashes, cost, right)) if few else None,
    }


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The upgrades of both.

    Raises:
        DataError: If they count different things, or too much.
    """
    for name in ("unit", "max_row_usd"):
        if one[name] != other[name]:
            raise DataError(
                f"Sketches with {name}={one[name]} and {name}={other[name]} cannot be added up. "
                "Start the run anew (--fresh)."
            )
    added = {name: one[name] + other[name] for name in _ADDED}
    _check_sum(added["base_cost"] + added["top_cost"])
    few = added["upgrades"] <= _FEW
    return {
        "unit": one["unit"],
        "max_row_usd": one["max_row_usd"],
        **added,
        "cells": _packed(_joined(one["cells"], other["cells"])),
        "singles": _packed(_joined(one["singles"], other["singles"])) if few else None,
    }


def costs(table: RoutingTable, unit: Unit) -> FloatArray:
    """(Q, C) what a budget in this unit counts."""
    return table.cost_usd if unit == "usd" else table.output_tokens


def allowed(table: RoutingTable, max_row_usd: float | None) -> BoolArray:
    """(Q, C) what may be chosen: allowed, and not above the cap."""
    return below(table.allowed, table.cost_usd, max_row_usd)


def below(allowed_QC: BoolArray, cost_QC: FloatArray, max_row_usd: float | None) -> BoolArray:
    """(Q, C) what of it costs at most so much, in the precision in which tables are stored."""
    if max_row_usd is None:
        return allowed_QC
    below_QC: BoolArray = allowed_QC & (cost_QC.astype(np.float32) <= np.float32(max_row_usd))
    return below_QC


def _check_sum(cost: float) -> None:
    if not cost < _MOST:
        raise DataError(
            "The predicted costs of all queries add up beyond 46 million dollars (or 4.6 trillion tokens), "
            "which is more than is counted here. Check the prices and token limits of the pool."
        )


def _cells(bins: IntArray, hashes: IntArray, cost: IntArray, right: IntArray, base_cost: int) -> Cells:
    """Sums by bin, and where a bin is heavy by the first bits of the hash: the more, the heavier.

    Heavy is measured by the budget that would be cut in that bin, the base and all bins above: so
    a small budget is used as well as a large one. A cell that is light in each of several tables
    is light in all of them together, whatever else they hold.
    """
    if not len(bins):
        return bins, cost, right
    low = int(bins.min())
    bins = bins - low
    weight_B = np.zeros(int(bins.max()) + 1, dtype=np.int64)
    np.add.at(weight_B, bins, cost)
    budget_B = base_cost + np.cumsum(weight_B[::-1])[::-1]  # that would be spent within the bin
    parts_B = weight_B // (np.maximum(budget_B, budget_B[0] // _RANGE) // _PARTS + 1)
    level_B = np.clip(np.frexp(parts_B.astype(np.float64))[1] - 1, 0, HASH_BITS).astype(np.int64)
    start_B = np.cumsum(1 << level_B) - (1 << level_B)
    slots = start_B[bins] + (hashes >> (HASH_BITS - level_B[bins]))
    sums = np.zeros((2, int(start_B[-1] + (1 << level_B[-1]))), dtype=np.int64)
    np.add.at(sums[0], slots, cost)
    np.add.at(sums[1], slots, right)
    there = np.flatnonzero(np.bincount(slots))
    bin_ = np.searchsorted(start_B, there, side="right") - 1
    keys = ((bin_ + low) << _BIN_SHIFT) | (level_B[bin_] << HASH_BITS) | (there - start_B[bin_])
    return keys, sums[0, there], sums[1, there]


def _single(bins: IntArray, hashes: IntArray, cost: IntArray, right: IntArray) -> Cells:
    """Sums by bin and whole hash."""
    return _counted((bins << _BIN_SHIFT) | (HASH_BITS << HASH_BITS) | hashes, cost, right)


def _counted(keys: IntArray, cost: IntArray, right: IntArray) -> Cells:
    """Sums by key."""
    if not len(keys):
        return keys, cost, right
    order = np.argsort(keys)
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(cost[order], first), np.add.reduceat(right[order], first)


def _joined(one: str, other: str) -> Cells:
    both = zip(_unpacked(one), _unpacked(other), strict=True)
    return _counted(*(np.concatenate(pair) for pair in both))


def cells_of(sketch: Mapping[str, Any]) -> Cells:
    """All cells, one per upgrade where there are few."""
    return _unpacked(sketch["cells"] if sketch["singles"] is None else sketch["singles"])


def _packed(cells: Cells) -> str:
    """Text: differences of keys, and sums; like bytes side by side, which is what compresses well."""
    keys, cost, right = cells
    columns = np.stack([np.diff(keys, prepend=0), cost, right]).astype("<i8")
    return base64.b85encode(zlib.compress(columns.view(np.uint8).reshape(-1, 8).T.tobytes(), 6)).decode()


def _unpacked(text: str) -> Cells:
    raw = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
    steps, cost, right = raw.reshape(8, -1).T.copy().view("<i8").reshape(3, -1)
    return np.cumsum(steps), cost, right
