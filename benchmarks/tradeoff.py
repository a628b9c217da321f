"""What each `lam` of the score policy would reach, by cross-validation on recorded outcomes.

    python benchmarks/tradeoff.py

trains on four fifths of the shipped outcomes and lets the router choose for the last fifth, five times. No
held-out question of the demo is touched: this is how the demo's settings were found. `--estimator` takes a
name, or JSON with settings; `--outcomes` and `--pool` take other ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rtr_ray import registry
from rtr_ray.config import load_pool
from rtr_ray.distributed.demo import ENCODER
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.estimators import KNOWN as ESTIMATORS
from rtr_ray.outcomes import pivot, read_long, split_rows
from rtr_ray.policies.score import Score
from rtr_ray.router import InputTokens, Router, embed_profiles
from rtr_ray.types import FloatArray, IntArray, Outcomes

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "out" / "tradeoff.json"
LAMS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99)


def choices(
    known: Outcomes, known_MD: FloatArray, asked: Outcomes, asked_QD: FloatArray, pool: Any, made: Any
) -> dict[float, IntArray]:
    """(Q,) columns for each lam, by a router that has seen `known`."""
    encoder, estimator, profiles = made
    router = Router(
        encoder, estimator.fit(known, known_MD, profiles), InputTokens.fit(known), pool, pool.candidates, ""
    )
    sizes_Q = np.array([len(query.encode()) for query in asked.queries])
    table = router.table(asked.query_ids, asked_QD, sizes_Q)
    found = {}
    for lam in LAMS:
        policy = Score(lam=lam)
        found[lam] = policy.freeze(policy.sketch(table)).choose(table).choice
    return found


def folds_of(outcomes: Outcomes, count: int, seed: int) -> IntArray:
    """(M,) the fold of each query; equal texts share one."""
    texts = sorted(set(outcomes.queries))
    fold = dict(zip(texts, np.random.default_rng(seed).permutation(len(texts)) % count, strict=True))
    return np.array([fold[text] for text in outcomes.queries])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What each lam would reach.")
    parser.add_argument("--outcomes", default=str(ROOT / "rtr_ray" / "embedded" / "outcomes.parquet"))
    parser.add_argument("--pool", default="embedded")
    parser.add_argument("--estimator", action="append", help="may be repeated; default: rtr")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pool = load_pool(options.pool)
    outcomes = pivot(split_rows(read_long(options.outcomes), "train"), list(pool.candidates))
    encoder = registry.build(dict(ENCODER), ENCODERS, "encoder")
    embedded_MD = encoder.encode(outcomes.queries)
    profiles = embed_profiles(pool, encoder, outcomes.candidates)
    fold_M = folds_of(outcomes, options.folds, options.seed)
    right_MC, cost_MC = outcomes.accuracy, outcomes.cost_usd
    best = int(right_MC.mean(axis=0).argmax())
    oracle_M = right_MC.max(axis=1)
    console = Console()
    console.print(
        f"{len(right_MC):,} queries; best single {outcomes.candidates[best]}: "
        f"{right_MC[:, best].mean():.1%} at {1000 * cost_MC[:, best].mean():.5f} dollars per 1,000; "
        f"oracle {oracle_M.mean():.1%}"
    )
    report = []
    for text in options.estimator or ["rtr"]:
        spec = json.loads(text) if text.startswith("{") else {"kind": text}
        estimator: Any = registry.build(spec, ESTIMATORS, "estimator")
        chosen_M = {lam: np.zeros(len(fold_M), dtype=int) for lam in LAMS}
        for fold in range(options.folds):
            asked_M = fold_M == fold
            found = choices(
                outcomes.rows(~asked_M),
                embedded_MD[~asked_M],
                outcomes.rows(asked_M),
                embedded_MD[asked_M],
                pool,
                (encoder, estimator, profiles),
            )
            for lam in LAMS:
                chosen_M[lam][asked_M] = found[lam]
        table = Table("lam", "accuracy", "over best single", "its dollars", title=text)
        rows = np.arange(len(fold_M))
        for lam in LAMS:
            accuracy = float(right_MC[rows, chosen_M[lam]].mean())
            share = float(cost_MC[rows, chosen_M[lam]].mean() / cost_MC[:, best].mean())
            over = 100 * (accuracy - float(right_MC[:, best].mean()))
            report.append({"estimator": spec, "lam": lam, "accuracy": accuracy, "cost_share": share})
            table.add_row(f"{lam:g}", f"{accuracy:.1%}", f"{over:+.1f}", f"{share:.0%}")
        console.print(table)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
