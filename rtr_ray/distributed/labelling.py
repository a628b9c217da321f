"""No labels, no router: a sample is labelled, learned from, and the corpus answered, in one go.

`OUTPUT-labels` holds the sample: `labels.json` tells how far it has come and what it has cost,
`outcomes/` what every candidate answered. `OUTPUT-router` holds the router; it is written last, so
where it is, labelling is over. `OUTPUT` is a run like any other, with what the labels have left of
the budget. The same command goes on from wherever it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import yaml

from rtr_ray import registry
from rtr_ray.corpus import Corpus, Split
from rtr_ray.distributed.batch import encoders_of, recorded_ending, run_job, side_by_side, terminable
from rtr_ray.distributed.cluster import check_encoders, connected
from rtr_ray.distributed.collecting import collect, collected_usd
from rtr_ray.distributed.ledger_actor import claim, release
from rtr_ray.distributed.standing import standing
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import BudgetError, DataError
from rtr_ray.estimators import KNOWN as ESTIMATORS
from rtr_ray.grading import Judge
from rtr_ray.job import Job
from rtr_ray.labelling import Labelling
from rtr_ray.labels import FEW_ROWS, Labels, check_enough, next_rows, pilot_exhausted
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.pool import fingerprint
from rtr_ray.reading import read_split
from rtr_ray.router import embed_profiles
from rtr_ray.run_folder import RUN, RunFolder, moved_aside
from rtr_ray.screen import Screen, money
from rtr_ray.storage import open_store
from rtr_ray.summary import plain
from rtr_ray.thrift import thrifty
from rtr_ray.training import train_and_hold_out
from rtr_ray.types import Outcomes
from rtr_ray.verdict import Labelled, Verdict, verdict

PROGRESS, ROUTER = "labels.json", "router.json"
_BLOCK_ROWS = 4096


def begun(work: Labelling) -> bool:
    """Whether an earlier command has begun to label: its split of the budget was agreed to then."""
    return open_store(work.uri).read(PROGRESS) is not None


def run_unrouted(
    work: Labelling, screen: Screen, fresh: bool = False, retry_failed: bool = False
) -> dict[str, Any]:
    """Label a sample, train, and answer the corpus, all under one budget; go on where it stopped.

    Args:
        work: What to do, checked.
        screen: Where to show how far it is.
        fresh: Move an older run, its labels and its router aside.
        retry_failed: Ask rows again that failed without being paid for.

    Returns:
        The content of `summary.json`: of a run, with `labels`, `routing`, `cost_usd.labels` and
        `cost_usd.total`.

    Raises:
        RtrError: In one sentence, whatever stands in the way.
    """
    if fresh:
        _move_aside(work, screen)
    elif not begun(work):
        _check_places(work)
    file = work.file
    folder, _ = RunFolder.open(
        work.uri, work.fingerprints, yaml.safe_dump(json.loads(file.model_dump_json())), say=screen.say
    )
    encoders = encoders_of(file.encoder)
    cluster = connected(file.cluster.address, side_by_side(work.pool, encoders))
    with recorded_ending(folder), cluster, terminable(), _alone(folder):
        if not file.cluster.grows:
            check_encoders(encoders, ray.cluster_resources())
        steps = _Steps(work, folder, screen)
        if steps.over:
            return steps.answer(None, retry_failed)
        steps.check_encoder()
        prefix = f"rtr-{fingerprint(open_store(file.output).uri)[:8]}"  # that of the run: it may take over
        with standing(prefix, work.pool, file.cluster, encoders, screen) as app:
            steps.label(app)
            steps.learn()
            return steps.answer(app, retry_failed)


def _check_places(work: Labelling) -> None:
    """Refuse to begin where something else lies: found now, before labels are paid for."""
    for uri, key in ((work.file.output, RUN), (work.router, ROUTER)):
        if open_store(uri).read(key) is not None:
            raise DataError(
                f"{uri} is there already, and {work.uri}, from which it would have come, is not. Take "
                "another output, give the job a router, or --fresh to move it aside."
            )


def _move_aside(work: Labelling, screen: Screen) -> None:
    for uri in (work.uri, work.file.output, work.router):
        aside = moved_aside(uri, screen.say)
        if aside is not None:
            screen.say(f"What lay in {uri} was moved to {aside}.")


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Nobody else on this cluster labels into the folder: not every file system has locks."""
    actor = claim(folder.store.uri, None)
    try:
        yield
    finally:
        release(actor)


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def count_rows(corpus: Corpus, split: Split) -> int:
    """How many rows a split has."""
    return sum(len(block) for block in read_split(corpus, split, _BLOCK_ROWS))


@dataclass(slots=True)
class _Steps:
    """The steps of one command on a connected cluster."""

    work: Labelling
    folder: RunFolder  # of the labels
    screen: Screen
    _rows_total: int | None = None

    @property
    def labels(self) -> Labels:
        """How far labelling has come."""
        found = self.folder.read_json(PROGRESS)
        return Labels() if found is None else Labels.from_json(found)

    @property
    def over(self) -> bool:
        """Whether there is a router, and it is known why it is what it is."""
        there = open_store(self.work.router).read(ROUTER) is not None
        return there and bool(self.labels.routing)

    @property
    def rows_total(self) -> int:
        """Rows of the corpus."""
        if self._rows_total is None:
            corpus, splits = self.work.collection.corpus.for_tasks, self.work.collection.splits
            unknown = [count_rows.remote(corpus, split) for split in splits if split.rows is None]
            self._rows_total = sum(split.rows or 0 for split in splits) + sum(ray.get(unknown))
        return self._rows_total

    def check_encoder(self) -> None:
        """Load the encoder before anything is paid for."""
        with self.screen.stage("encoder", unit="dimensions") as stage:
            stage.done = self.work.encoder.encode(["Is it there?"]).shape[1]

    def label(self, app: str | None) -> None:
        """Label rows, step by step: what a row has cost so far decides how many there will be."""
        work = self.work
        self.folder.update(stage="label")
        labels = self.labels
        self._save(labels)
        while not labels.complete:
            wanted = min(work.file.labels.rows, self.rows_total)
            target = next_rows(labels.rows, labels.gone_usd, wanted, work.limit_usd)
            if target <= labels.rows:
                labels = replace(labels, complete=True)
            else:
                labels = self._labelled(labels, target, app)
            self._save(labels)
        self._tell(labels)

    def _labelled(self, before: Labels, rows: int, app: str | None) -> Labels:
        work = self.work
        asked = f"{rows:,} rows are put to all {len(work.pool.candidates)} candidates."
        if before.rows:
            asked = f"A labelled row costs {money(before.gone_usd / before.rows)}: {asked}"
        self.screen.say(asked)
        found = collect(work.sample(rows, app), self.screen)
        spent, unknown = collected_usd(work.outcomes)
        exhausted = found["status"] == "budget_exhausted"
        if exhausted and not before.rows:
            cells, skipped = found["rows"]["total"], found["rows"]["skipped_budget"]
            answered = cells - skipped + found["judge"]["calls"]
            calls = cells * (2 if isinstance(work.collection.grader, Judge) else 1)
            raise pilot_exhausted(answered, calls, spent + unknown, work.file.labels.share)
        outcomes = self._outcomes()
        if not before.rows:
            self._check_pilot(outcomes)
        known = len(outcomes.query_ids)
        return Labels(known, spent, unknown, complete=exhausted or known < rows)

    def _check_pilot(self, outcomes: Outcomes) -> None:
        work, graded_C = self.work, (~np.isnan(outcomes.accuracy)).sum(axis=0)
        lacking = [str(c) for c, count in zip(outcomes.candidates, graded_C, strict=True) if not count]
        if lacking:
            raise DataError(
                f"None of the answers of {', '.join(lacking)} to {len(outcomes.query_ids)} sampled rows "
                "could be graded: the calls failed, or the rows have no reference answer. See "
                f"{work.outcomes}; exclude the candidate in the pool, or give another grader."
            )
        priced_MC = outcomes.cost_usd[:, ~np.isnan(outcomes.cost_usd).all(axis=0)]
        cheapest = float(np.nanmean(priced_MC, axis=0).min(initial=np.inf))
        left = work.budget_usd - work.limit_usd
        if np.isfinite(cheapest):
            check_enough(cheapest, self.rows_total, left, work.budget_usd)

    def _tell(self, labels: Labels) -> None:
        left = self.work.budget_usd - labels.gone_usd
        self.screen.say(
            f"{labels.rows:,} rows are labelled for {money(labels.gone_usd)}; {money(left)} are left for "
            f"{self.rows_total:,} answers."
        )
        if labels.rows < min(FEW_ROWS, self.rows_total):
            self.screen.say(
                f"{labels.rows} labels tell little: routing is used only if it shows in them. More come "
                "with a larger budget_usd or labels.share.",
                "yellow",
            )

    def _outcomes(self) -> Outcomes:
        return pivot(read_long(self.work.outcomes), self.work.pool.candidates)

    def learn(self) -> None:
        """See whether routing pays, and train: what routes if it does, else what knows no query."""
        work, labels = self.work, self.labels
        self.folder.update(stage="train")
        with self.screen.stage("train", unit="labels") as stage:
            outcomes = self._outcomes()
            stage.total = stage.done = len(outcomes.query_ids)
            self.screen.tick(stage)
            encoded_MD = work.encoder.encode(outcomes.queries)
            profiles = embed_profiles(work.pool, work.encoder, outcomes.candidates)
            labelled = Labelled(outcomes, encoded_MD, profiles, work.encoder, work.pool)
            usd_per_row = float(work.budget_usd - labels.gone_usd) / self.rows_total
            found = verdict(labelled, work.estimator, work.policy, usd_per_row)
            if found.used:
                router = train_and_hold_out(outcomes, work.pool, work.encoder, work.estimator, encoded_MD)
            else:  # looks at no embedding: one that costs nothing will do
                prior, encoder = registry.build("prior", ESTIMATORS, "estimator"), HashEncoder(1)
                encoded_MD = encoder.encode(outcomes.queries)
                router = train_and_hold_out(outcomes, work.pool, encoder, prior, encoded_MD)
            # before the router, which says that all is done
            self._save(replace(labels, routing=found.to_json()))
            replace(router, metrics={**router.metrics, "routing": found.to_json()}).save(work.router)

    def answer(self, app: str | None, retry_failed: bool) -> dict[str, Any]:
        """Answer the corpus with what is left of the budget."""
        work, labels = self.work, self.labels
        self.folder.update(stage="answer")
        self._say_verdict(Verdict.from_json(labels.routing))
        job = replace(Job.check(work.routed(labels, app)), labels=labels)
        try:
            found = run_job(job, self.screen, retry_failed=retry_failed)
        except BudgetError as error:
            raise BudgetError(
                f"{error.message} That is for the answers alone: labels have taken "
                f"${plain(labels.gone_usd)} beside it."
            ) from None
        self.folder.update(status=found["status"], stage="done")
        return found

    def _say_verdict(self, found: Verdict) -> None:
        if found.used:
            self.screen.say(f"Routing pays here. {found.reason}")
        else:
            self.screen.say(
                f"Routing does not pay here: the best fixed mix for the budget is used. {found.reason}",
                "yellow",
            )

    def _save(self, labels: Labels) -> None:
        self.folder.write_json(PROGRESS, labels.to_json())
