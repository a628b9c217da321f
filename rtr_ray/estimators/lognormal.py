"""The lengths of answers as log-normal numbers, cut at a limit. Numpy only.

The mean of a log-normal is not the exponential of its mean logarithm: it is larger by
exp(spread^2 / 2), a quarter and more on long tails. And an answer that was cut at `max_tokens`
says only that it would have been longer.
"""

from __future__ import annotations

import numpy as np

from rtr_ray.types import FloatArray


def capped_mean(mean: FloatArray, spread: FloatArray, limit: FloatArray) -> FloatArray:
    """E[min(X, limit)] for log X normal with this mean and spread (standard deviation).

    exp(m + s^2/2) Phi((ln T - m - s^2) / s) + T (1 - Phi((ln T - m) / s)); all arrays broadcast,
    an infinite limit gives the plain mean.
    """
    uncapped = np.exp(mean + spread**2 / 2)
    finite = np.where(np.isfinite(limit), limit, 1.0)
    distance = (np.log(finite) - mean) / spread
    capped = uncapped * normal_cdf(distance - spread) + finite * (1 - normal_cdf(distance))
    result: FloatArray = np.where(np.isfinite(limit), capped, uncapped)
    return result


def quantile(mean: FloatArray, spread: FloatArray, z: float) -> FloatArray:
    """The quantile of X whose normal score is `z`."""
    result: FloatArray = np.exp(mean + z * spread)
    return result


def normal_cdf(x: FloatArray) -> FloatArray:
    """The standard normal distribution function, within 1e-7.

    Source:
        Abramowitz and Stegun, formula 26.2.17.
    """
    t = 1 / (1 + 0.2316419 * np.abs(x))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    upper = np.exp(-(x**2) / 2) * 0.3989422804014327 * poly
    result: FloatArray = np.where(x >= 0, 1 - upper, upper)
    return result
