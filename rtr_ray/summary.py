"""What a run came to, counted from its results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rtr_ray.ledger import Account
from rtr_ray.types import Candidate

COLUMNS = (
    "status",
    "model",
    "strategy",
    "samples",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_usd",
    "correct",
    "finish_reason",
)
"""What must be read of a results part."""
_TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens")


@dataclass(slots=True)
class Grades:
    """How many answers were graded, and how many points they got."""

    graded: int = 0
    points: float = 0.0

    def add(self, other: Grades) -> None:
        """Both together."""
        self.graded += other.graded
        self.points += other.points

    @property
    def accuracy(self) -> float | None:
        """The mean; None where nothing was graded."""
        return self.points / self.graded if self.graded else None


@dataclass(slots=True)
class Tally:
    """Results, added up. Tallies of parts add up to the tally of the whole: rows, tokens, dollars exactly."""

    rows: Counter[str] = field(default_factory=Counter)  # by status
    accounts: dict[Candidate, Account] = field(default_factory=dict)  # rows whose usage is known
    answered: Counter[Candidate] = field(default_factory=Counter)
    settled: Counter[Candidate] = field(default_factory=Counter)  # answered or failed for good
    grades: dict[Candidate, Grades] = field(default_factory=dict)
    unpriced: int = 0  # answered rows whose usage nobody knows
    cut: int = 0  # answered rows whose answer ends where the budget did

    @classmethod
    def of(cls, results: pa.Table) -> Tally:
        """The tally of a results part, of which `COLUMNS` were read."""
        tally = cls()
        for count in pc.value_counts(results["status"].combine_chunks()):
            tally.rows[count["values"].as_py()] += count["counts"].as_py()
        for group in _groups(results):
            candidate = Candidate(group["model"], group["strategy"], group["samples"])
            if group["priced_sum"]:
                amounts = (group[f"{name}_sum"] for name in (*_TOKENS, "cost_usd"))
                tally.accounts.setdefault(candidate, Account()).merge(Account(group["priced_sum"], *amounts))
            if group["status"] != "skipped_budget":
                tally.settled[candidate] += group["count_all"]
            if group["status"] == "answered":
                tally.answered[candidate] += group["count_all"]
                tally.unpriced += group["count_all"] - group["priced_sum"]
                tally.cut += group["cut_sum"]
            if group["correct_count"]:
                grades = Grades(group["correct_count"], group["correct_sum"])
                tally.grades.setdefault(candidate, Grades()).add(grades)
        return tally

    def add(self, other: Tally) -> None:
        """Both together."""
        self.rows.update(other.rows)
        self.answered.update(other.answered)
        self.settled.update(other.settled)
        self.unpriced += other.unpriced
        self.cut += other.cut
        for candidate, account in other.accounts.items():
            self.accounts.setdefault(candidate, Account()).merge(account)
        for candidate, grades in other.grades.items():
            self.grades.setdefault(candidate, Grades()).add(grades)

    @property
    def cost_usd(self) -> Decimal:
        """Exact dollars of all rows."""
        return sum((account.cost_usd for account in self.accounts.values()), Decimal(0))

    @property
    def accuracy(self) -> float | None:
        """Over all graded rows."""
        total = Grades()
        for grades in self.grades.values():
            total.add(grades)
        return total.accuracy


def _groups(results: pa.Table) -> list[dict[str, Any]]:
    """Counts and sums by candidate and status, of rows that have a candidate."""
    rows = results.select(list(COLUMNS)).filter(pc.is_valid(results["model"]))
    priced = pc.is_valid(rows["cost_usd"])
    cut = pc.fill_null(pc.equal(rows["finish_reason"], "budget"), False)
    columns = {name: rows[name] for name in ("model", "strategy", "samples", "status", "correct")}
    columns |= {name: pc.if_else(priced, pc.fill_null(rows[name], 0), 0) for name in _TOKENS}
    columns |= {"cost_usd": rows["cost_usd"], "priced": priced.cast("int64"), "cut": cut.cast("int64")}
    sums = [(name, "sum") for name in (*_TOKENS, "cost_usd", "priced", "cut", "correct")]
    grouped = pa.table(columns).group_by(["model", "strategy", "samples", "status"])
    found: list[dict[str, Any]] = grouped.aggregate(
        [*sums, ("correct", "count"), ([], "count_all")]
    ).to_pylist()
    return found


def summed(tallies: Iterable[Tally]) -> Tally:
    """All tallies in one."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def summary(
    tally: Tally,
    status: str,
    total_rows: int,
    budget_usd: Decimal | None,
    forecast_usd: float | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """`summary.json`: money as exact strings, estimates as numbers."""
    candidates = sorted({*tally.accounts, *tally.answered}, key=str)
    return {
        "schema_version": 1,
        "status": status,
        "rows": {
            "total": total_rows,
            **{name: tally.rows[name] for name in ("answered", "failed", "skipped_budget")},
        },
        "cut_by_budget": tally.cut,
        "usage": {
            name: sum(getattr(account, name) for account in tally.accounts.values()) for name in _TOKENS
        },
        "cost_usd": {
            "spent": plain(tally.cost_usd),
            "budget": None if budget_usd is None else plain(budget_usd),
            "forecast": forecast_usd,
        },
        "accuracy": tally.accuracy,
        "by_candidate": [_row(tally, candidate) for candidate in candidates],
        "seconds": dict(seconds),
    }


def _row(tally: Tally, candidate: Candidate) -> dict[str, Any]:
    account = tally.accounts.get(candidate, Account())
    return {
        "model": candidate.model,
        "strategy": candidate.strategy,
        "samples": candidate.samples,
        "rows": tally.answered[candidate],
        "input_tokens": account.input_tokens,
        "output_tokens": account.output_tokens,
        "cost_usd": plain(account.cost_usd),
        "accuracy": tally.grades[candidate].accuracy if candidate in tally.grades else None,
    }


def plain(amount: Decimal) -> str:
    """An exact amount without an exponent."""
    return f"{amount.normalize():f}" if amount else "0"
