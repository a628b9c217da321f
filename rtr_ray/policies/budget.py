"""One budget for all queries: the most expected accuracy that it buys."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, ClassVar, Literal

import numpy as np

from rtr_ray.errors import BudgetError, ConfigError
from rtr_ray.policies.base import Sketch
from rtr_ray.policies.cut import Cut, Frontier
from rtr_ray.policies.hull import bin_of, climb, share_hash
from rtr_ray.policies.upgrades import PER_POINT, PER_UNIT, WHOLE, allowed, costs, merge, sketch
from rtr_ray.types import BoolArray, FloatArray, IntArray, Plan, RoutingTable

Unit = Literal["usd", "output_tokens"]
Binding = Literal["binds", "more than needed", "too small"]
"""Whether the budget is spent; buys everything that is worth anything; or not even the cheapest plan."""
_LEAST_USD = 1e-12
_FLOAT32 = 1e-7  # a table has no finer accuracies: 0.8 may stand in it as 0.79999998


@dataclass(frozen=True, slots=True)
class Budget:
    """The highest expected accuracy at an expected cost within the budget, over all tables together.

    maximise sum_q accuracy[q, choice_q]  subject to  sum_q cost[q, choice_q] <= budget

    or, with a floor of accuracy, the least cost that reaches it. One of the first three is given at
    most; without any, the amount is the job's (see `within`).

    Source:
        The multiple-choice knapsack problem: its linear relaxation by upper hulls is Sinha and
        Zoltners (1979). Here rates are binned, and identical queries are told apart by a hash.
    """

    budget_usd: float | None = None
    budget_output_tokens: float | None = None
    min_accuracy: float | None = None  # mean over the queries that have a candidate, at least cost
    max_row_usd: float | None = None  # a candidate that is predicted above it is not allowed for the query
    when_short: Literal["refuse", "cheapest"] = "refuse"  # if the budget is below the cheapest plan
    kind: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        goals = {name: getattr(self, name) for name in ("budget_usd", "budget_output_tokens", "min_accuracy")}
        given = [name for name, value in goals.items() if value is not None]
        if len(given) > 1:
            raise ConfigError(
                f"policy 'budget' takes one of {', '.join(goals)}; it has {' and '.join(given)}."
            )
        for name, value in (goals | {"max_row_usd": self.max_row_usd}).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"policy.{name} is {value}; a finite amount above 0 is needed.")
        if self.min_accuracy is not None and self.min_accuracy > 1:
            raise ConfigError(
                f"policy.min_accuracy is {self.min_accuracy}; it is the share of correct answers, at most 1."
            )
        if self.when_short not in ("refuse", "cheapest"):
            raise ConfigError(f"policy.when_short is '{self.when_short}'; it is 'refuse' or 'cheapest'.")
        if self.min_accuracy is not None and self.when_short == "cheapest":
            raise ConfigError(
                "policy.when_short is 'cheapest' beside min_accuracy; it tells what to do with a budget "
                "that is too small, and a floor of accuracy has none."
            )

    @property
    def unit(self) -> Unit:
        """What is counted."""
        return "usd" if self.budget_output_tokens is None else "output_tokens"

    @property
    def budget(self) -> float | None:
        """How much of it there is; None where a floor of accuracy is the goal."""
        return self.budget_usd if self.unit == "usd" else self.budget_output_tokens

    @property
    def divides_usd(self) -> bool:
        """Whether it is dollars that are divided among the rows."""
        return self.unit == "usd" and self.min_accuracy is None

    @property
    def needs_usd(self) -> bool:
        """Whether there is nothing to divide without the job's dollars."""
        return self.divides_usd

    def within(self, budget_usd: float, refuse: bool = False, part: float = 1.0) -> Budget:
        """The same recipe for an amount of dollars, which is all that it divides; see `base.Budgeted`."""
        short: Literal["refuse", "cheapest"] = "refuse" if refuse else "cheapest"
        return replace(self, budget_usd=max(budget_usd, _LEAST_USD), when_short=short)

    def sketch(self, table: RoutingTable) -> Sketch:
        """The upgrades of one table, counted by rate: see `upgrades.sketch`."""
        return sketch(table, self.unit, self.max_row_usd)

    def merge(self, one: Sketch, other: Sketch) -> Sketch:
        """The upgrades of both."""
        return merge(one, other)

    def freeze(self, sketch: Sketch | None) -> FittedBudget:
        """Cut the upgrades where the budget is spent.

        Raises:
            BudgetError: If the cheapest plan costs more, or no plan is so accurate.
        """
        if sketch is None or not sketch["routed"]:  # whatever comes, nothing is known to be affordable
            return FittedBudget(self.unit, sys.float_info.max, 0.0, self.max_row_usd)
        if self.budget is None and self.min_accuracy is None:
            raise ConfigError(
                "The policy 'budget' has no amount. Give the job a budget_usd (or --budget-usd), or the "
                "policy budget_output_tokens or min_accuracy."
            )
        frontier = Frontier.of(sketch)
        binding: Binding = "binds"
        if self.min_accuracy is not None:
            cut = frontier.at_accuracy((self.min_accuracy - _FLOAT32) * sketch["routed"])
            if cut is None:
                raise self._unreachable(sketch)
        else:
            cut = frontier.at_cost(self.budget or 0.0)
            if cut is None:
                if self.when_short == "refuse":
                    raise self._too_small(sketch)
                binding, cut = "too small", frontier.cheapest()
            elif cut.place == len(frontier.bins):
                binding = "more than needed"
        return _fitted(self, sketch, frontier, cut, binding)

    def _too_small(self, sketch: Sketch) -> BudgetError:
        least = Decimal(sketch["base_cost"]) / PER_UNIT[self.unit]
        if self.unit == "usd":
            name, needed, given = "budget_usd", _shown(least), f"${Decimal(repr(self.budget)):,f}"
        else:
            name, needed, given = "budget_output_tokens", f"{math.ceil(least):,}", f"{self.budget:,g}"
        verb = "costs" if self.unit == "usd" else "takes"
        return BudgetError(
            f"The cheapest plan for {sketch['rows']} queries {verb} {needed}, over {name}={given}. "
            f"Raise {name} to at least {needed} or add a cheaper candidate."
        )

    def _unreachable(self, sketch: Sketch) -> BudgetError:
        right = Decimal(sketch["base_accuracy"] + sketch["top_accuracy"]) / PER_POINT / sketch["routed"]
        best = right.quantize(Decimal("0.0001"), ROUND_FLOOR)
        return BudgetError(
            f"The most accurate plan for {sketch['rows']} queries is expected to answer a share of {best} "
            f"correctly, below min_accuracy={self.min_accuracy}. Lower min_accuracy to {best} or add a "
            "better candidate."
        )


@dataclass(frozen=True, slots=True)
class FittedBudget:
    """The frozen policy: a dual price, and who upgrades at just that price.

    A query climbs its hull while the next step buys more accuracy per unit than `price`; steps in
    the bin of the price are for those whose hash lies below `share`. The rest is what was known when
    it was frozen.
    """

    unit: Unit
    price: float  # accuracy per dollar (or token) that the last unit buys; 0: more would buy nothing
    share: float  # of the queries, at that price
    max_row_usd: float | None = None
    binding: Binding | None = None
    budget: float | None = None  # in the unit
    min_accuracy: float | None = None
    rows: int = 0  # queries
    routed: int = 0  # that have a candidate
    cost: float | None = None  # expected, of all rows, in the unit
    accuracy: float | None = None  # expected share of correct answers among the routed
    gap: float | None = None  # no plan of the same cost is more accurate by more than this
    normaliser: float | None = None  # mean predicted cost over all allowed cells
    lam: float | None = None  # the same price as lambda of the paper (policies/score.py) with this normaliser
    kind: ClassVar[str] = "budget"

    def choose(self, table: RoutingTable) -> Plan:
        """Choose, for each query, the last candidate of its hull that is worth the price.

        Args:
            table: Predictions for Q queries and C candidates.

        Returns:
            A plan over the same table. For the tables that it was frozen for, its expected cost is
            within the budget; -1 where nothing is allowed or all is above `max_row_usd`.
        """
        last, bought = int(bin_of(np.array([self.price]))[0]), round(self.share * WHOLE)
        hash_Q = share_hash(table.query_ids)

        def worth(rows: IntArray, to: IntArray, rates: FloatArray) -> BoolArray:
            bins = bin_of(rates)
            answer: BoolArray = (bins > last) | ((bins == last) & (hash_Q[rows] < bought))
            return answer

        allowed_QC = allowed(table, self.max_row_usd)
        return Plan(table, climb(costs(table, self.unit), table.accuracy, allowed_QC, worth))


@dataclass(frozen=True, slots=True)
class Point:
    """What a budget buys, by the estimates."""

    cost: float  # of all rows, in the unit of the sketch
    accuracy: float  # expected share of correct answers among the routed
    price: float  # what one more unit would buy, in correct answers


def extremes(sketch: Sketch) -> tuple[Point, Point]:
    """The cheapest plan, and the cheapest of the most accurate ones."""
    frontier = Frontier.of(sketch)
    least, most = frontier.cheapest(), frontier.everything()
    return _point(sketch, frontier, least), _point(sketch, frontier, most)


def curve(sketch: Sketch, budgets: Iterable[float]) -> list[Point | None]:
    """What each of some budgets buys; None where it is below the cheapest plan."""
    frontier = Frontier.of(sketch)
    cuts = [frontier.at_cost(budget) for budget in budgets]
    return [None if cut is None else _point(sketch, frontier, cut) for cut in cuts]


def _point(sketch: Sketch, frontier: Frontier, cut: Cut) -> Point:
    return Point(cut.cost, cut.accuracy / max(1, sketch["routed"]), frontier.price(cut))


def _fitted(
    policy: Budget, sketch: Mapping[str, Any], frontier: Frontier, cut: Cut, binding: Binding
) -> FittedBudget:
    price = frontier.price(cut)
    normaliser = sketch["allowed_cost"] / PER_UNIT[policy.unit] / sketch["allowed"]
    most = cut.cost if policy.budget is None or binding == "too small" else policy.budget
    gap = (frontier.bound(cut, most) - cut.accuracy_least) / sketch["routed"]
    return FittedBudget(
        unit=policy.unit,
        price=price,
        share=cut.share / WHOLE,
        max_row_usd=policy.max_row_usd,
        binding=binding,
        budget=policy.budget,
        min_accuracy=policy.min_accuracy,
        rows=sketch["rows"],
        routed=sketch["routed"],
        cost=cut.cost,
        accuracy=cut.accuracy / sketch["routed"],
        gap=max(0.0, gap),
        normaliser=normaliser,
        lam=1 / (1 + price * normaliser),
    )


def _shown(usd: Decimal) -> str:
    """Dollars, rounded up to four decimals, or where that says little to four digits."""
    up = Context(prec=28 if usd >= 1 else 4, rounding=ROUND_CEILING)
    found = usd.quantize(Decimal("0.0001"), ROUND_CEILING) if usd >= 1 else up.plus(usd)
    return f"${found:,f}"
