"""Regression on very few rows: a mean over all strengths of signal, weighed by their evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rtr_ray.types import FloatArray, IntArray

_OTHERS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Variance of what a group of features tells, over that of what none tells; tried."""
_MOST_ROWS = 300
_AVERAGED = 30  # of the strengths, the likeliest
_PRIOR_ROWS = 6.0  # so many rows' weight has what the noise is taken to be beforehand


@dataclass(frozen=True, slots=True)
class Around:
    """What is known before the first row."""

    noise: float  # variance of what no feature tells
    groups: Sequence[slice]  # of features, each with a strength of its own
    first: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # strengths of the first group: that of a constant, say


def around(prior: Around, features_MF: FloatArray, value_M: FloatArray) -> FloatArray:
    """(F,) weights; zeros without a row.

    With few rows the evidence hardly tells strengths apart, so that choosing the best one would be
    luck: the mean over all of them, each as likely as it makes the rows, is the better guess.

    Args:
        prior: Before the first row.
        features_MF: Of M rows.
        value_M: Around 0; NaN: no value.

    Source:
        Bayesian linear regression with conjugate noise (Bishop 2006, 3.5), averaged over its
        hyperparameters (Hoeting et al., 1999).
    """
    seen_M = ~np.isnan(value_M)
    size = features_MF.shape[1]
    if not seen_M.any():
        return np.zeros(size)
    features_NF, value_N = features_MF[seen_M].astype(np.float64), value_M[seen_M].astype(np.float64)
    unit_F = np.ones(size)
    for group in prior.groups:
        square = float((features_NF[:, group] ** 2).sum(axis=1).mean()) if size else 0.0
        unit_F[group] = 1 / np.sqrt(square) if square > 1e-9 else 0.0
    scaled_NF = features_NF * unit_F
    rows_N = _spread(len(value_N))
    found = [
        (share, _solved(strengths, prior.groups, scaled_NF, value_N))
        for strengths, share in _strengths(prior, scaled_NF[rows_N], value_N[rows_N])
    ]
    total = sum(share for share, _ in found)
    mean_F: FloatArray = np.sum([share * weight_F for share, weight_F in found], axis=0) * unit_F / total
    return mean_F


def _spread(count: int) -> IntArray:
    """Rows that strengths are told by: all, or so many from everywhere that it takes seconds."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_ROWS)).astype(np.intp))


def _strengths(
    prior: Around, scaled_NF: FloatArray, value_N: FloatArray
) -> list[tuple[tuple[float, ...], float]]:
    """The likeliest strengths of the groups' signals, and how likely each is."""
    parts = [scaled_NF[:, group] @ scaled_NF[:, group].T for group in prior.groups]
    tried, likely = list(product(prior.first, *[_OTHERS] * (len(parts) - 1))), []
    for strengths in tried:
        cover_NN = np.eye(len(value_N))
        for strength, part_NN in zip(strengths, parts, strict=True):
            cover_NN += strength * part_NN
        lower_NN = np.linalg.cholesky(cover_NN)
        half_N = np.linalg.solve(lower_NN, value_N)
        left = prior.noise * _PRIOR_ROWS / 2 + float(half_N @ half_N) / 2
        weight = (_PRIOR_ROWS + len(value_N)) / 2
        likely.append(-float(np.log(np.diag(lower_NN)).sum()) - weight * float(np.log(left)))
    share_S = np.exp(np.array(likely) - max(likely))
    best = np.argsort(-share_S, kind="stable")[:_AVERAGED]
    return [(tried[s], float(share_S[s])) for s in best]


def _solved(
    strengths: Sequence[float], groups: Sequence[slice], scaled_NF: FloatArray, value_N: FloatArray
) -> FloatArray:
    """(F,) the weights for one strength of each group; by the smaller one of the two squares."""
    strength_F = np.zeros(scaled_NF.shape[1])
    for strength, group in zip(strengths, groups, strict=True):
        strength_F[group] = strength
    there_F = strength_F > 0
    root_NF = scaled_NF[:, there_F] * np.sqrt(strength_F[there_F])
    weight_F = np.zeros(scaled_NF.shape[1])
    if len(root_NF) <= root_NF.shape[1]:
        inner = root_NF.T @ np.linalg.solve(np.eye(len(root_NF)) + root_NF @ root_NF.T, value_N)
    else:
        inner = np.linalg.solve(np.eye(root_NF.shape[1]) + root_NF.T @ root_NF, root_NF.T @ value_N)
    weight_F[there_F] = np.sqrt(strength_F[there_F]) * inner
    return weight_F
