"""What `rtr-ray plan` says: a forecast with intervals, what other budgets would buy, how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray

from rtr_ray.corrections import Corrections
from rtr_ray.distributed.plan_parts import part_name
from rtr_ray.distributed.planning import PlannedSlice, looking_ahead, sketching, slice_key
from rtr_ray.forecast import Forecast, Pilot, forecast
from rtr_ray.held_out import Sketch
from rtr_ray.job import Job
from rtr_ray.makespan import makespan
from rtr_ray.parts import Expected, Version
from rtr_ray.policies.base import Policy, merged
from rtr_ray.policies.base import Sketch as PolicySketch
from rtr_ray.policies.budget import Budget, extremes
from rtr_ray.policies.limits import Limits
from rtr_ray.run_folder import RESULTS, RunFolder
from rtr_ray.slices import Slice
from rtr_ray.storage import read_table
from rtr_ray.types import Candidate

_CURVE_POINTS = 8
_OVER = 1.01  # of a budget: what the sample that limits are solved on may be off by
_SAMPLED = 6  # slices whose mix stands for that of the corpus, where other budgets are looked at
_PILOT = (
    "model",
    "strategy",
    "samples",
    "predicted_accuracy",
    "predicted_output_tokens",
    "predicted_cost_usd",
)
_SEEN = ("correct", "output_tokens", "cost_usd")


@dataclass(frozen=True, slots=True)
class Outlook:
    """A corpus that has been routed and planned, and what may be said of it."""

    job: Job
    folder: RunFolder
    slices: Sequence[Slice]
    version: Version
    kinds: Sketch | None  # of queries in the corpus
    budget_usd: float | None

    def of(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """The forecast of a plan, the curve of budgets, and the time, to be put beside the plan."""
        sums = {
            Candidate.parse(row["candidate"]): Expected(
                row["rows"], row["accuracy"], row["output_tokens"], row["cost_usd"]
            )
            for row in plan["by_candidate"]
        }
        pilot = pilot_of(self.folder, self.slices)
        found = self._forecast(sums, self.version, pilot)
        return {"forecast": found.to_json(), "time": self._time(sums, found), "curve": self._curve(pilot)}

    def _forecast(
        self, sums: Mapping[Candidate, Expected], version: Version, pilot: Pilot | None
    ) -> Forecast:
        job = self.job
        return forecast(sums, version.policy, job.router.held_out, job.pool, pilot=pilot, corpus=self.kinds)

    def _time(self, sums: Mapping[Candidate, Expected], found: Forecast) -> dict[str, Any]:
        speeds = {
            name: deployment.output_tokens_per_s
            for name, deployment in self.job.pool.deployments.items()
            if deployment.output_tokens_per_s is not None
        }
        span = makespan(sums, self.job.pool, speeds, {}, found.output_tokens)
        return {"by_deployment_s": dict(span.deployments_s), "makespan_s": asdict(span.makespan_s)}

    def _curve(self, pilot: Pilot | None) -> list[dict[str, Any]]:
        """What budgets from the cheapest plan to the dearest useful one would buy."""
        policy, uri, pool = self.job.policy, self.folder.store.uri, self.job.pool
        free = policy if isinstance(policy, Budget) else Budget()
        recipe = policy if isinstance(policy, Limits) else free
        whole_sketch = self._sketch(free)
        if whole_sketch is None or not whole_sketch["routed"]:
            return []
        sketch = whole_sketch if recipe is free else self._sketch(recipe)
        least, most = extremes(whole_sketch)
        budgets = sorted({*spread(least.cost, most.cost), *([self.budget_usd] if self.budget_usd else [])})
        points = []
        for budget in budgets:
            if budget < least.cost:
                continue
            fitted = recipe.within(budget).freeze(sketch)
            if fitted.cost is None or fitted.cost > _OVER * budget:  # other limits leave no such plan
                continue
            sample = self.slices[:: max(1, len(self.slices) // _SAMPLED)]
            mix: dict[Candidate, Expected] = {}
            for one in ray.get(looking_ahead(uri, sample, pool, Version(fitted))):
                for candidate, sums in (one.expected or {}).items():
                    mix[candidate] = mix.get(candidate, Expected()) + sums
            whole = scaled(mix, fitted.routed, fitted.cost, (fitted.accuracy or 0.0) * fitted.routed)
            small_pilot = pilot if pilot is None or len(pilot.candidates) <= fitted.routed else None
            found = self._forecast(whole, Version(fitted), small_pilot)
            points.append(
                {
                    "budget_usd": budget,
                    "cost_usd": fitted.cost,
                    "accuracy": fitted.accuracy,
                    "dual_price": fitted.price,
                    "cost_interval_usd": asdict(found.cost_usd),
                    "accuracy_interval": asdict(found.accuracy),
                }
            )
        return points

    def _sketch(self, recipe: Policy) -> PolicySketch | None:
        tasks = sketching(self.folder.store.uri, self.slices, self.job.pool, recipe, Corrections())
        return merged(recipe, (one for one in ray.get(tasks) if one is not None))


def scaled(
    mix: Mapping[Candidate, Expected], rows: int, cost_usd: float, accuracy: float
) -> dict[Candidate, Expected]:
    """The sums of a sample, drawn out to known totals.

    Args:
        mix: Sums by candidate over some rows.
        rows: Of the whole.
        cost_usd: Of the whole.
        accuracy: Expected right answers of the whole.
    """
    total = sum(mix.values(), Expected())
    if not total.rows:
        return {}
    by_rows = rows / total.rows
    by_cost = cost_usd / total.cost_usd if total.cost_usd else by_rows
    by_accuracy = accuracy / total.accuracy if total.accuracy else by_rows
    return {
        candidate: replace(
            one,
            rows=round(one.rows * by_rows),
            accuracy=one.accuracy * by_accuracy,
            output_tokens=one.output_tokens * by_rows,
            cost_usd=one.cost_usd * by_cost,
        )
        for candidate, one in mix.items()
    }


def spread(least: float, most: float) -> list[float]:
    """Budgets at equal ratios, both ends included."""
    if least <= 0 or most <= least:
        return [most] if most > 0 else []
    ratio = (most / least) ** (1 / (_CURVE_POINTS - 1))
    # a hair above, lest rounding put an end below what it stands for
    return [least * ratio**k * (1 + 1e-9) for k in range(_CURVE_POINTS)]


def pilot_of(folder: RunFolder, slices: Sequence[Slice]) -> Pilot | None:
    """The answers to the pilot's rows; None where there are none yet."""
    first = slices[0] if slices and slices[0].is_pilot else None
    planned = None if first is None else folder.read_json(slice_key(first))
    if planned is None:
        return None
    rows = []
    for key in PlannedSlice.from_json(planned).parts:
        for result in folder.store.keys(f"{RESULTS}{part_name(key)}-"):
            found = read_table(folder.store, result, [*_PILOT, *_SEEN, "status"]).to_pylist()
            rows += [row for row in found if row["status"] == "answered" and row["cost_usd"] is not None]
    if not rows:
        return None

    def column(name: str) -> Any:
        return np.array([np.nan if row[name] is None else float(row[name]) for row in rows])

    return Pilot(
        tuple(Candidate(row["model"], row["strategy"], row["samples"]) for row in rows),
        *(column(f"predicted_{name}") for name in ("accuracy", "output_tokens", "cost_usd")),
        *(column(name) for name in _SEEN),
    )
