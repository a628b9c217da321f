"""What a person sees of a plan, and of one row of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rtr_ray.explanation import Explanation
from rtr_ray.screen import money, percent

_BAR = 30


def show_plan(plan: Mapping[str, Any], console: Console) -> None:
    """The mix, the curve, and what it comes to in a sentence."""
    console.print(mix_table(plan))
    if plan["curve"]:
        console.print(curve_table(plan))
    for sentence in words(plan):
        console.print(Text(sentence), soft_wrap=True)


def words(plan: Mapping[str, Any]) -> list[str]:
    """What a plan comes to."""
    budget = plan["budget_usd"]
    limit = f" of a budget of {money(float(budget))}" if budget is not None else ""
    said = [
        f"{plan['rows']:,} rows: expected to cost {money(plan['cost_usd'])}{limit} and to be right in "
        f"{percent(plan['accuracy'])}."
    ]
    if plan["unrouted"]:
        said.append(f"{plan['unrouted']:,} rows cannot be put to any candidate.")
    if budget is not None and plan["curve"] and plan["dual_price"] is not None:
        most = plan["curve"][-1]
        if float(budget) > most["cost_usd"]:
            said.append(f"More than {money(most['cost_usd'])} would not help.")
        else:
            said.append(f"The last dollar buys {plan['dual_price']:,.4g} right answers.")
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
    table = Table(title="What a budget buys, by the estimates", title_justify="left")
    for name in ("budget", "accuracy", ""):
        table.add_column(name, justify="left" if not name else "right")
    budget = plan["budget_usd"]
    for point in plan["curve"]:
        here = budget is not None and abs(point["budget_usd"] - float(budget)) <= 1e-9 * point["budget_usd"]
        bar = "#" * round(_BAR * point["accuracy"])
        table.add_row(
            money(point["budget_usd"]), percent(point["accuracy"]), bar, style="bold" if here else ""
        )
    return table


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
