"""Answering the plan parts of a run: deployments up, parts answered, deployments down."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import ray

from rtr_ray.config import JobKeys
from rtr_ray.distributed.cluster import LAUNCH_CPUS, residencies, root
from rtr_ray.distributed.deployments import Deployments, Watch
from rtr_ray.distributed.dispatching import DispatchWork, answer_parts, part_name
from rtr_ray.distributed.guard import Guard
from rtr_ray.distributed.ledger_actor import Snapshot, claim, release
from rtr_ray.grading import Grader
from rtr_ray.pool import Deployment, Endpoint, Pool, fingerprint
from rtr_ray.run_folder import RESULTS, RunFolder
from rtr_ray.screen import Screen, Stage, money
from rtr_ray.storage import open_store, read_table
from rtr_ray.summary import COLUMNS, Tally, summed
from rtr_ray.types import Candidate

_POLL_S = 0.5
_TALLIED_TOGETHER = 64  # results parts that one task adds up


@ray.remote(num_cpus=1, max_retries=5)
def tally_parts(output: str, keys: Sequence[str]) -> Tally:
    """The tally of some results parts."""
    store = open_store(output)
    return summed(Tally.of(read_table(store, key, COLUMNS)) for key in keys)


def tally_results(folder: RunFolder, parts: Sequence[str] | None = None) -> Tally:
    """The tally of the results of a run, or of some of its plan parts, added up by Ray tasks."""
    keys = folder.results()
    if parts is not None:
        names = {part_name(key) for key in parts}
        keys = [key for key in keys if key.removeprefix(RESULTS).split("-")[0] in names]
    batches = [keys[i : i + _TALLIED_TOGETHER] for i in range(0, len(keys), _TALLIED_TOGETHER)]
    return summed(ray.get([tally_parts.remote(folder.store.uri, batch) for batch in batches]))


@ray.remote(num_cpus=LAUNCH_CPUS, max_retries=0)
def check_endpoints(endpoints: Sequence[Endpoint]) -> None:
    """Refuse endpoints whose key is not set; on the cluster, since the driver's variables may differ."""
    from rtr_ray.executors.openai import OpenAIExecutor  # takes a second to import

    for endpoint in endpoints:
        OpenAIExecutor(endpoint)


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
    ledger: Any = field(default=None, init=False)  # actor handle; each folder has one of its own
    guard: Guard | None = None
    groups: list[list[Deployment]] = field(default_factory=list)
    rows: Mapping[Candidate, int] = field(default_factory=dict)  # to be answered, by candidate
    rows_total: int | None = None
    parts: list[str] | None = None  # the plan parts to answer; None: all of the folder

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
            prefix, bool(cluster.serve_app), cluster.placement_timeout_s, cluster.startup_timeout_s
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

    def start(self, group: Sequence[Deployment]) -> None:
        """Begin to start deployments; does not wait."""
        if self.guard is None and not self.deployments.attached:
            self.guard = Guard(f"guard-{self.deployments.prefix}")
            self.guard.apps = [
                self.deployments.app_name(d) for d in self.pool.deployments.values() if d.endpoint is None
            ]
            self.guard.start()
        self.deployments.start(group)

    def stop(self) -> None:
        """Take down whatever runs, at every ending; what cannot be is left to the guard."""
        gone = False
        try:
            with self._told_while_stopping():
                gone = self.deployments.stop(list(self.pool.deployments.values()))
        finally:
            if self.guard is not None:
                self.guard.stop(gone)
                self.guard = None
            self._release()

    def _told_while_stopping(self) -> contextlib.AbstractContextManager[Any]:
        return self.screen.stage("stop") if self.guard is not None else contextlib.nullcontext()

    def _release(self) -> None:
        if self.ledger is not None:
            release(self.ledger)
            self.ledger = None

    def answer(self, expected_tokens: float | None = None) -> Snapshot:
        """Answer every plan part of the folder that has rows left.

        Args:
            expected_tokens: Output tokens of all rows, for the time that is left.
        """
        if self.ledger is not None:
            return self._answer(expected_tokens)
        self.ledger = claim(self.folder.store.uri, self.budget_usd)
        try:
            return self._answer(expected_tokens)
        finally:
            self._release()

    def _answer(self, expected_tokens: float | None) -> Snapshot:
        tally = tally_results(self.folder)
        # rows that a smaller budget skipped are tried again
        rows = {status: count for status, count in tally.rows.items() if status != "skipped_budget"}
        ray.get(self.ledger.resume.remote(tally.accounts, rows))
        parts = self._parts(self.folder.plans() if self.parts is None else self.parts)
        done = tally if self.parts is None else tally_results(self.folder, self.parts)
        for group in self.groups:
            wanted = [d for d in group if parts.get(d.id) and not self._is_done(d, done)]
            if not wanted:
                if len(self.groups) > 1:  # started early, it would hold the room of the next ones
                    self.deployments.stop(group)
                continue
            self.start(wanted)
            self.deployments.wait(wanted, self.screen)
            self._answer_group(wanted, parts, expected_tokens)
            if len(self.groups) > 1:
                self.deployments.stop(group)
        snapshot: Snapshot = ray.get(self.ledger.close.remote())
        return snapshot

    def _is_done(self, deployment: Deployment, tally: Tally) -> bool:
        """Whether all rows of a deployment's candidates have been answered before."""
        mine = [c for c in self.rows if self.pool.deployment(c).id == deployment.id]
        return bool(mine) and all(tally.settled[c] >= self.rows[c] for c in mine)

    def _parts(self, keys: Sequence[str]) -> dict[str, list[str]]:
        """Plan parts by the deployment that answers them, the longest answers first."""
        parts: dict[str, list[str]] = {}
        for key in keys:
            model = unquote(key.split("/")[1].removeprefix("model="))
            parts.setdefault(self.pool.models[model].deployment, []).append(key)
        return parts

    def _answer_group(
        self, group: Sequence[Deployment], parts: Mapping[str, Sequence[str]], expected: float | None
    ) -> None:
        failed: list[BaseException] = []
        threads = [
            threading.Thread(target=self._drain, args=(d, parts[d.id], failed), daemon=True) for d in group
        ]
        with self.screen.stage("answer") as stage:
            self._show(stage, expected)
            stage.resumed = stage.done
            for thread in threads:
                thread.start()
            watch = Watch(self.deployments, group)
            while any(thread.is_alive() for thread in threads) and not failed:
                time.sleep(_POLL_S)
                self._show(stage, expected)
                watch.look()
            if failed:
                raise root(failed[0])
            self._show(stage, expected)

    def _drain(self, deployment: Deployment, keys: Sequence[str], failed: list[BaseException]) -> None:
        endpoint = deployment.endpoint is not None
        work = DispatchWork(
            self.pool,
            deployment,
            None if endpoint else self.deployments.handle(deployment),
            self.folder.store.uri,
            self.keys.dispatch,
            self.keys.sandbox_keys,
            self.grader,
            self.ledger,
        )
        try:
            for _ in answer_parts(work, keys):
                pass
        except BaseException as error:
            failed.append(error)

    def _show(self, stage: Stage, expected_tokens: float | None) -> None:
        snapshot: Snapshot = ray.get(self.ledger.snapshot.remote())
        balance = snapshot.balance
        plan = stage.total = self.rows_total
        stage.done = sum(snapshot.rows.values())
        tokens = sum(account.output_tokens for account in balance.accounts.values())
        if expected_tokens and plan:
            # the longest answers come first: rows alone would promise too much time
            by_rows = stage.done / plan
            stage.share = by_rows if by_rows >= 1 else min(max(tokens / expected_tokens, by_rows), 0.99)
        failed = f", {snapshot.rows['failed']:,} failed" if snapshot.rows.get("failed") else ""
        of = f" of {money(balance.budget_usd)}" if balance.budget_usd is not None else ""
        stage.note = f"{tokens:,} output tokens · {money(balance.spent_usd)}{of}{failed}"
        self.screen.tick(stage)
