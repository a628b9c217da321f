"""What a plan will cost and reach, with an interval that says how sure that is.

A plan's own sums are not to be trusted: a predictor may be off in common for all rows, which does
not average out over ten million of them, and choosing the best of noisy predictions favours those
that are too good. Both are measured: the very policy of the plan is put to held-out queries whose
outcomes are known. The forecast is

    T = sum over candidates of R_c * P_c

with P_c the plan's sum for candidate c and R_c the ratio of what happened to what was predicted on
the held-out rows that the policy gives to c, drawn towards what all rows say where those are few.
The interval adds up four sources: the uncertainty of the ratios (bootstrap over groups of related
held-out queries), the noise of the corpus' own rows, how far the corpus lies from the training data,
and candidates that nothing is known of. Answers to a few rows of the corpus itself, a pilot, take
the place of the third and narrow the rest. docs/forecast.md has the rules and how well they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

from rtr_ray.errors import ConfigError, DataError
from rtr_ray.held_out import HeldOut, Sketch, unlike
from rtr_ray.held_rows import (
    QUANTITIES,
    ChosenRows,
    HeldRows,
    noise_of,
    ratios,
    spread_of_candidates,
    spread_of_clusters,
)
from rtr_ray.policies.base import FittedPolicy
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, FloatArray

RESAMPLES = 400
_PILOT_PULL = 20  # rows' worth of weight that the held-out rows' noise has beside the pilot's
_LITTLE = 0.1  # so unlike the training data a corpus may be without a word being said
UNTRAINED = {"cost_usd": 0.5, "accuracy": 0.3, "output_tokens": 0.5}
"""The least relative standard deviation of a candidate that was never trained on."""
SHIFT = {"cost_usd": 0.12, "accuracy": 0.5, "output_tokens": 0.3}
"""The least relative standard deviation of a corpus of which every row is far."""
_CONTRADICTION = 2.7
"""Of the variances of both: a squared difference of held-out rows and pilot that luck exceeds once in ten."""
SHIFT_FACTOR = 3.0
CROSS = 1.5
"""The variance of cross-validated errors over what a bootstrap of them gives.

The folds learn from each other's rows, so that their errors are no independent draws (Bates, Hastie and
Tibshirani, 2021: intervals that take them so hold too rarely).
"""


class Sums(Protocol):
    """What a plan expects of one candidate: sums over its rows."""

    @property
    def rows(self) -> int:
        """How many it was given."""

    @property
    def accuracy(self) -> float:
        """The sum over rows, not their mean."""

    @property
    def output_tokens(self) -> float:
        """All samples."""

    @property
    def cost_usd(self) -> float:
        """Input and output."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value that is expected, and between which two it lies with probability `level`."""

    expected: float | None  # None: there is nothing to expect
    low: float | None = None  # None: nobody can say
    high: float | None = None
    level: float = 0.9


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan will come to."""

    rows: int
    cost_usd: Interval  # all rows together
    accuracy: Interval  # mean over rows
    output_tokens: Interval  # all rows and samples together
    held_out_rows: int  # cells with known dollars that the forecast stands on
    pilot_rows: int
    far: float | None  # how unlike the training data the corpus is, 0 to 1; None: not measured
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return asdict(self) | {"warnings": list(self.warnings)}


@dataclass(frozen=True, slots=True, eq=False)
class Pilot:
    """P rows of the corpus, drawn at random, that were answered as planned. NaN where unknown."""

    candidates: tuple[Candidate, ...]  # P, chosen
    accuracy: FloatArray  # (P,) predicted
    output_tokens: FloatArray  # (P,) predicted
    cost_usd: FloatArray  # (P,) predicted
    seen_accuracy: FloatArray  # (P,) graded; NaN: nobody graded it
    seen_output_tokens: FloatArray  # (P,)
    seen_cost_usd: FloatArray  # (P,)

    def __post_init__(self) -> None:
        for name in QUANTITIES:
            for field in (name, f"seen_{name}"):
                if getattr(self, field).shape != (len(self.candidates),):
                    raise DataError(
                        f"Pilot.{field} has shape {getattr(self, field).shape}; it has "
                        f"{len(self.candidates)} rows."
                    )


def forecast(
    expected: Mapping[Candidate, Sums],
    policy: FittedPolicy,
    held_out: HeldOut | None,
    pool: Pool,
    *,
    pilot: Pilot | None = None,
    corpus: Sketch | None = None,
    level: float = 0.9,
) -> Forecast:
    """Say what a plan will come to.

    Args:
        expected: The plan's sums by candidate, the pilot's rows among them.
        policy: The one that made the plan; it chooses for the held-out rows as well.
        held_out: From the router's folder. None: the plan's own sums are all there is, without
            an interval.
        pool: For prices; its candidates are the columns of the policy's table.
        pilot: Rows of the corpus that were answered already. Their dollars are in the forecast.
        corpus: `held_out.distance_sketch` of the corpus' embeddings, merged over its parts. None:
            not measured. Then a pilot is believed as if the corpus were of quite another kind.
        level: How often the interval shall hold.

    Returns:
        Intervals whose ends are None where there is nothing to make them from; `warnings` say why.

    Raises:
        ConfigError: If the level does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"The interval's level is {level}; it lies between 0 and 1, 0.9 for 90%.")
    candidates = tuple(pool.candidates)
    unknown = [str(c) for c in expected if c not in candidates]
    if unknown:
        raise DataError(f"The plan has rows of {', '.join(unknown)}, which the pool does not have.")
    rows_C = np.array([expected[c].rows if c in expected else 0 for c in candidates], dtype=np.float64)
    rows, answered = int(rows_C.sum()), 0 if pilot is None else len(pilot.candidates)
    if answered > rows:
        raise DataError(f"A pilot of {answered} rows is more than the plan's {rows}.")
    if rows == 0:
        nothing = Interval(0.0, 0.0, 0.0, level)
        return Forecast(0, nothing, Interval(None, level=level), nothing, 0, 0, None)
    far = None if held_out is None or corpus is None else unlike(held_out, corpus)
    warnings = _untrained(held_out, candidates, rows_C) if held_out is not None else []
    held = None if held_out is None else ChosenRows.of(held_out, policy, pool)
    if held is None:
        warnings.append("no interval: the router has no held-out predictions; train it again to get them")
    elif not answered:
        warnings += _of_another_kind(far)
    made: dict[str, Interval] = {}
    used = 0
    for name in QUANTITIES:
        sums_C = np.array([float(getattr(expected[c], name)) if c in expected else 0.0 for c in candidates])
        plan = _Plan(name, candidates, rows_C, sums_C)
        if held is None:
            made[name] = Interval(plan.total, level=level)
            continue
        found = HeldRows.of(held, name)
        used = len(found.amount) if name == "cost_usd" else used
        if not found.enough and plan.total > 0:
            warnings.append(
                f"no interval of {name}: only {len(found.amount)} cells of held-out rows have an outcome"
            )
            made[name] = Interval(plan.total, level=level)
        else:
            made[name] = _interval(plan, found, pilot, far, level)
            if not found.chosen and plan.total > 0:
                warnings.append(
                    f"{name}: hardly any held-out row was answered by the candidate that this policy gives "
                    "it, so that nobody knows how far choosing the best makes predictions too good"
                )
    accuracy = _mean(made["accuracy"], rows)
    return Forecast(
        rows, made["cost_usd"], accuracy, made["output_tokens"], used, answered, far, tuple(warnings)
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """One quantity of the plan."""

    name: str
    candidates: tuple[Candidate, ...]  # C
    rows: FloatArray  # (C,)
    sums: FloatArray  # (C,) predicted

    @property
    def total(self) -> float:
        return float(self.sums.sum())


def _interval(plan: _Plan, held: HeldRows, pilot: Pilot | None, far: float | None, level: float) -> Interval:
    name = plan.name
    if plan.total <= 0:  # free of charge, or hopeless: a ratio to nothing says nothing
        return Interval(0.0, 0.0, 0.0, level) if name == "cost_usd" else Interval(0.0, level=level)
    mean_C = plan.sums / np.maximum(plan.rows, 1)
    ratio_BC = ratios(held, mean_C, _resampled(held.groups))
    ratio_C = ratio_BC[0]
    total = float(ratio_C @ plan.sums)
    common = CROSS * float((ratio_BC[1:] @ plan.sums).var(ddof=1)) / total**2 if total else 0.0
    noise_C = noise_of(held, ratio_C, mean_C)
    strange = max(UNTRAINED[name], spread_of_candidates(held)) * (plan.sums * ratio_C)[~held.trained].sum()
    common += float(strange / total) ** 2 if total else 0.0
    shift = max(SHIFT[name], SHIFT_FACTOR * spread_of_clusters(held, ratio_C))
    freedom = float(len(np.unique(held.group)) - 1)
    if pilot is not None and not np.isnan(getattr(pilot, f"seen_{name}")).all():
        # a corpus that nobody has measured may be of any kind
        prior = common + (shift * (1.0 if far is None else far)) ** 2
        return _with_pilot(plan, ratio_C, prior, noise_C, freedom, pilot, level)
    variance = total**2 * (common + (shift * (far or 0.0)) ** 2) + float(noise_C @ plan.rows)
    return _around(name, total, variance, 0.0, float(plan.rows.sum()), freedom, level)


def _resampled(groups: int) -> FloatArray:
    """(B, G) how often each group is drawn; all once in the first row."""
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    weight_BG: FloatArray = np.concatenate([np.ones((1, groups)), drawn])
    return weight_BG


def _with_pilot(
    plan: _Plan,
    ratio_C: FloatArray,
    prior: float,
    noise_C: FloatArray,
    freedom: float,
    pilot: Pilot,
    level: float,
) -> Interval:
    """Weigh the pilot against the held-out rows, each by how sure it is.

    The held-out rows say that a common factor on the corrected forecast is 1, with variance
    `prior`; the pilot says what it was on its rows. Where they contradict each other by more than
    luck explains, the held-out rows are trusted less, by just that much: the corpus is of another
    kind. The noise of a row is estimated from the pilot and the held-out rows
    together, since 50 rows may hold none of those few long answers that make the sum.
    """
    seen_P = getattr(pilot, f"seen_{plan.name}")
    known_P = ~np.isnan(seen_P)
    column_K = np.array([plan.candidates.index(c) for c in pilot.candidates], dtype=np.intp)[known_P]
    seen_K, predicted_K = seen_P[known_P], getattr(pilot, plan.name)[known_P]
    done = float(seen_K.sum())
    rest_C = np.maximum(plan.sums - np.bincount(column_K, predicted_K, len(plan.sums)), 0)
    left_C = np.maximum(plan.rows - np.bincount(column_K, minlength=len(plan.rows)), 0)
    rest, most = float(ratio_C @ rest_C), float(left_C.sum())
    fair_K, noise_K = ratio_C[column_K] * predicted_K, noise_C[column_K]
    fair = float(fair_K.sum())
    if fair <= 0:  # a ratio to nothing says nothing
        variance = rest**2 * prior + float(noise_C @ left_C)
        return _around(plan.name, rest, variance, done, most, freedom, level)
    said = done / fair
    error = float(((seen_K - said * fair_K) ** 2).sum())
    believed, held = float(noise_K.sum()), _PILOT_PULL * float(noise_K.mean())
    scale = (error + held) / (believed + held) if believed else 1.0
    own = (scale * believed if believed else error) / fair**2
    prior += max(0.0, (said - 1) ** 2 - _CONTRADICTION * (prior + own))
    if not prior:
        return _around(plan.name, rest, scale * float(noise_C @ left_C), done, most, freedom, level)
    weight = prior / (prior + own)
    # degrees of freedom of a sum of two estimates, each with its own (Satterthwaite)
    one, other = weight**2 * own, (1 - weight) ** 2 * prior
    freedom = (
        (one + other) ** 2 / (one**2 / (len(seen_K) - 1 + _PILOT_PULL) + other**2 / freedom)
        if own
        else freedom
    )
    variance = rest**2 * weight * own + scale * float(noise_C @ left_C)
    return _around(plan.name, rest * (1 + weight * (said - 1)), variance, done, most, freedom, level)


def _around(
    name: str, rest: float, variance: float, done: float, most: float, freedom: float, level: float
) -> Interval:
    """What is done and what is still to come; dollars and tokens spread by a factor, accuracy evenly."""
    reach = _t_quantile((1 + level) / 2, freedom) * variance**0.5
    if name == "accuracy":
        rest = min(rest, most)
        low, high = max(rest - reach, 0.0), min(rest + reach, most)
    elif rest > 0:
        by = float(np.exp(min(reach / rest, 50.0)))
        low, high = rest / by, rest * by
    else:
        low, high = 0.0, reach
    return Interval(done + rest, done + low, done + high, level)


def _mean(total: Interval, rows: int) -> Interval:
    def share(value: float | None) -> float | None:
        return None if value is None else value / rows

    return Interval(share(total.expected), share(total.low), share(total.high), total.level)


def _of_another_kind(far: float | None) -> list[str]:
    if far is None:
        return [
            "how far the corpus lies from the training data was not measured: the intervals hold for "
            "a corpus of the same kind"
        ]
    if far <= _LITTLE:
        return []
    return [
        f"{far:.0%} of the corpus is unlike what the router was trained on: the intervals are wider for "
        "it, and a pilot would narrow them"
    ]


def _untrained(held_out: HeldOut, candidates: Sequence[Candidate], rows_C: FloatArray) -> list[str]:
    return [
        f"{candidate} was never trained on and is to answer {int(rows):,} rows: its part of the forecast is "
        "a guess from its profile"
        for candidate, rows in zip(candidates, rows_C, strict=True)
        if rows and candidate not in held_out.candidates
    ]


def _t_quantile(probability: float, freedom: float) -> float:
    """Of Student's distribution, within 1% from 4 degrees of freedom on.

    Source:
        Abramowitz and Stegun, formula 26.7.5.
    """
    z, n = NormalDist().inv_cdf(probability), max(freedom, 1.0)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
