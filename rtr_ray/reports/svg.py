"""A chart as SVG, whose colours are the page's: light where that is light, dark where it is dark."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from rtr_ray.reports.chart import AnyChart, Area, BarChart, Chart, Dots, Line, Point, shown, tick
from rtr_ray.reports.frame import LETTER, Frame, inside

_ROW = 16  # pixels of a bar and what is between it and the next
_BESIDE = 260  # pixels that names may take beside their bars; longer ones stand above


@dataclass(frozen=True, slots=True)
class _Pen:
    """What has been drawn in a frame."""

    frame: Frame
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points: Sequence[Point], kind: str, closed: bool = False, title: str = "") -> None:
        if points:
            d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")
            inner = f"<title>{escape(title)}</title>" if title else ""
            self.parts.append(f'<path class="{kind}" d="{d}">{inner}</path>')

    def svg(self, title: str, wide: bool, more: str = "") -> str:
        kind, size = ("wide" if wide else "narrow") + more, f"0 0 {self.frame.width} {self.frame.height}"
        return (
            f'<svg class="{kind}" viewBox="{size}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{''.join(self.parts)}</svg>"
        )


def svg(chart: AnyChart, wide: bool = True) -> str:
    """The chart for a broad page, or for a phone: text is as large on both."""
    return _bars(chart, wide) if isinstance(chart, BarChart) else _plot(chart, wide)


def _plot(chart: Chart, wide: bool) -> str:
    frame = Frame.of(chart, wide)
    pen = _Pen(frame)
    _axes(pen, chart, wide)
    for mark in chart.marks:
        if isinstance(mark, Line):
            _line(pen, chart, mark)
        elif isinstance(mark, Area):
            ring = _ring(mark.points)
            pen.path(frame.places(chart, ring), f"area f{_slot(mark.colour)}", True, mark.name)
    for mark in chart.marks:
        if isinstance(mark, Dots):
            _dots(pen, chart, mark)
    for name in frame.names(chart, short=not wide):
        pen.text(name.x, name.y, name.text, "name", name.anchor)
    return pen.svg(chart.title, wide, " plot")


def _axes(pen: _Pen, chart: Chart, wide: bool) -> None:
    frame = pen.frame
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    for value in chart.y.ticks():
        y = frame.y(chart.y.at(value))
        pen.line(frame.left, y, right, y, "grid")
        pen.text(frame.left - 6, y + 4, tick(value, chart.y.style), "tick", "end")
    end = -1.0
    for value in chart.x.ticks(7 if wide else 4):
        x, name = frame.x(chart.x.at(value)), tick(value, chart.x.style)
        pen.line(x, frame.top, x, floor, "grid")
        half = len(name) * LETTER / 2
        if x - half > end and x + half <= frame.width + 4:
            pen.text(x, floor + 16, name, "tick", "middle")
            end = x + half + 4
    pen.line(frame.left, floor, right, floor, "axis")
    pen.text((frame.left + right) / 2, frame.height - 6, chart.x.label, "label", "middle")
    pen.text(2, 12, chart.y.label, "label")


def _ring(points: Sequence[tuple[float, float, float]]) -> list[Point]:
    """Around what lies between two lines."""
    return [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]


def _line(pen: _Pen, chart: Chart, mark: Line) -> None:
    pen.path(pen.frame.places(chart, _ring(mark.band)), f"band f{_slot(mark.colour)}", True)
    points = pen.frame.places(chart, mark.points)
    if mark.stepped:
        pairs = itertools.pairwise(points)
        points = [corner for (x0, y0), (x1, _) in pairs for corner in ((x0, y0), (x1, y0))] + points[-1:]
    pen.path(points, f"line s{_slot(mark.colour)}" + (" dashed" if mark.dashed else ""))


def _dots(pen: _Pen, chart: Chart, mark: Dots) -> None:
    kind = f"dot s{_slot(mark.colour)} hollow" if mark.hollow else f"dot f{_slot(mark.colour)}"
    for number, (x, y) in enumerate(pen.frame.places(chart, mark.points)):
        told = f"<title>{escape(mark.labels[number])}</title>" if mark.labels else ""
        pen.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{told}</circle>')


def _slot(colour: int) -> str:
    return "x" if colour < 0 else str(colour % 8)


def _bars(chart: BarChart, wide: bool) -> str:
    width = 720 if wide else 360
    longest = max((len(row) for row in chart.rows), default=1)
    beside = wide and longest * LETTER < _BESIDE
    left = 8 + longest * LETTER if beside else 10.0
    head = 0 if beside else 18
    group = head + _ROW * len(chart.groups) + 12
    height = 12 + group * len(chart.rows) + 40
    frame = Frame(width, height, left, 62, 6, 40)
    pen = _Pen(frame)
    for value in chart.x.ticks(6 if wide else 4):
        x = frame.x(chart.x.at(value))
        pen.line(x, frame.top, x, height - frame.bottom, "grid")
        pen.text(x, height - frame.bottom + 16, tick(value, chart.x.style), "tick", "middle")
    pen.text((left + width - frame.right) / 2, height - 4, chart.x.label, "label", "middle")
    zero = frame.x(max(chart.x.at(max(0.0, chart.x.low)), 0.0))
    for number, row in enumerate(chart.rows):
        top = 10 + number * group
        if beside:
            pen.text(left - 8, top + _ROW * len(chart.groups) / 2 + 3, row, "name", "end")
        else:
            pen.text(left, top + 12, row, "name")
        for place, bars in enumerate(chart.groups):
            length = bars.values[number]
            y = top + head + place * _ROW
            if length is None:
                pen.text(zero + 4, y + 11, "-", "tick")
                continue
            x = frame.x(inside(chart.x.at(length)))
            pen.parts.append(
                f'<rect class="bar f{_slot(bars.colour)}" x="{min(zero, x):.1f}" y="{y}" '
                f'width="{max(abs(x - zero), 1):.1f}" height="{_ROW - 4}"/>'
            )
            pen.text(max(x, zero) + 4, y + 10, shown(length, chart.x.style), "tick")
    return pen.svg(chart.title, wide)
