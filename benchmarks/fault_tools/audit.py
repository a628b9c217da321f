"""What a run has come to, by its results, its summary and the meter; and whether they agree."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow.parquet as pq

from benchmarks.fault_tools.case import Bench
from benchmarks.fault_tools.meter import Reading
from rtr_ray.storage import open_store

ZERO = Decimal(0)
_COLUMNS = ("query_id", "status", "model", "strategy", "samples")
_USAGE = ("input_tokens", "cached_input_tokens", "output_tokens")


@dataclass(slots=True)
class Findings:
    """One run, audited."""

    name: str
    kind: str
    engines: str
    completed: bool = False
    rows: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    rows_failed: int = 0
    rows_skipped: int = 0
    usd_metered: Decimal = ZERO
    usd_spent: Decimal = ZERO  # by the summary
    usd_unknown: Decimal = ZERO  # what the ledger says that it may have lost, at worst
    usd_unaccounted: Decimal = ZERO  # paid, and neither in a row nor covered by that; or the books disagree
    usd_overspent: Decimal = ZERO
    usd_wasted: Decimal = ZERO  # paid, and in no row
    budget_usd: Decimal | None = None
    calls_paid_twice: int = 0
    calls_in_flight: int = 0  # at the faults and at the ends of sessions, together: the bound of what follows
    calls_unexplained: int = 0  # paid again although they were not in flight then
    kills: int = 0
    s3_faults: int = 0
    disks_filled: int = 0
    missed: bool = False  # it ended before its faults came
    sessions: int = 0
    exit_codes: list[int] = field(default_factory=list)
    raw_errors: int = 0  # sessions that ended by an error which is not told in a sentence
    processes_left: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)  # how each session that failed said so
    events: list[str] = field(default_factory=list)

    @property
    def losses(self) -> dict[str, int | Decimal]:
        """Those of the four that are not zero, and whether the run ended at all."""
        four: dict[str, int | Decimal] = {
            "rows_lost": self.rows_lost,
            "rows_doubled": self.rows_doubled,
            "usd_unaccounted": self.usd_unaccounted,
            "usd_overspent": self.usd_overspent,
            "unfinished": int(not self.completed),
        }
        return {name: value for name, value in four.items() if value}

    def to_json(self) -> dict[str, Any]:
        """Money as exact strings."""
        return {
            name: str(value) if isinstance(value, Decimal) else value
            for name in self.__dataclass_fields__
            for value in (getattr(self, name),)
        }


def result_rows(output: str) -> list[dict[str, Any]]:
    """Every results row, with a count of how often it is there left to the reader."""
    store = open_store(output)
    rows: list[dict[str, Any]] = []
    for key in store.keys("results/part-"):
        try:
            with store.open(key) as file:
                table = pq.read_table(file, columns=[*_COLUMNS, *_USAGE, "cost_usd"])
        except Exception:
            if key in open_store(output).keys("results/part-"):
                raise
            continue  # taken away meanwhile: the rows that a budget skipped are tried again
        rows += table.to_pylist()
    return rows


def in_flight(bench: Bench, reading: Reading) -> set[str]:
    """Queries that reached an engine and whose rows are not durable."""
    durable = {row["query_id"] for row in result_rows(bench.output) if row["status"] != "skipped_budget"}
    return {line["query_id"] for line in reading.begun()} - durable


def audit(found: Findings, bench: Bench, reading: Reading, exposed: Sequence[set[str]]) -> Findings:
    """Compare results, summary and meter.

    Args:
        found: Gets the figures.
        bench: What was to be done.
        reading: The meter.
        exposed: What was in flight at each fault and at each session's end.
    """
    rows = result_rows(bench.output)
    ids = Counter(row["query_id"] for row in rows)
    found.rows = len(bench.ids)
    found.rows_lost = sum(name not in ids for name in bench.ids)
    found.rows_doubled = sum(count - 1 for count in ids.values()) + len(set(ids) - set(bench.ids))
    statuses = Counter(row["status"] for row in rows)
    found.rows_failed, found.rows_skipped = statuses["failed"], statuses["skipped_budget"]
    found.budget_usd = bench.budget_usd
    _audit_money(found, bench, rows, reading.paid())
    paid = Counter(line["query_id"] for line in reading.paid())
    found.calls_paid_twice = sum(count - 1 for count in paid.values())
    chances = Counter(name for moment in exposed for name in moment)
    found.calls_in_flight = chances.total()
    found.calls_unexplained = sum(max(0, count - 1 - chances[name]) for name, count in paid.items())
    return found


def _audit_money(
    found: Findings, bench: Bench, rows: Sequence[dict[str, Any]], paid: Sequence[dict[str, Any]]
) -> None:
    lines: defaultdict[tuple[Any, ...], list[Decimal]] = defaultdict(list)
    for line in paid:
        key = (line["query_id"], line["candidate"], *(line[name] for name in _USAGE))
        lines[key].append(bench.dollars(line))
        found.usd_metered += bench.dollars(line)
    booked = wrong = ZERO
    for row in rows:
        if row["cost_usd"] is None:
            continue
        booked += row["cost_usd"]
        samples = f"@{row['samples']}" if (row["samples"] or 1) > 1 else ""
        key = (row["query_id"], f"{row['model']}:{row['strategy']}{samples}", *(row[n] for n in _USAGE))
        # a row that nothing was paid for is as wrong as a payment without a row
        wrong += abs(row["cost_usd"] - lines[key].pop()) if lines[key] else row["cost_usd"]
    found.usd_wasted = sum((usd for left in lines.values() for usd in left), ZERO)
    summary = json.loads(open_store(bench.output).read("summary.json") or b"null")
    if summary is not None:
        found.usd_spent = Decimal(summary["cost_usd"]["spent"])
        found.usd_unknown = Decimal(summary["calls"]["lost_worst_case_usd"])
        wrong += abs(found.usd_spent - booked)
    found.usd_unaccounted = wrong + max(ZERO, found.usd_wasted - found.usd_unknown)
    if bench.budget_usd is not None:
        found.usd_overspent = max(ZERO, found.usd_metered - bench.budget_usd)
