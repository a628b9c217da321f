"""What a candidate is like before its first outcome: those that its profile resembles, in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rtr_ray.errors import RouterError
from rtr_ray.estimators.base import Profiles
from rtr_ray.types import Candidate, FloatArray

ACCURACY = (0.35, 0.25, 0.25, 0.15)
LENGTH = (0.15, 0.55, 0.2, 0.1)
"""Shares of what differs between candidates: by model, by strategy, by the pair, and by nothing known."""
_WIDTH = 0.25  # of the cosine distance at which profiles tell little of each other


def blend(
    known: Sequence[Candidate],
    new: Sequence[Candidate],
    profiles: Profiles,
    shares: tuple[float, float, float, float] = ACCURACY,
) -> FloatArray:
    """(N, C) how much each known candidate says of each new one; rows add up to 1, none is barred from
    being negative: small:cot is large:cot less what small:vanilla lacks of large:vanilla.

    Candidates are taken as draws of one Gaussian process, whose covariance is high between models of
    alike profiles and between strategies of alike profiles; this is its best linear guess with a mean
    that nobody knows.

    Args:
        known: C candidates with outcomes.
        new: N without.
        profiles: Of all their models and strategies.
        shares: `ACCURACY` or `LENGTH`: how long answers are is a matter of the strategy, mostly.

    Raises:
        RouterError: If a profile is missing.

    Source:
        Ordinary kriging (Matheron, 1963); covariances that add up over model, strategy and pair as in
        Duvenaud et al. (2011), Additive Gaussian processes.
    """
    every = [*known, *new]
    model_AA = _alike([c.model for c in every], profiles.models, "model")
    strategy_AA = _alike([c.strategy for c in every], profiles.strategies, "strategy")
    log_A = np.log([c.samples for c in every])
    strategy_AA = strategy_AA * np.exp(-np.abs(log_A[:, None] - log_A))
    of_model, of_strategy, of_both, own = shares
    near_AA = of_model * model_AA + of_strategy * strategy_AA + of_both * model_AA * strategy_AA
    width = len(known)
    system = np.zeros((width + 1, width + 1))
    system[:width, :width] = near_AA[:width, :width] + own * np.eye(width)
    system[:width, width] = system[width, :width] = 1.0
    asked = np.ones((width + 1, len(new)))
    asked[:width] = near_AA[:width, width:]
    blend_NC: FloatArray = np.linalg.solve(system, asked)[:width].T
    return blend_NC


def _alike(names: Sequence[str], texts: Mapping[str, FloatArray], what: str) -> FloatArray:
    """(A, A) 1 for the same profile, towards 0 for one that has nothing to do with it."""
    lacking = sorted({name for name in names if name not in texts})
    if lacking:
        raise RouterError(
            f"The router does not know the profile text of the {what} {', '.join(lacking)}. Give the pool "
            "that it was trained on (--pool)."
        )
    rows_AD = np.stack([np.asarray(texts[name], dtype=np.float64) for name in names])
    norm_A1 = np.linalg.norm(rows_AD, axis=1, keepdims=True)
    unit_AD = rows_AD / np.where(norm_A1 == 0, 1, norm_A1)
    apart_AA = np.maximum(1 - unit_AD @ unit_AD.T, 0.0)
    same_AA = np.array([[one == other for other in names] for one in names])
    alike_AA: FloatArray = np.where(same_AA, 1.0, np.exp(-apart_AA / _WIDTH))
    return alike_AA
