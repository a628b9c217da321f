"""Which cells to label next: the (query, candidate) pairs from which a router gains most per dollar.

What is believed of accuracy is a Gaussian process that is small enough to be asked of every cell: a
linear model of each candidate in a few principal directions of the embeddings, with a part that all
candidates share. Pure numpy; no estimator is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.types import BoolArray, FloatArray, IntArray

RULES = ("contest", "decision", "tempered", "variance", "thrifty", "cells", "rows")
"""See `Acquisition.rule`."""
_DIRECTIONS = 24
_COMMON, _OWN = 0.6, 0.4  # of the variance of what can be told of a query: for all candidates, for each alone
_TOLD = 0.06  # variance of what can be told of a query
_MEAN = 0.06  # variance of a candidate's mean accuracy
_NOISE = 0.17  # of one answer, beside that
_PRICES = (
    0.0,
    0.03,
    0.1,
    0.3,
    1.0,
)  # accuracy per mean cost: the range of trade-offs that choices are made at
_STEPS = 12  # in which a batch is chosen: after each, what it will teach is counted as known
_CONTENDS = 0.25  # of the highest mean stake
_BLUR = 0.02  # standard deviation below which two candidates are a tie whatever is known


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Queries that may be labelled, and what is known of them."""

    embeddings: FloatArray  # (M, D)
    accuracy: FloatArray  # (M, C) NaN: not known
    asked: BoolArray  # (M, C) never asked again, whatever came of it
    cost_usd: FloatArray  # (M, C) expected, or any other unit that is paid

    @property
    def shape(self) -> tuple[int, int]:
        """M, C."""
        return self.accuracy.shape[0], self.accuracy.shape[1]


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How the next cells are chosen.

    Rules:
        contest: as decision, in rows: each with all candidates between which choices hang in the balance
            anywhere. An estimator compares the candidates of a row with each other, which a lone cell does
            not allow.
        decision: what a label is expected to tell of cells in which a choice hangs in the balance (on a
            range of prices of a dollar), per dollar of the label.
        tempered: as decision, per square root of the dollars: the belief above takes a cheap candidate's
            labels for all the better, the more of them there are.
        variance: what a label is expected to tell of all cells alike, per dollar.
        thrifty: cells at random, more of the cheap ones: with probability ~ 1 / sqrt(cost).
        cells: cells at random.
        rows: whole rows at random.

    Source:
        Cohn, Ghahramani and Jordan (1996), Active Learning with Statistical Models (expected reduction
        of variance); per cost: Settles, Craven and Friedland (2008); allocation by the square root of
        the cost: Neyman (1934).
    """

    rule: str = "tempered"
    first_rows: int = 12  # whole rows, spread over all kinds of queries, before anything else
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"Unknown rule '{self.rule}'. Known rules: {', '.join(RULES)}.")
        if self.first_rows < 1:
            raise ConfigError(f"first_rows is {self.first_rows}; 1 is the least.")

    def next(self, pool: Pool, budget_usd: float) -> list[tuple[int, int]]:
        """(row, column) of cells to be labelled, whose expected cost is within the budget.

        Args:
            pool: Queries, and what is known of them.
            budget_usd: For this batch.

        Returns:
            In the order in which they are wanted; empty where nothing affordable is left.
        """
        dice = np.random.default_rng([self.seed, int(pool.asked.sum())])
        order = self._first(pool) if self.rule != "rows" else []
        left = budget_usd - sum(float(pool.cost_usd[cell]) for cell in order)
        if order and left <= 0:
            return _affordable(order, pool, budget_usd)
        if self.rule in ("contest", "decision", "tempered", "variance"):
            return _affordable(order + self._informed(pool, left, order), pool, budget_usd)
        free_MC = _free(pool, order)
        if self.rule == "rows":
            rows = dice.permutation(np.flatnonzero(free_MC.any(axis=1)))
            order = [(int(row), int(c)) for row in rows for c in np.flatnonzero(free_MC[row])]
            return _affordable(order, pool, budget_usd)
        cells = np.argwhere(free_MC)
        weight = np.ones(len(cells))
        if self.rule == "thrifty":
            weight = 1 / np.sqrt(np.maximum(pool.cost_usd[free_MC], 1e-12))
        # the order of a draw without replacement: exponential times over weights
        drawn = np.argsort(dice.exponential(size=len(cells)) / weight, kind="stable")
        order += [(int(row), int(column)) for row, column in cells[drawn]]
        return _affordable(order, pool, budget_usd)

    def _first(self, pool: Pool) -> list[tuple[int, int]]:
        """Whole rows that are spread out, until there are enough of them."""
        whole_M = pool.asked.all(axis=1)
        lacking = self.first_rows - int(whole_M.sum())
        if lacking <= 0:
            return []
        rows = spread_rows(pool.embeddings, lacking, np.flatnonzero(pool.asked.any(axis=1)), self.seed)
        return [(int(row), column) for row in rows for column in np.flatnonzero(~pool.asked[row])]

    def _informed(
        self, pool: Pool, budget_usd: float, ahead: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """The best cells, in steps: after each, what it will teach is counted as known."""
        belief = Belief.of(pool.embeddings, pool.accuracy)
        free_MC = _free(pool, ahead)
        belief = belief.told(ahead)
        found: list[tuple[int, int]] = []
        left = budget_usd
        for step in range(_STEPS):
            affordable_MC = free_MC & (pool.cost_usd <= left)
            if not affordable_MC.any():
                break
            even_MC = np.ones(pool.shape)
            weight_MC = even_MC if self.rule == "variance" else belief.stake(pool.cost_usd)
            gain_MC = belief.gain(weight_MC)
            contending_MC = affordable_MC & _contenders(weight_MC)
            groups = (
                _rows_of(gain_MC, contending_MC if contending_MC.any() else affordable_MC, pool.cost_usd)
                if self.rule == "contest"
                else _cells_of(gain_MC, affordable_MC, pool.cost_usd, 0.5 if self.rule == "tempered" else 1.0)
            )
            share, taken = left / (_STEPS - step), 0.0
            mine: list[tuple[int, int]] = []
            for group in groups:
                cost = sum(float(pool.cost_usd[cell]) for cell in group)
                if taken + cost > (share if mine else left):
                    break
                mine += group
                taken += cost
            for cell in mine:
                free_MC[cell] = False
            found += mine
            left -= taken
            belief = belief.told(mine)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """Normal distribution of the weights of a linear model of each candidate."""

    features: FloatArray  # (M, K) the first is a constant
    mean: FloatArray  # (C, K)
    precision: FloatArray  # (C K, C K)
    known: Mapping[tuple[int, int], float] = field(default_factory=dict)

    @classmethod
    def of(cls, embeddings_MD: FloatArray, accuracy_MC: FloatArray) -> Belief:
        """What the known cells say.

        Args:
            embeddings_MD: Of M queries.
            accuracy_MC: NaN: not known.
        """
        features_MK = _directions(embeddings_MD)
        width, size = accuracy_MC.shape[1], features_MK.shape[1]
        shared_CC = _COMMON * np.ones((width, width)) + _OWN * np.eye(width)
        told_K = np.full(size, _TOLD)
        told_K[0] = _MEAN
        inverse_CC = np.linalg.inv(shared_CC)
        precision = np.kron(inverse_CC, np.diag(1 / told_K))
        seen_MC = ~np.isnan(accuracy_MC)
        start = float(accuracy_MC[seen_MC].mean()) if seen_MC.any() else 0.5
        right = np.zeros((width, size))
        for column in range(width):
            known_NK = features_MK[seen_MC[:, column]]
            block = slice(column * size, (column + 1) * size)
            precision[block, block] += known_NK.T @ known_NK / _NOISE
            right[column] = known_NK.T @ (accuracy_MC[seen_MC[:, column], column] - start) / _NOISE
        mean_CK = np.linalg.solve(precision, right.reshape(-1)).reshape(width, size)
        mean_CK[:, 0] += start
        return cls(features_MK, mean_CK, precision)

    @property
    def accuracy(self) -> FloatArray:
        """(M, C) believed."""
        believed_MC: FloatArray = np.clip(self.features @ self.mean.T, 0, 1)
        return believed_MC

    def told(self, cells: Sequence[tuple[int, int]]) -> Belief:
        """As sure as it will be once these cells are known; what they will say is not."""
        if not cells:
            return self
        size = self.features.shape[1]
        precision = self.precision.copy()
        columns = np.array([column for _, column in cells])
        rows = np.array([row for row, _ in cells])
        for column in np.unique(columns):
            new_NK = self.features[rows[columns == column]]
            block = slice(column * size, (column + 1) * size)
            precision[block, block] += new_NK.T @ new_NK / _NOISE
        return Belief(self.features, self.mean, precision)

    def stake(self, cost_MC: FloatArray) -> FloatArray:
        """(M, C) how likely it is that a choice hangs on the cell: 1 for a tie with the best, towards 0.

        The mean over prices of a dollar; of a query's best candidate, as of its nearest rival.
        """
        covariance, size = np.linalg.inv(self.precision), self.features.shape[1]
        variance_MC = np.stack(
            [
                np.einsum("mk,kl,ml->m", self.features, covariance[block, block], self.features)
                for block in (slice(c * size, (c + 1) * size) for c in range(len(self.mean)))
            ],
            axis=1,
        )
        relative_MC = cost_MC / max(float(cost_MC.mean()), 1e-12)
        rows, total_MC = np.arange(len(cost_MC)), np.zeros(cost_MC.shape)
        for price in _PRICES:
            score_MC = self.accuracy - price * relative_MC
            best_M = score_MC.argmax(axis=1)
            behind_MC = score_MC[rows, best_M][:, None] - score_MC
            spread_MC = variance_MC + variance_MC[rows, best_M][:, None] + _BLUR**2
            near_MC = np.exp(-0.5 * behind_MC**2 / spread_MC)
            near_MC[rows, best_M] = 0.0
            near_MC[rows, best_M] = near_MC.max(axis=1)
            total_MC += near_MC / len(_PRICES)
        return total_MC

    def gain(self, weight_MC: FloatArray) -> FloatArray:
        """(M, C) by how much knowing a cell is expected to lessen the weighed variance of all cells."""
        covariance, size = np.linalg.inv(self.precision), self.features.shape[1]
        width = len(self.mean)
        blocks = [slice(c * size, (c + 1) * size) for c in range(width)]
        inner = [self.features.T @ (weight_MC[:, c, None] * self.features) for c in range(width)]
        found_MC = np.empty(weight_MC.shape)
        for column, block in enumerate(blocks):
            reach = covariance[:, block]
            square_KK = sum(
                (reach[other].T @ inner_KK @ reach[other]
                for other, inner_KK in zip(blocks, inner, strict=True)),
                start=np.zeros((size, size)),
            )  # fmt: skip
            variance_M = np.einsum("mk,kl,ml->m", self.features, covariance[block, block], self.features)
            told_M = np.einsum("mk,kl,ml->m", self.features, square_KK, self.features)
            found_MC[:, column] = told_M / (variance_M + _NOISE)
        return found_MC


def _contenders(stake_MC: FloatArray) -> BoolArray:
    """(C,) candidates on which choices hang somewhere."""
    stake_C = stake_MC.mean(axis=0)
    found_C: BoolArray = stake_C >= _CONTENDS * stake_C.max()
    return found_C


def _cells_of(
    gain_MC: FloatArray, free_MC: BoolArray, cost_MC: FloatArray, power: float
) -> list[list[tuple[int, int]]]:
    """Free cells, each alone, those first that gain most per dollar, or a power of it."""
    worth_MC = np.where(free_MC, gain_MC / np.maximum(cost_MC, 1e-12) ** power, -np.inf)
    order = np.argsort(-worth_MC, axis=None, kind="stable")[: int(free_MC.sum())]
    return [
        [(int(row), int(column))] for row, column in zip(*np.unravel_index(order, free_MC.shape), strict=True)
    ]


def _rows_of(gain_MC: FloatArray, free_MC: BoolArray, cost_MC: FloatArray) -> list[list[tuple[int, int]]]:
    """The free cells of each row, those rows first that gain most per dollar."""
    gain_M, cost_M = (np.where(free_MC, one, 0.0).sum(axis=1) for one in (gain_MC, cost_MC))
    worth_M = np.where(free_MC.any(axis=1), gain_M / np.maximum(cost_M, 1e-12), -np.inf)
    order = np.argsort(-worth_M, kind="stable")[: int(free_MC.any(axis=1).sum())]
    return [[(int(row), int(column)) for column in np.flatnonzero(free_MC[row])] for row in order]


def spread_rows(
    embeddings_MD: FloatArray, count: int, known: Sequence[int] | IntArray, seed: int
) -> list[int]:
    """Rows that lie far from each other and from known ones, most typical first.

    Candidates are drawn as in k-means++: with probability as the squared distance to the nearest one
    that was taken, so that a lone outlier is not sure to come, as it is in the k-centre rule.

    Source:
        Arthur and Vassilvitskii (2007).
    """
    dice = np.random.default_rng(seed)
    norm_M1 = np.linalg.norm(embeddings_MD, axis=1, keepdims=True)
    unit_MD = embeddings_MD / np.where(norm_M1 == 0, 1, norm_M1)
    taken = [int(row) for row in known]
    found: list[int] = []
    apart_M = np.ones(len(unit_MD))
    if taken:
        apart_M = np.maximum(1 - (unit_MD @ unit_MD[taken].T).max(axis=1), 0.0)
    apart_M[taken] = 0.0
    while len(found) < count and apart_M.sum() > 1e-9:
        row = int(dice.choice(len(apart_M), p=apart_M / apart_M.sum()))
        found.append(row)
        apart_M = np.minimum(apart_M, np.maximum(1 - unit_MD @ unit_MD[row], 0.0))
        apart_M[row] = 0.0
    rest = [row for row in dice.permutation(len(unit_MD)).tolist() if row not in {*taken, *found}]
    return found + rest[: count - len(found)]


def _directions(embeddings_MD: FloatArray) -> FloatArray:
    """(M, K) a constant, and the principal directions, whose squares add up to 1 on average."""
    norm_M1 = np.linalg.norm(embeddings_MD, axis=1, keepdims=True)
    apart_MD = (embeddings_MD / np.where(norm_M1 == 0, 1, norm_M1)).astype(np.float64)
    apart_MD -= apart_MD.mean(axis=0)
    square_DD = apart_MD.T @ apart_MD
    size_D, vector_DD = np.linalg.eigh(square_DD)
    kept = [d for d in range(len(size_D))[::-1] if size_D[d] > 1e-9 * max(size_D[-1], 1e-12)][:_DIRECTIONS]
    along_MK = apart_MD @ vector_DD[:, kept]
    scale = np.sqrt(float((along_MK**2).sum(axis=1).mean())) if kept else 1.0
    return np.concatenate([np.ones((len(apart_MD), 1)), along_MK / (scale or 1.0)], axis=1)


def _free(pool: Pool, ahead: Sequence[tuple[int, int]]) -> BoolArray:
    free_MC: BoolArray = ~pool.asked
    for cell in ahead:
        free_MC[cell] = False
    return free_MC


def _affordable(order: Sequence[tuple[int, int]], pool: Pool, budget_usd: float) -> list[tuple[int, int]]:
    """The beginning of an order that the budget covers; a cell that is too dear is passed over."""
    left, found = budget_usd, []
    for cell in order:
        cost = float(pool.cost_usd[cell])
        if cost <= left:
            found.append(cell)
            left -= cost
    return found
