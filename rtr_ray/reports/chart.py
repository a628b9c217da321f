"""What is to be drawn, apart from the pen: the same chart goes into a page as SVG and beside it as PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["usd", "percent", "number", "seconds", "odds"]
Point = tuple[float, float]
_WIDEST = 1e12  # that a logarithmic axis spans
_SHARES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
COLOURS = 8
"""Slots of the palette; slot -1 is the ink of the text, pale."""


def shown(value: float | None, style: Style) -> str:
    """A number for the eye.

    Example:
        >>> shown(0.0125, "usd"), shown(0.741, "percent"), shown(1234.4, "number"), shown(None, "usd")
        ('$0.0125', '74.1%', '1,234', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if style == "percent":
        return f"{100 * value:.1f}%"
    if style == "usd":
        if value == 0:
            return "$0"
        digits = 2 if abs(value) >= 1 else min(max(2 - math.floor(math.log10(abs(value))), 2), 12)
        text = f"{abs(value):,.{digits}f}"
        whole, _, cents = text.partition(".")
        text = f"{whole}.{cents.rstrip('0'):0<2}"
        return f"{'-' if value < 0 else ''}${text}"
    if style == "seconds":
        return f"{value:,.0f} s" if value < 120 else f"{value / 60:,.0f} min"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def tick(value: float, style: Style) -> str:
    """A number at an axis: as short as can be."""
    if style == "percent":
        return f"{100 * value:.3g}%"
    if style == "usd":
        return f"${value:.0e}".replace("e-0", "e-") if 0 < abs(value) < 1e-4 else f"${value:,.10g}"
    if style == "seconds":
        return f"{value:,.0f} s"
    if style == "odds":  # of a weight: written as the weight
        return f"{value / (1 + value):.4g}"
    return f"{value:,.10g}"


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a chart."""

    label: str
    low: float
    high: float
    style: Style = "number"
    log: bool = False

    @classmethod
    def over(
        cls,
        label: str,
        values: Iterable[float],
        style: Style = "number",
        log: bool = False,
        bounds: tuple[float | None, float | None] = (None, None),
    ) -> Axis:
        """An axis that holds all values with a little room around them.

        Args:
            label: What it shows, with its unit.
            values: Those that are not numbers are left out.
            style: How numbers are written.
            log: Asked for; it is so where all values are positive and differ enough, but not absurdly.
            bounds: Ends that it never goes beyond; where given, room is not added there.
        """
        known = [float(value) for value in values if math.isfinite(value)]
        least, most = (min(known), max(known)) if known else (0.0, 1.0)
        if log and least > 0 and 5 < most / least < _WIDEST:
            return cls(label, least / 1.25, most * 1.25, style, True)
        room = 0.06 * (most - least) or 0.05 * abs(most) or 1.0
        low = least - room if bounds[0] is None else max(least - room, bounds[0])
        high = most + room if bounds[1] is None else min(most + room, bounds[1])
        return cls(label, low, high if high > low else low + 1.0, style)

    def at(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.log:
            value = max(value, self.low)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values along it, about as many as asked for."""
        if self.style == "odds":
            found = [share / (1 - share) for share in _SHARES]
            return [value for value in found if self.low <= value <= self.high]
        if self.log:
            return _log_ticks(self.low, self.high, most)
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = 1 - math.floor(math.log10(step))
        return [round(number * step, digits) for number in range(first, last + 1)]


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1, 2, 5), (1, 3), (1,)):
        found = [lead * 10.0**decade for decade in decades for lead in leads]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most + 1:
            return found
    stride = math.ceil(len(found) / most)
    return found[::stride]


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points, perhaps with a band about it."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high
    stepped: bool = False


@dataclass(frozen=True, slots=True)
class Dots:
    """Points, each perhaps with a name beside it."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    labels: Sequence[str] = ()
    numbers: Sequence[int] = ()  # in place of the labels where there is no room for them
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Area:
    """What lies between two lines over the same points."""

    name: str
    points: Sequence[tuple[float, float, float]]  # x, low, high
    colour: int = 0


Mark = Line | Dots | Area


@dataclass(frozen=True, slots=True)
class Chart:
    """Marks between two axes, drawn in their order."""

    name: str  # of its file
    title: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    note: str = ""  # what it shows, in a sentence or two

    def legend(self) -> list[tuple[str, int, str]]:
        """(name, colour, kind) of what has a name, each once."""
        found: dict[str, tuple[str, int, str]] = {}
        for mark in self.marks:
            kind = type(mark).__name__.lower()
            if isinstance(mark, Line) and mark.dashed:
                kind = "dashed"
            if mark.name:
                found.setdefault(mark.name, (mark.name, mark.colour, kind))
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Bars:
    """One group of bars, one bar per row."""

    name: str
    values: Sequence[float | None]
    colour: int = 0


@dataclass(frozen=True, slots=True)
class BarChart:
    """Rows of names, each with bars that lie."""

    name: str
    title: str
    rows: Sequence[str]
    groups: Sequence[Bars]
    x: Axis
    note: str = ""

    def legend(self) -> list[tuple[str, int, str]]:
        """(name, colour, kind) of the groups."""
        return [(group.name, group.colour, "area") for group in self.groups if group.name]


AnyChart = Chart | BarChart
