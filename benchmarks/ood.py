"""Are queries unlike those of training noticed, and does falling back help: docs/safety.md.

    python benchmarks/ood.py                               # two tables with exams kept out, 5 splits
    python benchmarks/ood.py --tables renze_dense_2x4 --estimator auto --seeds 3 --level 0.95

Detection is scored as the AUROC of the ood part against the test part, by the router's score (mean
distance to the ten nearest) and by others; then, at the level, the share that is marked of either part,
and the height of the curve with and without the fallback to what candidates are like on average.
Writes benchmarks/out/ood.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._recorded import arguments, height, tables_of
from benchmarks._surroundings import surroundings
from rtr_ray.estimators.base import predicted, related
from rtr_ray.familiarity import Caution, Familiarity, Guard, usual_of
from rtr_ray.held_out import centroids_of, nearest
from rtr_ray.quality.evaluate import Table, estimators_of
from rtr_ray.quality.trial import Trial
from rtr_ray.types import FloatArray

TABLES = ("renze_dense_2x4", "renze_dense_9models", "renze_dense_joined17")


def mahalanobis(known_MD: FloatArray, asked_QD: FloatArray) -> FloatArray:
    """(Q,) distance from the training queries' mean in units of their spread, shrunk by a tenth."""
    mean_D = known_MD.mean(axis=0)
    cover_DD = np.cov(known_MD.T)
    cover_DD = 0.9 * cover_DD + 0.1 * np.trace(cover_DD) / len(cover_DD) * np.eye(len(cover_DD))
    apart_QD = asked_QD - mean_D
    square_Q: FloatArray = (apart_QD * np.linalg.solve(cover_DD, apart_QD.T).T).sum(axis=1)
    return np.sqrt(square_Q)


def auroc(low_Q: FloatArray, high_Q: FloatArray) -> float:
    """How often a query of the second part has the higher score."""
    return float((high_Q[:, None] > low_Q).mean() + 0.5 * (high_Q[:, None] == low_Q).mean())


def measured(table: Table, kind: str, seeds: int, level: float) -> list[dict[str, Any]]:
    """One row for each split."""
    table = table.scorable([~table.ood_M])
    (recipe,) = estimators_of([kind]).values()
    rows = []
    for seed, train_M, test_M in table.splits(seeds):
        known, known_MD = table.whole.rows(train_M), table.embeddings[train_M]
        parts = {"test": table.part(test_M), "ood": table.part(table.ood_M)}
        trial = Trial(known, known_MD, parts, table.profiles)
        fitted = recipe.fit(known, known_MD, table.profiles)
        familiarity = Familiarity.of(known_MD, related(known))
        assert familiarity is not None
        usual = usual_of(predicted(fitted, known_MD[:256], known.queries[:256]))
        guard = Guard(familiarity, Caution(level), usual)
        scores = {
            "nearest": [familiarity.score(part.embeddings) for part in parts.values()],
            "mahalanobis": [mahalanobis(known_MD, part.embeddings) for part in parts.values()],
            "centroid": [nearest(centroids_of(known_MD), part.embeddings)[1] for part in parts.values()],
        }
        row: dict[str, Any] = {"seed": seed} | {f"auroc_{n}": auroc(*pair) for n, pair in scores.items()}
        for name, part in parts.items():
            told = predicted(fitted, part.embeddings, part.outcomes.queries)
            far_Q = guard.far(part.embeddings)
            error_QC = np.abs(told.accuracy - part.outcomes.accuracy)
            row[f"{name}_marked"] = float(far_Q.mean())
            row[f"{name}_over_hull"] = height(trial, part, told).over_hull
            row[f"{name}_guarded"] = height(trial, part, guard.believed(told, far_Q)).over_hull
            row[f"{name}_prior"] = height(
                trial, part, guard.believed(told, np.ones(len(far_Q), dtype=bool))
            ).over_hull
            row[f"{name}_error"] = float(np.nanmean(error_QC))
            row[f"{name}_error_marked"] = float(np.nanmean(error_QC[far_Q])) if far_Q.any() else float("nan")
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table of docs/safety.md: means over splits."""

    def mean(name: str) -> float:
        return float(np.nanmean([row[name] for row in rows]))

    lines = ["| | test | ood |", "|---|---|---|"]
    for name in ("nearest", "mahalanobis", "centroid"):
        lines.append(f"| AUROC of ood against test, {name} | | {mean(f'auroc_{name}'):.3f} |")
    for text, name, scale in (
        ("marked", "marked", "{:.1%}"),
        ("over the hull, points: no guard", "over_hull", "{:+.2f}"),
        ("... marked queries by the prior", "guarded", "{:+.2f}"),
        ("... all queries by the prior", "prior", "{:+.2f}"),
        ("mean error of accuracy", "error", "{:.3f}"),
        ("... of marked queries", "error_marked", "{:.3f}"),
    ):
        factor = 100 if "+" in scale else 1
        cells = [scale.format(factor * mean(f"{part}_{name}")) for part in ("test", "ood")]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = arguments("Queries unlike those of training.", TABLES, "ood.json")
    parser.add_argument("--estimator", default="auto", help="a kind, or JSON")
    parser.add_argument("--level", type=float, default=0.99)
    options = parser.parse_args(given)
    console, found = Console(width=200, highlight=False), {}
    for name, table in tables_of(options, console):
        rows = measured(table, options.estimator, options.seeds, options.level)
        console.print(
            f"\n{name}, {options.estimator}, {options.seeds} splits, level {options.level:g}\n", markup=False
        )
        console.print(markdown(rows), markup=False, soft_wrap=True)
        found[name] = rows
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**surroundings("numpy"), "tables": found}, indent=1))


if __name__ == "__main__":
    main()
