"""Which labels to buy: a router's quality against the dollars of its labels, by rule of choice.

    python benchmarks/active.py                                        # three tables, 5 splits
    python benchmarks/active.py --tables embedded --estimator linear --seeds 3 --rules decision cells rows

Nothing is known at first of the training queries of a split. A rule chooses cells, each costs what it
was recorded to cost and gives one answer (right with the recorded share), and the rule chooses again;
at each budget the estimator is fitted to what there is and scored on the test queries. Budgets are
shares of what labelling every cell would cost. Writes benchmarks/out/active.json, and a picture of each table
beside it: what was reached against what was spent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._recorded import EMBEDDED, Height, arguments, height, tables_of
from benchmarks._surroundings import surroundings
from rtr_ray.acquisition import RULES, Acquisition, Pool
from rtr_ray.errors import DataError
from rtr_ray.estimators.base import Estimator, Profiles, predicted
from rtr_ray.quality.evaluate import Table, estimators_of
from rtr_ray.quality.trial import Part, Trial, paid
from rtr_ray.reports.chart import Axis, Chart, Line, Style
from rtr_ray.reports.png import available, png
from rtr_ray.types import FloatArray, Outcomes

TABLES = ("renze_dense_2x4", "renze_dense_9models", EMBEDDED)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
ROUNDS = 2  # batches between two budgets


@dataclass(slots=True)
class Labels:
    """What has been bought of a table's training queries."""

    truth: Outcomes
    cost_MC: FloatArray  # what each cell costs
    answers_MC: FloatArray  # one answer of each cell
    bought_MC: Any
    spent: float = 0.0

    @classmethod
    def none(cls, truth: Outcomes, seed: int) -> Labels:
        """Nothing yet; each cell's answer is the same whatever rule asks for it."""
        dice = np.random.default_rng(seed)
        right_MC = (dice.random(truth.accuracy.shape) < truth.accuracy).astype(float)
        answers_MC = np.where(np.isnan(truth.accuracy), np.nan, right_MC)
        return cls(truth, paid(truth), answers_MC, np.zeros(truth.accuracy.shape, dtype=bool))

    @property
    def pool(self) -> FloatArray:
        """(M, C) what is known."""
        return np.where(self.bought_MC, self.answers_MC, np.nan)

    def buy(self, rule: Acquisition, embeddings_MD: FloatArray, budget: float, batch: float) -> None:
        """One batch, of which nothing is bought beyond the budget."""
        missing_MC = np.isnan(self.answers_MC) | np.isnan(self.cost_MC)
        expected_MC = np.broadcast_to(np.nanmean(self.cost_MC, axis=0), self.cost_MC.shape)
        pool = Pool(embeddings_MD, self.pool, self.bought_MC | missing_MC, expected_MC)
        for row, column in rule.next(pool, batch):
            cost = float(self.cost_MC[row, column])
            if self.spent + cost <= budget:
                self.bought_MC[row, column] = True
                self.spent += cost

    def outcomes(self) -> tuple[Outcomes, Any]:
        """What an estimator may learn from, and which rows these are."""
        rows = np.flatnonzero(self.bought_MC.any(axis=1))
        names = ("input_tokens", "output_tokens", "cost_usd", "cut", "max_tokens")
        hidden: dict[str, Any] = {n: np.where(self.bought_MC, getattr(self.truth, n), np.nan) for n in names}
        hidden |= {"accuracy": self.pool, "runs": self.bought_MC.astype(int)}
        return replace(self.truth, **hidden).rows(rows), rows


def simulated(
    table: Table,
    estimator: Estimator,
    rules: Sequence[str],
    seeds: int,
    shares: Sequence[float],
    most: int = 700,
    first: int = 0,
) -> list[dict[str, Any]]:
    """One row for each split, rule and budget; of at most so many training queries."""
    table = table.scorable([~table.ood_M])
    rows = []
    for seed, train_M, test_M in table.splits(first + seeds):
        if seed is not None and seed < first:
            continue
        drawn = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(train_M))[:most])
        known, part = table.whole.rows(drawn), table.part(test_M)
        known_MD = table.embeddings[drawn]
        trial = Trial(known, known_MD, {"test": part}, table.profiles)
        whole = float(np.nansum(paid(known)))
        for name in rules:
            rule, labels = Acquisition(name, seed=seed or 0), Labels.none(known, seed or 0)
            for share in shares:
                budget = share * whole
                for left in range(ROUNDS, 0, -1):
                    labels.buy(rule, known_MD, budget, (budget - labels.spent) / left)
                found = _scored(estimator, labels, known_MD, table.profiles, trial, part)
                if found is not None:
                    facts = {"seed": seed, "rule": name, "share": share}
                    facts |= {"spent": labels.spent / whole, "cells": int(labels.bought_MC.sum())}
                    facts |= {"cost": labels.spent}
                    rows.append(facts | {"over_hull": found.over_hull, "gap_closed": found.gap_closed})
    return rows


def _scored(
    estimator: Estimator, labels: Labels, known_MD: FloatArray, profiles: Profiles, trial: Trial, part: Part
) -> Height | None:
    outcomes, rows = labels.outcomes()
    try:
        fitted = estimator.fit(outcomes, known_MD[rows], profiles)
    except DataError:  # a candidate without any label
        return None
    return height(trial, part, predicted(fitted, part.embeddings, part.outcomes.queries))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table of docs/quality.md: points over the static hull, and the number of labels."""
    rules, shares = (list(dict.fromkeys(row[name] for row in rows)) for name in ("rule", "share"))
    lines = [
        "| spent on labels | " + " | ".join(f"`{rule}`" for rule in rules) + " |",
        "|---" * (len(rules) + 1) + "|",
    ]
    for share in shares:
        cells = [f"{100 * share:g}%"]
        for rule in rules:
            mine = [row for row in rows if row["rule"] == rule and row["share"] == share]
            if not mine:
                cells.append("")
                continue
            over = np.array([row["over_hull"] for row in mine])
            error = over.std(ddof=1) / np.sqrt(len(over)) if len(over) > 1 else float("nan")
            cells.append(
                f"{100 * over.mean():+.2f} ({100 * error:.2f}; {np.mean([r['cells'] for r in mine]):.0f})"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_TITLES = {
    "tempered": "active (tempered)",
    "cells": "random cells",
    "rows": "random rows",
    "thrifty": "random, more of the cheap",
}


def picture(rows: Sequence[Mapping[str, Any]], title: str, style: Style) -> Chart:
    """Points over the static hull against what was spent, a line for each rule; means over the splits."""
    lines = []
    for slot, rule in enumerate(dict.fromkeys(row["rule"] for row in rows)):
        mine = [row for row in rows if row["rule"] == rule]
        shares = sorted({row["share"] for row in mine})
        points = [
            tuple(
                float(np.mean([scale * row[key] for row in mine if row["share"] == share]))
                for key, scale in (("cost", 1.0), ("over_hull", 100.0))
            )
            for share in shares
        ]
        lines.append(Line(_TITLES.get(rule, rule), [(x, y) for x, y in points], slot))
    places = [point for line in lines for point in line.points]
    what = "dollars" if style == "usd" else "output tokens"
    x = Axis.over(f"{what} spent on labels", [x for x, _ in places], style, log=True)
    y = Axis.over("points of AIQ over the static hull", [y for _, y in places])
    return Chart("active", title, x, y, lines)


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = arguments("Which labels to buy.", TABLES, "active.json")
    parser.add_argument("--estimator", default="auto", help="a kind, or JSON")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--first", type=int, default=0, help="the first split: to share out the work")
    parser.add_argument("--most", type=int, default=700, help="training queries at most")
    options = parser.parse_args(given)
    console, found = Console(width=200, highlight=False), {}
    (estimator,) = estimators_of([options.estimator]).values()
    for name, table in tables_of(options, console):
        rows = simulated(
            table, estimator, options.rules, options.seeds, options.shares, options.most, options.first
        )
        console.print(
            f"\n{name}, {options.estimator}, {options.seeds} splits: points over the static hull (standard "
            "error over splits; labels)\n",
            markup=False,
        )
        console.print(markdown(rows), markup=False, soft_wrap=True)
        found[name] = rows
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if available() and rows:
            style: Style = "number" if np.isnan(table.whole.cost_usd).all() else "usd"
            chart = picture(rows, f"What labels buy: {name}", style)
            (options.out.parent / f"{options.out.stem}-{name}.png").write_bytes(png(chart))
        written = {**surroundings("numpy"), "estimator": options.estimator, "tables": found}
        options.out.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
