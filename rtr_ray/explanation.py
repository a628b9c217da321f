"""Why a row went where it did: what was believed of its candidates, and what money had to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from rtr_ray.corpus import QUERY_ID
from rtr_ray.errors import DataError
from rtr_ray.parts import routing_table
from rtr_ray.policies.limits import FittedLimits
from rtr_ray.pool import Pool
from rtr_ray.run_folder import CONFIG, RESULTS, TABLES, RunFolder
from rtr_ray.storage import Store, read_table
from rtr_ray.types import Candidate, RoutingTable
from rtr_ray.versions import saved

_RESULT = ("status", "model", "strategy", "samples", "runner_up", "plan_version", "dual_price", "cost_usd")


@dataclass(frozen=True, slots=True)
class Option:
    """One candidate, as it was seen when the row was planned."""

    candidate: Candidate
    allowed: bool
    accuracy: float
    output_tokens: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """The choice of one row."""

    query_id: str
    status: str
    chosen: Candidate | None
    runner_up: str | None
    version: int | None
    dual_price: float | None  # accuracy per dollar
    limits: tuple[str, ...]  # beside the budget, that bound when the row was planned
    options: tuple[Option, ...]  # the cheapest first
    result: dict[str, Any]
    unfamiliar: bool = False  # as far as anybody looked

    def words(self) -> list[str]:
        """The choice in sentences."""
        if self.chosen is None:
            return [f"The row went nowhere: {self.result['error']}."]
        here = next(one for one in self.options if one.candidate == self.chosen)
        said = [
            f"{self.chosen} was chosen: expected to be right with {100 * here.accuracy:.1f}% for "
            f"${here.cost_usd:.8f} (about {here.output_tokens:,.0f} output tokens)."
        ]
        if self.unfamiliar:
            said.append("The row is unlike those that the router was trained on: see router.ood.")
        if self.runner_up is not None:
            said.append(f"Without it, {self.runner_up} would have been.")
        if self.dual_price is not None:
            said += self._money(here, self.dual_price)
        if self.limits:
            said.append(
                f"The plan was also bound by {', '.join(self.limits)}: that, and not money, may be what kept "
                "the row from another candidate."
            )
        return said

    def _money(self, here: Option, price: float) -> list[str]:
        """What the budget has to do with it."""
        better = [one for one in self.options if one.allowed and _better(one, here)]
        if not better:
            return ["No allowed candidate is expected to be better: more money would have changed nothing."]
        step = max(better, key=lambda one: _rate(one, here))
        points = 100 * (step.accuracy - here.accuracy)
        return [
            f"The last dollar of this plan bought {price:,.4g} right answers (its dual price). The next "
            f"better candidate, {step.candidate}, adds {points:.1f} points for "
            f"${step.cost_usd - here.cost_usd:.8f}: {_rate(step, here):,.4g} a dollar. A larger budget, with "
            "a dual price below that, would have chosen it."
        ]


def _better(one: Option, here: Option) -> bool:
    return one.accuracy > here.accuracy and one.cost_usd > here.cost_usd


def _rate(one: Option, here: Option) -> float:
    return (one.accuracy - here.accuracy) / (one.cost_usd - here.cost_usd)


def pool_of(folder: RunFolder) -> str:
    """The pool that a run was begun with.

    Raises:
        DataError: If the folder holds no run.
    """
    text = folder.store.read(CONFIG)
    if text is None:
        raise DataError(f"{folder.store.uri} holds no run: it has no {CONFIG}. Give the output of a job.")
    name: str = yaml.safe_load(text)["pool"]
    return name


def explain(folder: RunFolder, query_id: str, pool: Pool) -> Explanation:
    """Find a row in a run and why it was chosen as it was.

    Args:
        folder: Of a run that has at least begun to answer.
        query_id: The row's id.
        pool: For the prices, by which corrected tokens become dollars.

    Raises:
        DataError: If the run has no such row, or has not come to it yet.
    """
    result = _row(folder.store, RESULTS, "query_id", query_id, (*_RESULT, "error"))
    part = _table(folder.store, query_id)
    if part is None:
        raise DataError(
            f"The run {folder.store.uri} has no row '{query_id}'. Ids are in the column query_id of its "
            "results."
        )
    if result is None:
        raise DataError(f"The run {folder.store.uri} has not come to the row '{query_id}' yet.")
    number = result["plan_version"]
    version = None if number is None else saved(folder)[number]
    table = part if version is None else version.corrections.apply(part, pool)
    binding = version.policy.binding if version and isinstance(version.policy, FittedLimits) else ()
    chosen = None
    if result["model"] is not None:
        chosen = Candidate(result["model"], result["strategy"], result["samples"])
    return Explanation(
        query_id,
        result["status"],
        chosen,
        result["runner_up"],
        number,
        result["dual_price"],
        tuple(name for name in binding if name != "budget_usd"),
        _options(table),
        result,
        table.unfamiliar is not None and bool(table.unfamiliar[0]),
    )


def _options(table: RoutingTable) -> tuple[Option, ...]:
    order = np.argsort(table.cost_usd[0], kind="stable")
    return tuple(
        Option(
            table.candidates[c],
            bool(table.allowed[0, c]),
            float(table.accuracy[0, c]),
            float(table.output_tokens[0, c]),
            float(table.cost_usd[0, c]),
        )
        for c in order
    )


def _row(store: Store, prefix: str, name: str, value: str, columns: Sequence[str]) -> dict[str, Any] | None:
    for key in store.keys(prefix):
        found = read_table(store, key, [name, *columns])
        found = found.filter(pc.equal(found[name], value))
        if len(found):
            row: dict[str, Any] = found.to_pylist()[0]
            return row
    return None


def _table(store: Store, query_id: str) -> RoutingTable | None:
    """The routing table of one row."""
    for key in store.keys(TABLES):
        ids = read_table(store, key, [QUERY_ID])
        place = pc.index(ids[QUERY_ID], query_id).as_py()
        if place >= 0:
            return routing_table(read_table(store, key).slice(place, 1))
    return None
