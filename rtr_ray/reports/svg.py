"""A chart as SVG, whose colours are the page's: it is light where the page is light, and dark where it is dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from rtr_ray.reports.chart import AnyChart, Area, BarChart, Chart, Dots, Line, shown, tick

_CHAR = 6.6  # pixels that a letter of 12 pixels takes, on the safe side
_ROW = 16  # between the rows of a bar chart's group
_AROUND = ((8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 18, "middle"), (8, -8, "start"))
_AROUND_MORE = ((-8, -8, "end"), (8, 16, "start"), (-8, 16, "end"), (10, -20, "start"), (10, 28, "start"))


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


@dataclass(slots=True)
class _Canvas:
    """The frame of a chart, in pixels, and what has been drawn."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    parts: list[str] = field(default_factory=list)

    def x(self, share: float) -> float:
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start", more: str = "") -> None:
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def svg(self, title: str, kind: str) -> str:
        return (
            f'<svg class="{kind}" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(self.parts)}</svg>'
        )


def svg(chart: AnyChart, wide: bool = True) -> str:
    """The chart for a broad page, or for a phone: text is as large on both."""
    if isinstance(chart, BarChart):
        return _bars(chart, wide)
    return _plot(chart, wide)


def _frame(chart: Chart, canvas: _Canvas, wide: bool) -> None:
    for value in chart.y.ticks(6):
        y = canvas.y(chart.y.at(value))
        canvas.line(canvas.left, y, canvas.width - canvas.right, y, "grid")
        canvas.text(canvas.left - 6, y + 4, tick(value, chart.y.style), "tick", "end")
    end = -1.0
    for value in chart.x.ticks(7 if wide else 4):
        x, name = canvas.x(chart.x.at(value)), tick(value, chart.x.style)
        canvas.line(x, canvas.top, x, canvas.height - canvas.bottom, "grid")
        half = len(name) * _CHAR / 2
        if x - half > end and x + half <= canvas.width:
            canvas.text(x, canvas.height - canvas.bottom + 16, name, "tick", "middle")
            end = x + half + 4
    canvas.line(canvas.left, canvas.height - canvas.bottom, canvas.width - canvas.right,
                canvas.height - canvas.bottom, "axis")  # fmt: skip
    middle = (canvas.left + canvas.width - canvas.right) / 2
    canvas.text(middle, canvas.height - 6, chart.x.label, "label", "middle")
    canvas.text(2, 12, chart.y.label, "label")


def _plot(chart: Chart, wide: bool) -> str:
    width, height = (720, 400) if wide else (360, 320)
    left = 12 + _CHAR * max((len(tick(v, chart.y.style)) for v in chart.y.ticks(6)), default=1)
    canvas = _Canvas(width, height, left, 14, 26, 42)
    _frame(chart, canvas, wide)

    def at(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(canvas.x(_inside(chart.x.at(x))), canvas.y(_inside(chart.y.at(y)))) for x, y in points]

    taken: list[_Box] = []
    for mark in chart.marks:  # dots first claim their places, so that no name covers one
        if isinstance(mark, Dots) and (mark.labels or mark.numbers):
            taken += [_Box(x - 5, y - 5, 10, 10) for x, y in at(mark.points)]
    for mark in chart.marks:
        if isinstance(mark, Line):
            _line(canvas, mark, at)
        elif isinstance(mark, Area):
            _area(canvas, mark, at)
    for mark in chart.marks:
        if isinstance(mark, Dots):
            _dots(canvas, mark, at(mark.points), taken, wide)
    return canvas.svg(chart.title, "wide" if wide else "narrow")


def _inside(share: float) -> float:
    return min(max(share, -0.02), 1.02)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _line(canvas: _Canvas, mark: Line, at) -> None:  # type: ignore[no-untyped-def]
    if mark.band:
        ring = [(x, high) for x, _, high in mark.band] + [(x, low) for x, low, _ in reversed(mark.band)]
        canvas.parts.append(f'<path class="band f{_slot(mark.colour)}" d="{_path(at(ring))}Z"/>')
    points = at(mark.points)
    if mark.stepped:
        points = [p for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False)
                  for p in ((x0, y0), (x1, y0))] + points[-1:]  # fmt: skip
    if points:
        kind = f"line s{_slot(mark.colour)}" + (" dashed" if mark.dashed else "")
        canvas.parts.append(f'<path class="{kind}" d="{_path(points)}"/>')


def _area(canvas: _Canvas, mark: Area, at) -> None:  # type: ignore[no-untyped-def]
    ring = [(x, high) for x, _, high in mark.points] + [(x, low) for x, low, _ in reversed(mark.points)]
    if ring:
        path = _path(at(ring))
        canvas.parts.append(
            f'<path class="area f{_slot(mark.colour)}" d="{path}Z"><title>{escape(mark.name)}</title></path>'
        )


def _dots(
    canvas: _Canvas, mark: Dots, points: Sequence[tuple[float, float]], taken: list[_Box], wide: bool
) -> None:
    kind = f"dot s{_slot(mark.colour)} hollow" if mark.hollow else f"dot f{_slot(mark.colour)}"
    names = mark.labels if wide or not mark.numbers else [str(number) for number in mark.numbers]
    for place, (x, y) in enumerate(points):
        told = f"<title>{escape(mark.labels[place])}</title>" if mark.labels else ""
        canvas.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{told}</circle>')
    order = sorted(range(len(names)), key=lambda place: (points[place][0], points[place][1]))
    for place in order:
        _named(canvas, names[place], points[place], taken)


def _named(canvas: _Canvas, name: str, point: tuple[float, float], taken: list[_Box]) -> None:
    """Write a name beside its dot where nothing else stands; where there is no such place, not at all.

    Every dot is in the table below its chart, too.
    """
    width = len(name) * _CHAR
    for dx, dy, anchor in (*_AROUND, *_AROUND_MORE):
        x, y = point[0] + dx, point[1] + dy
        start = x if anchor == "start" else x - width if anchor == "end" else x - width / 2
        box = _Box(start, y - 11, width, 14)
        fits = start >= canvas.left and start + width <= canvas.width - 2
        if (
            fits
            and canvas.top <= y - 11
            and y + 3 <= canvas.height - canvas.bottom
            and not any(box.meets(other) for other in taken)
        ):
            canvas.text(x, y, name, "name", anchor)
            taken.append(box)
            return


def _slot(colour: int) -> str:
    return "x" if colour < 0 else str(colour % 8)


def _bars(chart: BarChart, wide: bool) -> str:
    width = 720 if wide else 360
    longest = max((len(row) for row in chart.rows), default=1)
    beside = wide and longest * _CHAR < 260
    left = 8 + longest * _CHAR if beside else 4.0
    head = 0 if beside else 18
    group = head + _ROW * len(chart.groups) + 12
    height = 12 + group * len(chart.rows) + 40
    canvas = _Canvas(width, height, left, 62, 6, 40)
    for value in chart.x.ticks(6 if wide else 4):
        x = canvas.x(chart.x.at(value))
        canvas.line(x, canvas.top, x, height - canvas.bottom, "grid")
        canvas.text(x, height - canvas.bottom + 16, tick(value, chart.x.style), "tick", "middle")
    canvas.text((left + width - canvas.right) / 2, height - 4, chart.x.label, "label", "middle")
    zero = canvas.x(max(chart.x.at(max(0.0, chart.x.low)), 0.0))
    for number, row in enumerate(chart.rows):
        top = 10 + number * group
        if beside:
            canvas.text(left - 8, top + _ROW * len(chart.groups) / 2 + 3, row, "name", "end")
        else:
            canvas.text(left, top + 12, row, "name")
        for place, bars in enumerate(chart.groups):
            value = bars.values[number]
            y = top + head + place * _ROW
            if value is None:
                canvas.text(zero + 4, y + 11, "-", "tick")
                continue
            x = canvas.x(_inside(chart.x.at(value)))
            canvas.parts.append(
                f'<rect class="bar f{_slot(bars.colour)}" x="{min(zero, x):.1f}" y="{y}" '
                f'width="{max(abs(x - zero), 1):.1f}" height="{_ROW - 4}"/>'
            )
            canvas.text(max(x, zero) + 4, y + 10, shown(value, chart.x.style), "tick")
    return canvas.svg(chart.title, "wide" if wide else "narrow")
