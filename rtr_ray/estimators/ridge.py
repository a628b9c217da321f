"""Ridge regressions that leave each query out without being fitted again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtr_ray.estimators.base import level_means, mean_of_seen
from rtr_ray.types import BoolArray, FloatArray

PENALTIES = tuple(10.0 ** np.arange(-2.0, 5.1, 0.5))  # tried; embeddings have unit length
_CELLS = 2.0  # so many cells' weight has the belief that a row is no harder than was told
_LEAST_SHARE = 1e-11  # of the largest squared singular value: what is smaller is rounding


def together(unit_MD: FloatArray, values_MC: FloatArray, penalty: float | None) -> Ridge:
    """The regression of what is common to all candidates, and those of what is not, added up."""
    mean_C = level_means(values_MC)
    apart_MC = values_MC - mean_C
    bases: dict[bytes, Basis] = {}  # most columns were seen on the same queries
    alone_MC = None
    if np.isnan(apart_MC).any():
        alone = Ridge.fit(unit_MD, apart_MC, penalty, bases)
        told_MC = unit_MD @ alone.weight_DC + alone.mean_C
        # without what came of a candidate's queries being easier than others'
        alone_MC = np.where(np.isnan(apart_MC), told_MC, alone.left_out_MC) - mean_of_seen(apart_MC)
    common_M = common_of(apart_MC, alone_MC)
    common = Ridge.fit(unit_MD, common_M[:, None], penalty, bases)
    own = Ridge.fit(unit_MD, apart_MC - common_M[:, None], penalty, bases)
    return Ridge(
        common.weight_DC + own.weight_DC,
        mean_C + common.mean_C + own.mean_C,
        mean_C + common.left_out_MC + own.left_out_MC,
    )


def common_of(apart_MC: FloatArray, alone_MC: FloatArray | None) -> FloatArray:
    """(M,) what is common to a query's candidates; NaN where none was seen.

    The mean over the candidates. One that was not run stands there as what is told of it alone, moved by
    what those that were run are off: the mean over these few would take what is each one's own for
    common, and a row with one cell would say that nothing is anybody's own.

    Args:
        apart_MC: Of M queries, without the candidates' means; NaN: not run.
        alone_MC: What is told of each candidate without the others; of a cell that was run, without that
            cell. None: every cell was run.
    """
    seen_MC = ~np.isnan(apart_MC)
    seen_M = seen_MC.any(axis=1)
    common_M = np.full(len(apart_MC), np.nan)
    if alone_MC is None:
        common_M[seen_M] = np.nanmean(apart_MC[seen_M], axis=1)
        return common_M
    off_M = np.where(seen_MC, apart_MC - alone_MC, 0.0).sum(axis=1) / (seen_MC.sum(axis=1) + _CELLS)
    filled_MC = np.where(seen_MC, apart_MC, alone_MC + off_M[:, None])
    common_M[seen_M] = filled_MC[seen_M].mean(axis=1)
    return common_M


@dataclass(frozen=True, slots=True, eq=False)
class Ridge:
    """Regressions of C columns on D features."""

    weight_DC: FloatArray
    mean_C: FloatArray  # what a query at the origin gets
    left_out_MC: FloatArray  # predicted without the query itself; NaN where nothing was seen

    @classmethod
    def fit(
        cls,
        unit_MD: FloatArray,
        values_MC: FloatArray,
        penalty: float | None,
        bases: dict[bytes, Basis] | None = None,
    ) -> Ridge:
        """With the penalty that leaves out best over all columns; `bases` keeps what was decomposed."""
        tried = PENALTIES if penalty is None else (penalty,)
        bases = {} if bases is None else bases
        columns = []
        for value_M in values_MC.T:
            seen_M = ~np.isnan(value_M)
            basis = bases.get(seen_M.tobytes()) or Basis.of(unit_MD, seen_M)
            bases[seen_M.tobytes()] = basis
            columns.append(_Column.of(basis, value_M[seen_M]))
        error_P = [sum(float((one.left_out(p) ** 2).sum()) for one in columns) for p in tried]
        best = tried[int(np.argmin(error_P))]
        left_out_MC = np.full(values_MC.shape, np.nan)
        for column, one in enumerate(columns):
            seen_M = one.basis.seen_M
            left_out_MC[seen_M, column] = values_MC[seen_M, column] - one.left_out(best)
        solved = [one.solved(best) for one in columns]
        return cls(
            np.stack([weight_D for weight_D, _ in solved], axis=1),
            np.array([mean for _, mean in solved]),
            left_out_MC,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The singular values of the features of some queries: any penalty is then a few products."""

    seen_M: BoolArray
    centre_D: FloatArray
    left_NK: FloatArray
    size_K: FloatArray
    right_KD: FloatArray

    @classmethod
    def of(cls, unit_MD: FloatArray, seen_M: BoolArray) -> Basis:
        features_ND = unit_MD[seen_M].astype(np.float64)
        centre_D = features_ND.mean(axis=0)
        apart_ND = features_ND - centre_D
        # by the smaller one of the two squares: several times as quick as the decomposition of the features
        wide = apart_ND.shape[0] < apart_ND.shape[1]
        square_KK, vector_KK = np.linalg.eigh(apart_ND @ apart_ND.T if wide else apart_ND.T @ apart_ND)
        kept_K = square_KK > max(_LEAST_SHARE * square_KK[-1], 1e-300)
        size_K, vector_NK = np.sqrt(square_KK[kept_K]), vector_KK[:, kept_K]
        if wide:
            return cls(seen_M, centre_D, vector_NK, size_K, (apart_ND.T @ vector_NK / size_K).T)
        return cls(seen_M, centre_D, apart_ND @ vector_NK / size_K, size_K, vector_NK.T)


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """One regression."""

    basis: Basis
    mean: float
    along_K: FloatArray  # the values along the left vectors
    value_N: FloatArray  # without their mean

    @classmethod
    def of(cls, basis: Basis, value_N: FloatArray) -> _Column:
        centred_N = value_N - value_N.mean()
        return cls(basis, float(value_N.mean()), basis.left_NK.T @ centred_N, centred_N)

    def left_out(self, penalty: float) -> FloatArray:
        """(N,) the error at each query of the regression without it."""
        left_NK, size_K = self.basis.left_NK, self.basis.size_K
        shrink_K = size_K**2 / (size_K**2 + penalty)
        leverage_N = (left_NK**2) @ shrink_K + 1 / len(self.value_N)
        error_N: FloatArray = self.value_N - left_NK @ (shrink_K * self.along_K)
        error_N /= np.maximum(1 - leverage_N, 1e-6)
        return error_N

    def solved(self, penalty: float) -> tuple[FloatArray, float]:
        """The weights, and what a query at the origin gets."""
        size_K = self.basis.size_K
        weight_D: FloatArray = self.basis.right_KD.T @ (size_K / (size_K**2 + penalty) * self.along_K)
        return weight_D, self.mean - float(self.basis.centre_D @ weight_D)


def unit(rows_QD: FloatArray) -> FloatArray:
    """(Q, D) of length 1; zero stays zero."""
    norm_Q = np.linalg.norm(rows_QD, axis=1, keepdims=True)
    unit_QD: FloatArray = (rows_QD / np.where(norm_Q == 0, 1, norm_Q)).astype(np.float32)
    return unit_QD
