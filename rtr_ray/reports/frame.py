"""Where things stand in a chart: its frame in pixels, and names that do not cover each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rtr_ray.reports.chart import Chart, Dots, Point, tick

LETTER = 6.6  # pixels that a letter of 12 pixels takes, on the safe side
_AROUND = (
    (8, 4, "start"), (-8, 4, "end"), (0, -9, "middle"), (0, 17, "middle"), (8, -7, "start"), (-8, -7, "end"),
    (8, 16, "start"), (-8, 16, "end"), (6, -19, "start"), (-6, -19, "end"), (6, 28, "start"), (-6, 28, "end"),
    (-6, 41, "end"),
)  # fmt: skip
"""Places of a name beside its dot, the best one first."""


@dataclass(frozen=True, slots=True)
class Box:
    """Room that something takes."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: Box) -> bool:
        """Whether they overlap."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


@dataclass(frozen=True, slots=True)
class Name:
    """A name, and where it is written."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame of a chart, in pixels from the top left."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float

    @classmethod
    def of(cls, chart: Chart, wide: bool) -> Frame:
        """Room enough for the numbers at the upright axis."""
        width, height = (720, 400) if wide else (360, 320)
        longest = max((len(tick(value, chart.y.style)) for value in chart.y.ticks()), default=1)
        return cls(width, height, 12 + LETTER * longest, 14, 26, 42)

    def x(self, share: float) -> float:
        """From left to right."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        """From bottom to top."""
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def places(self, chart: Chart, points: Iterable[Point]) -> list[Point]:
        """Points of a chart in pixels; those beyond an axis stand at its end."""
        return [(self.x(inside(chart.x.at(x))), self.y(inside(chart.y.at(y)))) for x, y in points]

    def names(self, chart: Chart, short: bool) -> list[Name]:
        """The names of all dots that have one, each where nothing else stands.

        One that has no such place is written as its number; and where there is none for that either,
        not at all. The dots are in a table beside the chart, too.
        """
        dots = [mark for mark in chart.marks if isinstance(mark, Dots) and mark.labels]
        taken = [Box(x - 5, y - 5, 10, 10) for mark in dots for x, y in self.places(chart, mark.points)]
        found = []
        for mark in dots:
            points = self.places(chart, mark.points)
            for number in sorted(range(len(points)), key=lambda place: points[place]):
                numbered = [str(mark.numbers[number])] if mark.numbers else []
                for text in numbered if short and numbered else [mark.labels[number], *numbered]:
                    name = self._named(text, points[number], taken)
                    if name is not None:
                        found.append(name)
                        break
        return found

    def _named(self, text: str, point: Point, taken: list[Box]) -> Name | None:
        width = len(text) * LETTER
        for dx, dy, anchor in _AROUND:
            x, y = point[0] + dx, point[1] + dy
            start = x if anchor == "start" else x - width if anchor == "end" else x - width / 2
            box = Box(start, y - 10, width, 12.5)
            if (
                self.left <= start
                and start + width <= self.width - 2
                and self.top <= y - 10
                and y + 3 <= self.height - self.bottom
                and not any(box.meets(other) for other in taken)
            ):
                taken.append(box)
                return Name(text, x, y, anchor)
        return None


def inside(share: float) -> float:
    """A share of an axis, cut where it lies far beyond."""
    return min(max(share, -0.02), 1.02)
