"""One split of recorded outcomes: every estimator and every way not to route, scored on the same queries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rtr_ray.errors import DataError
from rtr_ray.estimators.base import Estimator, Profiles, predicted
from rtr_ray.quality.scoring import PRICES, Costs, choices, chosen
from rtr_ray.router import InputTokens
from rtr_ray.types import BoolArray, Estimate, FloatArray, IntArray, Outcomes


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Queries to score on: what each candidate did, and where they were encoded to."""

    outcomes: Outcomes  # means over the runs of a cell
    halves: tuple[Outcomes, Outcomes] | None  # even and odd runs; None where a cell has one run
    embeddings: FloatArray  # (Q, D)

    @property
    def observed(self) -> BoolArray:
        """(Q, C) cells that can be scored."""
        mask: BoolArray = ~(np.isnan(self.outcomes.accuracy) | np.isnan(self.costs))
        return mask

    @property
    def costs(self) -> FloatArray:
        """(Q, C) dollars, or output tokens where no dollars were recorded."""
        return paid(self.outcomes)


def paid(outcomes: Outcomes) -> FloatArray:
    """(Q, C) what the cells cost: dollars, or output tokens where no dollars were recorded."""
    return outcomes.output_tokens if np.isnan(outcomes.cost_usd).all() else outcomes.cost_usd


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A router's choices on the queries of a part, at each price."""

    name: str
    accuracy: FloatArray  # (Q, L) of what was chosen
    cost: FloatArray  # (Q, L)
    output_tokens: FloatArray  # (Q, L)
    choice: IntArray  # (Q, L)
    estimate: Estimate | None = None  # in the columns of the part
    fit_s: float = 0.0
    predict_us_per_query: float = 0.0
    fit_cpu_s: float = 0.0  # of this process: what a busy machine does not change
    predict_cpu_us_per_query: float = 0.0

    def means(self, weight_BQ: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(B, L) mean cost and accuracy in B resamples, each query counted as often as its weight says."""
        known_QL = ~(np.isnan(self.cost) | np.isnan(self.accuracy))
        with np.errstate(invalid="ignore", divide="ignore"):
            total_BL = weight_BQ @ known_QL
            cost_BL, accuracy_BL = (
                weight_BQ @ np.where(known_QL, one, 0.0) / total_BL for one in (self.cost, self.accuracy)
            )
        return cost_BL, accuracy_BL


@dataclass(slots=True)
class Trial:
    """A training part, the parts to score on, and what was found."""

    train: Outcomes
    train_embeddings: FloatArray
    parts: Mapping[str, Part]
    profiles: Profiles = field(default_factory=lambda: Profiles({}, {}))
    costs: Costs = field(init=False)
    inputs: InputTokens = field(init=False)

    def __post_init__(self) -> None:
        for name in ("accuracy", "output_tokens"):
            empty_C = np.isnan(getattr(self.train, name)).all(axis=0)
            if empty_C.any():
                lacking = ", ".join(
                    str(c) for c, none in zip(self.train.candidates, empty_C, strict=True) if none
                )
                raise DataError(f"No training query has a value of {name} for {lacking}; leave it out.")
        self.costs = Costs.fit(self.train)
        self.inputs = InputTokens.fit(self.train)

    def routed(self, name: str, estimator: Estimator) -> dict[str, Scored]:
        """Fit an estimator on the training part and let it choose on each of the others."""
        began = _now()
        fitted = estimator.fit(self.train, self.train_embeddings, self.profiles)
        fit_s, fit_cpu_s = _now() - began
        found = {}
        for part_name, part in self.parts.items():
            if not len(part.embeddings):
                continue
            began = _now()
            estimate = predicted(fitted, part.embeddings, part.outcomes.queries)
            took, took_cpu = 1e6 * (_now() - began) / len(part.embeddings)
            scored = self._scored(name, part, estimate)
            found[part_name] = Scored(
                scored.name, scored.accuracy, scored.cost, scored.output_tokens, scored.choice,
                estimate, float(fit_s), float(took), float(fit_cpu_s), float(took_cpu),
            )  # fmt: skip
        return found

    def _scored(self, name: str, part: Part, estimate: Estimate) -> Scored:
        outcomes = part.outcomes
        size_Q = np.array([len(query.encode()) for query in outcomes.queries], dtype=np.float64)
        inputs_QC = self.inputs.predict(self.train.candidates, size_Q)
        predicted_QC = self.costs.of(inputs_QC, estimate.output_tokens.astype(np.float64))
        choice_QL = choices(estimate.accuracy.astype(np.float64), predicted_QC, part.observed)
        return _taken(name, part, choice_QL)

    def fixed(self, part: Part) -> Scored:
        """Every candidate for all queries: the points of the static hull."""
        width = len(self.train.candidates)
        choice_QC = np.where(part.observed, np.arange(width), -1)
        return _taken("fixed", part, choice_QC)

    def best_single(self) -> int:
        """The column that was right most often in training; of equals the cheaper one."""
        accuracy_C, cost_C = np.nanmean(self.train.accuracy, axis=0), np.nanmean(paid(self.train), axis=0)
        return int(np.lexsort((cost_C, -accuracy_C))[0])

    @staticmethod
    def oracle(part: Part) -> Scored:
        """Who knows the truth: chosen by one half of the runs, scored on the other, both ways.

        With one run a cell the luck of that run is known beforehand, which no router can.
        """
        if part.halves is None:
            choice_QL = choices(part.outcomes.accuracy, part.costs, part.observed)
            return _taken("oracle", part, choice_QL)
        both = []
        for known, scored in (part.halves, part.halves[::-1]):
            seen_QC = ~(np.isnan(known.accuracy) | np.isnan(scored.accuracy) | np.isnan(paid(known)))
            half = Part(scored, None, part.embeddings)
            choice_QL = choices(known.accuracy, np.nan_to_num(paid(known)), seen_QC & half.observed)
            both.append(_taken("oracle", half, choice_QL))
        accuracy, cost, tokens = (
            np.nanmean([getattr(one, name) for one in both], axis=0)
            for name in ("accuracy", "cost", "output_tokens")
        )
        return Scored("oracle", accuracy, cost, tokens, both[0].choice)


def _now() -> FloatArray:
    """Seconds by the clock, and those that this process had a core."""
    return np.array([time.perf_counter(), time.process_time()])


def _taken(name: str, part: Part, choice_QL: IntArray) -> Scored:
    return Scored(
        name,
        chosen(part.outcomes.accuracy, choice_QL),
        chosen(part.costs, choice_QL),
        chosen(part.outcomes.output_tokens, choice_QL),
        choice_QL,
    )


LAMBDAS = tuple(1 / (1 + price) if np.isfinite(price) else 0.0 for price in PRICES)
"""(L,) each price as lambda of the paper, with the mean predicted cost as its unit."""


def rounded(value: Any) -> Any:
    """A float as JSON: None where it is none."""
    return None if value is None or not np.isfinite(value) else float(value)
