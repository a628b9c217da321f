"""What a person sees while a job runs: the stages, rows, tokens, dollars, and the time that is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rtr_ray.pool import Pool

_LINE_EVERY_S = 10.0  # where there is no terminal to redraw: a line at least so often


@dataclass(slots=True)
class Stage:
    """One stage of a job, as it goes."""

    name: str
    total: float | None = None  # None: not known yet
    unit: str = "rows"
    done: float = 0.0
    note: str = ""  # what is worth a word just now
    ended_as: Mapping[str, int] = field(default_factory=dict)  # status -> rows, where that is known
    share: float | None = None  # how much of the work is done, where rows tell it badly
    started: float = field(default_factory=time.monotonic)
    resumed: float = 0.0  # what was done before this run of the job
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def left_s(self) -> float | None:
        """How long it will take at the pace so far; None where nobody can say."""
        share = self.share
        if share is None and self.total:
            share = (self.done - self.resumed) / max(self.total - self.resumed, 1e-9)
        if self.ended is not None or not share or share <= 0:
            return None
        return max(self.seconds * (1 - share) / share, 0.0)

    def line(self) -> str:
        """All of it in one line."""
        parts = []
        if self.total is not None:
            parts.append(f"{self.done:,.0f}/{self.total:,.0f} {self.unit}")
        elif self.done:
            parts.append(f"{self.done:,.0f} {self.unit}")
        parts += [self.note] if self.note else []
        parts.append(duration(self.seconds))
        if (left := self.left_s) is not None:
            parts.append(f"{duration(left)} left")
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(7.4), duration(83), duration(3 * 3600 + 120)
        ('7 s', '1 min 23 s', '3 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Screen:
    """Shows the stages of a job: redrawn on a terminal, line by line elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        """Args: console: where to; None: standard output."""
        self.console = console or Console()
        self.stages: list[Stage] = []
        self._live: Live | None = None
        self._last_line = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        return {stage.name: round(stage.seconds, 2) for stage in self.stages}

    @contextmanager
    def running(self) -> Iterator[Screen]:
        """Draw for as long as this lasts."""
        if not self.console.is_terminal:
            with self._beating():
                yield self
            return
        with Live(
            self._table(), console=self.console, refresh_per_second=4, get_renderable=self._table
        ) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Lines come also from stages that are busy and say nothing themselves."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(1.0):
                for stage in [stage for stage in self.stages if stage.ended is None][-1:]:
                    self.tick(stage)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "rows") -> Iterator[Stage]:
        """One stage; it ends with the block."""
        stage = Stage(name, total, unit)
        self.stages.append(stage)
        self.tick(stage, now=True)
        try:
            yield stage
        finally:
            stage.ended = time.monotonic()
            self.tick(stage, now=True)

    def tick(self, stage: Stage, now: bool = False) -> None:
        """Say how far a stage is, where nothing is redrawn by itself."""
        if self._live is not None:
            return
        if now or time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            mark = "done" if stage.ended else "..."
            self.say(f"{stage.name:<12} {mark:<5} {stage.line()}")

    def say(self, text: str, style: str = "") -> None:
        """A sentence that stays; brackets in it are brackets."""
        self.console.print(Text(text, style), soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for stage in self.stages:
            mark = Text("done", style="green") if stage.ended else Text("...", style="yellow")
            table.add_row(mark, Text(stage.name, style="bold"), Text(stage.line()))
        return table


def money(amount: Decimal | float | None, digits: int = 6) -> str:
    """Dollars for the eye; the exact amount is in the files."""
    if amount is None:
        return "unknown"
    return f"${float(amount):,.{digits}f}" if abs(float(amount)) < 1 else f"${float(amount):,.2f}"


def percent(value: float | None) -> str:
    """A share for the eye."""
    return "-" if value is None else f"{100 * value:.1f}%"


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summary of a run as a table."""
    table = Table(title="What was answered by whom", title_justify="left")
    for name, side in (
        ("candidate", "left"),
        ("rows", "right"),
        ("input tokens", "right"),
        ("output tokens", "right"),
        ("dollars", "right"),
        ("accuracy", "right"),
    ):
        table.add_column(name, justify=side, no_wrap=name == "candidate")  # type: ignore[arg-type]
    for row in summary["by_candidate"]:
        name = f"{row['model']}:{row['strategy']}" + (f"@{row['samples']}" if row["samples"] != 1 else "")
        table.add_row(
            name,
            f"{row['rows']:,}",
            f"{row['input_tokens']:,}",
            f"{row['output_tokens']:,}",
            money(Decimal(row["cost_usd"])),
            percent(row["accuracy"]),
        )
    table.add_section()
    table.add_row(
        "all",
        f"{summary['rows']['answered']:,}",
        f"{summary['usage']['input_tokens']:,}",
        f"{summary['usage']['output_tokens']:,}",
        money(Decimal(summary["cost_usd"]["spent"])),
        percent(summary["accuracy"]),
        style="bold",
    )
    return table


def comparison_table(comparison: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Routing against its baselines."""
    table = Table(title="Routing against no routing, all served in this run", title_justify="left")
    for name, side in (
        ("", "left"),
        ("accuracy", "right"),
        ("dollars", "right"),
        ("of the best single's", "right"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    best = float(comparison["best_single"]["cost_usd"])
    for name in names:
        row = comparison[name]
        table.add_row(
            name.replace("_", " ") + (f" ({row['candidate']})" if row.get("candidate") else ""),
            percent(row["accuracy"]),
            money(Decimal(row["cost_usd"])),
            percent(float(row["cost_usd"]) / best if best else None),
            style="bold" if name == "routed" else "",
        )
    return table


def pool_table(pool: Pool) -> Table:
    """The candidates of a pool, where they run and what they cost."""
    table = Table(title="Candidates", title_justify="left")
    for name, side in (
        ("candidate", "left"),
        ("deployment", "left"),
        ("input $/Mtok", "right"),
        ("output $/Mtok", "right"),
        ("max tokens", "right"),
        ("sampling", "left"),
    ):
        table.add_column(name, justify=side, no_wrap=name == "candidate")  # type: ignore[arg-type]
    for candidate in pool.candidates:
        price = pool.price(candidate)
        given = pool.sampling(candidate).given()
        table.add_row(
            str(candidate),
            pool.deployment(candidate).id,
            f"{price.input_usd_per_mtok}",
            f"{price.output_usd_per_mtok}",
            f"{pool.max_tokens(candidate):,}",
            ", ".join(f"{key} {value:g}" for key, value in given.items()),
        )
    return table
