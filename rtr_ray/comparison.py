"""Routing against its baselines, on answers that were all served: accuracy and exact dollars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from rtr_ray.errors import DataError
from rtr_ray.pool import USD_QUANTUM
from rtr_ray.summary import plain
from rtr_ray.types import BoolArray, FloatArray

RESAMPLES = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What every candidate answered to the same queries, and what the routed run did."""

    query_ids: tuple[str, ...]  # Q
    candidates: tuple[str, ...]  # C
    correct: FloatArray  # (Q, C) 0 to 1
    cost_usd: Sequence[Sequence[Decimal]]  # Q rows of C
    routed_correct: FloatArray  # (Q,)
    routed_cost_usd: Sequence[Decimal]  # Q

    @classmethod
    def of(cls, outcomes: pa.Table, results: pa.Table) -> Served:
        """Join outcomes of all candidates with the results of a run, on the queries that both have.

        An answer that failed counts as wrong, at whatever it cost.

        Raises:
            DataError: If a candidate lacks a query.
        """
        cells: dict[str, dict[str, tuple[float, Decimal]]] = {}
        names: dict[str, None] = {}
        columns = ("query_id", "model", "strategy", "samples", "correct", "cost_usd")
        for name, model, strategy, samples, correct, cost in zip(
            *(outcomes[c].to_pylist() for c in columns), strict=True
        ):
            candidate = f"{model}:{strategy}" + (f"@{samples}" if samples != 1 else "")
            names.setdefault(candidate)
            cells.setdefault(name, {})[candidate] = (correct or 0.0, cost or Decimal(0))
        routed = {
            name: (correct or 0.0, cost or Decimal(0))
            for name, correct, cost in zip(
                *(results[c].to_pylist() for c in ("query_id", "correct", "cost_usd")), strict=True
            )
        }
        ids = tuple(sorted(name for name in cells if name in routed))  # an interval draws by place
        lacking = [name for name in ids if len(cells[name]) < len(names)]
        if not ids:
            raise DataError("The outcomes and the results have no query in common.")
        if lacking:
            raise DataError(f"{len(lacking)} of {len(ids)} queries were not answered by every candidate.")
        return cls(
            ids,
            tuple(names),
            np.array([[cells[q][c][0] for c in names] for q in ids]),
            [[cells[q][c][1] for c in names] for q in ids],
            np.array([routed[q][0] for q in ids]),
            [routed[q][1] for q in ids],
        )


def compare(served: Served, seed: int = 0) -> dict[str, Any]:
    """Accuracy and dollars of the routed run and of four ways not to route.

    best_single: the candidate that turned out most accurate on these very queries, which no one
    could have known; cheapest: the one that cost least; random: the mean over all candidates;
    oracle: per query the cheapest candidate that was right, else the cheapest.

    Returns:
        `comparison`, with dollars as exact strings, and `advantage`: routed minus best single in
        points of accuracy, with a paired 95% bootstrap interval over queries.
    """
    totals = [sum((row[c] for row in served.cost_usd), Decimal(0)) for c in range(len(served.candidates))]
    accuracy_C = served.correct.mean(axis=0)
    best = min(range(len(totals)), key=lambda c: (-accuracy_C[c], totals[c]))
    cheapest = min(range(len(totals)), key=lambda c: (totals[c], -accuracy_C[c]))
    oracle_right, oracle_cost = _oracle(served)
    mean_cost = (sum(totals, Decimal(0)) / len(totals)).quantize(USD_QUANTUM)
    rows = {
        "routed": (float(served.routed_correct.mean()), sum(served.routed_cost_usd, Decimal(0)), None),
        "best_single": (float(accuracy_C[best]), totals[best], served.candidates[best]),
        "cheapest": (float(accuracy_C[cheapest]), totals[cheapest], served.candidates[cheapest]),
        "random": (float(accuracy_C.mean()), mean_cost, None),
        "oracle": (float(oracle_right.mean()), oracle_cost, None),
    }
    comparison = {
        name: {"accuracy": accuracy, "cost_usd": plain(cost)} | ({"candidate": who} if who else {})
        for name, (accuracy, cost, who) in rows.items()
    }
    difference_Q = served.routed_correct - served.correct[:, best]
    low, high = paired_interval(difference_Q, seed)
    return {
        "comparison": comparison,
        "advantage": {
            "points": 100 * float(difference_Q.mean()),
            "interval_95": [100 * low, 100 * high],
            "queries": len(served.query_ids),
        },
    }


def _oracle(served: Served) -> tuple[BoolArray, Decimal]:
    right, total = [], Decimal(0)
    for row, costs in zip(served.correct, served.cost_usd, strict=True):
        able = [c for c in range(len(costs)) if row[c] > 0.5] or range(len(costs))
        chosen = min(able, key=lambda c: costs[c])
        right.append(row[chosen])
        total += costs[chosen]
    return np.array(right), total


def paired_interval(difference_Q: FloatArray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The bootstrap interval of a mean of paired differences, over queries."""
    generator = np.random.default_rng(seed)
    count = len(difference_Q)
    means = [difference_Q[generator.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
