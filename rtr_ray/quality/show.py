"""An evaluation as a table on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: Mapping[str, Any], console: Console) -> None:
    """Candidates, anchors, routers, the verdict."""
    for note in report["notes"]:
        console.print(f"[yellow]{note}[/]", highlight=False)
    for part, anchors in (("test", report["anchors"]), ("ood", report["anchors_ood"])):
        if anchors is not None:
            console.print(_routers(report, part, anchors))
    console.print(report["verdict"]["reason"], highlight=False)


def _routers(report: Mapping[str, Any], part: str, anchors: Mapping[str, Any]) -> Table:
    best, queries = anchors["best_single"], report["n_test" if part == "test" else "n_ood"]
    splits = "its own split"
    if report["repeats"] is not None:
        seeds = report["seeds"]
        splits = f"{report['repeats']} random splits, seeds {seeds[0]} to {seeds[-1]}"
    cost = f"${best['cost_usd']:.6f}"
    if report["cost_unit"] != "usd":
        cost = f"{best['cost_usd']:,.1f} output tokens"
    table = Table(
        title=(
            f"{part}: {queries:,} queries, trained on {report['n_train']:,} ({splits}). Best single in "
            f"training: {best['candidate']}, {_percent(best['accuracy'])} for {cost} a query"
        ),
        title_justify="left",
        caption="over the hull: points over the best mix that looks at no query, with a 95% interval",
        caption_justify="left",
    )
    table.add_column("router")
    for name in ("AIQ", "over the hull", "gap closed", "best accuracy", "saved at -1 point", "ECE"):
        table.add_column(name, justify="right")
    table.add_row(
        "static hull", f"{anchors['static_hull']['aiq']:.3f}", "0", "0%", "-", "-", "-", style="dim"
    )
    for one in report["routers"]:
        if one["part"] == part:
            low, high = one["aiq_over_hull_interval"]
            span = "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
            table.add_row(
                one["name"],
                f"{one['aiq']:.3f}",
                f"{100 * one['aiq_over_hull']:+.1f}{span}",
                _percent(one["gap_closed"]),
                _percent(one["best_accuracy"]),
                _percent(one["cost_saved_within_1pt"]),
                f"{one['calibration']['ece']:.3f}",
            )
    oracle = anchors["oracle"]
    fitted = "cross-fitted" if oracle["cross_fitted"] else "knows its luck"
    table.add_row(
        f"oracle ({fitted})", f"{oracle['aiq']:.3f}", "", "100%", _percent(oracle["accuracy"]), "-", "-",
        style="dim",
    )  # fmt: skip
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
