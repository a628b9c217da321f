"""A run, read part by part: what its page shows, in sums. A part that cannot be read is named, not fatal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rtr_ray.errors import DataError, StorageError
from rtr_ray.ledger import Record
from rtr_ray.run_folder import LEDGER, PLAN, RUN, SCHEMA_VERSION, SUMMARY, RunFolder
from rtr_ray.schemas import WRITTEN, stamp
from rtr_ray.storage import open_store, read_table
from rtr_ray.summary import COLUMNS, Tally
from rtr_ray.types import Candidate, FloatArray

ENDINGS = ("completed", "budget_exhausted")
_MORE = ("predicted_accuracy", "predicted_output_tokens", "predicted_cost_usd", "error", "attempts")
_EDGES = 2.0 ** np.arange(0, 21, 0.5)  # of predicted tokens, for the bins
_LONGEST_ERROR = 160


@dataclass(slots=True)
class Predicted:
    """What was predicted of a candidate's answered rows, and what came of them: sums."""

    rows: int = 0
    accuracy: float = 0.0
    tokens: float = 0.0
    actual_tokens: float = 0.0
    cost_usd: float = 0.0
    graded: int = 0  # rows with a grade, ...
    graded_accuracy: float = 0.0  # what was predicted of them,
    correct: float = 0.0  # and what they got
    bins: FloatArray = field(default_factory=lambda: np.zeros((3, len(_EDGES) + 1)))  # rows, told, real

    def add(self, rows: pa.Table) -> None:
        """Take in answered rows of the candidate."""
        told, real, cost, believed, correct = (
            rows[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
            for name in ("predicted_output_tokens", "output_tokens", "predicted_cost_usd",
                         "predicted_accuracy", "correct")
        )  # fmt: skip
        self.rows += len(rows)
        self.accuracy += float(np.nansum(believed))
        self.cost_usd += float(np.nansum(cost))
        known = ~(np.isnan(told) | np.isnan(real))
        self.tokens += float(told[known].sum())
        self.actual_tokens += float(real[known].sum())
        graded = ~(np.isnan(correct) | np.isnan(believed))
        self.graded += int(graded.sum())
        self.graded_accuracy += float(believed[graded].sum())
        self.correct += float(correct[graded].sum())
        place = np.searchsorted(_EDGES, told[known])
        for number, weight in enumerate((None, told[known], real[known])):
            self.bins[number] += np.bincount(place, weight, len(_EDGES) + 1)

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(mean predicted, mean actual) tokens of each bin that has rows."""
        rows, told, real = self.bins
        return [
            (float(told[n] / rows[n]), float(real[n] / rows[n]))
            for n in np.flatnonzero(rows)
            if told[n] > 0 and real[n] > 0
        ]


@dataclass(frozen=True, slots=True)
class Moment:
    """What one part of the results added."""

    written: datetime
    usd: Mapping[Candidate, Decimal]


@dataclass(slots=True)
class Digest:
    """A run folder, summed up."""

    uri: str
    head: dict[str, Any]
    plan: dict[str, Any] | None
    summary: dict[str, Any] | None
    record: Record | None
    tally: Tally = field(default_factory=Tally)
    predicted: dict[Candidate, Predicted] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    parts: int = 0
    undated: int = 0  # parts that do not say when they were written
    damaged: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    again: int = 0  # answered rows that needed more than one attempt

    @classmethod
    def read(cls, uri: str) -> Digest:
        """Read a run folder; one that is still being written to is no matter.

        Args:
            uri: Local or `s3://`.

        Raises:
            DataError: If no run lies there, or one of another schema version.
            StorageError: If the folder cannot be read.
        """
        folder = RunFolder(open_store(uri))
        head = folder.read_json(RUN)
        if head is None:
            raise DataError(f"{uri} holds no run: it has no {RUN}. Give the output folder of `rtr-ray run`.")
        if head.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{uri} holds a run of schema version {head.get('schema_version')}; this rtr-ray reads "
                f"version {SCHEMA_VERSION}. Report it with the rtr-ray that made it."
            )
        saved = {name: _if_whole(folder, name) for name in (PLAN, SUMMARY, LEDGER)}
        damaged = [name for name, (_, broken) in saved.items() if broken]
        plan, summary, ledger = (value for value, _ in saved.values())
        record = None
        if ledger is not None:
            try:
                record = Record.from_json(ledger)
            except StorageError:
                damaged.append(LEDGER)
        # of a run that goes on after an earlier ending the summary is that of the earlier one
        done = summary if head.get("status") in ENDINGS else None
        found = cls(uri, head, plan, done, record, damaged=damaged)
        for key in folder.results():
            found._take(folder, key)
        found.moments.sort(key=lambda moment: moment.written)
        return found

    def _take(self, folder: RunFolder, key: str) -> None:
        """One part of the results."""
        try:
            part = read_table(folder.store, key, [*COLUMNS, *_MORE])
            tally = Tally.of(part)
        except (StorageError, KeyError, pa.ArrowException):
            self.damaged.append(key)
            return
        self.parts += 1
        self.tally.add(tally)
        try:
            written = datetime.fromisoformat(stamp(part.schema.metadata, WRITTEN))
            self.moments.append(Moment(written, {c: a.cost_usd for c, a in tally.accounts.items()}))
        except DataError:
            self.undated += bool(tally.accounts)
        failed = part.filter(pc.equal(part["status"], "failed"))
        for error in failed["error"].to_pylist():
            self.errors[_first_line(error)] += 1
        answered = part.filter(pc.equal(part["status"], "answered"))
        self.again += int(pc.sum(pc.greater(pc.fill_null(answered["attempts"], 1), 1)).as_py() or 0)
        for candidate in tally.answered:
            mine = pc.and_(
                pc.and_(pc.equal(answered["model"], candidate.model),
                        pc.equal(answered["strategy"], candidate.strategy)),
                pc.equal(answered["samples"], candidate.samples),
            )  # fmt: skip
            self.predicted.setdefault(candidate, Predicted()).add(answered.filter(mine))

    @property
    def status(self) -> str:
        """How the run ended, or that it has not."""
        return str(self.head.get("status", "unknown"))

    @property
    def total_rows(self) -> int | None:
        """Of the corpus; None where it has not been counted yet."""
        return None if self.plan is None else int(self.plan["rows"])

    @property
    def done_rows(self) -> int:
        """Rows that have a result: answered, failed or skipped."""
        return sum(self.tally.rows.values())

    @property
    def is_partial(self) -> bool:
        """Whether the page shows less than a whole run."""
        return self.status not in ENDINGS or bool(self.damaged)

    @property
    def budget_usd(self) -> Decimal | None:
        """What may be spent; None where there is no limit, or the plan is not made."""
        if self.summary is not None and self.summary["cost_usd"]["budget"] is not None:
            return Decimal(self.summary["cost_usd"]["budget"])
        if self.plan is not None and self.plan["budget_usd"] is not None:
            return Decimal(str(self.plan["budget_usd"]))
        return None

    @property
    def unknown_usd(self) -> Decimal:
        """What may have been paid beside what the results show."""
        if self.record is None:
            return Decimal(0)
        if self.status == "running":  # what is set aside just now is not lost
            return self.record.unknown_usd
        return self.record.unknown_beside(self.tally.cost_usd)

    @property
    def labels_usd(self) -> Decimal:
        """What labels cost, of a run that made its own router."""
        cost = {} if self.summary is None else self.summary["cost_usd"]
        return Decimal(cost.get("labels", "0"))


def _if_whole(folder: RunFolder, name: str) -> tuple[dict[str, Any] | None, bool]:
    """A JSON object of the folder, and whether it is there but damaged."""
    try:
        return folder.read_json(name), False
    except StorageError:
        return None, True


def _first_line(error: str | None) -> str:
    text = (error or "no reason given").strip().splitlines()[0]
    return text if len(text) <= _LONGEST_ERROR else f"{text[: _LONGEST_ERROR - 1]}…"
