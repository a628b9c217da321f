"""What a person sees of a plan, and of one row of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rtr_ray.explanation import Explanation
from rtr_ray.screen import duration, money, percent

_BAR = 20


def show_plan(plan: Mapping[str, Any], console: Console) -> None:
    """The mix, the curve, and what it comes to in a sentence."""
    console.print(mix_table(plan))
    if plan["curve"]:
        console.print(curve_table(plan))
    for sentence in words(plan):
        console.print(Text(sentence), soft_wrap=True)


def words(plan: Mapping[str, Any]) -> list[str]:
    """What a plan comes to."""
    budget, found = plan["budget_usd"], plan["forecast"]
    limit = f" of a budget of {money(float(budget))}" if budget is not None else ""
    cost, accuracy = found["cost_usd"], found["accuracy"]
    after = f", after {found['pilot_rows']:,} rows of a pilot" if found["pilot_rows"] else ""
    said = [
        f"{plan['rows']:,} rows. Forecast{after}: {_range(cost, money)}{limit}, "
        f"{_range(accuracy, percent)} right answers. The router's own sums are "
        f"{money(plan['cost_usd'])} and {percent(plan['accuracy'])}."
    ]
    if plan["unrouted"]:
        said.append(f"{plan['unrouted']:,} rows cannot be put to any candidate.")
    if budget is not None and plan["curve"] and plan["dual_price"] is not None:
        most = max(point["cost_usd"] for point in plan["curve"])
        if float(budget) > most:
            said.append(f"More than {money(most)} would not help.")
        else:
            said.append(f"The last dollar buys {plan['dual_price']:,.4g} right answers.")
    return [*said, *_time(plan["time"]), *(f"Note: {warning}." for warning in found["warnings"])]


def _range(interval: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    """An expectation, and where it lies with what probability."""
    if interval["low"] is None or interval["high"] is None:
        return f"{shown(interval['expected'])} (no interval)"
    ends = f"{shown(interval['low'])} to {shown(interval['high'])}"
    return f"{shown(interval['expected'])} ({100 * interval['level']:g}%: {ends})"


def _time(time: Mapping[str, Any]) -> list[str]:
    known = {name: s for name, s in time["by_deployment_s"].items() if s is not None}
    lacking = sorted(set(time["by_deployment_s"]) - set(known))
    said = []
    if known:
        each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in known.items())
        said.append(f"Generating takes, with all replicas: {each}.")
    if lacking:
        said.append(
            f"Nobody has said how fast {', '.join(lacking)} generate: give the deployments their "
            "output_tokens_per_s (a run's summary has measured ones) for the time."
        )
    return said


def mix_table(plan: Mapping[str, Any]) -> Table:
    """Who answers how many, and what each alone would cost and score by the estimates."""
    table = Table(title="Who would answer", title_justify="left")
    for name in ("candidate", "rows", "accuracy", "dollars", "all rows: accuracy", "all rows: dollars"):
        table.add_column(
            name, justify="left" if name == "candidate" else "right", no_wrap=name == "candidate"
        )
    mine = {row["candidate"]: row for row in plan["by_candidate"]}
    for row in sorted(plan["if_all_went_to"], key=lambda row: row["cost_usd"]):
        one = mine.get(row["candidate"])
        table.add_row(
            row["candidate"],
            f"{one['rows']:,}" if one else "-",
            percent(one["accuracy"] / one["rows"]) if one else "-",
            money(one["cost_usd"]) if one else "-",
            percent(row["accuracy"] / row["rows"]) if row["rows"] else "-",
            money(row["cost_usd"]) + ("" if row["rows"] == plan["rows"] else f" ({row['rows']:,} rows)"),
        )
    return table


def curve_table(plan: Mapping[str, Any]) -> Table:
    """What other budgets would buy."""
    table = Table(title="What a budget buys", title_justify="left")
    for name in ("budget", "spent", "right answers", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    budget = plan["budget_usd"]
    for point in plan["curve"]:
        here = budget is not None and abs(point["budget_usd"] - float(budget)) <= 1e-9 * point["budget_usd"]
        accuracy = point["accuracy_interval"]
        table.add_row(
            money(point["budget_usd"]),
            _ends(point["cost_interval_usd"], money),
            _ends(accuracy, percent),
            "#" * round(_BAR * (accuracy["expected"] or 0.0)),
            style="bold" if here else "",
        )
    return table


def _ends(interval: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    if interval["low"] is None or interval["high"] is None:
        return shown(interval["expected"])
    return f"{shown(interval['expected'])} ({shown(interval['low'])} - {shown(interval['high'])})"


def options_table(found: Explanation) -> Table:
    """The candidates of a row, as they were seen when it was planned."""
    table = Table(title=f"Row {found.query_id}", title_justify="left")
    for name in ("candidate", "accuracy", "output tokens", "dollars", ""):
        table.add_column(name, justify="right" if name not in ("candidate", "") else "left")
    for one in found.options:
        note = "chosen" if one.candidate == found.chosen else ""
        note = note or ("runner-up" if str(one.candidate) == found.runner_up else "")
        table.add_row(
            str(one.candidate),
            percent(one.accuracy),
            f"{one.output_tokens:,.1f}",
            money(one.cost_usd, 8),
            note if one.allowed else "not allowed",
            style="bold" if one.candidate == found.chosen else "",
        )
    return table
