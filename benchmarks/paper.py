"""The tables and figures of Route-To-Reason, on recorded outcomes: what is the same here, and what is not.

    python benchmarks/paper.py

takes the outcomes that ship inside (10 candidates, 3,000 templated arithmetic questions; a question's family
stands for its dataset) and, where it is there, `../shared/data/renze_dense_2x4.parquet` (8 candidates, 10
exams). No model is called. Counterparts: Tables 2 to 5, Figures 4 to 7 and 9, the first experiments that a
summary of the paper asks for, and its open question 4. `--only NAME` makes some of them.

Everything is learned from the table's training questions and scored on its test questions; the embedded
table, which has no split, is divided 70 to 30 by the first random split of `rtr-ray evaluate`. Routers are
looked at where they cost no more than the best single candidate, unless a curve is shown.

Writes benchmarks/out/paper.json, and Figure 4 and the curves of question 4 as pictures beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._paper_subject import ROUTERS, Subject, curve_of, height, hull, means
from benchmarks._recorded import DATA, MINILM, OUT, ROOT, kept
from benchmarks._surroundings import surroundings
from benchmarks.quality import Lookup
from rtr_ray import registry
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import Profiles
from rtr_ray.quality.breakdown import Rivals, by_dataset, operating_point
from rtr_ray.quality.curves import Curve
from rtr_ray.quality.measures import auroc
from rtr_ray.quality.scoring import choices, chosen
from rtr_ray.quality.trial import LAMBDAS, Part, Scored, Trial
from rtr_ray.reports.chart import Axis, Chart, Dots, Line
from rtr_ray.reports.png import png
from rtr_ray.types import FloatArray

RENZE = DATA / "renze_dense_2x4.parquet"
EMBEDDED = ROOT / "rtr_ray" / "embedded" / "outcomes.parquet"
SIZES = (50, 100, 200, 400, 800, 1600)
TOLERANCES = (25, 50, 100, 200, 400, 600)


def tables_2_to_4(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy, tokens and dollars of routers and single candidates, on all questions and by dataset."""
    rows = []
    for part_name, part in subject.trial.parts.items():
        fixed, best = subject.trial.fixed(part), subject.trial.best_single()
        names = [str(c) for c in part.outcomes.candidates]
        cost_C, accuracy_C, tokens_C = means(fixed)
        cheapest = int(np.nanargmin(cost_C))
        rivals = Rivals(part, best, cheapest)
        rows += [
            _row(
                part_name,
                f"{names[c]} ({word})",
                accuracy_C[c],
                tokens_C[c],
                cost_C[c],
                by_dataset(rivals, fixed, c),
            )
            for c, word in ((cheapest, "cheapest"), (best, "best single in training"))
        ]
        rows.append(_row(part_name, "random", *(float(a.mean()) for a in (accuracy_C, tokens_C, cost_C)), {}))
        for name, found in subject.routed.items():
            rows.append(_at(part_name, name, found[part_name], float(cost_C[best]), rivals))
        rows.append(_at(part_name, "oracle", subject.trial.oracle(part), float(cost_C[best]), rivals))
    return rows


def _at(part: str, name: str, scored: Scored, most: float, rivals: Rivals) -> dict[str, Any]:
    cost_L, accuracy_L, tokens_L = means(scored)
    at = operating_point(cost_L, accuracy_L, most)
    row = _row(part, name, accuracy_L[at], tokens_L[at], cost_L[at], by_dataset(rivals, scored, at))
    return row | {"lam": LAMBDAS[at]}


def _row(
    part: str, name: str, accuracy: float, tokens: float, cost: float, sets: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "part": part, "router": name, "accuracy": float(accuracy), "output_tokens": float(tokens),
        "cost_usd": float(cost),
        "by_dataset": {
            key: {figure: row[figure] for figure in ("queries", "accuracy", "output_tokens", "cost_usd")}
            for key, row in sets.items()
        },
    }  # fmt: skip


def table_5(subject: Subject) -> list[dict[str, Any]]:
    """When to think: the dual model alone, always, never, where a router says so, and where the truth does.

    A question is thought about if the accuracy that thinking adds, over the tokens that it adds, is above a
    threshold: the one that on the test questions is just enough.
    """
    dual = subject.only(lambda c: c.model.startswith("dual"))
    trial, part = dual.trial, dual.trial.parts["test"]
    names = [c.model.removeprefix("dual-") for c in part.outcomes.candidates]
    direct, think = names.index("direct"), names.index("think")
    figures = {
        "accuracy": part.outcomes.accuracy,
        "output_tokens": part.outcomes.output_tokens,
        "cost_usd": part.costs,
    }
    rows: list[dict[str, Any]] = [
        {"mode": f"always {names[c]}", **{key: float(a[:, c].mean()) for key, a in figures.items()}}
        for c in (direct, think)
    ]
    truth = part.outcomes
    told: dict[str, tuple[FloatArray, FloatArray]] = {}
    for name in ("linear", "auto"):
        estimate = dual.route(name)["test"].estimate
        told[name] = estimate.accuracy, estimate.output_tokens
    looked = Lookup().fit(trial.train, trial.train_embeddings, trial.profiles)
    estimate = looked.predict_texts(part.embeddings, truth.queries)
    told["lookup by the true family and level"] = estimate.accuracy, estimate.output_tokens
    cells = Lookup(0.0).fit(truth, part.embeddings, trial.profiles)
    estimate = cells.predict_texts(part.embeddings, truth.queries)
    told["... that knows the test questions' means"] = estimate.accuracy, estimate.output_tokens
    told["auto, with true lengths"] = told["auto"][0], truth.output_tokens
    told["oracle"] = truth.accuracy, truth.output_tokens
    for name, (accuracy_QC, tokens_QC) in told.items():
        gain_Q, more_Q = (a[:, think].astype(float) - a[:, direct] for a in (accuracy_QC, tokens_QC))
        order_Q = np.argsort(-gain_Q / np.maximum(more_Q, 1.0), kind="stable")
        swept = {
            key: a[:, direct].mean() + np.cumsum((a[:, think] - a[:, direct])[order_Q]) / len(order_Q)
            for key, a in figures.items()
        }
        for word, least in (("thinking's accuracy", 0.0), ("1 point below", 0.01)):
            reached = np.flatnonzero(swept["accuracy"] >= rows[1]["accuracy"] - least - 1e-9)
            rows.append(
                {"mode": f"{name}, at {word}", **{key: float(a[reached[0]]) for key, a in swept.items()}}
            )
    return [row | {"tokens_of_thinking": row["output_tokens"] / rows[1]["output_tokens"]} for row in rows]


def figure_4(subject: Subject) -> dict[str, Any]:
    """The lambda curve of all candidates, beside routing within one model and within one strategy."""
    found: dict[str, Any] = {"hull": height(subject, "test", hull(subject, "test"))}
    everything = curve_of(subject.routed["auto"]["test"])
    lines = [Line("all candidates", _places(everything), 0)]
    kinds = {
        f"one {what}: {name}": (lambda c, what=what, name=name: getattr(c, what) == name)
        for what in ("model", "strategy")
        for name in sorted({getattr(c, what) for c in subject.trial.train.candidates})
    }
    found["all"] = height(subject, "test", everything)
    for slot, (name, keep) in enumerate(kinds.items(), 1):
        some = subject.only(keep)
        if len(some.trial.train.candidates) < 2:
            continue
        curve = curve_of(some.route("auto")["test"])
        mine = some.trial.parts["test"]
        own = means(some.trial.fixed(mine))
        # over its own range: a curve that cannot be cheap must not be praised for what it is at its cheapest
        span = float(own[0].min()), float(own[0].max())
        found[name] = {
            "aiq": curve.height(*span),
            "its own hull there": Curve.over(own[0], own[1]).height(*span),
            "all candidates there": everything.height(*span),
            "best_accuracy": float(curve.accuracy[-1]),
            "best_single": float(own[1].max()),
        }
        lines.append(Line(name, _places(curve), slot))
    part = subject.trial.parts["test"]
    cost_C, accuracy_C, _ = means(subject.trial.fixed(part))
    dots = Dots("one candidate for all", list(zip(cost_C, accuracy_C, strict=True)), 7,
                [str(c) for c in part.outcomes.candidates])  # fmt: skip
    _draw(f"paper-figure4-{subject.name}", "One model, one strategy, all candidates", [*lines, dots])
    return found


def _places(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.cost.tolist(), curve.accuracy.tolist(), strict=True))


def _draw(name: str, title: str, marks: Sequence[Any]) -> None:
    points = [point for mark in marks for point in mark.points]
    x = Axis.over("mean dollars of a question", [p[0] for p in points], "usd", log=True)
    y = Axis.over("right answers", [p[1] for p in points], "percent", bounds=(0, 1))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.png").write_bytes(png(Chart(name, title, x, y, marks)))


def figure_5(subject: Subject) -> list[dict[str, Any]]:
    """Representations of models and strategies: text alone, learned alone, both."""
    part, profiles = subject.trial.parts["test"], subject.trial.profiles
    blank = Profiles(
        *(
            {name: np.zeros_like(row) for name, row in one.items()}
            for one in (profiles.models, profiles.strategies)
        )
    )
    rows = []
    for name, known, learned in (("text", profiles, 1), ("learned", blank, 64), ("both", profiles, 64)):
        recipe = registry.build({"kind": "rtr", "learned": learned}, KNOWN, "estimator")
        fitted = recipe.fit(subject.trial.train, subject.trial.train_embeddings, known)
        rows.append({"representation": name, **_predicts(part, fitted.predict(part.embeddings).accuracy)})
    for name in ("prior", "linear", "auto"):
        rows.append(
            {"representation": name, **_predicts(part, subject.routed[name]["test"].estimate.accuracy)}
        )
    return rows


def _predicts(part: Part, accuracy_QC: FloatArray) -> dict[str, float]:
    seen = part.observed
    believed, right = accuracy_QC[seen].astype(np.float64), part.outcomes.accuracy[seen]
    hit = np.where(believed >= 0.5, right, 1 - right)
    return {"correctness_accuracy": float(hit.mean()), "auroc": float(auroc(believed, right) or np.nan)}


def figure_6(subject: Subject) -> list[dict[str, Any]]:
    """Share of answers whose length is predicted within so many tokens, by candidate."""
    part, rows = subject.trial.parts["test"], []
    for name in (one for one in ("prior", "rtr", "auto") if one in subject.routers):
        estimate = subject.routed[name]["test"].estimate
        for column, candidate in enumerate(part.outcomes.candidates):
            off = np.abs(estimate.output_tokens[:, column] - part.outcomes.output_tokens[:, column])
            off = off[~np.isnan(off)]
            within = {f"within_{most}": float((off <= most).mean()) for most in TOLERANCES}
            rows.append({"router": name, "candidate": str(candidate), **within})
    return rows


def figure_7(subject: Subject) -> list[dict[str, Any]]:
    """Three configurations, and lambda 0.2, 0.5, 0.8: beside strategies that are always the same."""
    cost_L, accuracy_L, tokens_L = means(subject.routed["auto"]["test"])
    rows = []
    for name, lam in (
        ("performance", 1.0),
        ("0.8", 0.8),
        ("balanced (0.5)", 0.5),
        ("0.2", 0.2),
        ("cost", 0.0),
    ):
        at = int(np.argmin(np.abs(np.array(LAMBDAS) - lam)))
        told = f"auto, {name}"
        rows.append({"configuration": told, "accuracy": accuracy_L[at], "output_tokens": tokens_L[at],
                     "cost_usd": cost_L[at]})  # fmt: skip
    part = subject.trial.parts["test"]
    fixed = means(subject.trial.fixed(part))
    for strategy in sorted({c.strategy for c in part.outcomes.candidates}):
        mine = [n for n, c in enumerate(part.outcomes.candidates) if c.strategy == strategy]
        cost, accuracy, tokens = (float(a[mine].mean()) for a in fixed)
        rows.append({"configuration": f"always {strategy}, any model", "accuracy": accuracy,
                     "output_tokens": tokens, "cost_usd": cost})  # fmt: skip
    return rows


def figure_9(subject: Subject) -> list[dict[str, Any]]:
    """How much is learned from how many questions; means over three draws."""
    part, train = subject.trial.parts["test"], subject.trial.train
    base, rows = height(subject, "test", hull(subject, "test")), []
    for size in (*(s for s in SIZES if s < len(train.query_ids)), len(train.query_ids)):
        for name in ("linear", "auto"):
            drawn = []
            for seed in range(3 if size < len(train.query_ids) else 1):
                some = np.sort(np.random.default_rng(seed).permutation(len(train.query_ids))[:size])
                trial = Trial(train.rows(some), subject.trial.train_embeddings[some], {"test": part},
                              subject.trial.profiles)  # fmt: skip
                scored = trial.routed(name, registry.build({"kind": name}, KNOWN, "estimator"))["test"]
                drawn.append(
                    {"aiq_over_hull": height(subject, "test", curve_of(scored)) - base,
                     **_predicts(part, scored.estimate.accuracy)}
                )  # fmt: skip
            means_of = {key: float(np.mean([one[key] for one in drawn])) for key in drawn[0]}
            rows.append({"router": name, "questions": size, **means_of})
    return rows


def first_experiments(subject: Subject) -> list[dict[str, Any]]:
    """2 models x 2 strategies x 500 samples, at lambda 0.2, 0.5 and 0.8: do both rise with it?"""
    models = sorted({c.model for c in subject.trial.train.candidates if not c.model.startswith("dual")})[:2]
    small = subject.only(lambda c: c.model in models and c.strategy in ("vanilla", "cot"))
    train = small.trial.train
    some = np.random.default_rng(0).permutation(len(train.query_ids))[:500]
    part = small.trial.parts["test"]
    trial = Trial(train.rows(some), small.trial.train_embeddings[some], {"test": part}, small.trial.profiles)
    rows = []
    for name in (one for one in ("linear", "rtr", "auto") if one in subject.routers):
        scored = trial.routed(name, registry.build({"kind": name}, KNOWN, "estimator"))["test"]
        cost_L, accuracy_L, tokens_L = means(scored)
        for lam in (0.2, 0.5, 0.8, 0.95, 0.99):
            at = int(np.argmin(np.abs(np.array(LAMBDAS) - lam)))
            told = {"router": name, "lam": lam, "accuracy": accuracy_L[at], "output_tokens": tokens_L[at]}
            rows.append({**told, "cost_usd": cost_L[at], **_predicts(part, scored.estimate.accuracy)})
    return rows


def question_4(subject: Subject) -> dict[str, Any]:
    """What would better prediction buy? The curve again with true tokens, and true accuracy, swapped in."""
    part, trial = subject.trial.parts["test"], subject.trial
    scored = subject.routed["auto"]["test"]
    estimate, true = scored.estimate, part.outcomes
    size_Q = np.array([len(query.encode()) for query in true.queries], dtype=np.float64)
    told_QC = trial.costs.of(trial.inputs.predict(trial.train.candidates, size_Q),
                             estimate.output_tokens.astype(np.float64))  # fmt: skip
    curves = {"as predicted": curve_of(scored)}
    for name, accuracy_QC, cost_QC in (
        ("true tokens", estimate.accuracy.astype(np.float64), part.costs),
        ("true accuracy", None, told_QC),
        ("both true", None, part.costs),
    ):
        curves[name] = _swapped(part, accuracy_QC, cost_QC)
    curves["static hull"] = hull(subject, "test")
    lines = [Line(name, _places(curve), slot, dashed=name == "static hull")
             for slot, (name, curve) in enumerate(curves.items())]  # fmt: skip
    _draw(f"paper-question4-{subject.name}", "What would better prediction buy?", lines)
    return {
        name: {"aiq": height(subject, "test", curve), "best_accuracy": float(curve.accuracy[-1])}
        for name, curve in curves.items()
    }


def _swapped(part: Part, accuracy_QC: FloatArray | None, cost_QC: FloatArray) -> Curve:
    """Choices by predicted or true accuracy. The truth is that of half of the runs, scored on the others."""
    pairs = part.halves and (part.halves, part.halves[::-1])
    if accuracy_QC is not None or not pairs:
        believed = part.outcomes.accuracy if accuracy_QC is None else accuracy_QC
        choice_QL = choices(believed, cost_QC, part.observed)
        points = [chosen(a, choice_QL) for a in (part.costs, part.outcomes.accuracy)]
    else:
        both = []
        for known, scored in pairs:
            seen = ~(np.isnan(known.accuracy) | np.isnan(scored.accuracy)) & part.observed
            choice_QL = choices(known.accuracy, cost_QC, seen)
            both.append([chosen(a, choice_QL) for a in (part.costs, scored.accuracy)])
        points = [np.nanmean([one[n] for one in both], axis=0) for n in (0, 1)]
    return Curve.over(*(np.nanmean(a, axis=0) for a in points))


PARTS: Mapping[str, tuple[str, Callable[[Subject], Any]]] = {
    "tables2-4": ("Tables 2, 3 and 4: accuracy, tokens and dollars", tables_2_to_4),
    "table5": ("Table 5: when to think", table_5),
    "figure4": ("Figure 4: one model, one strategy, all candidates", figure_4),
    "figure5": ("Figure 5: how models and strategies are represented", figure_5),
    "figure6": ("Figure 6: lengths within a tolerance", figure_6),
    "figure7": ("Figure 7: configurations", figure_7),
    "figure9": ("Figure 9: training size", figure_9),
    "first": ("The first experiments", first_experiments),
    "question4": ("Open question 4: what would better prediction buy?", question_4),
}


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    lines = []
    for name, (title, _) in PARTS.items():
        for subject, found in report["subjects"].items():
            if name in found:
                lines += [f"### {title} ({subject})", "", *_table(found[name]), ""]
                if name == "tables2-4":
                    lines += [*_by_dataset(found[name]), ""]
    return "\n".join(lines)


_HEADS = {"cost_usd": "USD for 1,000", "aiq_over_hull": "AIQ over the hull", "aiq": "AIQ"}


def _by_dataset(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy in percent / output tokens / dollars for 1,000 questions of each router on each dataset."""
    found = []
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part and row["by_dataset"]]
        names = list(mine[0]["by_dataset"]) if mine else []
        found += [f"| {part} | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
        for row in mine:
            cells = (row["by_dataset"][name] for name in names)
            told = (
                f"{100 * cell['accuracy']:.1f} / {cell['output_tokens']:.0f} / {1000 * cell['cost_usd']:.3g}"
                for cell in cells
            )
            found.append(f"| {row['router']} | " + " | ".join(told) + " |")
        found.append("")
    return found


def _table(found: Any) -> list[str]:
    if isinstance(found, dict):
        nested = any(isinstance(value, dict) for value in found.values())
        found = [
            {"": key, **(value if isinstance(value, dict) else {"value" if not nested else "aiq": value})}
            for key, value in found.items()
        ]
    keys = list(dict.fromkeys(key for row in found for key in row if key != "by_dataset"))
    names = " | ".join(_HEADS.get(key, key.replace("_", " ")) for key in keys)
    head = [f"| {names} |", "|" + "---|" * len(keys)]
    return head + ["| " + " | ".join(_cell(key, row.get(key)) for key in keys) + " |" for row in found]


def _cell(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if key == "cost_usd":
        return f"{1000 * value:.4g}"
    if key in ("output_tokens", "questions"):
        return f"{value:.1f}" if value % 1 else f"{value:.0f}"
    return f"{value:.3f}"


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--subjects", nargs="+", choices=["embedded", "renze"], default=["embedded", "renze"])
    parser.add_argument("--routers", nargs="+", choices=ROUTERS, default=list(ROUTERS))
    parser.add_argument("--out", type=Path, default=OUT / "paper.json")
    options = parser.parse_args(given)
    encoder = kept(MINILM)
    report: dict[str, Any] = {"name": "paper", "subjects": {}, **surroundings("numpy", "torch", "scipy")}
    for name, path in (("embedded", EMBEDDED), ("renze", RENZE)):
        if name not in options.subjects or not path.is_file():
            continue
        began = time.monotonic()
        subject = Subject.read(name, path, encoder, options.routers)
        print(f"{name}: {len(subject.trial.train.query_ids):,} questions to learn from, read in "
              f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        found = report["subjects"].setdefault(name, {})
        for key in options.only:
            if key == "table5" and name != "embedded":
                continue
            began = time.monotonic()
            found[key] = PARTS[key][1](subject)
            print(f"  {key}: {time.monotonic() - began:.0f} s", flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1, default=float))
    print(markdown(report))


if __name__ == "__main__":
    main()
