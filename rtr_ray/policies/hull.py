"""The upgrades of a query: from its cheapest candidate, step by step, to its best one.

Only candidates on the upper hull of (cost, accuracy) are worth their money: each step from one of
them to the next buys accuracy at a falling rate. A budget policy is a threshold on that rate, so
that what is summed up in a sketch and what is chosen later must agree to the last bit: both walk
here. Rates come in bins, since a sketch can count bins but not rates; within a bin, a hash of
`query_id` decides, since identical queries have identical rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rtr_ray.types import BoolArray, FloatArray, IntArray

HASH_BITS = 20
_MANTISSA_BITS = 6  # of a rate: a bin is 0.8 to 1.6% wide
_BELOW = 52 - _MANTISSA_BITS
_BLOCK = 4096  # rows at a time: their matrices stay in the cache
_NEVER = 1e30  # dollars of what is not allowed, and accuracy below zero
_TINY = 1e-300

Visit = Callable[[IntArray, IntArray, FloatArray], BoolArray]
"""(rows, columns that one more step leads to, its rates) -> which of the rows take it."""


def climb(cost_QC: FloatArray, accuracy_QC: FloatArray, allowed_QC: BoolArray, visit: Visit) -> IntArray:
    """Walk up the hull of every row, as far as `visit` lets it.

    The first step, at an infinite rate, leads to the cheapest allowed candidate (the more accurate
    one of equals). The next is always the one with the highest rate, (gain of accuracy) / (gain of
    cost); rates never rise within a row. A cell without a finite prediction counts as not allowed.

    Args:
        cost_QC: Of every candidate, any unit. Read as float32, as tables are stored.
        accuracy_QC: In [0, 1]. Likewise.
        allowed_QC: What may be chosen.
        visit: Sees each step before it is taken, and lets rows take it or stay for good.

    Returns:
        (Q,) the column where each row stays; -1 where nothing is allowed.
    """
    found_Q = np.empty(len(cost_QC), dtype=np.int64)
    for start in range(0, len(cost_QC), _BLOCK):
        part = slice(start, start + _BLOCK)
        cost, accuracy = cost_QC[part].astype(np.float32), accuracy_QC[part].astype(np.float32)
        allowed = allowed_QC[part] & np.isfinite(cost + accuracy)
        found_Q[part] = _climb_block(
            np.where(allowed, cost, _NEVER).astype(np.float64),  # differences of float32 are exact
            np.where(allowed, accuracy, -_NEVER).astype(np.float64),
            start,
            visit,
        )
    return found_Q


def _climb_block(cost_QC: FloatArray, accuracy_QC: FloatArray, start: int, visit: Visit) -> IntArray:
    if not cost_QC.shape[1]:
        return np.full(len(cost_QC), -1)
    least_Q = cost_QC.min(axis=1)
    to_A = np.where(cost_QC == least_Q[:, None], accuracy_QC, -_NEVER).argmax(axis=1)
    rate_A = np.where(least_Q < np.float32(_NEVER), np.inf, 0)
    row_A, found_Q = np.arange(len(to_A)), np.full(len(to_A), -1)
    gain_QC, price_QC = np.empty((2, *cost_QC.shape))
    offset = np.arange(len(cost_QC)) * cost_QC.shape[1]
    while len(row_A):
        goes_A = rate_A > 0
        up_A = slice(None) if goes_A.all() else np.flatnonzero(goes_A)
        goes_A[up_A] = visit(row_A[up_A] + start, to_A[up_A], rate_A[up_A])
        if not goes_A.all():
            keep = np.flatnonzero(goes_A)
            row_A, to_A, rate_A = row_A[keep], to_A[keep], rate_A[keep]
            cost_QC, accuracy_QC = cost_QC.take(keep, axis=0), accuracy_QC.take(keep, axis=0)
        found_Q[row_A] = to_A
        at_A = offset[: len(row_A)] + to_A
        gain_AC, price_AC = gain_QC[: len(row_A)], price_QC[: len(row_A)]
        # what is more accurate is dearer, or the step before would have led there: what is not dearer
        # has no gain, and its rate does not rise above 0
        np.subtract(accuracy_QC, accuracy_QC.take(at_A)[:, None], out=gain_AC)
        np.subtract(cost_QC, cost_QC.take(at_A)[:, None], out=price_AC)
        np.maximum(price_AC, _TINY, out=price_AC)
        gain_AC /= price_AC
        to_A = gain_AC.argmax(axis=1)
        # candidates on one line have equal rates but for the rounding, which may not let them rise
        rate_A = np.minimum(gain_AC.take(offset[: len(row_A)] + to_A), rate_A)
    return found_Q


def bin_of(rate_U: FloatArray) -> IntArray:
    """The bin of each positive rate: a whole number that rises with the rate."""
    found_U: IntArray = np.asarray(rate_U, dtype=np.float64).view(np.int64) >> _BELOW
    return found_U


def lower_edge(number: int) -> float:
    """The lowest rate of a bin; that of the next bin is above all of its rates."""
    return float(np.array(number << _BELOW, dtype=np.int64).view(np.float64))


def share_hash(query_ids: Sequence[str]) -> IntArray:
    """(Q,) the first HASH_BITS bits of `id_hash`."""
    return (id_hash(query_ids) >> np.uint64(64 - HASH_BITS)).astype(np.int64)


def id_hash(query_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """(Q,) 64 bits of each id, the same on every machine, independent of `stable_hash`.

    Each character at its position stands for 64 random bits, whose sum is mixed once more: all
    in numpy, since ten million calls of a hash function would take longer than the solving.
    """
    if len(query_ids) > _BLOCK:
        parts = [id_hash(query_ids[i : i + _BLOCK]) for i in range(0, len(query_ids), _BLOCK)]
        return np.concatenate(parts)
    ends_Q = np.cumsum(np.fromiter(map(len, query_ids), np.int64, len(query_ids)))
    length_Q = np.diff(ends_Q, prepend=0)
    text = "".join(query_ids)
    ascii_ = text.isascii()
    code = text.encode() if ascii_ else text.encode("utf-32-le", "surrogatepass")
    letters = np.frombuffer(code, np.uint8 if ascii_ else np.uint32).astype(np.uint64)
    position = np.arange(len(letters)) - np.repeat(ends_Q - length_Q, length_Q)
    mixed = mix(letters + (position.astype(np.uint64) << np.uint64(21)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return mix(sums[ends_Q] - sums[ends_Q - length_Q] + length_Q.astype(np.uint64))


def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea, Flood 2014): every bit of the output depends on every bit of the input."""
    value = value * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xB0D9E7)
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value
