"""A chart as PNG, for a slide or a thread: by matplotlib, where that is installed."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from rtr_ray.errors import ConfigError
from rtr_ray.reports.chart import AnyChart, Area, Axis, BarChart, Chart, Dots, Line, shown, tick
from rtr_ray.reports.frame import Frame
from rtr_ray.reports.style import INK, LIGHT

_DPI = 200
_HEAD, _SIDE = (
    60,
    24,
)  # hundredths of an inch above a plot and left of it, for words


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
    if isinstance(chart, BarChart):
        rows = len(chart.rows) * len(chart.groups)
        figure = Figure(figsize=(7.2, max(3.0, 0.18 * rows + 1.5)), dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
    else:
        frame = Frame.of(chart, wide=True)
        figure = Figure(figsize=(frame.width / 100, (frame.height + _HEAD) / 100), dpi=_DPI)
        axes = figure.add_axes(_place(frame))
    axes.grid(color="#d8dde3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if isinstance(chart, BarChart):
        _bars(axes, chart)
        axes.set_title(chart.title, loc="left", fontsize=10)
        axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        _plot(axes, chart)
        figure.text(0.01, 0.985, chart.title, fontsize=10, va="top")
        names = axes.get_legend_handles_labels()[1]
        columns = 3 if max(map(len, names), default=0) < 30 else 2
        figure.legend(fontsize=7.5, frameon=False, ncols=columns, loc="upper left", bbox_to_anchor=(0, 0.95))
    sink = BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": "rtr-ray"})
    return sink.getvalue()


def _place(frame: Frame) -> tuple[float, float, float, float]:
    """The axes in a figure that has room for a legend above: left, bottom, width, height, as shares."""
    height = frame.height + _HEAD
    return (
        (frame.left + _SIDE) / frame.width,
        frame.bottom / height,
        (frame.width - frame.left - _SIDE - frame.right) / frame.width,
        (frame.height - frame.top - frame.bottom) / height,
    )


def _colour(slot: int) -> str:
    return INK if slot < 0 else LIGHT[slot % len(LIGHT)]


def _scale(axes: Any, side: str, axis: Axis) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    drawn = getattr(axes, f"{side}axis")
    getattr(axes, f"set_{side}scale")("log" if axis.log else "linear")
    getattr(axes, f"set_{side}lim")(axis.low, axis.high)
    getattr(axes, f"set_{side}label")(axis.label)
    drawn.label.set_size(8.5)
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
    sides = {"start": "left", "end": "right", "middle": "center"}
    frame = Frame.of(chart, wide=True)
    for name in frame.names(chart, short=False):
        across = (name.x - frame.left) / (frame.width - frame.left - frame.right)
        up = (frame.height - frame.bottom - name.y) / (frame.height - frame.top - frame.bottom)
        axes.text(across, up, name.text, ha=sides[name.anchor], fontsize=7.5, transform=axes.transAxes)


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
