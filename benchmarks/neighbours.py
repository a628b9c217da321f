"""How fast a router of others decides, in an environment of its own, beside ours: prompts per second.

    python benchmarks/neighbours.py              # installs RouteLLM into .venv-neighbours: minutes

`RouteLLM` 0.2.0 has one router that needs neither a key for somebody's embeddings nor a language model: its
classifier (`BERTRouter`). Its weights lie on a hub; here it gets those of all-MiniLM-L6-v2 with a random
head, the size of encoder that ours has: what it answers means nothing, how long it takes is what its code
takes. It decides between two candidates, a prompt at a time, which is all that it offers. Ours computes the
tables of the embedded pool's ten candidates (embeddings, accuracy, tokens, dollars) and chooses.

`llmrouter-lib` 0.4.0 is not run: its trained routers read embeddings of a Longformer, whose weights lie on a
hub.

Both take turns on the same prompts and threads. Writes benchmarks/out/neighbours.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from benchmarks._turns import in_turns
from benchmarks.encoding import MODEL, THREADS, texts_of
from rtr_ray.config import load_pool
from rtr_ray.encoders.sentence import SentenceEncoder, package_folder
from rtr_ray.estimators.linear import Linear
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.policies.score import FittedScore
from rtr_ray.router import Router, train

HOME = Path(__file__).resolve().parents[1] / ".venv-neighbours"
PACKAGES = ("routellm==0.2.0", f"torch=={torch.__version__.partition('+')[0]}")
LABELS = Path(__file__).resolve().parents[1] / "rtr_ray" / "embedded" / "outcomes.parquet"

THEIRS = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[3]))
from routellm.routers.routers import BERTRouter
router = BERTRouter(sys.argv[1], num_labels=3)
prompts = json.load(open(sys.argv[2]))
print("ready", flush=True)
for _ in sys.stdin:
    print(sum(router.calculate_strong_win_rate(one) >= 0.5 for one in prompts), flush=True)
"""


def python() -> Path:
    """The interpreter of RouteLLM's environment, which is made if there is none."""
    found = HOME / "bin" / "python"
    if not (HOME / "installed").exists():
        venv.create(HOME, with_pip=True, clear=True)
        subprocess.run([found, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (HOME / "installed").touch()
    return found


def theirs(folder: Path, prompts: Path) -> subprocess.Popen[str]:
    """RouteLLM's process, ready to decide about all prompts for each line that comes in."""
    environment = os.environ | {
        "OPENAI_API_KEY": "none",  # its module makes a client when it is imported; nothing is asked of it
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(THREADS),
    }
    process = subprocess.Popen(
        [python(), "-c", THEIRS, str(folder), str(prompts), str(THREADS)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit("RouteLLM did not start; what it said stands above.")
    return process


def asked(process: subprocess.Popen[str]) -> int:
    """One turn: how many prompts go to the strong model."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def our_router() -> Router:
    """A router of the embedded pool, with the encoder of the same size."""
    pool = load_pool("embedded")
    encoder: Any = SentenceEncoder(MODEL, device="cpu")
    folder = train(pivot(read_long(str(LABELS)), pool.candidates), pool, encoder, Linear())
    return folder.bind(pool, encoder)


def measure(count: int, repeats: int) -> dict[str, Any]:
    """Both in turns."""
    texts = texts_of(count)
    router = our_router()
    policy = FittedScore(lam=0.5, normaliser_usd=0.001)
    ids, size_Q = [str(number) for number in range(count)], np.array([len(text.encode()) for text in texts])

    def ours() -> Any:
        return policy.choose(router.table(ids, router.encoder.encode(texts), size_Q, texts))

    with tempfile.TemporaryDirectory(prefix="rtr-neighbours-") as name:
        prompts = Path(name) / "prompts.json"
        prompts.write_text(json.dumps(texts))
        process = theirs(Path(package_folder(MODEL)), prompts)
        try:
            timings = in_turns(
                {
                    "RouteLLM BERTRouter": lambda: asked(process),
                    "rtr-ray, table and choice": ours,
                },
                repeats,
            )
        finally:
            process.terminate()
            process.wait()
    their, mine = timings.values()
    faster, faster_best = their.over(mine)
    return {
        "prompts": count,
        "threads": THREADS,
        "candidates": {"RouteLLM": 2, "rtr-ray": len(router.candidates)},
        "per_s": {way: count / timing.median_s for way, timing in timings.items()},
        "faster": faster,
        "faster_best": faster_best,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure beside routers of others.")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT / "neighbours.json")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    found = measure(options.prompts, options.repeats)
    table = Table("router", "prompts/s", title=f"{options.prompts} prompts, {THREADS} thread(s)")
    for way, rate in found["per_s"].items():
        table.add_row(way, f"{rate:,.1f}")
    Console().print(table)
    report(
        "neighbours",
        found["faster"],
        "prompts per second of RouteLLM's BERTRouter with an encoder of the same size (ours over it)",
        found,
        ("sentence-transformers", "torch"),
        options.out,
    )


if __name__ == "__main__":
    main()
