"""The batch job: a corpus is routed and answered, two passes through one run folder."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import ray
import yaml
from ray.exceptions import RayError, RayTaskError

from rtr_ray.config import EncoderKeys
from rtr_ray.distributed.answering import Answering
from rtr_ray.distributed.autopilot import Autopilot
from rtr_ray.distributed.cluster import (
    DISPATCH_CPUS,
    Needs,
    check_encoders,
    connected,
    death,
    deployment_needs,
    encoder_needs,
    root,
)
from rtr_ray.distributed.dispatching import most_in_flight
from rtr_ray.distributed.outlook import Outlook
from rtr_ray.distributed.plan_parts import part_of
from rtr_ray.distributed.preparing import Planning
from rtr_ray.distributed.rest import forget_failed
from rtr_ray.distributed.steering import Steering
from rtr_ray.distributed.tallies import count_results, tally_results
from rtr_ray.errors import DataError, ExecutionError, LedgerError, StorageError
from rtr_ray.job import Job
from rtr_ray.parts import UNROUTED
from rtr_ray.pool import Pool
from rtr_ray.run_folder import PLAN, SUMMARY, RunFolder
from rtr_ray.screen import Screen, money, summary_table
from rtr_ray.slices import Slice
from rtr_ray.summary import Tally, plain, summary
from rtr_ray.types import Candidate


def run_job(
    job: Job,
    screen: Screen,
    fresh: bool = False,
    retry_failed: bool = False,
    stopping: threading.Event | None = None,
) -> dict[str, Any]:
    """Route and answer a corpus; go on where an earlier run of the same job stopped.

    Args:
        job: What to do, checked.
        screen: Where to show how far it is.
        fresh: Move an older run in the same folder aside.
        retry_failed: Ask rows again that failed without being paid for.
        stopping: Set, it ends the run as the first Ctrl-C does: with what has been sent waited for.

    Returns:
        The content of `summary.json`.

    Raises:
        RtrError: In one sentence, whatever stands in the way.
    """
    with opened(job, screen, fresh) as folder:
        return _Run(job, folder, screen, stopping or threading.Event()).run(retry_failed)


def plan_job(job: Job, screen: Screen, fresh: bool = False, pilot: bool = False) -> dict[str, Any]:
    """Route a corpus and say what its answers will cost. `run_job` goes on from there.

    Args:
        job: What to do, checked.
        screen: Where to show how far it is.
        fresh: Move an older run in the same folder aside.
        pilot: Answer about 50 rows, which are paid for, and correct the forecast by them. Their
            answers are kept. Without it nothing is asked.

    Returns:
        The content of `plan.json`, with `forecast`, `time` and `curve` (what other budgets would buy).

    Raises:
        RtrError: In one sentence, whatever stands in the way; a budget that is too small is one.
    """
    with opened(job, screen, fresh) as folder:
        run = _Run(job, folder, screen)
        planning = Planning(job, folder, screen)
        if not job.file.cluster.grows:
            check_encoders(encoders_of(job.file.encoder), ray.cluster_resources())
        plan = run.pilot(planning) if pilot else planning.plan()
        assert planning.version is not None
        budget = None if job.file.budget_usd is None else float(job.file.budget_usd)
        with screen.stage("forecast"):
            outlook = Outlook(job, folder, planning.slices, planning.version, planning.kinds, budget)
            plan = plan | outlook.of(plan)
        folder.write_json(PLAN, plan)
        folder.update(status="planned", stage="plan")
        return plan


@contextmanager
def opened(job: Job, screen: Screen, fresh: bool) -> Iterator[RunFolder]:
    """The run folder of a job, ours alone, on a connected cluster; how it ends is written there."""
    file = job.file
    for name, reason in job.corpus.unreadable.items():
        screen.say(f"Set aside, since it cannot be read: {name} ({reason})", "yellow")
    folder, aside = RunFolder.open(
        file.output, job.fingerprints, yaml.safe_dump(json.loads(file.model_dump_json())), fresh, screen.say
    )
    if aside is not None:
        screen.say(f"The older run was moved to {aside}.")
    cluster = connected(file.cluster.address, side_by_side(job.pool, encoders_of(file.encoder)))
    # Ray installs a SIGTERM handler of its own: ours comes after it
    with recorded_ending(folder), cluster, terminable():
        yield folder


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
        # the ledger's process, say, or the node that it was on; not what a task has raised
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            error = ExecutionError(
                f"A process of this run died on the cluster ({death(error)}). What has been answered is "
                "kept; the same command goes on."
            )
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(StorageError, DataError):  # which may be what went wrong; or it is ours no longer
            folder.update(status=status, error=str(error)[:500] or type(error).__name__)
        if error is raised:
            raise
        raise error from raised
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


@contextmanager
def stopped_by_signals(stopping: threading.Event, screen: Screen) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets what is out come in; the second ends at once."""

    def stop(*_: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        screen.say("Stopping: what has been asked is waited for. Once more to leave at once.", "yellow")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@dataclass(slots=True)
class _Run:
    """One run on a connected cluster."""

    job: Job
    folder: RunFolder
    screen: Screen
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, retry_failed: bool) -> dict[str, Any]:
        """All stages."""
        file = self.job.file
        resources = ray.cluster_resources()
        if not file.cluster.grows:
            check_encoders(encoders_of(file.encoder), resources)
        answering = self._answering()
        try:
            planning = Planning(self.job, self.folder, self.screen)
            attached = bool(file.cluster.serve_app)
            if self._fit_together(answering, resources):
                # on several nodes they could take the room of an engine that fits on one of them alone
                if attached or sum(node["Alive"] for node in ray.nodes()) == 1:
                    answering.start_dispatch()
                if not planning.routed and not attached:
                    # engines take longer to start than a small corpus to route
                    answering.start(answering.groups[0])
            plan = planning.plan()
            if retry_failed:
                self._forget_failed()
            feed = self._feed(planning, plan, answering)
            answering.rows_total = plan["rows"]
            self.folder.update(stage="answer")
            with stopped_by_signals(answering.stopping, self.screen):
                snapshot = answering.answer(feed, sum(row["output_tokens"] for row in plan["by_candidate"]))
        finally:
            answering.stop()
        tally = tally_results(self.folder)
        self._check_books(tally, snapshot)
        if answering.stopping.is_set() and not answering.rented_out:
            raise KeyboardInterrupt
        return self._finish(plan, tally, snapshot, answering)

    def pilot(self, planning: Planning) -> dict[str, Any]:
        """The plan, and its pilot answered.

        Raises:
            DataError: If the corpus is too small to have a pilot.
        """
        answering = self._answering()
        try:
            plan = planning.plan()
            pilots = [one for one in planning.slices if one.is_pilot]
            if not pilots:
                raise DataError(f"{plan['rows']} rows are too few for a pilot. Run them.")
            feed = self._feed(planning, plan, answering, pilots)
            answering.rows_total = plan["rows"]
            with stopped_by_signals(answering.stopping, self.screen):
                answering.answer(feed)
        finally:
            answering.stop()
        if answering.stopping.is_set() and not answering.rented_out:
            raise KeyboardInterrupt
        return plan

    def _answering(self) -> Answering:
        file = self.job.file
        answering = Answering.prepare(
            self.folder, self.job.pool, file, self.screen, file.budget_usd, self.job.grader
        )
        answering.settings, answering.stopping = self.job.corpus.settings, self.stopping
        return answering

    def _forget_failed(self) -> None:
        """Take rows that failed out of the results, so that they are asked again."""
        keys = [key for key in self.folder.results() if part_of(key) != UNROUTED]
        tasks = [forget_failed.remote(self.folder.store.uri, key) for key in keys]
        self.screen.say(f"{sum(ray.get(tasks)):,} failed rows are asked again.")

    def _fit_together(self, answering: Answering, resources: Mapping[str, float]) -> bool:
        """Whether encoders, engines and what dispatches to them have room side by side."""
        needs = encoders_of(self.job.file.encoder)
        if self.job.file.cluster.serve_app:  # its engines have their room already
            needs += Needs(DISPATCH_CPUS * len(answering.groups[0]))
            return needs.fits(ray.available_resources())
        for deployment in answering.groups[0]:
            needs += deployment_needs(deployment)
        return needs.fits(resources)

    def _feed(
        self,
        planning: Planning,
        plan: Mapping[str, Any],
        answering: Answering,
        only: list[Slice] | None = None,
    ) -> Autopilot:
        job, ledger = self.job, answering.ledger
        assert planning.version is not None
        tally, settled = count_results(self.folder)
        candidates = [Candidate.parse(row["candidate"]) for row in plan["by_candidate"]]
        if sum(tally.rows.values()) - tally.rows["skipped_budget"] == plan["rows"]:
            candidates = []  # all is answered: no engine is needed, nor need one be there
        used = {job.pool.deployment(candidate).id for candidate in candidates}
        steering = Steering(
            self.folder,
            job.pool,
            planning.policy,
            job.file.budget_usd,
            plan["rows"],
            planning.version,
            job.file.autopilot,
            stale=plan["budget_usd"] != planning.budget,
        )
        capacity = sum(most_in_flight(job.pool.deployments[name], job.file.dispatch) for name in used)
        feed = Autopilot(
            steering,
            planning.slices if only is None else only,
            frozenset(used),
            capacity,
            lambda rows: ray.get(ledger.unskip.remote(rows)),
            insists=only is None,
        )
        feed.resume(settled)
        return feed

    def _check_books(self, tally: Tally, snapshot: Any) -> None:
        booked = {c: a for c, a in snapshot.balance.accounts.items() if a.rows}
        if tally.accounts != booked:
            raise LedgerError(
                f"The results add up to {tally.cost_usd} dollars and the ledger to "
                f"{snapshot.balance.spent_usd}. The run folder {self.folder.store.uri} is kept as it is; "
                "please report this."
            )

    def _finish(
        self, plan: Mapping[str, Any], tally: Tally, snapshot: Any, answering: Answering
    ) -> dict[str, Any]:
        counted = sum(tally.rows.values())
        if counted != plan["rows"] and not answering.rented_out:
            raise LedgerError(
                f"The corpus has {plan['rows']} rows and the results {counted}. "
                f"The run folder {self.folder.store.uri} is kept as it is; please report this."
            )
        short = tally.rows["skipped_budget"] or counted < plan["rows"]  # the engines' time was used up
        status = "budget_exhausted" if short else "completed"
        found = summary(
            tally, status, plan["rows"], self.job.file.budget_usd, plan["cost_usd"], self.screen.seconds
        )
        found["cost_usd"]["gpu"] = _rent(answering)
        found["output_tokens_per_s"] = {name: round(v, 1) for name, v in answering.speeds.items() if v}
        found["unanswered"] = plan["rows"] - counted
        found["if_all_went_to"] = _alternatives(plan)
        balance = snapshot.balance
        found["calls"] = {
            "sent_again": snapshot.sent_again,
            "lost": balance.unknown_calls,
            "lost_worst_case_usd": str(balance.unknown_usd),
        }
        if self.job.labels is not None:
            found = self.job.labels.stated(found)
        self.folder.write_json(SUMMARY, found)
        self.folder.update(status=status, stage="done")
        return found


def _rent(answering: Answering) -> str | None:
    """Dollars of the engines' time; None where there is no price for it, or they are somebody else's."""
    rent = answering.rent
    usd = rent.usd if rent is not None and any(rent.seconds.values()) else None
    return None if usd is None else plain(usd)


def _alternatives(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What the cheapest and the best single candidate would have cost and scored, by the estimates."""
    every = [row for row in plan["if_all_went_to"] if row["rows"]]
    if not every:
        return {}
    chosen = {
        "cheapest": min(every, key=lambda row: row["cost_usd"] / row["rows"]),
        "best_single": max(every, key=lambda row: row["accuracy"] / row["rows"]),
    }
    return {
        name: {
            "candidate": row["candidate"],
            "rows": row["rows"],
            "cost_usd": row["cost_usd"],
            "accuracy": row["accuracy"] / row["rows"],
        }
        for name, row in chosen.items()
    }


def show_summary(found: Mapping[str, Any], screen: Screen, output: str) -> None:
    """The summary on screen."""
    screen.console.print(summary_table(found))
    rows, cost = found["rows"], found["cost_usd"]
    screen.say(
        f"{rows['answered']:,} of {rows['total']:,} rows answered, {rows['failed']:,} failed, "
        f"{rows['skipped_budget']:,} skipped for the budget. Spent {money(Decimal(cost['spent']))}, "
        f"forecast {money(cost['forecast'])}. Results: {os.path.join(output, 'results')}"
    )
    if "labels" in cost:
        screen.say(f"Labels cost {money(Decimal(cost['labels']))}: {money(Decimal(cost['total']))} in all.")
    if found["calls"]["lost"]:
        screen.say(
            f"{found['calls']['lost']} calls were lost with their usage: at worst "
            f"{money(Decimal(found['calls']['lost_worst_case_usd']))} more; "
            f"{found['calls']['sent_again']} were sent again."
        )
