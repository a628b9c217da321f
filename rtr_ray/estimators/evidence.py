"""Gaussian processes whose signal is as strong as the training data makes likely, nil included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtr_ray.estimators.base import mean_of_seen
from rtr_ray.estimators.ridge import Basis
from rtr_ray.types import BoolArray, FloatArray

SIGNALS = (0.0, *10.0 ** np.arange(-2.0, 2.1, 0.25))
"""Variance of what features tell, over that of what they do not; tried."""


@dataclass(frozen=True, slots=True, eq=False)
class Telling:
    """What features tell of C columns: a weight for each, and the value where they tell nothing."""

    weight_DC: FloatArray  # D features
    mean_C: FloatArray
    left_out_MC: FloatArray  # told of each training query without itself; NaN where nothing was seen


def told_by(features_MF: FloatArray, values_MC: FloatArray) -> Telling:
    """Regress columns on features, as much as the training data makes likely.

    Two answers are averaged. The first knows what is common to the candidates of a query and each
    one's own part, with a strength of signal for either. The second takes the principal components of
    the values, each with a strength of its own: candidates that are good at the same things are
    learned of together, and a direction that is noise is left alone. Components need whole rows; where
    cells are missing they are the candidates, each alone.

    Args:
        features_MF: Of M queries; their inner products are the covariance.
        values_MC: NaN where nothing was seen.

    Source:
        Multi-task Gaussian processes (Bonilla et al., 2007) with both covariances diagonal in one
        basis; the signal by the evidence (MacKay, 1992), with the noise's variance integrated out.
    """
    mean_C = mean_of_seen(values_MC)
    apart_MC = values_MC - mean_C
    seen_M = ~np.isnan(apart_MC).all(axis=1)
    common_M = np.full(len(values_MC), np.nan)
    common_M[seen_M] = np.nanmean(apart_MC[seen_M], axis=1)
    own_MC = apart_MC - common_M[:, None]
    width = values_MC.shape[1]
    bases: dict[bytes, _Spectrum] = {}
    parts = [
        _solved(bases, features_MF, common_M[:, None], np.ones((1, width)), [[0]]),
        _solved(bases, features_MF, own_MC, np.eye(width), [list(range(width))]),
    ]
    told = [common + own for common, own in zip(*parts, strict=True)]
    if width > 1:
        part_CC, rotated_MC = np.eye(width), apart_MC
        if not np.isnan(apart_MC).any():
            _, part_CC = np.linalg.eigh(apart_MC.T @ apart_MC)
            rotated_MC = apart_MC @ part_CC
        other = _solved(bases, features_MF, rotated_MC, part_CC.T, [[c] for c in range(width)])
        told = [(one + two) / 2 for one, two in zip(told, other, strict=True)]
    return Telling(told[0], mean_C + told[1], mean_C + told[2])


def _solved(
    bases: dict[bytes, _Spectrum],
    features_MF: FloatArray,
    values_MJ: FloatArray,
    direction_JC: FloatArray,
    groups: list[list[int]],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights, offsets and what is told of each training query without itself; in the columns C.

    Args:
        bases: Of features, by the queries that a column was seen on.
        features_MF: Of M queries.
        values_MJ: Along J directions.
        direction_JC: The directions.
        groups: Which of them have one signal together.
    """
    weight_FJ = np.zeros((features_MF.shape[1], len(direction_JC)))
    offset_J, left_out_MJ = np.zeros(len(direction_JC)), np.full(values_MJ.shape, np.nan)
    for group in groups:
        columns = [_Column.of(bases, features_MF, values_MJ[:, j]) for j in group]
        likely_S = [sum(one.evidence(signal) for one in columns) for signal in SIGNALS]
        signal = SIGNALS[int(np.argmax(likely_S))]
        for j, one in zip(group, columns, strict=True):
            weight_FJ[:, j], offset_J[j] = one.solved(signal)
            left_out_MJ[one.spectrum.basis.seen_M, j] = one.left_out(signal)
    if len(direction_JC) == direction_JC.shape[1] and np.array_equal(direction_JC, np.eye(len(direction_JC))):
        left_out_MC = left_out_MJ  # a missing cell must not hide the others of its row
    else:
        left_out_MC = left_out_MJ @ direction_JC
    return weight_FJ @ direction_JC, offset_J @ direction_JC, left_out_MC


@dataclass(frozen=True, slots=True, eq=False)
class _Spectrum:
    """Features of the queries that a column was seen on, in units of their mean square."""

    basis: Basis
    unit: float
    weight_K: FloatArray  # eigenvalues of the covariance

    @classmethod
    def of(cls, features_MF: FloatArray, seen_M: BoolArray) -> _Spectrum:
        basis = Basis.of(features_MF, seen_M)
        unit = float((basis.size_K**2).sum()) / max(int(seen_M.sum()), 1) or 1.0
        return cls(basis, unit, basis.size_K**2 / unit)


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """One regression."""

    spectrum: _Spectrum
    mean: float
    value_N: FloatArray  # without their mean
    along_K: FloatArray  # the values along the left vectors
    rest: float  # squares of what no feature can tell

    @classmethod
    def of(cls, bases: dict[bytes, _Spectrum], features_MF: FloatArray, value_M: FloatArray) -> _Column:
        seen_M = ~np.isnan(value_M)
        key = seen_M.tobytes()
        if key not in bases:
            bases[key] = _Spectrum.of(features_MF, seen_M)
        spectrum, mean = bases[key], float(value_M[seen_M].mean())
        centred_N = value_M[seen_M] - mean
        along_K = spectrum.basis.left_NK.T @ centred_N
        rest = max(float((centred_N**2).sum() - (along_K**2).sum()), 0.0)
        return cls(spectrum, mean, centred_N, along_K, rest)

    def evidence(self, signal: float) -> float:
        """The logarithm of how likely the values are, up to a constant."""
        grown_K = 1 + signal * self.spectrum.weight_K
        left = float((self.along_K**2 / grown_K).sum()) + self.rest
        return -0.5 * float(np.log(grown_K).sum()) - 0.5 * len(self.value_N) * float(np.log(max(left, 1e-12)))

    def solved(self, signal: float) -> tuple[FloatArray, float]:
        """The weights, and what a query at the origin gets."""
        basis, spectrum = self.spectrum.basis, self.spectrum
        share_K = signal / spectrum.unit * basis.size_K / (1 + signal * spectrum.weight_K)
        weight_F: FloatArray = basis.right_KD.T @ (share_K * self.along_K)
        return weight_F, self.mean - float(basis.centre_D @ weight_F)

    def left_out(self, signal: float) -> FloatArray:
        """(N,) what is told of each query without it."""
        grown_K = signal * self.spectrum.weight_K
        shrink_K, left_NK = grown_K / (1 + grown_K), self.spectrum.basis.left_NK
        leverage_N = (left_NK**2) @ shrink_K + 1 / len(self.value_N)
        error_N = (self.value_N - left_NK @ (shrink_K * self.along_K)) / np.maximum(1 - leverage_N, 1e-6)
        told_N: FloatArray = self.mean + self.value_N - error_N
        return told_N
