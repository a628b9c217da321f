"""Route-To-Reason at inference: a whole routing table for one matrix product.

The published form runs a network over [query; model; strategy] for every cell of the table.
Its first layer is linear, so W [q; m; s] = Wq q + Wm m + Ws s: the query part is computed once
per query, the candidate part once per pool, and what is left per cell is an addition, a ReLU
and the heads. Same numbers, C times less work. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np

from rtr_ray.estimators.base import Profiles, State
from rtr_ray.estimators.lognormal import LONGEST, capped_mean, quantile
from rtr_ray.types import Candidate, Estimate, FloatArray

ACCURACY, LOG_TOKENS, SPREAD = range(3)  # the rows of the heads
MIN_SPREAD = 0.02  # lengths are whole tokens: nothing is predicted more sharply than 2%
_BLOCK = 1024  # queries at a time; the hidden rows of a block stay in the cache
Z95 = 1.6448536269514722  # 95% of a normal distribution lies below

HeadKernel = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], None]


@dataclass(frozen=True, eq=False)
class FittedRTR:
    """The learned weights. H hidden units, L learned dimensions, D embedding dimensions."""

    candidates: tuple[Candidate, ...]
    query_HD: FloatArray  # Wq
    model_HG: FloatArray  # Wm, over text and learned part: G = D + L
    strategy_HG: FloatArray  # Ws
    samples_H: FloatArray  # weight of log(samples)
    bias_H: FloatArray
    heads_3H: FloatArray  # logit of accuracy; mean and spread of log tokens, standardised
    heads_bias_3: FloatArray
    models: Mapping[str, FloatArray]  # g(m), Eq. 2: (G,)
    strategies: Mapping[str, FloatArray]  # g(s), Eq. 3: (G,)
    learned: int  # L
    log_tokens_mean: float
    log_tokens_scale: float
    ratio: Mapping[str, float]  # candidate -> actual over predicted mean tokens on held-out rows
    tail: Mapping[str, float]  # candidate -> factor that makes the 95% quantile cover 95% of them
    max_tokens: Mapping[str, float]  # candidate -> where its answers are cut; absent: nobody knows
    kind: ClassVar[str] = "rtr"

    @cached_property
    def candidate_CH(self) -> FloatArray:
        """The candidates' part of the first layer, bias included."""
        rows = [
            self.model_HG @ self.models[c.model]
            + self.strategy_HG @ self.strategies[c.strategy]
            + self.samples_H * np.log(c.samples)
            + self.bias_H
            for c in self.candidates
        ]
        return np.ascontiguousarray(np.stack(rows), dtype=np.float32)

    def heads(self, embeddings_QD: FloatArray, kernel: HeadKernel | None = None) -> FloatArray:
        """(Q, C, 3): the outputs of the heads, by the split first layer.

        Args:
            embeddings_QD: Any Q.
            kernel: The inner loop; None: the fastest that there is.
        """
        embeddings_QD = np.ascontiguousarray(embeddings_QD, dtype=np.float32)
        heads_QC3 = np.empty((len(embeddings_QD), len(self.candidates), 3), dtype=np.float32)
        kernel = kernel or head_kernel()
        threads = (
            _threads() if len(embeddings_QD) >= _BLOCK // 4 else 1
        )  # few rows are done before a thread is up
        hidden_BH = np.empty((min(_BLOCK, len(embeddings_QD)), len(self.bias_H)), dtype=np.float32)
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(embeddings_QD), _BLOCK):
                block_BD = embeddings_QD[start : start + _BLOCK]
                rows_BH = np.matmul(block_BD, self.query_HD.T, out=hidden_BH[: len(block_BD)])
                out_BC3 = heads_QC3[start : start + _BLOCK]
                if threads == 1:
                    kernel(rows_BH, self.candidate_CH, self.heads_3H, out_BC3)
                    continue
                step = -(-len(rows_BH) // threads)
                slices = [slice(i, i + step) for i in range(0, len(rows_BH), step)]
                jobs = [
                    pool.submit(kernel, rows_BH[s], self.candidate_CH, self.heads_3H, out_BC3[s])
                    for s in slices
                ]
                for job in jobs:
                    job.result()
        heads_QC3 += self.heads_bias_3
        return heads_QC3

    def heads_by_concatenation(self, embeddings_QD: FloatArray) -> FloatArray:
        """(Q, C, 3): the same by the published form, one pass per query and candidate.

        For tests and benchmarks.
        """
        weights_HX = np.concatenate([self.query_HD, self.model_HG, self.strategy_HG], axis=1)
        columns = []
        for candidate in self.candidates:
            pair_G = np.concatenate([self.models[candidate.model], self.strategies[candidate.strategy]])
            joint_QX = np.concatenate(
                [embeddings_QD, np.broadcast_to(pair_G, (len(embeddings_QD), len(pair_G)))], axis=1
            ).astype(np.float32)
            offset_H = self.samples_H * np.log(candidate.samples) + self.bias_H
            hidden_QH = np.maximum(joint_QX @ weights_HX.T + offset_H, 0)
            columns.append(hidden_QH @ self.heads_3H.T + self.heads_bias_3)
        return np.stack(columns, axis=1)

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The routing table's accuracy and tokens, Eq. 8."""
        heads_QC3 = self.heads(embeddings_QD)
        found_3QC = np.empty((3, *heads_QC3.shape[:2]), dtype=np.float32)
        for start in range(0, len(heads_QC3), _BLOCK):
            block = slice(start, start + _BLOCK)
            found_3QC[:, block] = self._read(heads_QC3[block])
        return Estimate(*found_3QC)

    def _read(self, heads_BC3: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What the outputs of the heads mean: accuracy, tokens and their 95% quantile, all samples."""
        # exp(60) is a float32, exp(100) is not
        accuracy_BC = 1 / (1 + np.exp(np.minimum(-heads_BC3[..., ACCURACY], 60)))
        mean_BC, spread_BC = self.log_tokens(heads_BC3)
        limit_C = self._per_candidate(self.max_tokens, LONGEST)
        samples_C = np.array([c.samples for c in self.candidates], dtype=np.float32)
        tokens_BC = capped_mean(mean_BC, spread_BC, limit_C) * self._per_candidate(self.ratio, 1.0)
        tokens_BC = np.minimum(tokens_BC, limit_C)
        tail_BC = quantile(mean_BC, spread_BC, Z95) * self._per_candidate(self.tail, 1.0)
        tail_BC = np.minimum(np.maximum(tail_BC, tokens_BC), limit_C)
        return accuracy_BC, tokens_BC * samples_C, tail_BC * samples_C

    def log_tokens(self, heads_BC3: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and spread of the logarithm of one sample's tokens, from the outputs of the heads."""
        raw_BC = heads_BC3[..., SPREAD]
        softplus_BC = np.maximum(raw_BC, 0) + np.log1p(np.exp(-np.abs(raw_BC)))
        return (
            heads_BC3[..., LOG_TOKENS] * self.log_tokens_scale + self.log_tokens_mean,
            softplus_BC * self.log_tokens_scale + MIN_SPREAD,
        )

    def _per_candidate(self, values: Mapping[str, float], default: float) -> FloatArray:
        return np.array([values.get(str(c), default) for c in self.candidates], dtype=np.float32)

    def extended(self, candidates: Sequence[Candidate], profiles: Profiles) -> FittedRTR:
        """Take in candidates by profile text alone.

        The text part of a new model or strategy is its embedded profile; its learned part is
        the mean of the learned ones, the best guess before the first outcome.
        """
        models, strategies = dict(self.models), dict(self.strategies)
        for known, texts, needed in (
            (models, profiles.models, {c.model for c in candidates}),
            (strategies, profiles.strategies, {c.strategy for c in candidates}),
        ):
            learned_L = np.mean([vector[len(vector) - self.learned :] for vector in known.values()], axis=0)
            for name in needed - known.keys():
                known[name] = np.concatenate([texts[name], learned_L]).astype(np.float32)
        return replace(self, candidates=(*self.candidates, *candidates), models=models, strategies=strategies)

    def state(self) -> State:
        """Weights as arrays; names, units and per-candidate numbers as values."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _WEIGHTS}
        arrays["models_NG"] = np.stack(list(self.models.values()))
        arrays["strategies_NG"] = np.stack(list(self.strategies.values()))
        values: dict[str, Any] = {name: getattr(self, name) for name in _VALUES}
        return State(arrays, values | {"models": list(self.models), "strategies": list(self.strategies)})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedRTR:
        """The estimator that `state` was taken from."""
        arrays, values = state.arrays, state.values
        fields: dict[str, Any] = {name: arrays[name] for name in _WEIGHTS}
        fields |= {name: values[name] for name in _VALUES}
        return cls(
            candidates=candidates,
            models=dict(zip(values["models"], arrays["models_NG"], strict=True)),
            strategies=dict(zip(values["strategies"], arrays["strategies_NG"], strict=True)),
            **fields,
        )


_WEIGHTS = ("query_HD", "model_HG", "strategy_HG", "samples_H", "bias_H", "heads_3H", "heads_bias_3")
_VALUES = ("learned", "log_tokens_mean", "log_tokens_scale", "ratio", "tail", "max_tokens")


@lru_cache(maxsize=1)
def head_kernel() -> HeadKernel:
    """The inner loop: compiled by numba where that is installed (1.1x of the product), numpy else (3x)."""
    try:
        import numba
    except ImportError:
        return _heads_numpy

    @numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")  # type: ignore[untyped-decorator]
    def heads_numba(hidden_BH: Any, candidate_CH: Any, heads_3H: Any, out_BC3: Any) -> None:
        for row in range(hidden_BH.shape[0]):
            for column in range(candidate_CH.shape[0]):
                first = second = third = np.float32(0)
                for unit in range(hidden_BH.shape[1]):
                    value = max(hidden_BH[row, unit] + candidate_CH[column, unit], np.float32(0))
                    first += value * heads_3H[0, unit]
                    second += value * heads_3H[1, unit]
                    third += value * heads_3H[2, unit]
                out_BC3[row, column, 0] = first
                out_BC3[row, column, 1] = second
                out_BC3[row, column, 2] = third

    compiled: HeadKernel = heads_numba
    return compiled


def _heads_numpy(
    hidden_BH: FloatArray, candidate_CH: FloatArray, heads_3H: FloatArray, out_BC3: FloatArray
) -> None:
    # relu(h + c) = max(h, -c) + c: one pass over memory less than adding first
    buffer_BH = np.empty_like(hidden_BH)
    for column, row_H in enumerate(candidate_CH):
        np.maximum(hidden_BH, -row_H, out=buffer_BH)
        out_BC3[:, column] = buffer_BH @ heads_3H.T + heads_3H @ row_H


def _threads() -> int:
    # Ray sets OMP_NUM_THREADS to an actor's CPUs, and the matrix product obeys it: do the same
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # a list is for nested loops
    return max(1, int(wanted) if wanted.strip().isdecimal() else os.cpu_count() or 1)
