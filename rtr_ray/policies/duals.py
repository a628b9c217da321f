"""Prices of several limits at once: the dual of a choice problem that is smoothed a little.

    maximise  sum_q sum_c p[q, c] value[q, c] + T * entropy(p[q])
    subject to  mean_q sum_c p[q, c] weight[k, q, c] <= bound[k]  for each limit k

The entropy makes the dual smooth, and it makes each query's choice a draw, with probabilities
softmax((value - sum_k price[k] weight[k]) / T). Queries that are alike are so divided among their
candidates as the limits want it, which no price alone can do. It costs T log C at most, C candidates.

Source:
    Smoothing by entropy: Nesterov (2005), Smooth minimization of non-smooth functions. The draw by
    adding noise and taking the maximum: Gumbel (1954).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from rtr_ray.types import BoolArray, FloatArray

_STAGES = (0.3, 0.03, 0.003)  # temperatures on the way: the first is easy, each the next one's beginning
_MOST = 100.0  # a price, where value and weight are about 1: what such a price does not reach, none does


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """What each limit costs where it binds, and what the choice then uses."""

    price: FloatArray  # (K,) in values per unit of weight, at least 0
    used: FloatArray  # (K,) mean over queries
    value: float  # mean over queries


def solve(
    value_QC: FloatArray,
    allowed_QC: BoolArray,
    weight_KQC: FloatArray,
    bound_K: FloatArray,
    temperature: float,
) -> Prices:
    """Find the prices.

    Args:
        value_QC: In about [0, 1].
        allowed_QC: At least one in each row.
        weight_KQC: Of any size, of any sign: a lower bound is an upper one of the negatives.
        bound_K: On the mean over queries of the chosen weight.
        temperature: T, in values.

    Returns:
        Prices; where no choice keeps to all limits, some use more than their bound.
    """
    allowed_KQC = np.broadcast_to(allowed_QC, weight_KQC.shape)
    scale_K = np.maximum(np.abs(weight_KQC).mean(axis=(1, 2), where=allowed_KQC), np.abs(bound_K))
    scale_K = np.where(scale_K > 0, scale_K, 1.0)
    weight_QCK = np.moveaxis(weight_KQC / scale_K[:, None, None], 0, -1).astype(np.float64)
    bound_K = bound_K / scale_K
    value_QC = np.where(allowed_QC, value_QC, -np.inf).astype(np.float64)
    price_K = np.zeros(len(bound_K))
    stages = (*(one for one in _STAGES if one > temperature), temperature)
    for stage in stages if len(price_K) else ():

        def dual(price_K: FloatArray, stage: float = stage) -> tuple[float, FloatArray]:
            soft, used_K, _ = _chosen(value_QC, weight_QCK, price_K, stage)
            return soft + float(price_K @ bound_K), bound_K - used_K

        found = minimize(
            dual,
            price_K,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, _MOST)] * len(price_K),
            options={"maxiter": 300, "ftol": 1e-12, "gtol": 1e-7},
        )
        price_K = found.x
    _, used_K, value = _chosen(value_QC, weight_QCK, price_K, temperature)
    return Prices(price_K / scale_K, used_K * scale_K, value)


def _chosen(
    value_QC: FloatArray, weight_QCK: FloatArray, price_K: FloatArray, temperature: float
) -> tuple[float, FloatArray, float]:
    """The soft maximum, what is used of each limit, and the value: means over queries."""
    net_QC = (value_QC - weight_QCK @ price_K) / temperature
    top_Q = net_QC.max(axis=1, keepdims=True)
    p_QC = np.exp(net_QC - top_Q)
    sum_Q = p_QC.sum(axis=1, keepdims=True)
    p_QC /= sum_Q
    soft = temperature * float((np.log(sum_Q) + top_Q).mean())
    used_K = np.tensordot(p_QC, weight_QCK, axes=([0, 1], [0, 1])) / len(value_QC)
    value = float((p_QC * np.where(p_QC > 0, value_QC, 0.0)).sum(axis=1).mean())
    return soft, used_K, value
