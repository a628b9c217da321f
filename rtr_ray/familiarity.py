"""Whether a query is like those that a router was trained on, and what becomes of it if not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rtr_ray.errors import ConfigError
from rtr_ray.storage import Store
from rtr_ray.types import BoolArray, Candidate, Estimate, FloatArray, IntArray, RoutingTable

ARRAYS = "familiarity.safetensors"
PRIOR = "prior"
LANDMARKS = 2000
"""Training queries that others are compared with, at most; drawn at random."""
NEIGHBOURS = 10
_BLOCK = 4096
_LEAST = 20  # fewer landmarks say nothing of a 99% quantile


@dataclass(frozen=True, slots=True, eq=False)
class Familiarity:
    """Training queries, and how far each of them is from the others.

    The score of a query is its mean cosine distance to the ten nearest training queries. What counts as
    far is a quantile of the training queries' own scores, each without itself and those related to it.

    Source:
        Sun et al. (2022), Out-of-Distribution Detection with Deep Nearest Neighbors; the mean over the
        neighbours instead of the k-th one.
    """

    landmarks: FloatArray  # (L, D) as they were encoded
    scores: FloatArray  # (S,) of training queries, rising
    _unit_LD: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_unit_LD", _unit(self.landmarks))

    @classmethod
    def of(cls, embeddings_MD: FloatArray, group_M: IntArray, seed: int = 0) -> Familiarity | None:
        """Of the training queries.

        Args:
            embeddings_MD: Of M queries.
            group_M: The same number for related ones (`estimators.base.related`).
            seed: Of the draw.

        Returns:
            None where there are too few to tell.
        """
        rows_L = np.sort(np.random.default_rng(seed).permutation(len(embeddings_MD))[:LANDMARKS])
        if len(np.unique(group_M[rows_L])) < _LEAST:
            return None
        unit_LD, group_L = _unit(embeddings_MD[rows_L]), group_M[rows_L]
        scores = [
            _nearest(np.where(group_L[block, None] == group_L, 2.0, 1 - unit_LD[block] @ unit_LD.T))
            for block in (slice(start, start + _BLOCK) for start in range(0, len(unit_LD), _BLOCK))
        ]
        landmarks = embeddings_MD[rows_L].astype(np.float32)
        return cls(landmarks, np.sort(np.concatenate(scores)).astype(np.float32))

    def score(self, embeddings_QD: FloatArray) -> FloatArray:
        """(Q,) mean cosine distance to the nearest training queries."""
        unit_QD = _unit(embeddings_QD)
        found = [
            _nearest(1 - unit_QD[start : start + _BLOCK] @ self._unit_LD.T)
            for start in range(0, len(unit_QD), _BLOCK)
        ]
        return np.concatenate(found) if found else np.zeros(0)

    def threshold(self, level: float) -> float:
        """The score above which so large a share of the training queries does not lie."""
        return float(np.quantile(self.scores, level))

    def save(self, store: Store) -> None:
        """One file of a router folder."""
        arrays = {"landmarks": self.landmarks, "scores": self.scores}
        store.write(
            ARRAYS, save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        )

    @classmethod
    def load(cls, store: Store) -> Familiarity | None:
        """From a router folder; None where it has none."""
        found = store.read(ARRAYS)
        return None if found is None else cls(**load_tensors(found))


@dataclass(frozen=True, slots=True)
class Caution:
    """What becomes of a query that is not like those of training, and how queries are read."""

    level: float | None = 0.99  # of the training queries' own scores; None: nobody looks
    fallback: str = PRIOR  # or model:strategy
    plainly: bool = False  # see `plainly.plainly`

    def __post_init__(self) -> None:
        if self.level is not None and not 0 < self.level < 1:
            raise ConfigError(f"ood.level is {self.level}; a share between 0 and 1 is needed.")
        if self.fallback != PRIOR:
            Candidate.parse(self.fallback)

    def check(self, candidates: tuple[Candidate, ...]) -> None:
        """Refuse a fallback that is not there.

        Raises:
            ConfigError: Naming the candidates.
        """
        if self.fallback != PRIOR and Candidate.parse(self.fallback) not in candidates:
            raise ConfigError(
                f"ood.fallback is {self.fallback}, which is not a candidate of the pool. Known: "
                f"{', '.join(map(str, candidates))}, or prior."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Guard:
    """Caution, with all that it needs: marks queries and says what stands in for predictions of them."""

    familiarity: Familiarity
    caution: Caution
    usual: Estimate  # (1, C) over the estimator's candidates: the mean over training queries

    def far(self, embeddings_QD: FloatArray) -> BoolArray:
        """(Q,) whether a query is unlike those of training."""
        far_Q: BoolArray = self.familiarity.score(embeddings_QD) > self.threshold
        return far_Q

    @property
    def threshold(self) -> float:
        """Of the score."""
        return np.inf if self.caution.level is None else self.familiarity.threshold(self.caution.level)

    def believed(self, estimate: Estimate, far_Q: BoolArray) -> Estimate:
        """The estimate, with what candidates are like on average in the rows of far queries."""
        names = ("accuracy", "output_tokens", "output_tokens_p95")
        return Estimate(
            *(np.where(far_Q[:, None], getattr(self.usual, n), getattr(estimate, n)) for n in names)
        )

    def marked(self, table: RoutingTable, far_Q: BoolArray) -> RoutingTable:
        """The table, in which far queries are marked and, where a candidate is named, may go nowhere else.

        A query that this candidate cannot take keeps the others.
        """
        allowed_QC = table.allowed
        if self.caution.fallback != PRIOR:
            column = table.candidates.index(Candidate.parse(self.caution.fallback))
            bound_Q = far_Q & table.allowed[:, column]
            only_C = np.arange(len(table.candidates)) == column
            allowed_QC = np.where(bound_Q[:, None], only_C, table.allowed)
        return replace(table, allowed=allowed_QC, unfamiliar=far_Q)


def usual_of(estimate: Estimate) -> Estimate:
    """(1, C) the mean of predictions for many queries; of the tail, what covers most of them."""
    return Estimate(
        estimate.accuracy.mean(axis=0, keepdims=True),
        estimate.output_tokens.mean(axis=0, keepdims=True),
        np.quantile(estimate.output_tokens_p95, 0.95, axis=0, keepdims=True).astype(np.float32),
    )


def _unit(rows_QD: FloatArray) -> FloatArray:
    norm_Q1 = np.linalg.norm(rows_QD, axis=1, keepdims=True)
    unit_QD: FloatArray = (rows_QD / np.where(norm_Q1 == 0, 1, norm_Q1)).astype(np.float32)
    return unit_QD


def _nearest(distance_QL: FloatArray) -> FloatArray:
    """(Q,) the mean of the smallest ones."""
    count = min(NEIGHBOURS, distance_QL.shape[1])
    nearest_QK = np.partition(distance_QL, count - 1, axis=1)[:, :count]
    mean_Q: FloatArray = nearest_QK.mean(axis=1)
    return mean_Q
