"""What the ledger costs, what it writes, and what partial reservations are worth.

    python benchmarks/ledger.py

1. Reserve-and-settle pairs per second through the ledger actor, with its record on the local disk,
   in chunks of 64 from several workers at once.
2. How often `ledger.json` is written per 1,000 rows: on S3 each is one PUT.
3. A budget that binds, 10,000 answers in flight, lengths with a heavy tail (lognormal, at most 32,000
   tokens), in virtual time with the real ledger: how busy the slots are until 97% of the budget is
   spent, with partial reservations and with worst cases alone. Every row's 95% quantile is known
   exactly, so this shows the rule and not the predictor.

Writes benchmarks/out/ledger.json.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import math
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from rtr_ray.books import Reservation, Settlement
from rtr_ray.distributed.lending import Allowance
from rtr_ray.ledger import Grant, Ledger
from rtr_ray.pool import Price
from rtr_ray.types import Candidate, Usage

CHUNK = 64
PAIRS_TARGET = 10_000  # per second
BUSY_TARGET, SPENT_TARGET = 0.95, 0.97
SMALL = Candidate("small", "cot")
PRICE = Price(Decimal("0.1"), Decimal("0.4"))
INPUT_TOKENS = 200


# --- 1 and 2: the actor -----------------------------------------------------------------------------------


async def work(books: Any, seconds: float, depth: int, rows: int = 10**12) -> int:
    """Reserve and settle chunks for so long; several are on their way at once, as in a dispatch actor."""
    await books.begin({})
    until, pairs, asked = time.monotonic() + seconds, 0, 0
    worst, paid = PRICE.worst_case_usd(INPUT_TOKENS, 1000), PRICE.cost_usd(Usage(INPUT_TOKENS, 300))

    async def lane() -> None:
        nonlocal pairs, asked
        while time.monotonic() < until and asked < rows:
            keys = [f"{books.owner}-{asked + i:08}|small:cot|0" for i in range(CHUNK)]
            asked += CHUNK
            grants = await books.reserve([Reservation(key, SMALL, worst) for key in keys])
            if not all(grant.given for grant in grants):
                raise RuntimeError("the budget was meant to be large enough")
            usage = Usage(INPUT_TOKENS, 300)
            await books.settle([Settlement(key, usage, paid) for key in keys], {"answered": CHUNK})
            pairs += CHUNK

    await asyncio.gather(*(lane() for _ in range(depth)))
    await books.finish()
    return pairs


def measure_actor(seconds: float, workers: int, depth: int) -> dict[str, Any]:
    """Pairs per second through the actor, and the records that were written."""
    import ray

    from rtr_ray.distributed.ledger_actor import RemoteBooks, claim, release

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=tempfile.mkdtemp(prefix="rtr-ledger-"),
    )

    @ray.remote(num_cpus=0)
    def worker(actor: Any, number: int) -> int:
        return asyncio.run(work(RemoteBooks(actor, f"part-{number}"), seconds, depth))

    @ray.remote(num_cpus=0)
    def warm() -> None:
        time.sleep(1)

    with tempfile.TemporaryDirectory() as folder:
        actor = claim(folder, Decimal(1000))
        ray.get(actor.resume.remote({}, {}))
        ray.get([warm.remote() for _ in range(workers)])  # processes start
        started = time.monotonic()
        pairs = sum(ray.get([worker.remote(actor, i) for i in range(workers)]))
        took = time.monotonic() - started
        release(actor)
    ray.shutdown()
    return {"workers": workers, "chunks_on_the_way": depth, "pairs": pairs, "pairs_per_s": pairs / took}


def measure_records(rows: int, budget_share: float) -> dict[str, Any]:
    """Writes of `ledger.json` for so many rows, as fast as one thread goes, without Ray.

    Args:
        rows: Requests.
        budget_share: Of the budget that they use.
    """
    from rtr_ray.distributed.ledger_actor import SharedLedger
    from rtr_ray.storage import LocalStore

    paid = PRICE.cost_usd(Usage(INPUT_TOKENS, 300))
    worst = PRICE.worst_case_usd(INPUT_TOKENS, 1000)
    writes: list[str] = []

    class Counting(LocalStore):
        def write(self, key: str, data: bytes) -> None:
            writes.append(key)
            super().write(key, data)

    with tempfile.TemporaryDirectory() as folder:
        shared = SharedLedger(folder, paid * rows / Decimal(str(budget_share)))
        shared._folder = type(shared._folder)(Counting(folder))
        shared.resume({}, {})
        shared.begin("part", {})
        flying: deque[list[str]] = deque()
        started, usage = time.monotonic(), Usage(INPUT_TOKENS, 300)
        for first in range(0, rows, CHUNK):
            keys = [f"row-{first + i:08}|small:cot|0" for i in range(min(CHUNK, rows - first))]
            while keys:
                grants = shared.reserve("part", [Reservation(key, SMALL, worst) for key in keys])
                flying.append([key for key, grant in zip(keys, grants, strict=True) if grant.given])
                keys = [key for key, grant in zip(keys, grants, strict=True) if grant is Grant.WAIT]
                if keys or len(flying) > 4:
                    done = [Settlement(key, usage, paid) for key in flying.popleft()]
                    shared.settle("part", done, {"answered": len(done)}, 0)
        took = time.monotonic() - started
        shared.close()
    # beside these, at most one a second draws the record in
    return {
        "rows": rows,
        "records": len(writes),
        "records_per_1000_rows": 1000 * len(writes) / rows,
        "s": took,
    }


# --- 3: simulated time ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Simulation:
    """Answers in virtual time; a slot makes one token per tick."""

    rows: int
    slots: int
    partial: bool  # partial reservations; else worst cases alone
    seed: int = 0
    max_tokens: int = 32_000
    budget_share: float = 0.8  # of what all rows would cost
    spread: tuple[float, float] = (0.8, 0.8)  # of the logarithm: that is predicted, that is not
    median_tokens: float = 500.0
    bias: float = 1.0  # of the quantile that is predicted, over the true one
    ledger: Ledger = field(init=False)
    now: float = 0.0
    busy: int = 0
    cut: int = 0
    answered: int = 0
    refused: int = 0
    extensions: int = 0
    most_committed: Decimal = Decimal(0)
    _tokens: Any = None
    _p95: Any = None
    _next: int = 0
    _events: list[tuple[float, int, int]] = field(default_factory=list)  # when, row, its length then
    _begun: dict[int, float] = field(default_factory=dict)
    _held: dict[int, Allowance] = field(default_factory=dict)
    _waits: bool = False

    def __post_init__(self) -> None:
        dice = np.random.default_rng(self.seed)
        known, unknown = self.spread
        location = math.log(self.median_tokens) + known * dice.normal(size=self.rows)
        tokens = np.ceil(np.exp(location + unknown * dice.normal(size=self.rows)))
        self._tokens = np.clip(tokens, 1, self.max_tokens).astype(int).tolist()
        self._p95 = (
            np.clip(np.ceil(self.bias * np.exp(location + 1.645 * unknown)), 1, self.max_tokens)
            .astype(int)
            .tolist()
        )
        everything = PRICE.cost_usd(Usage(INPUT_TOKENS * self.rows, sum(self._tokens)))
        self.ledger = Ledger((everything * Decimal(str(self.budget_share))).quantize(Decimal("1e-6")))

    def run(self) -> dict[str, Any]:
        """Until the budget is spent."""
        budget = self.ledger.budget_usd
        assert budget is not None
        windows = [[0.0, 0.0] for _ in range(101)]  # busy and all slot-ticks, by percent spent
        self._fill()
        while self._events:
            when, row, length = heapq.heappop(self._events)
            window = windows[min(int(100 * self.ledger.spent_usd / budget), 100)]
            window[0] += self.busy * (when - self.now)
            window[1] += self.slots * (when - self.now)
            self.now = when
            if self._step(row, length):
                self._fill()
            self.most_committed = max(self.most_committed, self.ledger.committed_usd)
        until = int(100 * SPENT_TARGET)
        shares = [busy / total if total else 1.0 for busy, total in windows]
        spent = self.ledger.spent_usd
        return {
            "rows": self.rows,
            "slots": self.slots,
            "partial": self.partial,
            "bias": self.bias,
            "busy_until_97": sum(w[0] for w in windows[:until]) / sum(w[1] for w in windows[:until]),
            "busy_worst_percent": min(shares[:until]),
            "first_percent_below_95_busy": next((i for i, s in enumerate(shares) if s < BUSY_TARGET), 101),
            "spent_share": float(spent / budget),
            "overspent_usd": f"{max(self.most_committed - budget, Decimal(0)):.2f}",
            "answered": self.answered,
            "cut": self.cut,
            "refused": self.refused,
            "extensions": self.extensions,
            "ticks": self.now,
        }

    def _fill(self) -> None:
        """Send rows until the slots are taken or the ledger says wait."""
        while self.busy < self.slots and self._next < self.rows:
            row = self._next
            worst = PRICE.worst_case_usd(INPUT_TOKENS, self.max_tokens)
            least = PRICE.worst_case_usd(INPUT_TOKENS, self._p95[row]) if self.partial else None
            grant = self.ledger.reserve(str(row), SMALL, worst, least, self.partial, "")
            if grant is Grant.WAIT:
                return
            self._next += 1
            if grant is Grant.NEVER:
                self.refused += 1
                continue
            self.busy += 1
            self._begun[row] = self.now
            tokens = self._p95[row] if grant is Grant.LEAST else self.max_tokens
            self._held[row] = Allowance(tokens, self.max_tokens)
            self._schedule(row)

    def _schedule(self, row: int) -> None:
        """The next thing that happens to an answer: it ends, it asks, or it is cut."""
        held = self._held[row]
        length = min(self._tokens[row], held.ask_at, held.tokens)
        heapq.heappush(self._events, (self._begun[row] + length, row, length))

    def _step(self, row: int, length: int) -> bool:
        """Whether the answer has ended."""
        held = self._held[row]
        if length < self._tokens[row] and length >= held.ask_at:
            usd = [tokens * PRICE.output_usd_per_mtok / 10**6 for tokens in held.wanted()]
            held.answered(length, self.ledger.extend(str(row), "", *usd))
            self.extensions += 1
        if length < self._tokens[row] and length < held.tokens:
            self._schedule(row)
            return False
        self.cut += length < self._tokens[row]
        self.answered += 1
        usage = Usage(INPUT_TOKENS, length)
        self.ledger.settle(str(row), usage, PRICE.cost_usd(usage))
        del self._held[row], self._begun[row]
        self.busy -= 1
        return True


# --- the report -------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round through the actor")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--depth", type=int, default=3, help="chunks that one worker has on the way")
    parser.add_argument("--rows", type=int, default=3_000_000, help="of the simulation")
    parser.add_argument("--slots", type=int, default=10_000)
    parser.add_argument("--only", choices=["actor", "records", "simulation"])
    parser.add_argument("--out", type=Path, default=OUT / "ledger.json")
    options = parser.parse_args()
    console, figures = Console(), {}
    if options.only in (None, "actor"):
        rounds = [
            measure_actor(options.seconds, options.workers, options.depth) for _ in range(options.rounds)
        ]
        figures["actor"] = rounds
        table = Table(title=f"reserve-and-settle pairs through the actor, chunks of {CHUNK}")
        for name in ("workers", "chunks on the way", "pairs/s", "target"):
            table.add_column(name, justify="right")
        for one in rounds:
            table.add_row(
                *(f"{one[k]:,.0f}" for k in ("workers", "chunks_on_the_way", "pairs_per_s")),
                f"{PAIRS_TARGET:,}",
            )
        console.print(table)
    if options.only in (None, "records"):
        figures["records"] = [measure_records(rows, 0.98) for rows in (2_000, 20_000, 50_000, 200_000)]
        table = Table(title="records written (one PUT each on S3)")
        for name in ("rows", "records", "per 1,000 rows"):
            table.add_column(name, justify="right")
        for one in figures["records"]:
            table.add_row(f"{one['rows']:,}", f"{one['records']}", f"{one['records_per_1000_rows']:.2f}")
        console.print(table)
    if options.only in (None, "simulation"):
        figures["simulation"] = []
        table = Table(title="lognormal lengths, at most 32,000 tokens, a budget that binds")
        for name in (
            "reserved",
            "busy to 97%",
            "worst percent",
            "below 95% from",
            "spent",
            "cut",
            "overspent",
        ):
            table.add_column(name, justify="right")
        for partial, bias in ((True, 1.0), (True, 0.5), (True, 2.0), (False, 1.0)):
            few = 1 if bias == 1 else 10  # what a wrong predictor does is seen with fewer, too
            one = Simulation(options.rows // few, options.slots // few, partial, bias=bias).run()
            figures["simulation"].append(one)
            table.add_row(
                f"95% quantile x {bias:g}" if partial else "worst case",
                f"{one['slots']:,}",
                f"{one['busy_until_97']:.1%}",
                f"{one['busy_worst_percent']:.1%}",
                f"{one['first_percent_below_95_busy']}%",
                f"{one['spent_share']:.2%}",
                f"{one['cut']:,} of {one['answered']:,}",
                one["overspent_usd"],
            )
        console.print(table)
    ratio = None
    if "actor" in figures:
        ratio = (
            sorted(one["pairs_per_s"] for one in figures["actor"])[len(figures["actor"]) // 2] / PAIRS_TARGET
        )
    report(
        "ledger",
        ratio,
        f"{PAIRS_TARGET} reserve-and-settle pairs per second (the median round over it)",
        figures,
        ("ray", "numpy", "pyarrow"),
        options.out,
    )


if __name__ == "__main__":
    sys.exit(main())
