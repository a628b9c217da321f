"""Everything before the first request: tables, slices, the first version of the policy, the plan it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from rtr_ray.corrections import Corrections
from rtr_ray.distributed.planning import SLICES, Ahead, looking_ahead, sketching
from rtr_ray.distributed.routing import RoutingWork, TablePart, find_duplicate, write_tables
from rtr_ray.errors import BudgetError, DataError
from rtr_ray.held_out import merge_sketches
from rtr_ray.job import Job
from rtr_ray.parts import Expected, Version
from rtr_ray.policies.base import Budgeted, Policy, Sketch, merged
from rtr_ray.run_folder import PLAN, RunFolder
from rtr_ray.screen import Screen, money
from rtr_ray.slices import Slice, cut
from rtr_ray.summary import plain
from rtr_ray.types import Candidate
from rtr_ray.versions import price_of, save, saved

LAYOUT = "slices.json"
_IDS_PER_BUCKET = 5_000_000  # ids that one task compares at a time


@dataclass(slots=True)
class Planning:
    """The first pass over a corpus, on a connected cluster."""

    job: Job
    folder: RunFolder
    screen: Screen
    slices: list[Slice] = field(default_factory=list)
    version: Version | None = None
    kinds: Sketch | None = None  # of queries, see `held_out.distance_sketch`

    @property
    def policy(self) -> Policy:
        """What to optimise."""
        return self.job.policy

    @property
    def routed(self) -> bool:
        """Whether an earlier session has got so far."""
        return self.folder.store.read(LAYOUT) is not None

    @property
    def budget(self) -> str | None:
        """The budget as it stands in files."""
        return None if self.job.file.budget_usd is None else plain(self.job.file.budget_usd)

    def plan(self) -> dict[str, Any]:
        """All stages; what is there already is not done again.

        Returns:
            The content of `plan.json`.

        Raises:
            BudgetError: If the budget does not suffice.
            DataError: If the corpus is empty, or an id occurs twice.
        """
        sketches = self._layout()
        plan, found = self.folder.read_json(PLAN), saved(self.folder)
        begun = bool(self.folder.store.keys(SLICES))
        if plan is not None and found and (begun or plan["budget_usd"] == self.budget):
            self.version = found[max(found)]
            return plan
        with self.screen.stage("plan") as stage:
            self.folder.update(stage="plan")
            stage.note = "solving"
            self.screen.tick(stage)
            if sketches is None:  # for another budget than an earlier session's
                tasks = sketching(
                    self.folder.store.uri, self.slices, self.job.pool, self.policy, Corrections()
                )
                sketches = [one for one in ray.get(tasks) if one is not None]
            fitted = self.policy.freeze(merged(self.policy, sketches))
            self.version = Version(fitted, max(found, default=-1) + 1, dual_price=price_of(fitted))
            save(self.folder, self.version, _amount(self.job))
            plan = self._plan_json(self._look_ahead(stage))
            stage.note = money(plan["cost_usd"]) + " expected"
        self._check_budget(plan)
        self.folder.write_json(PLAN, plan)
        return plan

    def _layout(self) -> list[Sketch] | None:
        """Find or make the slices; gives the sketches of the tables, where these were made just now."""
        layout = self.folder.read_json(LAYOUT)
        if layout is not None:
            self.slices = [Slice.from_json(one) for one in layout["slices"]]
            self.kinds = layout["kinds"]
            return None
        if self.folder.read_json(PLAN) is not None:
            raise DataError(
                f"{self.folder.store.uri} holds a run that an older rtr-ray has planned. Finish it with that "
                "one, take another output, or --fresh to move it aside."
            )
        parts = self._tables()
        self._check_ids(parts)
        self.slices = cut({part.key: part.rows for part in parts})
        kinds = [part.kinds for part in parts if part.kinds is not None]
        self.kinds = merge_sketches(kinds) if kinds else None
        slices = [one.to_json() for one in self.slices]
        self.folder.write_json(LAYOUT, {"schema_version": 1, "slices": slices, "kinds": self.kinds})
        return [part.sketch for part in parts]

    def _look_ahead(self, stage: Any) -> Ahead:
        assert self.version is not None
        total = Ahead()
        waiting = looking_ahead(self.folder.store.uri, self.slices, self.job.pool, self.version)
        while waiting:
            done, waiting = ray.wait(waiting)
            for one in ray.get(done):
                total += one
            stage.done = total.rows
            self.screen.tick(stage)
        return total

    def _tables(self) -> list[TablePart]:
        file = self.job.file
        work = RoutingWork(
            self.job.corpus.for_tasks,
            file.router_keys.path,
            self.job.pool,
            file.router_keys.untrained,
            self.job.policy,
            self.folder.store.uri,
            file.encoder,
            file.router_keys.caution,
        )
        known = [split.rows for split in self.job.splits]
        total = None if None in known else sum(rows or 0 for rows in known)
        parts: list[TablePart] = []
        with self.screen.stage("route", total) as stage:
            self.folder.update(stage="route")
            stage.note = "starting the encoder"
            self.screen.tick(stage)
            for part in write_tables(work, self.job.splits):
                parts.append(part)
                stage.done += part.rows
                unusable = sum(p.unusable for p in parts)
                stage.note = f"{unusable:,} unusable" if unusable else ""
                self.screen.tick(stage)
        if not parts:
            raise DataError(f"The corpus {self.job.corpus.uri} is empty: no file has a row.")
        return parts

    def _check_ids(self, parts: Sequence[TablePart]) -> None:
        """Refuse a corpus whose own ids are not unique; derived ids are."""
        column = self.job.corpus.columns.id
        if column is None:
            return
        buckets = -(-sum(part.rows for part in parts) // _IDS_PER_BUCKET)
        keys = [part.key for part in parts]
        tasks = [find_duplicate.remote(self.folder.store.uri, keys, b, buckets) for b in range(buckets)]
        for twice in ray.get(tasks):
            if twice is not None:
                raise DataError(
                    f"The id '{twice}' (column '{column}') occurs more than once in {self.job.corpus.uri}. "
                    "Make the ids unique, or leave corpus.columns.id out: then rows get ids by position."
                )

    def _check_budget(self, plan: Mapping[str, Any]) -> None:
        """Refuse a plan over the budget: of a policy that knows of none; one that does has refused itself."""
        budget, cost = self.job.file.budget_usd, plan["cost_usd"]
        policy = self.policy
        divided = isinstance(policy, Budgeted) and policy.divides_usd
        if budget is not None and cost > budget and not divided:
            raise BudgetError(
                f"The plan is expected to cost {money(cost)} for {plan['rows']:,} rows, over "
                f"budget_usd={money(budget)}. Raise budget_usd, weigh dollars more (a smaller policy.lam), "
                "let the budget decide (policy: {kind: budget}), or add a cheaper candidate."
            )

    def _plan_json(self, ahead: Ahead) -> dict[str, Any]:
        expected = ahead.expected or {}
        total = sum(sums.rows for sums in expected.values())
        assert self.version is not None
        return {
            "schema_version": 1,
            "rows": ahead.rows,
            "unrouted": ahead.unrouted,
            "budget_usd": self.budget,
            "cost_usd": sum(sums.cost_usd for sums in expected.values()),
            "accuracy": sum(sums.accuracy for sums in expected.values()) / total if total else None,
            "dual_price": self.version.dual_price,
            "by_candidate": _rows(expected),
            "if_all_went_to": _rows(ahead.fixed or {}),
        }


def _rows(sums: Mapping[Candidate, Expected]) -> list[dict[str, Any]]:
    return [{"candidate": str(candidate), **asdict(one)} for candidate, one in sorted(sums.items())]


def _amount(job: Job) -> float | None:
    return None if job.file.budget_usd is None else float(job.file.budget_usd)
