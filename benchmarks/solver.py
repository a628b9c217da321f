"""How long the one budget of a whole corpus takes to solve, and how close it comes to the exact relaxation.

    python benchmarks/solver.py                    # 1 million queries, beside a bisection and the exact one
    python benchmarks/solver.py --rows 10000000    # 10 million, streamed only

Tables of 24 candidates come in blocks from a seeded generator: six models with four strategies, float32,
dearer and longer answers more often right, harder queries longer and less often right. Processes sketch their
blocks and merge; one merges their sketches and freezes the policy. Making tables is not counted.

Beside it, on one thread with all rows in memory: bisection on the dual price in plain numpy, as one would
write it, and the exact linear relaxation (all upgrades sorted), which no plan can beat. Seconds are those of
the clock, so other work on the machine lengthens them; CPU seconds are beside them. Writes
benchmarks/out/solver.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from rtr_ray.policies.base import Sketch, merged
from rtr_ray.policies.budget import Budget, FittedBudget, extremes
from rtr_ray.policies.hull import climb
from rtr_ray.types import BoolArray, Candidate, FloatArray, IntArray, RoutingTable

BLOCK = 50_000  # rows of a table, about what a table part of a run holds
MODELS, STRATEGIES = 6, 4
CANDIDATES = tuple(Candidate(f"m{m}", f"s{s}") for m in range(MODELS) for s in range(STRATEGIES))
USD_PER_TOKEN_C = np.repeat(np.geomspace(0.05, 10, MODELS), STRATEGIES).astype(np.float32) * np.float32(1e-6)
TOKENS_C = np.tile(np.array([20, 60, 300, 900], np.float32), MODELS)
LOGIT_C = np.add.outer(np.linspace(-0.5, 2, MODELS), [0, 0.2, 0.8, 1.0]).ravel().astype(np.float32)
PROMPT_TOKENS = 100
TARGETS_S = {1_000_000: 5.0, 10_000_000: 60.0}
CLOSE = 1e-3  # of the exact relaxation


def table(number: int, rows: int) -> RoutingTable:
    """Block `number` of the corpus."""
    dice = np.random.default_rng([2026, number])
    hardness_Q1 = 1.5 * dice.standard_normal((rows, 1), np.float32)
    logit_QC = LOGIT_C - hardness_Q1 + np.float32(0.4) * dice.standard_normal((rows, 24), np.float32)
    length_QC = np.float32(0.4) * dice.standard_normal((rows, 24), np.float32) + np.float32(0.3) * hardness_Q1
    tokens_QC = TOKENS_C * np.exp(length_QC)
    return RoutingTable(
        tuple(f"data/part-{number:05d}.parquet/{i}" for i in range(rows)),
        CANDIDATES,
        1 / (1 + np.exp(-logit_QC)),
        tokens_QC,
        tokens_QC,
        (tokens_QC + PROMPT_TOKENS) * USD_PER_TOKEN_C,
        dice.random((rows, 24), np.float32) < 0.97,
    )


def blocks(rows: int) -> list[tuple[int, int]]:
    """(number, rows) of all blocks."""
    return [(i, min(BLOCK, rows - start)) for i, start in enumerate(range(0, rows, BLOCK))]


@dataclass(frozen=True, slots=True)
class Share:
    """What one process did."""

    sketch: Sketch
    seconds: float  # without making tables
    cpu_seconds: float
    peak_gb: float


def sketch_some(mine: list[tuple[int, int]]) -> Share:
    """Sketch and merge some blocks, one at a time."""
    policy, spent_s, cpu_s = Budget(budget_usd=1.0), 0.0, 0.0
    total: Sketch | None = None
    for number, rows in mine:
        block = table(number, rows)
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        found = policy.sketch(block)
        total = found if total is None else policy.merge(total, found)
        spent_s += time.perf_counter() - started_s
        cpu_s += time.process_time() - started_cpu_s
    return Share(total or {}, spent_s, cpu_s, peak_gb())


def peak_gb() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def solve(rows: int, processes: int, share: float) -> tuple[FittedBudget, dict[str, float]]:
    """The frozen policy for a budget between the cheapest plan and the dearest useful one."""
    every = blocks(rows)
    started_s = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = pool.map(sketch_some, [every[i::processes] for i in range(processes)], chunksize=1)
    wall_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    sketch = merged(Budget(budget_usd=1.0), (part.sketch for part in parts))
    assert sketch is not None
    least, most = extremes(sketch)
    fitted = Budget(budget_usd=least.cost + share * (most.cost - least.cost)).freeze(sketch)
    freeze_s = time.perf_counter() - started_s
    return fitted, {
        "seconds": max(part.seconds for part in parts) + freeze_s,
        "cpu_seconds": max(part.cpu_seconds for part in parts) + freeze_s,
        "cpu_seconds_all": sum(part.cpu_seconds for part in parts) + freeze_s,
        "freeze_seconds": freeze_s,
        "wall_seconds_with_tables": wall_s + freeze_s,
        "peak_gb_per_process": max(part.peak_gb for part in parts),
        "sketch_kb": len(json.dumps(sketch)) / 1000,
        "cheapest_usd": least.cost,
        "dearest_useful_usd": most.cost,
    }


def whole_of(rows: int) -> RoutingTable:
    """All blocks in memory."""
    tables: list[RoutingTable] = [table(*block) for block in blocks(rows)]

    def stack(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in tables])

    tokens_QC = stack("output_tokens")
    ids = tuple(name for part in tables for name in part.query_ids)
    return RoutingTable(
        ids, CANDIDATES, stack("accuracy"), tokens_QC, tokens_QC, stack("cost_usd"), stack("allowed")
    )


def bisection(whole: RoutingTable, budget: float, close: float = 1e-3) -> dict[str, float]:
    """Bisection on the dual price over the whole matrix; stops at 99.9% of the budget."""
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    cost_QC = np.where(whole.allowed, whole.cost_usd, np.float32(1e9))
    low, high, steps = 0.0, 1e9, 0
    every = np.arange(len(cost_QC))
    while steps < 100:
        steps += 1
        price = (low * high) ** 0.5 if low else high / 1e3
        choice_Q = (whole.accuracy - np.float32(price) * cost_QC).argmax(axis=1)
        cost = float(cost_QC[every, choice_Q].sum(dtype=np.float64))
        low, high = (low, price) if cost <= budget else (price, high)
        if budget * (1 - close) <= cost <= budget:
            break
    right = float(whole.accuracy[every, choice_Q].mean(dtype=np.float64))
    return {
        "seconds": time.perf_counter() - started_s,
        "cpu_seconds": time.process_time() - started_cpu_s,
        "steps": steps,
        "cost_usd": cost,
        "accuracy": right,
        "price": price,
    }


def bisected(rows: int, budget: float) -> dict[str, float]:
    """The bisection in a process of its own, for its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_bisected, (rows, budget))


def _bisected(rows: int, budget: float) -> dict[str, float]:
    whole = whole_of(rows)
    return min((bisection(whole, budget) for _ in range(2)), key=lambda found: found["seconds"])


def relaxation(whole: RoutingTable, budget: float) -> float:
    """The exact linear relaxation: all upgrades sorted by rate, the last one in part. Correct answers."""
    cost_QC, accuracy_QC = whole.cost_usd.astype(np.float64), whole.accuracy.astype(np.float64)
    at_Q, right_Q = np.zeros(len(cost_QC)), np.zeros(len(cost_QC))
    steps: list[tuple[FloatArray, FloatArray]] = []
    base = np.zeros(2)

    def visit(rows: IntArray, to: IntArray, rates: FloatArray) -> BoolArray:
        price, gain = cost_QC[rows, to] - at_Q[rows], accuracy_QC[rows, to] - right_Q[rows]
        at_Q[rows], right_Q[rows] = cost_QC[rows, to], accuracy_QC[rows, to]
        if len(rates) and np.isinf(rates[0]):
            base[:] += price.sum(), gain.sum()
        else:
            steps.append((price, gain))
        return np.ones(len(rows), dtype=bool)

    climb(whole.cost_usd, whole.accuracy, whole.allowed, visit)
    price_U, gain_U = (np.concatenate(column) for column in zip(*steps, strict=True))
    order = np.argsort(-gain_U / price_U)
    spent_U, found_U = np.cumsum(price_U[order]), np.cumsum(gain_U[order])
    return float(base[1] + np.interp(budget - base[0], spent_U, found_U))


def dual_bound(whole: RoutingTable, budget: float, price: float) -> float:
    """Lagrangian bound on correct answers, from the table alone: no hull is involved."""
    bounds = []
    for p in price * np.geomspace(0.99, 1.01, 5):
        worth_QC = np.where(whole.allowed, whole.accuracy - p * whole.cost_usd.astype(np.float64), -np.inf)
        best_Q = worth_QC.max(axis=1)
        bounds.append(float(best_Q[np.isfinite(best_Q)].sum() + p * budget))
    return min(bounds)


def quality(rows: int, fitted: FittedBudget) -> dict[str, float]:
    """What the frozen policy chooses, row by row, beside what no plan exceeds."""
    whole = whole_of(rows)
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    plan = fitted.choose(whole)
    choose_s, choose_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    assert fitted.budget is not None
    assert fitted.cost is not None
    assert fitted.gap is not None
    found = float(plan.chosen(whole.accuracy)[plan.routed].sum(dtype=np.float64))
    best = relaxation(whole, fitted.budget)
    return {
        "choose_seconds_one_process": choose_s,
        "choose_cpu_seconds": choose_cpu_s,
        "spent_share": plan.cost_usd / fitted.budget,
        "promised_over_plan": fitted.cost / plan.cost_usd,
        "accuracy": plan.accuracy,
        "exact_relaxation": best / int(plan.routed.sum()),
        "short_of_exact_relaxation": 1 - found / best,
        "dual_bound": dual_bound(whole, fitted.budget, fitted.price) / int(plan.routed.sum()),
        "gap_that_it_states": fitted.gap,
    }


def printed(figures: dict[str, Any], console: Console) -> None:
    """One line per figure."""
    shown = Table(title=f"{figures['rows']:,} queries x 24 candidates, {figures['processes']} processes")
    shown.add_column("what")
    shown.add_column("figure", justify="right")
    shown.add_column("target", justify="right")
    target_s = TARGETS_S.get(figures["rows"])
    targets = {
        "seconds": f"{target_s:g}" if target_s else "",
        "cpu_seconds": f"{target_s:g}" if target_s else "",
        "peak_gb_per_process": "2",
        "short_of_exact_relaxation": f"{CLOSE:g}",
    }
    for name, value in _flat(figures):
        shown.add_row(
            name, f"{value:,.6g}" if isinstance(value, float) else str(value), targets.get(name, "")
        )
    console.print(shown)


def _flat(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield before + name, value


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the budget policy.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--share", type=float, default=0.3, help="of the way from the cheapest to the dearest useful plan"
    )
    parser.add_argument(
        "--in-memory", type=int, default=2_000_000, help="beyond so many rows: no bisection, no exact one"
    )
    parser.add_argument("--out", type=Path, default=OUT / "solver.json")
    options = parser.parse_args()
    fitted, seconds = solve(options.rows, options.processes, options.share)
    figures: dict[str, Any] = {"rows": options.rows, "processes": options.processes, **seconds}
    assert fitted.budget is not None
    figures |= {
        "budget_usd": fitted.budget,
        "price_per_usd": fitted.price,
        "lam": fitted.lam,
        "gap": fitted.gap,
    }
    ratio = None
    if options.rows <= options.in_memory:
        figures["bisection"] = bisected(options.rows, fitted.budget)
        figures["plan"] = quality(options.rows, fitted)
        ratio = figures["cpu_seconds"] / figures["bisection"]["cpu_seconds"]
    printed(figures, Console())
    report(
        "solver",
        ratio,  # of CPU seconds of the longest process: those of the clock hold other work, too
        "bisection on the dual price in plain numpy, one thread, whole matrix in memory",
        figures,
        ("numpy",),
        options.out,
    )


if __name__ == "__main__":
    main()
