"""A sample of a corpus that is labelled first: how many rows, what they have cost, what came of them.

A labelled row is one that every candidate has answered, graded. The money of labels is taken off
the budget of the run that they are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from rtr_ray.errors import BudgetError, StorageError
from rtr_ray.ledger import ZERO
from rtr_ray.pool import Pool
from rtr_ray.summary import plain

PILOT_ROWS = 20  # tell what a labelled row costs
FEW_ROWS = 50  # below that a check on held-out labels tells little
_GROWTH = 4  # rows cost what they cost: no step rests on an estimate from much fewer of them
_MARGIN = Decimal("0.95")  # of what labels may cost: else the last rows lack their longest answers
_WORTH = Decimal("1.1")  # smaller steps teach nothing
_DOUBT = 0.5  # of an estimate from a few rows: below that a budget is surely too small


@dataclass(frozen=True, slots=True)
class Labels:
    """How far labelling has come; exact dollars."""

    rows: int = 0  # queries that were put to all candidates
    spent_usd: Decimal = ZERO  # judge included
    unknown_usd: Decimal = ZERO  # may have been paid for replies that were lost
    complete: bool = False
    routing: Mapping[str, Any] = field(default_factory=dict)  # the verdict, once there is one

    @property
    def gone_usd(self) -> Decimal:
        """What a run has less for its answers."""
        return self.spent_usd + self.unknown_usd

    def to_json(self) -> dict[str, Any]:
        """Money as exact strings."""
        return {
            "schema_version": 1,
            "rows": self.rows,
            "spent_usd": plain(self.spent_usd),
            "unknown_usd": plain(self.unknown_usd),
            "complete": self.complete,
            "routing": dict(self.routing),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Labels:
        """What was saved.

        Raises:
            StorageError: If it is none. To go on as if labels had cost nothing could exceed the budget.
        """
        try:
            return cls(
                int(found["rows"]),
                Decimal(found["spent_usd"]),
                Decimal(found["unknown_usd"]),
                bool(found["complete"]),
                dict(found["routing"]),
            )
        except (KeyError, TypeError, ValueError, InvalidOperation) as error:
            raise StorageError(
                f"labels.json is damaged ({type(error).__name__}: {error}). Restore it, or begin anew with "
                "--fresh."
            ) from error

    def stated(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """A run's summary with the labels in it.

        `cost_usd.spent` stays what the results add up to; `total` has the labels in it, and `budget`
        is that of both.
        """
        cost = dict(found["cost_usd"])
        spent, budget = Decimal(cost["spent"]), cost["budget"]
        cost |= {
            "labels": plain(self.spent_usd),
            "total": plain(spent + self.spent_usd),
            "budget": None if budget is None else plain(Decimal(budget) + self.gone_usd),
        }
        labels = {"rows": self.rows, "lost_worst_case_usd": plain(self.unknown_usd)}
        return {**found, "cost_usd": cost, "labels": labels, "routing": dict(self.routing)}


def limit(budget_usd: Decimal, share: float) -> Decimal:
    """What labels may cost at most."""
    return budget_usd * Decimal(str(share))


def next_rows(done: int, gone_usd: Decimal, wanted: int, limit_usd: Decimal) -> int:
    """How many rows should be labelled in all, as the next step; `done` where it is not worth one.

    Args:
        done: Rows that are labelled.
        gone_usd: What they have cost, perhaps.
        wanted: Rows at most.
        limit_usd: Dollars at most.

    Example:
        >>> next_rows(0, Decimal(0), 300, Decimal("2.50"))
        20
        >>> next_rows(20, Decimal("0.10"), 300, Decimal("2.50"))
        80
        >>> next_rows(80, Decimal("0.40"), 300, Decimal("2.50"))
        300
        >>> next_rows(80, Decimal("2.30"), 300, Decimal("2.50"))
        80
    """
    if not done:
        return min(PILOT_ROWS, wanted)
    most = min(wanted, _GROWTH * done)
    if gone_usd:
        most = min(most, int(done * limit_usd * _MARGIN / gone_usd))
    return most if most == wanted > done or most >= done * _WORTH else done


def check_one_call(pool: Pool, limit_usd: Decimal, share: float) -> None:
    """Refuse a budget of which the labels' share does not cover one answer of each candidate.

    Raises:
        BudgetError: Naming the candidate and the least budget.
    """
    worst = {
        candidate: pool.price(candidate).worst_case_usd(0, pool.max_tokens(candidate) * candidate.samples)
        for candidate in pool.candidates
    }
    dearest = max(worst, key=lambda candidate: worst[candidate])
    if worst[dearest] > limit_usd:
        raise BudgetError(
            f"Labels may take {share:g} of the budget, which is ${plain(limit_usd)}, and one answer of "
            f"{dearest} may cost ${plain(worst[dearest])}: that much is set aside before it is asked. "
            f"Raise budget_usd to more than {_raised(worst[dearest], share)}, raise labels.share, or give "
            "a router."
        )


def pilot_exhausted(answered: int, cells: int, gone_usd: Decimal, share: float) -> BudgetError:
    """What is said where the labels' share does not suffice for the first few rows.

    Args:
        answered: Calls that were answered.
        cells: Calls that the first rows take.
        gone_usd: What the answered ones have cost, a judge included.
        share: Of the budget that labels may cost.
    """
    needed = gone_usd * cells / max(answered, 1) * _WORTH
    return BudgetError(
        f"Not even {PILOT_ROWS} rows can be labelled: of {cells} calls {answered} were answered for "
        f"${plain(gone_usd)}, and labels may take {share:g} of the budget. Raise budget_usd to about "
        f"{_raised(max(needed, gone_usd * 2), share)} (what was paid for is kept), raise labels.share, or "
        "give a router."
    )


def check_enough(cheapest_row_usd: float, rows: int, left_usd: Decimal, budget_usd: Decimal) -> None:
    """Refuse a budget that is surely too small for the answers, before more is spent on labels.

    Args:
        cheapest_row_usd: The mean cost of a row of the cheapest candidate.
        rows: Of the corpus.
        left_usd: What will be left of the budget for answers.
        budget_usd: The budget.

    Raises:
        BudgetError: Naming the least budget.
    """
    least = cheapest_row_usd * rows
    if least * _DOUBT <= float(left_usd):
        return
    taken = float(budget_usd - left_usd)
    raise BudgetError(
        f"By the first labelled rows the cheapest plan for {rows} queries costs about ${least:.4g}, over "
        f"what labels leave of budget_usd=${plain(budget_usd)}. Raise budget_usd to about "
        f"${least + taken:.4g} or add a cheaper candidate."
    )


def _raised(usd: Decimal, share: float) -> str:
    return f"${plain((usd / Decimal(str(share))).quantize(Decimal('0.0001'), ROUND_CEILING))}"
