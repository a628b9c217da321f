"""Money for the online endpoint: how many requests a second the keys can reserve and settle.

    python benchmarks/keys.py

1. In one process: `KeyGate` over the SQLite file, one request after the other and 64 at once, with
   commits that survive the death of processes (the default) and with those that survive a power cut.
2. Through the owner actor on a real cluster: 1, 2 and 4 replicas, each a process of its own, 32 requests
   at once in each; and one replica with one request after the other, which is what an idle endpoint adds.

A pair is one `reserve` and one `settle`, in two transactions at least, of a key with budgets per day, per
month and in all, beside global ones. Writes benchmarks/out/keys.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._surroundings import surroundings
from rtr_ray.gate import Caller, Gate, Hold, Offer
from rtr_ray.keys import GLOBAL, KeyGate, KeyStore, Limits, LocalBank
from rtr_ray.types import Candidate

OUT = Path(__file__).parent / "out"
LARGE = Limits(Decimal(10_000), Decimal(100_000), Decimal(1_000_000))
OFFERS = tuple(Offer(Candidate(f"model{n}", "cot"), Decimal("0.01") / (n + 1), 1200) for n in range(8))


def new_store(folder: str, power_safe: bool = False) -> tuple[KeyStore, Caller]:
    """A file with one key that has large budgets, as all together have."""
    store = KeyStore(Path(folder) / "keys.sqlite", power_safe=power_safe)
    _, key = store.create("bench", LARGE)
    store.change(GLOBAL, LARGE)
    return store, Caller(key.id, key.name)


async def pairs(gate: Gate, caller: Caller, seconds: float, at_once: int) -> tuple[float, list[float]]:
    """Pairs a second, and the seconds that each pair has taken."""
    until, took = time.monotonic() + seconds, []

    async def client() -> None:
        while time.monotonic() < until:
            started = time.monotonic()
            held = await gate.reserve(caller, OFFERS)
            if not isinstance(held, Hold):
                raise RuntimeError(f"the budget was meant to be large enough: {held.message}")
            await gate.settle(held, Decimal("0.0031"), 700)
            took.append(time.monotonic() - started)

    started = time.monotonic()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return len(took) / (time.monotonic() - started), took


def figure(name: str, at_once: int, pairs_per_s: float, took: list[float]) -> dict[str, Any]:
    """One row of the report."""
    ordered = sorted(took)
    return {
        "where": name,
        "at_once": at_once,
        "pairs_per_s": pairs_per_s,
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
    }


def measure_local(seconds: float) -> list[dict[str, Any]]:
    """In this process."""
    found = []
    for power_safe in (False, True):
        for at_once in (1, 64):
            with tempfile.TemporaryDirectory() as folder:
                store, caller = new_store(folder, power_safe)
                rate, took = asyncio.run(pairs(KeyGate(LocalBank(store)), caller, seconds, at_once))
                name = "in process, safe from a power cut" if power_safe else "in process"
                found.append(figure(name, at_once, rate, took))
                store.shut()
    return found


def measure_actor(seconds: float) -> list[dict[str, Any]]:
    """Through the owner actor, on a cluster of this machine."""
    import ray

    from rtr_ray.distributed.online.keys_actor import end_keys_actor, remote_gate

    ray.init(
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=tempfile.mkdtemp(prefix="rtr-keys-"),
    )

    @ray.remote(num_cpus=0)
    class Replica:
        def __init__(self, path: str) -> None:
            self.gate = remote_gate(path)

        async def work(self, caller: Caller, seconds: float, at_once: int) -> tuple[float, list[float]]:
            return await pairs(self.gate, caller, seconds, at_once)

    found = []
    for replicas, at_once in ((1, 1), (1, 32), (2, 32), (4, 32)):
        with tempfile.TemporaryDirectory() as folder:
            store, caller = new_store(folder)
            workers: list[Any] = [Replica.remote(str(store.path)) for _ in range(replicas)]
            ray.get([one.work.remote(caller, 0.5, 1) for one in workers])
            results = ray.get([one.work.remote(caller, seconds, at_once) for one in workers])
            took = [each for _, some in results for each in some]
            name = f"owner actor, {replicas} replica{'s' if replicas > 1 else ''}"
            found.append(figure(name, at_once, sum(rate for rate, _ in results), took))
            for one in workers:
                ray.kill(one)
            end_keys_actor(str(store.path))
            store.shut()
    ray.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    parser.add_argument("--only", choices=["local", "actor"])
    parser.add_argument("--out", type=Path, default=OUT / "keys.json")
    options = parser.parse_args()
    found = measure_local(options.seconds) if options.only != "actor" else []
    found += measure_actor(options.seconds) if options.only != "local" else []
    table = Table(title="reserve-and-settle pairs")
    for name in ("where", "at once, each", "pairs/s", "p50 ms", "p99 ms"):
        table.add_column(name, justify="left" if name == "where" else "right")
    for one in found:
        numbers = (f"{one['pairs_per_s']:,.0f}", f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}")
        table.add_row(one["where"], str(one["at_once"]), *numbers)
    Console().print(table)
    report = {"name": "keys", "figures": found, **surroundings("ray")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
