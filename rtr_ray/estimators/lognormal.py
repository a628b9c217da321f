"""The lengths of answers as log-normal numbers, cut at a limit. Numpy only.

The mean of a log-normal is not the exponential of its mean logarithm: it is larger by
exp(spread^2 / 2), a quarter and more on long tails. And an answer that was cut at `max_tokens`
says only that it would have been longer.
"""

from __future__ import annotations

import numpy as np

from rtr_ray.types import FloatArray

LONGEST = 1e9
"""No answer has more tokens: keeps a spread that nothing was learned about from making infinite ones."""

_DENSITY_AT_ZERO = 0.3989422804014327  # of the standard normal distribution


def capped_mean(mean: FloatArray, spread: FloatArray, limit: FloatArray) -> FloatArray:
    """E[min(X, T)] for log X normal with this mean and spread (standard deviation).

    exp(m + s^2/2) Phi(d - s) + T (1 - Phi(d)) with d = (ln T - m) / s, within 1e-4 for spreads
    up to 4. Written with exp(m + s^2/2) phi(d - s) = T phi(d), so that nothing overflows where
    the spread is large. All arrays broadcast; an infinite T is taken as `LONGEST`.
    """
    limit = np.minimum(limit, LONGEST)
    log_limit = np.log(limit)
    distance = (log_limit - mean) / spread
    density = limit * (np.exp(distance**2 / -2) * _DENSITY_AT_ZERO)
    below, beyond = density * _mills(np.abs(distance - spread)), density * _mills(np.abs(distance))
    plain = np.exp(np.minimum(mean + spread**2 / 2, log_limit))  # is read where it is below the limit
    result: FloatArray = np.where(distance <= spread, below, plain - below) + np.where(
        distance >= 0, beyond, limit - beyond
    )
    return result


def quantile(mean: FloatArray, spread: FloatArray, z: float) -> FloatArray:
    """The quantile of X whose normal score is `z`, `LONGEST` at most."""
    result: FloatArray = np.exp(np.minimum(mean + z * spread, np.float32(np.log(LONGEST))))
    return result


def _mills(x: FloatArray) -> FloatArray:
    """(1 - Phi(x)) / phi(x) for x >= 0.

    Source:
        Abramowitz and Stegun, formula 26.2.17.
    """
    t = 1 / (1 + 0.2316419 * x)
    ratio: FloatArray = t * (
        0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    )
    return ratio
