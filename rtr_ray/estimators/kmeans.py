"""Clusters of directions, and what happened in each."""

from __future__ import annotations

from typing import Any

import numpy as np

from rtr_ray.types import FloatArray, IntArray

_ROUNDS = 25


def kmeans(unit_MD: Any, clusters: int, seed: int) -> FloatArray:
    """(K, D) centres of unit length by spherical k-means; fewer than asked for where there are fewer rows.

    The first centres are drawn one by one, a row with the square of its distance from those that
    are there already.

    Args:
        unit_MD: Rows of unit length; an array or a sparse matrix.
        clusters: How many.
        seed: Of the draw.

    Source:
        Arthur and Vassilvitskii (2007), k-means++; Dhillon and Modha (2001), spherical k-means.
    """
    dice = np.random.default_rng(seed)
    rows = unit_MD.shape[0]
    chosen = [int(dice.integers(rows))]
    far_M = np.full(rows, np.inf)
    while len(chosen) < min(clusters, rows):
        far_M = np.minimum(far_M, 1 - (unit_MD @ _dense(unit_MD[chosen[-1:]]).T).reshape(-1))
        weight_M = np.where(far_M > 1e-6, far_M, 0.0)
        if not weight_M.sum() > 0:  # nothing but repetitions is left
            break
        chosen.append(int(dice.choice(rows, p=weight_M / weight_M.sum())))
    centre_KD = _dense(unit_MD[chosen])
    nearest_M: IntArray | None = None
    for _ in range(_ROUNDS):
        before, nearest_M = nearest_M, (unit_MD @ centre_KD.T).argmax(axis=1)
        if before is not None and (before == nearest_M).all():
            break
        member_MK = (nearest_M[:, None] == np.arange(len(centre_KD))).astype(np.float32)
        sum_KD = (unit_MD.T @ member_MK).T
        norm_K = np.linalg.norm(sum_KD, axis=1, keepdims=True)
        centre_KD = np.where(norm_K > 0, sum_KD / np.where(norm_K > 0, norm_K, 1), centre_KD)
    return centre_KD.astype(np.float32)


def _dense(rows: Any) -> FloatArray:
    found: FloatArray = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
    return found


def cluster_means(
    values_MC: FloatArray, cluster_M: IntArray, clusters: int, mean_C: FloatArray, shrinkage: float
) -> FloatArray:
    """(K, C) what happened in each cluster, with `shrinkage` imaginary queries that show the mean."""
    total_KC, count_KC = cluster_sums(values_MC, cluster_M, clusters)
    weight_KC = count_KC + shrinkage
    drawn_KC: FloatArray = (total_KC + shrinkage * mean_C) / np.where(weight_KC > 0, weight_KC, 1)
    return np.where(weight_KC > 0, drawn_KC, mean_C)


def cluster_sums(values_MC: FloatArray, cluster_M: IntArray, clusters: int) -> tuple[FloatArray, FloatArray]:
    """(K, C) sums and numbers of the recorded cells of each cluster."""
    total_KC = np.zeros((clusters, values_MC.shape[1]))
    count_KC = np.zeros_like(total_KC)
    np.add.at(total_KC, cluster_M, np.nan_to_num(values_MC))
    np.add.at(count_KC, cluster_M, ~np.isnan(values_MC))
    return total_KC, count_KC
