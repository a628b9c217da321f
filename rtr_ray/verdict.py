"""Does routing pay here? Labelled queries that the estimator did not see say so.

On each held-out part of the labels two plans are made for the same dollars: by the estimator's
table, and by the table of `prior`, which knows no query: that plan is the best fixed mix of
candidates. Both are scored with what was observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rtr_ray import registry
from rtr_ray.comparison import RESAMPLES
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import DataError
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import Estimator, Profiles, related
from rtr_ray.policies.base import Budgeted, FittedPolicy, fit
from rtr_ray.pool import Pool
from rtr_ray.router import InputTokens, Router
from rtr_ray.types import FloatArray, IntArray, Outcomes, RoutingTable
from rtr_ray.versions import price_of

FOLDS, REPEATS = 5, 3
SURE = 0.8
"""Routing is used if it gains in so large a share of resamples.

Tried on recorded outcomes of 8 candidates, 300 labels at a time (docs/labels.md): 0.5 uses most of
what routing gains, and is wrong often where texts tell nothing; 0.95 gives away two fifths of the gain.
"""
_LEAST_PARTS = 10  # unrelated queries, for the folds
_LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a corpus is routed, and on what evidence."""

    used: bool
    reason: str
    points: float | None = None  # of accuracy, gained over the best fixed mix at the same dollars
    interval_90: tuple[float, float] | None = None
    chance: float | None = None  # share of resamples in which routing gains
    queries: int = 0  # that it was checked on

    def to_json(self) -> dict[str, Any]:
        """For `summary.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Verdict:
        """What `to_json` gave."""
        interval = found["interval_90"]
        return cls(**{**found, "interval_90": None if interval is None else tuple(interval)})


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Labelled queries, encoded."""

    outcomes: Outcomes
    embeddings_MD: FloatArray
    profiles: Profiles
    encoder: Encoder
    pool: Pool

    def tables(self, estimator: Estimator, held_M: Any, name: str) -> RoutingTable:
        """What an estimator that was fitted on the other queries predicts for the held-out ones.

        What was not observed is not allowed: nobody could score it.

        Args:
            estimator: The recipe.
            held_M: Which queries are held out.
            name: Goes into the ids, so that each repetition draws its own shares.
        """
        train, test = self.outcomes.rows(~held_M), self.outcomes.rows(held_M)
        fitted = estimator.fit(train, self.embeddings_MD[~held_M], self.profiles)
        inputs = InputTokens.fit(train)
        router = Router(self.encoder, fitted, inputs, self.pool, fitted.candidates, "")
        size_Q = np.array([len(query.encode()) for query in test.queries])
        ids = [f"{one}#{name}" for one in test.query_ids]
        table = router.table(ids, self.embeddings_MD[held_M], size_Q, test.queries)
        observed_QC = ~(np.isnan(test.accuracy) | np.isnan(test.cost_usd))
        return replace(table, allowed=table.allowed & observed_QC)


def verdict(labelled: Labelled, estimator: Estimator, policy: Budgeted, usd_per_row: float) -> Verdict:
    """Compare routing with the best fixed mix on held-out labels.

    Cross-validation in `FOLDS` parts, `REPEATS` times with other parts. Queries of one group, or
    with the same text, stay together.

    Args:
        labelled: The labels.
        estimator: What would route.
        policy: What divides the budget.
        usd_per_row: What the run has for a row.

    Returns:
        With `used` true where routing gains in `SURE` of the resamples or more.
    """
    outcomes = labelled.outcomes
    part_M = related(outcomes)
    if part_M.max() + 1 < _LEAST_PARTS:
        return Verdict(False, f"{part_M.max() + 1} unrelated queries are too few for a check.")
    prior: Estimator = registry.build("prior", KNOWN, "estimator")
    gain_RM = np.full((REPEATS, len(part_M)), np.nan)
    for repeat in range(REPEATS):
        fold_M = folds(part_M, FOLDS, repeat)
        for fold in range(FOLDS):
            held_M = fold_M == fold
            try:
                routed = labelled.tables(estimator, held_M, str(repeat))
                fixed = labelled.tables(prior, held_M, str(repeat))
            except DataError as error:
                return Verdict(False, f"The labels are too few for a check. {error.message}")
            within = policy.within(usd_per_row * int(held_M.sum()))
            gain_RM[repeat, held_M] = gains(
                outcomes.rows(held_M), fit(within, [routed]), routed, fit(within, [fixed]), fixed
            )
    known_M = ~np.isnan(gain_RM).all(axis=0)
    return decided(np.nanmean(gain_RM[:, known_M], axis=0), part_M[known_M])


def folds(part_M: IntArray, count: int, seed: int) -> IntArray:
    """(M,) the fold of each query: parts of about equal size, drawn at random; none is divided."""
    parts = int(part_M.max()) + 1
    fold_P = np.empty(parts, dtype=np.intp)
    fold_P[np.random.default_rng(seed).permutation(parts)] = np.arange(parts) % count
    fold_M: IntArray = fold_P[part_M]
    return fold_M


def gains(
    outcomes: Outcomes,
    routing: FittedPolicy,
    routed: RoutingTable,
    mixing: FittedPolicy,
    fixed: RoutingTable,
) -> FloatArray:
    """What routing gains on each query, at the same dollars.

    gain[q] = accuracy[q, routed_q] - accuracy[q, fixed_q] - price * (usd[q, routed_q] - usd[q, fixed_q])

    all as observed. The price is the mix's own (accuracy per dollar): answers that are longer than
    predicted cost one side more than the other, and that is what the mix would buy for it.

    Args:
        outcomes: What was observed, of the queries and candidates of the tables.
        routing: The policy fitted to `routed`.
        routed: What the estimator predicts.
        mixing: The same policy fitted to `fixed`.
        fixed: What is known without looking at a query.

    Returns:
        (Q,) NaN where nothing was observed.
    """
    one, other = routing.choose(routed), mixing.choose(fixed)
    accuracy_Q = one.chosen(outcomes.accuracy) - other.chosen(outcomes.accuracy)
    usd_Q = one.chosen(outcomes.cost_usd) - other.chosen(outcomes.cost_usd)
    gain_Q: FloatArray = accuracy_Q - (price_of(mixing) or 0.0) * usd_Q
    return np.where(one.routed & other.routed, gain_Q, np.nan)


def decided(gain_M: FloatArray, part_M: IntArray, seed: int = 0) -> Verdict:
    """The verdict on gains: a bootstrap over parts, since related queries are no independent evidence.

    Args:
        gain_M: Of each query.
        part_M: The same number for queries that are related.
        seed: Of the resamples.
    """
    if not len(gain_M):
        return Verdict(False, "No labelled query could be compared.")
    index_M = np.unique(part_M, return_inverse=True)[1]
    total_P, count_P = np.bincount(index_M, gain_M), np.bincount(index_M)
    draw = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = draw.integers(0, len(total_P), len(total_P))
        means[number] = total_P[drawn].sum() / count_P[drawn].sum()
    tail = (1 - _LEVEL) / 2
    low, high = (float(100 * value) for value in np.quantile(means, [tail, 1 - tail]))
    points, chance = 100 * float(gain_M.mean()), float((means > 0).mean())
    used = chance >= SURE
    reason = (
        f"On {len(gain_M):,} held-out labels routing gains {points:+.1f} points of accuracy over the best "
        f"fixed mix at the same dollars (90% interval {low:+.1f} to {high:+.1f}); it gains in "
        f"{100 * chance:.0f}% of resamples, and {100 * SURE:.0f}% are asked for."
    )
    return Verdict(used, reason, points, (low, high), chance, len(gain_M))
