"""A page: a sentence that says what came of it, figures, charts, tables. One file that needs no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from rtr_ray.reports.chart import AnyChart
from rtr_ray.reports.style import css
from rtr_ray.reports.svg import svg


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first column stands left, the others right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int | None = None  # a row that stands out
    left: frozenset[int] = frozenset()  # further columns that hold words


@dataclass(frozen=True, slots=True)
class Section:
    """Some of a page, under a heading."""

    title: str
    text: Sequence[str] = ()
    charts: Sequence[AnyChart] = ()
    tables: Sequence[Table] = ()
    steps: Sequence[str] = ()  # a list of what to do; `code` between backticks


@dataclass(frozen=True, slots=True)
class Page:
    """All of it."""

    title: str
    verdict: str
    good: bool
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()
    made: str = ""  # by which command, of what
    charts: tuple[AnyChart, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = tuple(chart for section in self.sections for chart in section.charts)
        object.__setattr__(self, "charts", found)


def html(page: Page) -> str:
    """The page as one HTML file: no script, no font, no picture from elsewhere."""
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.facts
    )
    notes = "".join(f'<p class="note">{_prose(note)}</p>' for note in page.notes)
    kind = "verdict" if page.good else "verdict no"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{css()}</style></head><body><main>"
        f"<h1>{escape(page.title)}</h1>"
        f'<div class="{kind}"><p>{_prose(page.verdict)}</p></div>{notes}'
        f"{f'<dl class=facts>{facts}</dl>' if facts else ''}"
        + "\n".join(map(_section, page.sections))
        + f"<footer>{_prose(page.made)}</footer></main></body></html>\n"
    )


def _section(section: Section) -> str:
    return (
        f"<section><h2>{escape(section.title)}</h2>"
        + "".join(f"<p>{_prose(text)}</p>" for text in section.text)
        + (
            f"<ul>{''.join(f'<li>{_prose(step)}</li>' for step in section.steps)}</ul>"
            if section.steps
            else ""
        )
        + "".join(map(_figure, section.charts))
        + "".join(map(_table, section.tables))
        + "</section>"
    )


def _figure(chart: AnyChart) -> str:
    legend = "".join(f"<li>{_key(colour, kind)}{escape(name)}</li>" for name, colour, kind in chart.legend())
    caption = f"<figcaption>{_prose(chart.note)}</figcaption>" if chart.note else ""
    return (
        f'<figure id="{escape(chart.name)}"><ul class="legend">{legend}</ul>'
        f"{svg(chart)}{svg(chart, wide=False)}{caption}</figure>"
    )


def _key(colour: int, kind: str) -> str:
    """The sign of a legend."""
    slot = "x" if colour < 0 else colour % 8
    if kind == "area":
        shape = f'<rect class="f{slot}" x="3" y="1" width="18" height="10"/>'
    elif kind == "dots":
        shape = f'<circle class="dot f{slot}" cx="12" cy="6" r="4.5"/>'
    else:
        more = " dashed" if kind == "dashed" else ""
        shape = f'<line class="line s{slot}{more}" x1="0" y1="6" x2="24" y2="6"/>'
    return f'<svg viewBox="0 0 24 12" aria-hidden="true">{shape}</svg>'


def _table(table: Table) -> str:
    def side(place: int) -> str:
        return ' class="left"' if place in table.left else ""

    head = "".join(f"<th{side(n)}>{escape(name)}</th>" for n, name in enumerate(table.head))
    rows = ""
    for number, row in enumerate(table.rows):
        cells = "".join(
            f'<td{side(n)} data-name="{escape(table.head[n])}">{escape(text)}</td>'
            for n, text in enumerate(row)
        )
        rows += f"<tr{' class=strong' if number == table.strong else ''}>{cells}</tr>"
    return (
        f'<div class="table"><table class="stack"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _prose(text: str) -> str:
    """Text, with `code` between backticks."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))
