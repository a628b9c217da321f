"""How far a searched suffix drives queries to dear candidates, before and after guards: docs/safety.md.

    python benchmarks/attack.py                                        # embedded pool, linear on MiniLM
    python benchmarks/attack.py --tables renze_dense_2x4 --estimator auto --words 40 --positions 8

The attacker sees what the router predicts for any text (the strongest black box) and searches, word by
word, one suffix for all queries that makes the dearest candidate look best on some queries; it is then
put behind others. `adaptive`: the search knows the guard and sees what is predicted behind it.
Writes benchmarks/out/attack.json.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._recorded import EMBEDDED, Kept, arguments, kept, tables_of
from benchmarks._surroundings import surroundings
from rtr_ray.encoders.base import Encoder
from rtr_ray.estimators.base import FittedEstimator, predicted, related
from rtr_ray.familiarity import Familiarity, usual_of
from rtr_ray.plainly import plainly
from rtr_ray.quality.evaluate import Table, estimators_of
from rtr_ray.quality.trial import Trial
from rtr_ray.types import Estimate, FloatArray

PRICES = 10.0 ** np.linspace(-3, 1, 41)  # accuracy per mean cost; tried for an operating point
USUAL_SHARE = 0.15  # of clean queries that go to the dearest candidate, about
LEVEL = 0.99
ODD = ("!!!!", "[INST]", "}{", "\\\\n", "????", "ZXQ", "0000", "###", "<|im_end|>", "~~", "TODO", "QED")
PLAIN = tuple(
    re.findall(
        "[a-z]+",
        "please explain prove derive rigorous theorem integral proof step by carefully hard olympiad expert "
        "advanced detailed analysis legal medical quantum the of and because therefore which is an why",
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class Victim:
    """A router as an attacker and its owner see it."""

    encoder: Encoder
    fitted: FittedEstimator
    trial: Trial
    familiarity: Familiarity | None
    usual: Estimate
    price: float
    unit: float  # mean cost

    def scores(self, texts: Sequence[str], guard: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(Q, C) what the policy maximises, (Q, C) predicted cost, (Q,) what is unlike training."""
        read = [plainly(text) for text in texts] if "plainly" in guard else list(texts)
        embeddings_QD = self.encoder.encode(read)
        told = predicted(self.fitted, embeddings_QD, read)
        accuracy_QC, tokens_QC = told.accuracy.astype(np.float64), told.output_tokens.astype(np.float64)
        far_Q = np.zeros(len(texts), dtype=bool)
        if "ood" in guard and self.familiarity is not None:
            far_Q = self.familiarity.score(embeddings_QD) > self.familiarity.threshold(LEVEL)
            accuracy_QC = np.where(far_Q[:, None], self.usual.accuracy, accuracy_QC)
            tokens_QC = np.where(far_Q[:, None], self.usual.output_tokens, tokens_QC)
        size_Q = np.array([len(text.encode()) for text in texts], dtype=np.float64)
        cost_QC = self.trial.costs.of(self.trial.inputs.predict(self.fitted.candidates, size_Q), tokens_QC)
        return accuracy_QC - self.price * cost_QC / self.unit, cost_QC, far_Q


def victim(table: Table, encoder: Kept, kind: str) -> tuple[Victim, list[str], int]:
    """A router on two thirds of the queries, at a price at which some go to the dearest; the others."""
    table = table.scorable([~table.ood_M])
    ((_, train_M, test_M),) = table.splits(1)
    known, known_MD = table.whole.rows(train_M), table.embeddings[train_M]
    trial = Trial(known, known_MD, {"test": table.part(test_M)}, table.profiles)
    (recipe,) = estimators_of([kind]).values()
    fitted = recipe.fit(known, known_MD, table.profiles)
    texts = list(table.whole.rows(test_M).queries)
    usual = usual_of(predicted(fitted, known_MD[:300], known.queries[:300]))
    found = Victim(encoder.loaded, fitted, trial, Familiarity.of(known_MD, related(known)), usual, 0.0, 1.0)
    _, cost_QC, _ = found.scores(texts[:200], "none")
    dearest, unit = int(cost_QC.mean(axis=0).argmax()), float(cost_QC.mean())
    told = predicted(fitted, table.embeddings[test_M][:200], texts[:200]).accuracy
    shares = [float(((told - price * cost_QC / unit).argmax(axis=1) == dearest).mean()) for price in PRICES]
    price = float(PRICES[int(np.argmin(np.abs(np.array(shares) - USUAL_SHARE)))])
    made = Victim(found.encoder, fitted, trial, found.familiarity, usual, price, unit)
    return made, texts, dearest


def searched(
    made: Victim, texts: Sequence[str], dearest: int, guard: str, words: int, positions: int, seed: int,
    told: Callable[[str], object] = lambda text: None,
) -> str:  # fmt: skip
    """The suffix under which the dearest candidate looks best, found word by word."""
    dice = np.random.default_rng(seed)
    vocabulary = [*ODD, *PLAIN, *sorted({word for text in texts for word in text.split() if word.isalpha()})]

    def worth(suffix: str) -> float:
        score_QC, _, _ = made.scores([f"{text} {suffix}" for text in texts], guard)
        rest_Q = np.delete(score_QC, dearest, axis=1).max(axis=1)
        return float(
            np.minimum(score_QC[:, dearest] - rest_Q, 0.05).mean()
        )  # what is won need not be won higher

    best, height = "", worth("")
    for _ in range(positions):
        tried = [*dice.choice(vocabulary, size=min(words, len(vocabulary)), replace=False)]
        ends = (
            ("", ".", "?") if "plainly" in guard else ("",)
        )  # a guard that looks at ends is told other ones
        found = [
            (worth(f"{best} {word}{end}".strip()), f"{best} {word}".strip(), end)
            for word in tried
            for end in ends[: 1 + (len(ends) > 1)]
        ]
        value, suffix, end = max(found)
        if value <= height:
            continue
        best, height = suffix + end, value
        told(best)
    return best


def outcome(made: Victim, texts: Sequence[str], dearest: int, suffix: str, guard: str) -> dict[str, float]:
    """Where queries go with a suffix, behind a guard."""
    score_QC, cost_QC, far_Q = made.scores([f"{text} {suffix}".strip() for text in texts], guard)
    choice_Q = score_QC.argmax(axis=1)
    return {
        "share": float((choice_Q == dearest).mean()),
        "cost": float(cost_QC[np.arange(len(texts)), choice_Q].mean()),
        "marked": float(far_Q.mean()),
    }


def measured(table: Table, encoder: Kept, options: Any, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """A row for each guard and attack."""
    made, texts, dearest = victim(table, encoder, options.estimator)
    attacked, asked = texts[: options.queries], texts[options.queries : options.queries + options.asked]
    rows: list[dict[str, Any]] = []
    blind = searched(
        made, attacked, dearest, "none", options.words, options.positions, 0, lambda text: say(f"  {text}")
    )
    clean = outcome(made, asked, dearest, "", "none")
    plain_Q = made.scores(asked, "none")[0].argmax(axis=1)
    for guard in ("none", "plainly", "ood", "plainly, ood"):
        knowing = blind
        if guard != "none":
            knowing = searched(made, attacked, dearest, guard, options.words, options.positions, 1)
        row: dict[str, Any] = {"guard": guard, "blind_suffix": blind, "adaptive_suffix": knowing}
        row["changed"] = float((made.scores(asked, guard)[0].argmax(axis=1) != plain_Q).mean())
        for name, suffix in (("clean", ""), ("blind", blind), ("adaptive", knowing)):
            found = outcome(made, asked, dearest, suffix, guard)
            row |= {f"{name}_share": found["share"], f"{name}_cost": found["cost"] / clean["cost"]}
            row[f"{name}_marked"] = found["marked"]
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table of docs/safety.md."""
    lines = [
        "| guard | clean queries whose choice it changes | to the dearest: clean | attacked | adaptive "
        "| cost of a query: attacked | adaptive |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(f"{100 * row[f'{name}_share']:.0f}%" for name in ("clean", "blind", "adaptive"))
        lines.append(
            f"| {row['guard']} | {100 * row['changed']:.1f}% | {shares} | {row['blind_cost']:.2f}x "
            f"| {row['adaptive_cost']:.2f}x |"
        )
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = arguments("A searched suffix against a router.", (EMBEDDED,), "attack.json")
    parser.add_argument("--estimator", default="linear", help="a kind, or JSON")
    parser.add_argument("--words", type=int, default=30, help="words tried at each position")
    parser.add_argument("--positions", type=int, default=6, help="words of the suffix at most")
    parser.add_argument("--queries", type=int, default=16, help="that the suffix is searched on")
    parser.add_argument("--asked", type=int, default=150, help="others that it is then put behind")
    options = parser.parse_args(given)
    console, found = Console(width=200, highlight=False), {}
    for name, table in tables_of(options, console):

        def say(text: str) -> None:
            console.print(text, markup=False)

        rows = measured(table, kept(options.encoder, options.embeddings), options, say)
        console.print(f"\n{name}, {options.estimator}\n", markup=False)
        console.print(markdown(rows), markup=False, soft_wrap=True)
        found[name] = rows
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**surroundings("numpy"), "tables": found}, indent=1))


if __name__ == "__main__":
    main()
