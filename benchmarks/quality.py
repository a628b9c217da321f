"""What every estimator reaches on every table of recorded outcomes: the tables of docs/quality.md.

    python benchmarks/quality.py                                    # all tables, all estimators, 20 splits
    python benchmarks/quality.py --quick                            # 3 splits, no `rtr`, short bootstraps
    python benchmarks/quality.py --tables renze_dense_2x4 --estimators rtr --repeats 3 --add
    python benchmarks/quality.py --show                             # what was measured, as tables

The tables are those of `--data` (default: the folder shared/data beside the checkout); one that is absent is
passed over, and that is said. The embedded pool's outcomes ship with the code; on them a lookup by the true
family and level of a question stands beside the estimators. Each table is evaluated as `rtr-ray evaluate`
does it, on random splits that keep related queries together. Writes benchmarks/out/quality.json, after each
table; with `--add` the other tables and estimators in it are kept, so that slow ones can be run with fewer
splits than the rest (each row says with how many). Embeddings are kept beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._recorded import DATA, EMBEDDED, arguments, tables_of
from benchmarks._surroundings import surroundings
from rtr_ray.embedded.questions import draw
from rtr_ray.embedded.shipped_outcomes import COUNT, SEED
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import Estimator, Profiles, State, mean_of_seen
from rtr_ray.quality.evaluate import Evaluation, Table, estimators_of
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

__all__ = ["DATA", "Lookup", "main", "markdown", "measured"]
TABLES = (
    "renze_dense_2x4",
    "renze_dense_9models",
    "renze_dense_joined17",
    "renze_long_with_responses",
    "routellm_dense",
    EMBEDDED,
)
ESTIMATORS = (*sorted(set(KNOWN) - {"auto", "oracle", "rtr"}), "rtr", "auto")
_SHRINKAGE = 2.0  # imaginary questions in each cell of the lookup that show the candidate's mean


@dataclass(frozen=True, slots=True)
class Lookup:
    """The mean of each (family, level) of the embedded pool's questions, told by their texts."""

    shrinkage: float = _SHRINKAGE
    kind: ClassVar[str] = "lookup"

    def fit(self, outcomes: Outcomes, embeddings_MD: FloatArray, profiles: Profiles) -> FittedLookup:
        """Means, drawn a little to each candidate's own."""
        cell_of = {
            question.query: (question.family, question.level) for question in draw("route", COUNT, SEED)
        }
        found = FittedLookup(outcomes.candidates, cell_of, {}, *(
            mean_of_seen(values_MC) for values_MC in (outcomes.accuracy, outcomes.output_tokens)
        ))  # fmt: skip
        rows: dict[Any, list[int]] = {}
        for row, text in enumerate(outcomes.queries):
            rows.setdefault(cell_of.get(text), []).append(row)
        for cell, mine in rows.items():
            found.cells[cell] = tuple(
                (np.nansum(values_MC[mine], axis=0) + self.shrinkage * mean_C)
                / ((~np.isnan(values_MC[mine])).sum(axis=0) + self.shrinkage)
                for values_MC, mean_C in (
                    (outcomes.accuracy, found.accuracy_C),
                    (outcomes.output_tokens, found.tokens_C),
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class FittedLookup:
    """The means."""

    candidates: tuple[Candidate, ...]
    cell_of: Mapping[str, Any]
    cells: dict[Any, Any]
    accuracy_C: FloatArray
    tokens_C: FloatArray
    kind: ClassVar[str] = "lookup"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """Each candidate's mean."""
        return self.predict_texts(embeddings_QD, [""] * len(embeddings_QD))

    def predict_texts(self, embeddings_QD: FloatArray, texts: Sequence[str]) -> Estimate:
        """That of the question's cell."""
        usual = (self.accuracy_C, self.tokens_C)
        told = [self.cells.get(self.cell_of.get(text), usual) for text in texts]
        accuracy_QC, tokens_QC = (np.stack([one[n] for one in told]).astype(np.float32) for n in (0, 1))
        return Estimate(accuracy_QC, tokens_QC, tokens_QC)

    def state(self) -> State:
        """Nothing: it is never saved."""
        return State({}, {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> FittedLookup:
        """Never asked for."""
        raise NotImplementedError


def measured(
    name: str,
    table: Table,
    estimators: Sequence[str],
    repeats: int,
    resamples: int,
    told: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """The report of one table; each router's row says on how many splits it stands."""
    recipes: dict[str, Estimator] = estimators_of([one for one in estimators if one != Lookup.kind])
    if name == EMBEDDED:
        recipes = {Lookup.kind: Lookup(), **recipes}
    report = Evaluation(table, recipes, repeats=repeats, resamples=resamples, told=told).run()
    counts = {"repeats": repeats, "resamples": resamples}
    return {**report, "table": name, "routers": [{**one, **counts} for one in report["routers"]]}


def joined(old: Sequence[Mapping[str, Any]], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reports with a further one; of the same table rows of the same router are replaced.

    What a table's report says beside its routers is that of the most splits.
    """
    others = [dict(one) for one in old if one["table"] != new["table"]]
    same = next((one for one in old if one["table"] == new["table"]), None)
    if same is None:
        return [*others, dict(new)]
    made = {one["name"] for one in new["routers"]}
    routers = [one for one in same["routers"] if one["name"] not in made] + list(new["routers"])
    head = max(same, new, key=lambda one: one["repeats"])
    return [*others, {**head, "routers": routers}]


def markdown(report: Mapping[str, Any], part: str) -> str:
    """One table of docs/quality.md."""
    anchors = report["anchors"] if part == "test" else report["anchors_ood"]
    oracle = anchors["oracle"]
    lines = [
        "| router | splits | AIQ | over the static hull, points | gap closed | best accuracy "
        "| saved at -1 point | ECE |",
        "|---|---|---|---|---|---|---|---|",
        f"| static hull | | {anchors['static_hull']['aiq']:.3f} | 0 | 0% | | | |",
    ]
    for one in report["routers"]:
        if one["part"] != part:
            continue
        lines.append(
            f"| `{one['name']}` | {one.get('repeats', '')} | {one['aiq']:.3f} "
            f"| {100 * one['aiq_over_hull']:+.1f}{_span(one)} | {_percent(one['gap_closed'])} "
            f"| {_percent(one['best_accuracy'])} | {_percent(one['cost_saved_within_1pt'])} "
            f"| {one['calibration']['ece']:.3f} |"
        )
    fitted = "cross-fitted" if oracle["cross_fitted"] else "knows its luck"
    lines.append(
        f"| oracle, {fitted} | | {oracle['aiq']:.3f} | | 100% | {_percent(oracle['accuracy'])} | | |"
    )
    return "\n".join(lines)


def durations(report: Mapping[str, Any]) -> str:
    """What a fit and a prediction of each estimator take: by the clock, and of one core."""
    lines = [
        "| router | fit, s | of one core | prediction, us a query | of one core |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{one['name']}` | {one['fit_s']:.2f} | {one['fit_cpu_s']:.2f} "
        f"| {one['predict_us_per_query']:.0f} | {one['predict_cpu_us_per_query']:.0f} |"
        for one in report["routers"]
        if one["part"] == "test"
    ]
    return "\n".join(lines)


def _span(one: Mapping[str, Any]) -> str:
    low, high = one["aiq_over_hull_interval"]
    return "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def show(report: Mapping[str, Any], console: Console) -> None:
    """A table's report, as tables."""
    best = report["anchors"]["best_single"]
    for part in ("test", "ood") if report["anchors_ood"] else ("test",):
        count = report["n_test" if part == "test" else "n_ood"]
        console.print(
            f"\n{report['table']}, {part}: {count} queries, trained on {report['n_train']}; best single in "
            f"training {best['candidate']}, {_percent(best['accuracy'])}\n",
            markup=False,
        )
        console.print(markdown(report, part), markup=False, soft_wrap=True)
    console.print("\n" + durations(report), markup=False, soft_wrap=True)


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = arguments("Every estimator on every table.", TABLES, "quality.json", splits=None)
    parser.add_argument("--estimators", nargs="+", default=None, help="kinds, or JSON")
    parser.add_argument("--quick", action="store_true", help="3 splits, short bootstraps, no `rtr`")
    parser.add_argument("--resamples", type=int, default=None, help="bootstrap draws (1,000; --quick: 200)")
    parser.add_argument("--add", action="store_true", help="keep what else was measured")
    parser.add_argument("--show", action="store_true", help="measure nothing, show what was")
    options = parser.parse_args(given)
    console, out = Console(width=200, highlight=False), Path(options.out)
    old = json.loads(out.read_text()) if (options.add or options.show) and out.exists() else {"tables": []}
    reports: list[dict[str, Any]] = old["tables"]
    if options.show:
        for report in reports:
            show(report, console)
        return
    repeats = options.seeds or (3 if options.quick else 20)
    resamples = options.resamples if options.resamples is not None else (200 if options.quick else 1000)
    chosen = options.estimators or [name for name in ESTIMATORS if name != "rtr" or not options.quick]
    for name, table in tables_of(options, console):
        report = measured(name, table, chosen, repeats, resamples, lambda text: print(text, file=sys.stderr))
        show(report, console)
        # after each table: what was measured is kept if the next one is cut off
        reports = joined(reports, report)
        out.parent.mkdir(parents=True, exist_ok=True)
        found = {**surroundings("numpy", "scipy"), "quick": options.quick, "tables": reports}
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
