"""Answering the plan parts of a run: deployments up, parts answered, deployments down."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

import ray
from ray.exceptions import ActorUnavailableError, RayError

from rtr_ray.config import JobKeys
from rtr_ray.distributed.cluster import LAUNCH_CPUS, residencies, root
from rtr_ray.distributed.deployments import Deployments, Watch
from rtr_ray.distributed.dispatching import Crew, DispatchWork
from rtr_ray.distributed.guard import Guard
from rtr_ray.distributed.ledger_actor import Snapshot, claim, release
from rtr_ray.distributed.plan_parts import Part
from rtr_ray.distributed.rent import Rent
from rtr_ray.distributed.tallies import tally_results
from rtr_ray.grading import Grader
from rtr_ray.ledger import Account
from rtr_ray.pool import Deployment, Endpoint, Pool, fingerprint
from rtr_ray.run_folder import RunFolder
from rtr_ray.screen import Screen, Stage, money
from rtr_ray.types import Candidate

_POLL_S, _LEAST_POLL_S = 0.25, 0.05
_GRACE_S = 15.0  # for what is out when a job is told to stop; what takes longer is lost, and counted so
_PATIENT_TRIES = 5  # to hear from the ledger
_EARLY = 8  # actors at most that are started before it is known whether anything goes through them


class Feed(Protocol):
    """Where the plan parts come from that are to be answered; some may be made while others are answered."""

    @property
    def deployments(self) -> frozenset[str]:
        """The deployments that it will need, as far as that is known."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether nothing more will come, once what has been given out is finished."""
        ...

    @property
    def unrouted(self) -> int:
        """Rows that were found to go nowhere since the beginning of this session."""
        ...

    def more(self, unfinished_rows: int, snapshot: Snapshot) -> Sequence[Part]:
        """What may be answered now beside the rows that are not finished yet; perhaps nothing just now."""
        ...

    def rest(self) -> Sequence[Part]:
        """All that will ever come, at once: for engines that run one after the other."""
        ...

    def finished(self, part: Part) -> None:
        """All rows of a part are durable."""
        ...

    def abandon(self) -> None:
        """Nothing more is wanted; nothing of it goes on."""
        ...


@dataclass(slots=True)
class Given:
    """Plan parts that are all known beforehand."""

    parts: Sequence[Part]
    unrouted: int = 0
    exhausted: bool = False

    @property
    def deployments(self) -> frozenset[str]:
        """Those of its parts."""
        return frozenset(part.deployment for part in self.parts)

    def more(self, unfinished_rows: int, snapshot: Snapshot) -> Sequence[Part]:
        """All of them, the first time."""
        return [] if self.exhausted else self.rest()

    def rest(self) -> Sequence[Part]:
        """All of them."""
        self.exhausted = True
        return self.parts

    def finished(self, part: Part) -> None:
        """Nothing follows from it."""

    def abandon(self) -> None:
        """Nothing goes on by itself."""


@ray.remote(num_cpus=LAUNCH_CPUS, max_retries=0)
def check_endpoints(endpoints: Sequence[Endpoint]) -> None:
    """Refuse endpoints whose key is not set; on the cluster, since the driver's variables may differ."""
    from rtr_ray.executors.openai import OpenAIExecutor  # takes a second to import

    for endpoint in endpoints:
        OpenAIExecutor(endpoint)


def _pause(running: list[Any]) -> None:
    """Wait a moment, and no longer than until one of some calls has ended: its actor wants the next."""
    time.sleep(_LEAST_POLL_S)
    if running:
        ray.wait(running, timeout=_POLL_S - _LEAST_POLL_S)


@dataclass(slots=True)
class Answering:
    """Everything that answering takes, for one run folder."""

    folder: RunFolder
    pool: Pool
    keys: JobKeys
    deployments: Deployments
    screen: Screen
    budget_usd: Decimal | None = None
    grader: Grader | None = None
    settings: str | None = None  # the column with the rows' own terms
    ledger: Any = field(default=None, init=False)  # actor handle; each folder has one of its own
    guard: Guard | None = None
    rent: Rent | None = None
    speeds: dict[str, float] = field(default_factory=dict)  # output tokens per second and replica, measured
    rented_out: bool = False  # the engines' time has used up the budget
    groups: list[list[Deployment]] = field(default_factory=list)
    rows_total: int | None = None
    stopping: threading.Event = field(default_factory=threading.Event)  # set: finish what is out, and leave
    _early: dict[str, Crew] = field(default_factory=dict)  # by deployment; started before the engines are up
    _stopped_s: float | None = None
    _last: Snapshot | None = None  # of the ledger, as of the last look

    @classmethod
    def prepare(
        cls,
        folder: RunFolder,
        pool: Pool,
        keys: JobKeys,
        screen: Screen,
        budget_usd: Decimal | None,
        grader: Grader | None = None,
    ) -> Answering:
        """Work out which deployments run together; starts nothing.

        Raises:
            PlacementError: If one does not fit on the cluster even alone.
            ConfigError: If the key of an endpoint is not set.
            DataError: If another run on the cluster works on the folder.
        """
        cluster = keys.cluster
        prefix = cluster.serve_app or f"rtr-{fingerprint(folder.store.uri)[:8]}"
        deployments = Deployments(
            prefix,
            bool(cluster.serve_app),
            cluster.placement_timeout_s,
            cluster.startup_timeout_s,
            keys.dispatch.chunk,
        )
        everything = list(pool.deployments.values())
        # what is there already, or may still come, need not fit on what is there now
        fits = bool(cluster.serve_app) or cluster.grows
        groups = [everything] if fits else residencies(everything, ray.cluster_resources())
        endpoints = [d.endpoint for d in everything if d.endpoint is not None]
        if endpoints:  # now: others may have answered for much money before their turn comes
            ray.get(check_endpoints.remote(endpoints))
        prepared = cls(folder, pool, keys, deployments, screen, budget_usd, grader, groups=groups)
        # last of all: who is refused here must not take down the engines of the run that is there
        prepared.ledger = claim(folder.store.uri, budget_usd)
        return prepared

    def start_dispatch(self) -> None:
        """Begin to start what dispatches to the deployments, where all of them run together."""
        if len(self.groups) == 1 and self.ledger is not None:
            self._early = {d.id: Crew(self._work(d)) for d in self.groups[0][:_EARLY]}
            for crew in self._early.values():
                crew.start()

    def start(self, group: Sequence[Deployment]) -> None:
        """Begin to start deployments; does not wait."""
        if self.guard is None and not self.deployments.attached:
            self.guard = Guard(f"guard-{self.deployments.prefix}")
            self.guard.apps = [
                self.deployments.app_name(d) for d in self.pool.deployments.values() if d.endpoint is None
            ]
            self.guard.start()
        if not self.deployments.attached:
            self._rent().start()
        self.deployments.start(group)

    def stop(self) -> None:
        """Take down whatever runs, at every ending; what cannot be is left to the guard."""
        gone = False
        try:
            self._end_early()
            with self._told_while_stopping():
                gone = self.deployments.stop(list(self.pool.deployments.values()))
        finally:
            if self.rent is not None:
                self.rent.stop()
            if self.guard is not None:
                self.guard.stop(gone)
                self.guard = None
            self._release()

    def _end_early(self) -> None:
        for crew in self._early.values():
            crew.stop()
        self._early.clear()

    def _rent(self) -> Rent:
        if self.rent is None:
            owned = {name: d for name, d in self.pool.deployments.items() if d.endpoint is None}
            self.rent = Rent(self.folder, owned, lambda: self.deployments.replicas(list(owned.values())))
        return self.rent

    def _told_while_stopping(self) -> contextlib.AbstractContextManager[Any]:
        return self.screen.stage("stop") if self.guard is not None else contextlib.nullcontext()

    def _release(self) -> None:
        self.folder.tell(None)
        if self.ledger is not None:
            release(self.ledger, ours=not self.folder.lost)
            self.ledger = None

    def answer(self, feed: Feed, expected_tokens: float | None = None) -> Snapshot:
        """Answer what a feed gives, until it has nothing more, or `stopping` is set.

        Args:
            feed: The plan parts.
            expected_tokens: Output tokens of all rows, for the time that is left.
        """
        if self.ledger is not None:
            return self._answer(feed, expected_tokens)
        self.ledger = claim(self.folder.store.uri, self.budget_usd)
        try:
            return self._answer(feed, expected_tokens)
        finally:
            self._release()

    def _answer(self, feed: Feed, expected_tokens: float | None) -> Snapshot:
        tally = tally_results(self.folder)
        # rows that a smaller budget skipped are tried again
        rows = {status: count for status, count in tally.rows.items() if status != "skipped_budget"}
        ray.get(self.ledger.resume.remote(tally.accounts, rows))
        self.folder.tell(self.ledger.hold.remote)
        if not self.deployments.attached:
            self._rent()  # of earlier sessions, too: where it has used up the budget, nothing is started
        before, began_s = self._tokens(tally.accounts), time.monotonic()
        if self._is_rented_out():
            feed.abandon()
        elif len(self.groups) == 1:
            self._answer_group(self.groups[0], feed, expected_tokens)
        else:
            parts = feed.rest()
            for group in self.groups:
                mine = [part for part in parts if part.deployment in {d.id for d in group}]
                self._answer_group(group, Given(mine), expected_tokens)
                self.deployments.stop(group)  # it would hold the room of the next ones
                if self.stopping.is_set():
                    break
        snapshot: Snapshot = ray.get(self.ledger.close.remote())
        if len(self.groups) == 1:
            took_s = time.monotonic() - began_s
            for name, tokens in self._tokens(snapshot.balance.accounts).items():
                replicas = self.pool.deployments[name].max_replicas
                self.speeds[name] = (tokens - before.get(name, 0)) / took_s / replicas
        return snapshot

    def _tokens(self, accounts: Mapping[Candidate, Account]) -> dict[str, int]:
        """Output tokens by deployment."""
        found: dict[str, int] = {}
        for candidate, account in accounts.items():
            if candidate.model not in self.pool.models:  # of an earlier collection, with others
                continue
            name = self.pool.deployment(candidate).id
            found[name] = found.get(name, 0) + account.output_tokens
        return found

    def _snapshot(self) -> Snapshot:
        # on a machine that is very busy, or while a node goes, a call may fail though the ledger is well
        for tries_left in reversed(range(_PATIENT_TRIES)):
            try:
                self._last = ray.get(self.ledger.snapshot.remote())
                break
            except ActorUnavailableError:
                if not tries_left:
                    raise
                time.sleep(1.0)
        assert self._last is not None
        return self._last

    def _is_rented_out(self) -> bool:
        """Whether the engines' time ends the run now."""
        if self.stopping.is_set() or not self._rent_is_over_budget():
            return False
        self.rented_out = True
        self.stopping.set()
        return True

    def _rent_is_over_budget(self) -> bool:
        """Whether the engines' time, perhaps with the tokens, has used up the budget; where that counts."""
        currency, budget = self.keys.budget_currency, self.budget_usd
        rent = self.rent.usd if self.rent is not None else None
        if currency == "tokens" or budget is None or rent is None:
            return False
        if currency == "both":
            snapshot: Snapshot = self._snapshot()
            rent += snapshot.balance.spent_usd + snapshot.balance.unknown_usd
        return rent >= budget

    def _answer_group(self, group: Sequence[Deployment], feed: Feed, expected: float | None) -> None:
        crews: dict[str, Crew] = {}
        wanted = [d for d in group if d.id in feed.deployments]
        if wanted:
            self._up(wanted, crews)
        self._end_early()  # nothing goes through the others
        try:
            with self.screen.stage("answer") as stage:
                self._show(stage, feed, expected)
                stage.resumed = stage.done
                watch = Watch(self.deployments, group)
                while not self._step(group, crews, feed):
                    _pause([one for crew in crews.values() for one in crew.running])
                    watch.group = [d for d in group if d.id in crews]
                    watch.look()
                    self._show(stage, feed, expected, None if self.stopping.is_set() else self._last)
                self._show(stage, feed, expected)
        finally:
            for crew in crews.values():
                crew.stop()
            feed.abandon()

    def _up(self, deployments: Sequence[Deployment], crews: dict[str, Crew]) -> None:
        """Start deployments, wait until they answer, and have a crew for each."""
        self.start(deployments)
        self.deployments.wait(deployments, self.screen)
        for deployment in deployments:
            crew = self._early.pop(deployment.id, None) or Crew(self._work(deployment))
            crew.handle = None if deployment.endpoint is not None else self.deployments.handle(deployment)
            crews[deployment.id] = crew

    def _work(self, deployment: Deployment) -> DispatchWork:
        return DispatchWork(
            self.pool,
            deployment,
            self.folder.store.uri,
            self.keys.dispatch,
            self.keys.sandbox_keys,
            self.grader,
            self.ledger,
            self.settings,
        )

    def _step(self, group: Sequence[Deployment], crews: dict[str, Crew], feed: Feed) -> bool:
        """Hand out what there is to do; tells whether all is done."""
        self.folder.check()
        try:
            ended = [one for crew in crews.values() for one in crew.finished()]
        except RayError as error:
            raise root(error) from error
        for part, whole in ended:
            if whole:
                feed.finished(part)
        self._is_rented_out()
        if self.stopping.is_set():
            if self._stopped_s is None:
                self._stopped_s = time.monotonic()
                for crew in crews.values():
                    crew.drain()
            patient = time.monotonic() - self._stopped_s < _GRACE_S
            return not (patient and any(crew.rows for crew in crews.values()))
        unfinished = sum(crew.rows for crew in crews.values())
        for part in feed.more(unfinished, self._snapshot()):
            if part.deployment not in crews:
                self._up([d for d in group if d.id == part.deployment], crews)
            crews[part.deployment].waiting.append(part)
        for crew in crews.values():
            crew.push()
        return feed.exhausted and not any(crew.rows for crew in crews.values())

    def _show(
        self, stage: Stage, feed: Feed, expected_tokens: float | None, known: Snapshot | None = None
    ) -> None:
        snapshot = known or self._snapshot()
        balance = snapshot.balance
        plan = stage.total = self.rows_total
        stage.done = sum(snapshot.rows.values()) + feed.unrouted
        stage.ended_as = snapshot.rows
        tokens = sum(account.output_tokens for account in balance.accounts.values())
        if expected_tokens and plan:
            # the longest answers come first: rows alone would promise too much time
            by_rows = stage.done / plan
            stage.share = by_rows if by_rows >= 1 else min(max(tokens / expected_tokens, by_rows), 0.99)
        failed = f", {snapshot.rows['failed']:,} failed" if snapshot.rows.get("failed") else ""
        of = f" of {money(balance.budget_usd)}" if balance.budget_usd is not None else ""
        stage.note = f"{tokens:,} output tokens · {money(balance.spent_usd)}{of}{failed}"
        self.screen.tick(stage)
