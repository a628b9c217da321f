"""How well a candidate that comes late is predicted, by its profile and by few labels: docs/quality.md.

    python benchmarks/new_candidates.py                                       # three tables, 5 splits
    python benchmarks/new_candidates.py --tables embedded --estimator linear --seeds 3 --labels 0 10 50 200

On each split each candidate is left out in turn: a router is trained on the others, and extended by the
profile text and 0, 10, 50, 200 outcomes of the left-out one, as `rtr-ray extend` does. What it then
says of the test queries stands beside what training again with all outcomes says, and beside the mean
of the same few labels. Writes benchmarks/out/new_candidates.json.
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

from benchmarks._recorded import EMBEDDED, Kept, arguments, height, kept, tables_of
from benchmarks._surroundings import surroundings
from rtr_ray.config import load_pool
from rtr_ray.estimators.base import Profiles, predicted
from rtr_ray.estimators.extended import by_outcomes, by_profile
from rtr_ray.quality.evaluate import Table, columns, estimators_of
from rtr_ray.quality.trial import Part, Trial
from rtr_ray.types import BoolArray, Candidate, Estimate, FloatArray, Outcomes

LABELS = (0, 10, 50, 200)
TABLES = ("renze_dense_2x4", "renze_dense_9models", EMBEDDED)
PROFILES = {
    "gpt-35-turbo": "OpenAI's small, quick and cheap chat model of 2023. Knows much, reasons loosely.",
    "gpt-4": "OpenAI's largest model of 2023: dear, slow, and among the most accurate at exams.",
    "gpt-4-1106-preview": "OpenAI's GPT-4 Turbo: a large and dear model, among the most accurate at exams.",
    "Mixtral-8x7B": "An open mixture of experts of middle size by Mistral, cheap to run.",
    "llama-2-7b-chat": "Meta's small open chat model of seven billion parameters. Weak at exams.",
    "llama-2-70b-chat": "Meta's large open chat model of 2023. Of middling accuracy at exams.",
    "mistral-large": "Mistral's largest model of 2024: accurate at exams, at a middle price.",
    "cohere-command-r-plus": "Cohere's large model for retrieval and tools. Of middling accuracy at exams.",
    "gemini-1.0-pro": "Google's cheap and quick model of 2023. Of middling accuracy at exams.",
    "gemini-1.5-pro-preview-0409": "Google's large model of 2024 with a long context. Accurate at exams.",
    "claude-3-opus-20240229": "Anthropic's largest model of 2024: dear, and most accurate at exams.",
    "vanilla": "Answers at once, without reasoning: a few tokens.",
    "cot": "Reasons step by step before it answers.",
    "cod": "Reasons step by step in short notes before it answers.",
    "composite": "Takes an expert's role, recalls facts, reasons step by step, criticises itself: long.",
    "cod-expert": "Takes an expert's role and reasons step by step in short notes.",
}


def profiles_of(name: str, candidates: Sequence[Candidate], encoder: Kept) -> Profiles:
    """The texts above, or those of the embedded pool; a name stands for itself where nothing is said."""
    texts: dict[str, str] = dict(PROFILES)
    if name == EMBEDDED:
        pool = load_pool("embedded")
        texts |= {model: spec.profile for model, spec in pool.models.items()}
        texts |= {one: strategy.profile for one, strategy in pool.strategies.items()}
    models = sorted({c.model for c in candidates})
    strategies = sorted({c.strategy for c in candidates})
    rows_ND = encoder.encode([texts.get(one, one) for one in (*models, *strategies)])
    return Profiles(
        dict(zip(models, rows_ND, strict=False)), dict(zip(strategies, rows_ND[len(models) :], strict=True))
    )


def measured(
    table: Table, profiles: Profiles, kind: str, seeds: int, labels: Sequence[int], most: int | None
) -> list[dict[str, Any]]:
    """One row for each split, left-out candidate and number of labels."""
    table = table.scorable([~table.ood_M])
    (recipe,) = estimators_of([kind]).values()
    rows = []
    for seed, train_M, test_M in table.splits(seeds):
        known, part = table.whole.rows(train_M), table.part(test_M)
        known_MD = table.embeddings[train_M]
        trial = Trial(known, known_MD, {"test": part}, profiles)
        whole = predicted(recipe.fit(known, known_MD, profiles), part.embeddings, part.outcomes.queries)
        order = np.random.default_rng(seed).permutation(len(known.query_ids))
        for left_out in range(len(known.candidates))[:most]:
            rest = np.array([c for c in range(len(known.candidates)) if c != left_out])
            base = recipe.fit(columns(known, rest), known_MD, profiles)
            new = known.candidates[left_out]
            profiled = by_profile(base, [new], profiles, known_MD.shape[1])
            usable_C = np.arange(len(known.candidates)) != left_out
            facts = {"seed": seed, "candidate": str(new)}
            rows.append(facts | {"labels": "none"} | _routed(trial, part, whole, usable_C))
            for count in labels:
                seen_M = np.array(~np.isnan(known.accuracy[order, left_out]))
                drawn = order[seen_M][:count]
                made = profiled
                if count:
                    made = by_outcomes(
                        profiled, columns(known.rows(drawn), np.array([left_out])), known_MD[drawn]
                    )
                told = _in_order(predicted(made, part.embeddings, part.outcomes.queries), left_out)
                rows.append(
                    facts | {"labels": count} | _told(part, told, left_out) | _routed(trial, part, told)
                )
                if count:
                    mean = _mean(whole, known.rows(drawn), left_out)
                    rows.append(facts | {"labels": f"mean of {count}"} | _told(part, mean, left_out))
            rows.append(
                facts | {"labels": "all"} | _told(part, whole, left_out) | _routed(trial, part, whole)
            )
    return rows


def _in_order(estimate: Estimate, left_out: int) -> Estimate:
    """The last column put where it belongs."""
    names = ("accuracy", "output_tokens", "output_tokens_p95")
    return Estimate(
        *(
            np.insert(getattr(estimate, n)[:, :-1], left_out, getattr(estimate, n)[:, -1], axis=1)
            for n in names
        )
    )


def _mean(estimate: Estimate, few: Outcomes, column: int) -> Estimate:
    """The estimate, in which the new candidate is the mean of its labels for every query."""
    accuracy_QC, tokens_QC = estimate.accuracy.copy(), estimate.output_tokens.copy()
    accuracy_QC[:, column] = np.nanmean(few.accuracy[:, column])
    tokens_QC[:, column] = np.nanmean(few.output_tokens[:, column])
    return Estimate(accuracy_QC, tokens_QC, tokens_QC)


def _told(part: Part, told: Estimate, column: int) -> dict[str, float]:
    """How well one candidate is predicted."""
    right_Q, believed_Q = part.outcomes.accuracy[:, column], told.accuracy[:, column].astype(np.float64)
    seen_Q = ~np.isnan(right_Q)
    right_Q, believed_Q = right_Q[seen_Q], believed_Q[seen_Q]
    tokens_Q = part.outcomes.output_tokens[seen_Q, column]
    return {
        "mae": float(np.abs(believed_Q - right_Q).mean()),
        "bias": float(abs(believed_Q.mean() - right_Q.mean())),
        "brier": float(((believed_Q - right_Q) ** 2).mean()),
        "auroc": _auroc(believed_Q, right_Q > 0.5),
        "tokens": float(np.log(told.output_tokens[seen_Q, column].sum() / np.nansum(tokens_Q))),
    }


def _auroc(score_Q: FloatArray, right_Q: BoolArray) -> float:
    if right_Q.all() or not right_Q.any():
        return float("nan")
    higher = (score_Q[right_Q][:, None] > score_Q[~right_Q]).mean()
    return float(higher + 0.5 * (score_Q[right_Q][:, None] == score_Q[~right_Q]).mean())


def _routed(trial: Trial, part: Part, told: Estimate, usable_C: BoolArray | None = None) -> dict[str, float]:
    found = height(trial, part, told, usable_C)
    return {"over_hull": found.over_hull, "gap_closed": found.gap_closed}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table of docs/quality.md: means over candidates and splits."""
    lines = [
        "| labels | error of the mean | MAE | Brier | AUROC | tokens off by | over the hull, points "
        "| gap closed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for labels in dict.fromkeys(row["labels"] for row in rows):
        mine = [row for row in rows if row["labels"] == labels]

        def mean(name: str, mine: Sequence[Mapping[str, Any]] = mine) -> float:
            values = [abs(row[name]) if name == "tokens" else row[name] for row in mine if name in row]
            return float(np.nanmean(values)) if values else float("nan")

        cells = [
            str(labels), *(f"{mean(n):.3f}" for n in ("bias", "mae", "brier", "auroc")),
            f"{100 * (np.exp(mean('tokens')) - 1):.0f}%", f"{100 * mean('over_hull'):+.2f}",
            f"{100 * mean('gap_closed'):.1f}%",
        ]  # fmt: skip
        lines.append("| " + " | ".join("" if "nan" in cell else cell for cell in cells) + " |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = arguments("A candidate that comes late.", TABLES, "new_candidates.json")
    parser.add_argument("--estimator", default="auto", help="a kind, or JSON")
    parser.add_argument("--labels", nargs="+", type=int, default=list(LABELS))
    parser.add_argument("--most", type=int, default=None, help="so many candidates are left out at most")
    options = parser.parse_args(given)
    console, found = Console(width=200, highlight=False), {}
    for name, table in tables_of(options, console):
        profiles = profiles_of(name, table.whole.candidates, kept(options.encoder, options.embeddings))
        rows = measured(table, profiles, options.estimator, options.seeds, options.labels, options.most)
        console.print(f"\n{name}, {options.estimator}, {options.seeds} splits\n", markup=False)
        console.print(markdown(rows), markup=False, soft_wrap=True)
        found[name] = rows
        options.out.parent.mkdir(parents=True, exist_ok=True)
        written = {**surroundings("numpy"), "estimator": options.estimator, "tables": found}
        options.out.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
