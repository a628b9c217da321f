"""A chart as PNG, for a slide or a thread: by matplotlib, where that is installed."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from rtr_ray.errors import ConfigError
from rtr_ray.reports.chart import AnyChart, Area, Axis, BarChart, Chart, Dots, Line, shown, tick
from rtr_ray.reports.style import INK, LIGHT


def available() -> bool:
    """Whether PNGs can be drawn here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def png(chart: AnyChart) -> bytes:
    """The chart, on white, 1440 pixels wide.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("PNGs need matplotlib: pip install 'rtr-ray[report]'.") from error
    rows = len(chart.rows) * len(chart.groups) if isinstance(chart, BarChart) else 0
    figure = Figure(figsize=(9, max(5.0, 0.22 * rows + 1.5)), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(chart.title, loc="left", fontsize=11)
    axes.grid(color="#d8dde3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if isinstance(chart, BarChart):
        _bars(axes, chart)
    else:
        _plot(axes, chart)
    if len(names := axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=1 if len(names) < 6 else 2)
    sink = BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": "rtr-ray"})
    return sink.getvalue()


def _colour(slot: int) -> str:
    return INK if slot < 0 else LIGHT[slot % len(LIGHT)]


def _scale(axes: Any, side: str, axis: Axis) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    drawn = getattr(axes, f"{side}axis")
    getattr(axes, f"set_{side}scale")("log" if axis.log else "linear")
    getattr(axes, f"set_{side}lim")(axis.low, axis.high)
    getattr(axes, f"set_{side}label")(axis.label)
    drawn.set_major_locator(FixedLocator(axis.ticks(7)))
    drawn.set_minor_locator(NullLocator())
    drawn.set_major_formatter(FuncFormatter(lambda value, _: tick(value, axis.style)))


def _plot(axes: Any, chart: Chart) -> None:
    _scale(axes, "x", chart.x)
    _scale(axes, "y", chart.y)
    for mark in chart.marks:
        colour = _colour(mark.colour)
        if isinstance(mark, Area):
            x, low, high = zip(*mark.points, strict=True)
            axes.fill_between(x, low, high, color=colour, linewidth=0, label=mark.name)
            continue
        x, y = zip(*mark.points, strict=True) if mark.points else ((), ())
        if isinstance(mark, Line):
            if mark.band:
                at, low, high = zip(*mark.band, strict=True)
                axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, y, color=colour, linestyle="--" if mark.dashed else "-", label=mark.name or None,
                      drawstyle="steps-post" if mark.stepped else "default")  # fmt: skip
        elif isinstance(mark, Dots):
            axes.scatter(x, y, s=24, color="none" if mark.hollow else colour, edgecolors=colour,
                         label=mark.name or None, zorder=3)  # fmt: skip
            for name, place in zip(mark.labels, mark.points, strict=False):
                axes.annotate(name, place, textcoords="offset points", xytext=(5, 4), fontsize=7)


def _bars(axes: Any, chart: BarChart) -> None:
    _scale(axes, "x", chart.x)
    height = 0.8 / max(len(chart.groups), 1)
    for place, group in enumerate(chart.groups):
        y = [number + place * height for number in range(len(chart.rows))]
        values = [value or 0.0 for value in group.values]
        axes.barh(y, values, height * 0.9, color=_colour(group.colour), label=group.name or None)
        for at, value in zip(y, group.values, strict=True):
            if value is not None:
                axes.annotate(shown(value, chart.x.style), (value, at), textcoords="offset points",
                              xytext=(3, 0), va="center", fontsize=7)  # fmt: skip
    middle = height * (len(chart.groups) - 1) / 2
    axes.set_yticks([number + middle for number in range(len(chart.rows))], chart.rows, fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
