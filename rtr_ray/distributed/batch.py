"""The batch job: a corpus is routed and answered, two passes through one run folder."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

import ray
import yaml
from ray.exceptions import RayError

from rtr_ray import registry
from rtr_ray.config import EncoderKeys
from rtr_ray.distributed.answering import Answering, tally_results
from rtr_ray.distributed.cluster import (
    Needs,
    check_encoders,
    connected,
    deployment_needs,
    encoder_needs,
    root,
)
from rtr_ray.distributed.routing import (
    Expected,
    RoutingWork,
    TablePart,
    find_duplicate,
    write_plans,
    write_tables,
)
from rtr_ray.errors import BudgetError, DataError, LedgerError
from rtr_ray.job import Job
from rtr_ray.policies import FITTED
from rtr_ray.policies.base import FittedPolicy, merged
from rtr_ray.pool import Pool
from rtr_ray.run_folder import PLAN, POLICY, SUMMARY, RunFolder
from rtr_ray.screen import Screen, money, summary_table
from rtr_ray.summary import Tally, summary
from rtr_ray.types import Candidate

_IDS_PER_BUCKET = 5_000_000  # ids that one task compares at a time
_SPLITS_PER_ACTOR = 4


def run_job(job: Job, screen: Screen, fresh: bool = False) -> dict[str, Any]:
    """Route and answer a corpus; go on where an earlier run of the same job stopped.

    Args:
        job: What to do, checked.
        screen: Where to show how far it is.
        fresh: Move an older run in the same folder aside.

    Returns:
        The content of `summary.json`.

    Raises:
        RtrError: In one sentence, whatever stands in the way.
    """
    file = job.file
    for name, reason in job.corpus.unreadable.items():
        screen.say(f"Set aside, since it cannot be read: {name} ({reason})", "yellow")
    folder, aside = RunFolder.open(
        file.output, job.fingerprints, yaml.safe_dump(json.loads(file.model_dump_json())), fresh
    )
    if aside is not None:
        screen.say(f"The older run was moved to {aside}.")
    cluster = connected(file.cluster.address, side_by_side(job.pool, encoders_of(file.encoder)))
    # Ray installs a SIGTERM handler of its own: ours comes after it
    with recorded_ending(folder), cluster, terminable():
        return _Run(job, folder, screen).run()


def encoders_of(keys: EncoderKeys) -> Needs:
    """What the encoder actors of a job take."""
    least = keys.actors if isinstance(keys.actors, int) else keys.actors[0]
    return encoder_needs(least, keys.num_cpus, keys.num_gpus)


def side_by_side(pool: Pool, others: Needs) -> Needs:
    """All deployments of a pool, and others beside them."""
    return sum((deployment_needs(d) for d in pool.deployments.values()), others)


@contextmanager
def recorded_ending(folder: RunFolder) -> Iterator[None]:
    """Write into `run.json` how the run ended, if it ends early; errors of ours come out unwrapped.

    At every ending the folder is left to others.
    """
    try:
        yield
    except BaseException as raised:
        error = root(raised) if isinstance(raised, RayError) else raised
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        folder.update(status=status, error=str(error)[:500] or type(error).__name__)
        if error is raised:
            raise
        raise error from None
    finally:
        folder.close()


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does: with everything taken down."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(slots=True)
class _Run:
    """One run on a connected cluster."""

    job: Job
    folder: RunFolder
    screen: Screen

    def run(self) -> dict[str, Any]:
        """All stages."""
        file = self.job.file
        resources = ray.cluster_resources()
        if not file.cluster.grows:
            check_encoders(encoders_of(file.encoder), resources)
        answering = Answering.prepare(
            self.folder, self.job.pool, file, self.screen, file.budget_usd, self.job.grader
        )
        try:
            plan = self.folder.read_json(PLAN)
            if plan is None:
                if self._fit_together(answering, resources):
                    # engines take longer to start than a small corpus to route
                    answering.start(answering.groups[0])
                plan = self._plan()
            self._check_budget(plan)
            answering.rows_total = plan["rows"]
            answering.rows = {Candidate.parse(row["candidate"]): row["rows"] for row in plan["by_candidate"]}
            self.folder.update(stage="answer")
            snapshot = answering.answer(sum(row["output_tokens"] for row in plan["by_candidate"]))
        finally:
            answering.stop()
        tally = tally_results(self.folder)
        self._check_books(tally, snapshot)
        return self._finish(plan, tally, snapshot)

    def _fit_together(self, answering: Answering, resources: Mapping[str, float]) -> bool:
        if self.job.file.cluster.serve_app:
            return False
        needs = encoders_of(self.job.file.encoder)
        for deployment in answering.groups[0]:
            needs += deployment_needs(deployment)
        return needs.fits(resources)

    def _plan(self) -> dict[str, Any]:
        """The first pass: tables, policy, plan."""
        parts = self._tables()
        self._check_ids(parts)
        policy = self._policy(parts)
        rows = sum(part.rows for part in parts)
        expected: dict[Candidate, Expected] = {}
        unrouted = 0
        with self.screen.stage("plan", rows) as stage:
            self.folder.update(stage="plan")
            for found, nowhere in write_plans(self.folder, [part.key for part in parts], policy):
                for candidate, sums in found.items():
                    expected[candidate] = expected.get(candidate, Expected()) + sums
                unrouted += nowhere
                stage.done = unrouted + sum(sums.rows for sums in expected.values())
                stage.note = money(sum(sums.cost_usd for sums in expected.values())) + " expected"
                self.screen.tick(stage)
        plan = _plan_json(rows, unrouted, expected)
        self.folder.write_json(PLAN, plan)
        return plan

    def _tables(self) -> list[TablePart]:
        file = self.job.file
        work = RoutingWork(
            self.job.corpus,
            file.router_keys.path,
            self.job.pool,
            file.router_keys.untrained,
            self.job.policy,
            self.folder.store.uri,
            file.encoder,
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

    def _policy(self, parts: Sequence[TablePart]) -> FittedPolicy:
        saved = self.folder.read_json(POLICY)
        if saved is not None:
            return _policy_from(saved)
        policy = self.job.policy
        fitted = policy.freeze(merged(policy, (part.sketch for part in parts)))
        self.folder.write_json(POLICY, _policy_json(fitted))
        return fitted

    def _check_budget(self, plan: Mapping[str, Any]) -> None:
        budget, cost = self.job.file.budget_usd, plan["cost_usd"]
        if budget is not None and cost > budget:
            raise BudgetError(
                f"The plan is expected to cost {money(cost)} for {plan['rows']:,} rows, over "
                f"budget_usd={money(budget)}. Raise budget_usd, weigh dollars more (a smaller policy.lam), "
                "or add a cheaper candidate."
            )

    def _check_books(self, tally: Tally, snapshot: Any) -> None:
        booked = {c: a for c, a in snapshot.balance.accounts.items() if a.rows}
        if tally.accounts != booked:
            raise LedgerError(
                f"The results add up to {tally.cost_usd} dollars and the ledger to "
                f"{snapshot.balance.spent_usd}. The run folder {self.folder.store.uri} is kept as it is; "
                "please report this."
            )

    def _finish(self, plan: Mapping[str, Any], tally: Tally, snapshot: Any) -> dict[str, Any]:
        counted = sum(tally.rows.values())
        if counted != plan["rows"]:
            raise LedgerError(
                f"The corpus has {plan['rows']} rows and the results {counted}. "
                f"The run folder {self.folder.store.uri} is kept as it is; please report this."
            )
        status = "budget_exhausted" if tally.rows["skipped_budget"] else "completed"
        found = summary(
            tally, status, plan["rows"], self.job.file.budget_usd, plan["cost_usd"], self.screen.seconds
        )
        balance = snapshot.balance
        found["calls"] = {
            "sent_again": snapshot.sent_again,
            "lost": balance.unknown_calls,
            "lost_worst_case_usd": str(balance.unknown_usd),
        }
        self.folder.write_json(SUMMARY, found)
        self.folder.update(status=status, stage="done")
        return found


def _plan_json(rows: int, unrouted: int, expected: Mapping[Candidate, Expected]) -> dict[str, Any]:
    total = sum(sums.rows for sums in expected.values())
    return {
        "schema_version": 1,
        "rows": rows,
        "unrouted": unrouted,
        "cost_usd": sum(sums.cost_usd for sums in expected.values()),
        "accuracy": sum(sums.accuracy for sums in expected.values()) / total if total else None,
        "by_candidate": [
            {"candidate": str(candidate)} | {field.name: getattr(sums, field.name) for field in fields(sums)}
            for candidate, sums in sorted(expected.items())
        ],
    }


def _policy_json(fitted: FittedPolicy) -> dict[str, Any]:
    return {"schema_version": 1, **registry.spec_of(fitted, FITTED)}


def _policy_from(saved: Mapping[str, Any]) -> FittedPolicy:
    spec = {key: value for key, value in saved.items() if key != "schema_version"}
    fitted: FittedPolicy = registry.build(spec, FITTED, "policy")
    return fitted


def show_summary(found: Mapping[str, Any], screen: Screen, output: str) -> None:
    """The summary on screen."""
    screen.console.print(summary_table(found))
    rows, cost = found["rows"], found["cost_usd"]
    screen.say(
        f"{rows['answered']:,} of {rows['total']:,} rows answered, {rows['failed']:,} failed, "
        f"{rows['skipped_budget']:,} skipped for the budget. Spent {money(Decimal(cost['spent']))}, "
        f"forecast {money(cost['forecast'])}. Results: {os.path.join(output, 'results')}"
    )
    if found["calls"]["lost"]:
        screen.say(
            f"{found['calls']['lost']} calls were lost with their usage: at worst "
            f"{money(Decimal(found['calls']['lost_worst_case_usd']))} more; "
            f"{found['calls']['sent_again']} were sent again."
        )
