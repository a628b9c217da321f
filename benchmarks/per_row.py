"""What a row costs us while it is answered: dispatch, ledger, results, without engines and without Ray.

    python benchmarks/per_row.py                # microseconds of CPU, and where they go
    python benchmarks/per_row.py --rows 50000

answers one plan part by an executor that replies at once, with the code of a dispatch actor, the ledger and
Parquet on this disk in the same process. What is left out is Ray: a message for each chunk to the engine, to
the ledger, and for each bundle of replies. Beside it, in the same run, what nobody can do without: the same
results as one Parquet table. Prints the functions in which the time goes, and writes
benchmarks/out/per_row.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from rtr_ray.answers import Answerer
from rtr_ray.books import Reservation, Settlement
from rtr_ray.config import DispatchKeys, load_pool
from rtr_ray.dispatch import Dispatcher, Gate, Settings
from rtr_ray.distributed.dispatching import open_requests
from rtr_ray.distributed.ledger_actor import SharedLedger
from rtr_ray.distributed.sink import Sink
from rtr_ray.embedded.questions import draw
from rtr_ray.executors.base import Reply
from rtr_ray.ledger import Grant
from rtr_ray.pool import Pool
from rtr_ray.storage import open_store
from rtr_ray.types import Candidate, Outcome, Request, Sample, Usage

CANDIDATE = Candidate("small", "cot")
TOKENS = 40  # of an answer
TARGET_PER_S = 2_000  # of a whole run, on two cores


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Replies to everything, all of a chunk in one go."""

    async def execute(self, requests: Sequence[Request]) -> AsyncIterator[Reply]:
        """One reply each."""
        for one in requests:
            sample = Sample("The sum is \\boxed{7}", "stop", TOKENS)
            usage = Usage(one.max_input_tokens, TOKENS)
            yield Outcome(one.query_id, one.candidate, (sample,), usage=usage, latency_s=0.0)

    async def aclose(self) -> None:
        """Nothing is open."""


@dataclass(slots=True)
class Books:
    """A ledger in this process, as a dispatch actor sees the one of its run."""

    shared: SharedLedger
    take: int = 0

    async def begin(self) -> None:
        """Take up the part."""
        self.take = self.shared.begin("part", {})

    async def trim(self, known: Sequence[tuple[str, Decimal]]) -> None:
        """What some calls have cost is known."""
        self.shared.trim("part", self.take, known)

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Grant]:
        """Set money aside."""
        return self.shared.reserve("part", reservations)

    async def settle(self, settlements: Sequence[Settlement], rows: Any = None, sent_again: int = 0) -> None:
        """End reservations."""
        self.shared.settle("part", settlements, dict(rows or {}), sent_again)

    async def left_usd(self) -> Decimal | None:
        """What is left."""
        return self.shared.left_usd()


def plan_part(rows: int) -> pa.Table:
    """A plan part of the embedded pool's held-out questions."""
    asked = [one.query for one in draw("test", min(rows, 2_000), seed=3)]
    return pa.table(
        {
            "query_id": [f"q{row}" for row in range(rows)],
            "_text": [asked[row % len(asked)] for row in range(rows)],
            "_messages": pa.nulls(rows, pa.string()),
            "_gold": pa.nulls(rows, pa.string()),
            "_own": pa.nulls(rows, pa.string()),
            "model": [CANDIDATE.model] * rows,
            "strategy": [CANDIDATE.strategy] * rows,
            "samples": pa.array([1] * rows, pa.int32()),
            "predicted_accuracy": np.full(rows, 0.5, dtype=np.float32),
            "predicted_output_tokens": np.full(rows, TOKENS, dtype=np.float32),
            "predicted_output_tokens_p95": np.full(rows, 2 * TOKENS, dtype=np.float32),
            "predicted_cost_usd": np.full(rows, 1e-6, dtype=np.float32),
            "runner_up": pa.nulls(rows, pa.string()),
            "plan_version": [0] * rows,
            "dual_price": pa.nulls(rows, pa.float64()),
        }
    )


async def answered(folder: str, part: pa.Table, pool: Pool) -> int:
    """Answer a plan part as a dispatch actor does; gives the rows that are durable."""
    store, keys, index = open_store(folder), DispatchKeys(), dict[str, int]()
    shared = SharedLedger(folder, Decimal(10**6))
    shared.resume({}, {})
    books: Any = Books(shared)
    await books.begin()
    executor: Any = AtOnce()
    dispatcher = Dispatcher(executor, books, pool, Gate(512), Settings(chunk=keys.chunk))
    sink = Sink(
        store, "part", part, index, pool, keys,
        Answerer(pool.strategies, None, pool.thinking), None, books, dispatcher,
    )  # fmt: skip
    requests = open_requests(pool, part, index, {})
    async with sink, contextlib.aclosing(dispatcher.run(requests)) as outcomes:
        async for outcome in outcomes:
            await sink.take(outcome)
    return shared.close().rows["answered"]


def measure(rows: int, repeats: int) -> tuple[dict[str, Any], pstats.Stats]:
    """Microseconds of CPU a row, ours and those of a bare write; and a profile of one more turn."""
    pool, part = load_pool("embedded"), plan_part(rows)
    ours, bare = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="rtr-row-") as folder:
            began_s = time.process_time()
            done = asyncio.run(answered(folder, part, pool))
            ours.append(time.process_time() - began_s)
            assert done == rows
            began_s = time.process_time()
            pq.write_table(part, f"{folder}/bare.parquet")
            bare.append(time.process_time() - began_s)
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory(prefix="rtr-row-") as folder:
        profile.enable()
        asyncio.run(answered(folder, part, pool))
        profile.disable()
    each = {"us_per_row": statistics.median(ours), "bare_write_us_per_row": statistics.median(bare)}
    return {name: 1e6 * value / rows for name, value in each.items()} | {"rows": rows}, pstats.Stats(profile)


def shown(stats: pstats.Stats, rows: int, most: int = 25) -> Table:
    """Where the time goes."""
    table = Table(title="a row's time by function, under the profiler, which doubles it")
    for name in ("us of its own", "us with what it calls", "calls", "function"):
        table.add_column(name, justify="left" if name == "function" else "right")
    entries: Any = stats.stats  # type: ignore[attr-defined]
    for where, (_, calls, own_s, all_s, _) in sorted(entries.items(), key=lambda one: -one[1][2])[:most]:
        place = f"{Path(where[0]).name}:{where[1]} {where[2]}" if where[1] else where[2]
        table.add_row(f"{1e6 * own_s / rows:.1f}", f"{1e6 * all_s / rows:.1f}", f"{calls / rows:.1f}", place)
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what a row costs while it is answered.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--out", type=Path, default=OUT / "per_row.json")
    options = parser.parse_args()
    rows, repeats = (200, 1) if options.small else (options.rows, options.repeats)
    found, stats = measure(rows, repeats)
    console = Console()
    console.print(shown(stats, rows))
    per_s = 1e6 / found["us_per_row"]
    console.print(
        f"{found['us_per_row']:.0f} us of CPU a row: one core does {per_s:,.0f} per second. "
        f"The bare write takes {found['bare_write_us_per_row']:.1f} us.",
        highlight=False,
    )
    report(
        "per_row",
        found["us_per_row"] * TARGET_PER_S / 1e6,
        f"one core's time at {TARGET_PER_S:,} rows per second (the share of it that these rows take)",
        found,
        ("ray", "pyarrow"),
        options.out,
    )


if __name__ == "__main__":
    main()
