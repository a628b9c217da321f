"""Where the outcomes of a plan part become durable: read, graded, written, then settled."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from rtr_ray.answers import Answerer
from rtr_ray.cells import SAMPLE
from rtr_ray.config import DispatchKeys
from rtr_ray.corpus import GOLD, TEXT
from rtr_ray.dispatch import Dispatcher, Settlement, settlement
from rtr_ray.distributed.ledger_actor import RemoteBooks
from rtr_ray.errors import ExecutionError, RtrError
from rtr_ray.grading import Grader, Item
from rtr_ray.parts import result_rows
from rtr_ray.pool import Pool
from rtr_ray.run_folder import RESULTS, insist
from rtr_ray.schemas import WRITTEN, stamped
from rtr_ray.storage import Store, write_table
from rtr_ray.types import Outcome

_Ready = tuple[Outcome, float | None]  # an outcome and its grade


@dataclass(slots=True)
class Sink:
    """Makes outcomes durable, some at a time.

    An answer that was taken is paid: whatever goes wrong here, it is kept until it is written, and
    the dispatcher is told at once, since nobody settles any more what it may be waiting for.
    """

    store: Store
    name: str
    part: pa.Table
    index: Mapping[str, int]  # request -> row of the part
    pool: Pool
    keys: DispatchKeys
    answerer: Answerer
    grader: Grader | None
    books: RemoteBooks
    dispatcher: Dispatcher
    _skipped: list[Outcome] = field(default_factory=list)
    _ready: list[_Ready] = field(default_factory=list)
    _batch: tuple[str, list[_Ready]] | None = None  # being written: its key, and what it holds
    _reading: set[asyncio.Task[None]] = field(default_factory=set)
    _known: list[tuple[str, Decimal]] = field(default_factory=list)  # what answers cost that came in just now
    _since: float = 0.0
    _reported: int = 0
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _ticking: asyncio.Task[None] | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _error: BaseException | None = None

    async def __aenter__(self) -> Sink:
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        assert self._ticking is not None
        await asyncio.gather(*self._reading, return_exceptions=True)
        # told, not cancelled: a commit between its write and its settlement must not be torn apart
        self._ended.set()
        await self._ticking
        try:
            await self._commit()  # what has been answered is kept, whatever else went wrong
        except Exception:
            if kind is None:
                raise
            return  # what went wrong first says more
        if kind is not None:
            return
        if self._error is not None:
            raise self._error
        if self._skipped:
            skipped: list[_Ready] = [(outcome, None) for outcome in self._skipped]
            await self._write(f"{RESULTS}{self.name}-skipped.parquet", skipped, [])
            await self.books.settle([], {"skipped_budget": len(skipped)})

    async def take(self, outcome: Outcome) -> None:
        """Take an outcome; its answer is read (a program may have to run) while others come in.

        Where reading is slower than answering, this waits, and with it the dispatcher.
        """
        if outcome.status == "skipped_budget":
            self._skipped.append(outcome)
            return
        if (one := settlement(self.pool, outcome)) is not None and not one.lost:
            self._known.append((one.key, one.cost_usd))
        while len(self._reading) >= self.keys.commit_rows:
            await asyncio.wait(self._reading, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._read(outcome))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)
        if len(self._ready) >= self.keys.commit_rows:
            await self._commit()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            self.dispatcher.fail(error)

    async def _read(self, outcome: Outcome) -> None:
        correct = None
        try:
            outcome = await self.answerer.read(outcome)
            correct = await self._grade(outcome)
        except Exception as error:  # a grader may be anybody's
            self._fail(error if isinstance(error, RtrError) else _explained(error))
        if not self._ready:
            self._since = time.monotonic()
        self._ready.append((outcome, correct))

    async def _grade(self, outcome: Outcome) -> float | None:
        if self.grader is None or outcome.status != "answered":
            return None
        row = self.index[outcome.key]
        item = Item(
            self.part[TEXT][row].as_py(),
            outcome.candidate,
            outcome.answer,
            outcome.samples[0].text if outcome.samples else "",
            self.part[GOLD][row].as_py(),
        )
        (score,) = await self.grader.grade([item])
        return score

    async def _tick(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self.keys.commit_s / 2)
            await self._trim()
            if self._ready and time.monotonic() - self._since >= self.keys.commit_s:
                try:
                    await self._commit()
                except Exception as error:
                    self._fail(error)
                    return

    async def _trim(self) -> None:
        """Free what was set aside beyond the cost of answers that are in, but not durable yet.

        So a kill locks up little more than what was really paid, and others need not wait for a commit.
        """
        known, self._known = self._known, []
        if known:
            with contextlib.suppress(Exception):  # the commit will say what is wrong with the ledger
                await self.books.trim(known)

    async def _commit(self) -> None:
        """Write what is ready and settle it; what an earlier commit could not write goes first."""
        async with self._writing:
            while self._batch is not None or self._ready:
                if self._batch is None:
                    self._batch = f"{RESULTS}{self.name}-{uuid.uuid4().hex[:12]}.parquet", self._ready
                    self._ready = []
                key, ready = self._batch
                settlements = [settlement(self.pool, outcome) for outcome, _ in ready]
                await self._write(key, ready, settlements)
                self._batch = None
                counted = Counter(str(outcome.status) for outcome, _ in ready)
                await self._settle([one for one in settlements if one is not None], counted)
            if self.dispatcher.sent_again != self._reported:
                await self._settle([], {})

    async def _settle(self, closing: Sequence[Settlement], counted: Mapping[str, int]) -> None:
        again = self.dispatcher.sent_again
        await self.books.settle(closing, counted, again - self._reported)
        self._reported = again

    async def _write(
        self, key: str, ready: Sequence[_Ready], settlements: Sequence[Settlement | None]
    ) -> None:
        costs = [one.cost_usd if one and not one.lost else None for one in settlements] or [None] * len(ready)
        rows = [self.index[outcome.key] for outcome, _ in ready]
        table = result_rows(self.part, rows, [o for o, _ in ready], costs, [c for _, c in ready])
        if SAMPLE in self.part.column_names:
            samples = pa.array([outcome.sample for outcome, _ in ready], pa.int32())
            table = table.drop_columns([SAMPLE]).append_column(SAMPLE, samples)
        table = stamped(table, **{WRITTEN: datetime.now(UTC).isoformat(timespec="milliseconds")})
        await asyncio.to_thread(insist, lambda: write_table(self.store, key, table))


def _explained(error: Exception) -> ExecutionError:
    """What a reader or grader raised, without its words: they may quote an answer."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    explained = ExecutionError(
        f"Reading or grading an answer failed: {type(error).__name__} in {Path(frame.filename).name}, line "
        f"{frame.lineno}. What has been answered is kept without a grade; mend the grader and start the "
        "same command again."
    )
    explained.__cause__ = error
    return explained
