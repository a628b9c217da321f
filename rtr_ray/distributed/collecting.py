"""Collecting outcomes: candidates are run on queries through the deployments, graded, and recorded.

The work lies in `<output>/_run/`, a run folder like any other; what is there is not run again.
Plan parts there are those of the last collection, results those of all: what one collection asks
for is counted by the cells (query and sample) of its plan parts, money by all results.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import ray
import yaml

from rtr_ray import grading
from rtr_ray.cells import cell_key
from rtr_ray.collection import Collection
from rtr_ray.distributed.answering import Answering, Given
from rtr_ray.distributed.batch import recorded_ending, side_by_side, terminable
from rtr_ray.distributed.cell_tasks import (
    Grading,
    Wanted,
    grade_cells,
    hash_ids,
    ids_hashed_to,
    judge_folder,
    look,
    outcome_name,
    repeated,
    sample_split,
    write_cells,
    write_judged,
)
from rtr_ray.distributed.cluster import TASK_CPUS, Needs, connected
from rtr_ray.distributed.ledger_actor import Snapshot
from rtr_ray.distributed.plan_parts import Part, part_name
from rtr_ray.distributed.tallies import tally_results
from rtr_ray.errors import DataError, LedgerError
from rtr_ray.ledger import ZERO, Record
from rtr_ray.pool import Pool, fingerprint
from rtr_ray.run_folder import LEDGER, RESULTS, SUMMARY, RunFolder
from rtr_ray.screen import Screen
from rtr_ray.storage import open_store
from rtr_ray.summary import Grades, Tally, plain, summary, summed
from rtr_ray.types import Candidate


def collect(work: Collection, screen: Screen, fresh: bool = False) -> dict[str, Any]:
    """Run candidates on queries, grade, and write outcomes; run only what is missing.

    Returns:
        A summary, of the same form as a run's.

    Raises:
        RtrError: In one sentence, whatever stands in the way.
    """
    file = work.file
    # a grown pool or sample goes on in the same folder; other queries do not
    folder, aside = RunFolder.open(
        f"{file.output.rstrip('/')}/_run",
        work.fingerprints,
        yaml.safe_dump(json.loads(file.model_dump_json())),
        fresh,
        screen.say,
    )
    if aside is not None:
        screen.say(f"What was collected before was moved to {aside}.")
    asked = [*work.candidates]
    if isinstance(work.grader, grading.Judge):
        asked.append(Candidate.parse(work.grader.candidate))
    deployments = {work.pool.deployment(c).id for c in asked}
    pool = replace(
        work.pool,
        deployments={name: d for name, d in work.pool.deployments.items() if name in deployments},
        models={name: m for name, m in work.pool.models.items() if m.deployment in deployments},
        excluded=frozenset(
            pair for pair in work.pool.excluded if work.pool.models[pair[0]].deployment in deployments
        ),
    )
    cluster = connected(file.cluster.address, side_by_side(pool, Needs(TASK_CPUS)))
    with recorded_ending(folder), cluster, terminable():
        return _Collecting(replace(work, pool=pool), work.pool, folder, screen).run()


@dataclass(frozen=True, slots=True)
class _Answered:
    """What came of the plan parts of one folder."""

    rows: int  # that the plan has
    tally: Tally  # of their results
    elsewhere_usd: Decimal  # of results that are not in the plan
    snapshot: Snapshot


@dataclass(slots=True)
class _Collecting:
    """One collection on a connected cluster."""

    work: Collection  # with the part of the pool that it runs
    whole: Pool
    folder: RunFolder
    screen: Screen

    def run(self) -> dict[str, Any]:
        """All stages."""
        judging = self._judge_folder()
        with contextlib.closing(judging):
            return self._run(judging)

    def _run(self, judging: RunFolder) -> dict[str, Any]:
        work, file = self.work, self.work.file
        budget = file.budget_usd
        if budget is not None:  # one budget for both: what the judge took before is gone
            budget = max(budget - _gone_usd(judging), ZERO)
        asking = Grading(
            self.folder.store.uri,
            file.output,
            work.pool,
            work.grader,
            file.sandbox_keys,
            work.pool_fingerprint,
        )
        answering = Answering.prepare(self.folder, work.pool, file, self.screen, budget)
        try:
            self._plan()
            cells = self._cells()
            answered = self._answer(answering, list(cells))
            judged = self._judge(answering, asking, judging, list(cells), answered.snapshot)
        finally:
            answering.stop()
        return self._finish(answered, judged, self._grade(asking, cells), judging)

    def _plan(self) -> None:
        work, uri = self.work, self.folder.store.uri
        with self.screen.stage("plan") as stage:
            self._check_ids()
            corpus, below = work.corpus.for_tasks, None
            if work.file.sample is not None and work.chosen is None:
                parts = ray.get([sample_split.remote(corpus, s, work.file.sample) for s in work.splits])
                smallest = sorted(value for part in parts for value in part)[: work.file.sample]
                below = smallest[-1] if smallest else None
            tasks = [
                write_cells.remote(
                    uri,
                    corpus,
                    split,
                    n,
                    work.pool,
                    work.candidates,
                    work.file.repeats,
                    Wanted(below, work.chosen),
                )
                for n, split in enumerate(work.splits)
            ]
            left_out: Counter[Candidate] = Counter()
            for found in map(ray.get, tasks):
                stage.done += sum(found.rows.values())
                left_out.update(found.left_out)
                self.screen.tick(stage)
        unbounded = {c: count for c, count in left_out.items() if count}
        if not stage.done:
            raise DataError(
                _unbounded(work.pool, unbounded)
                if unbounded
                else f"The queries {work.corpus.uri} have no usable row."
            )
        if unbounded:
            self.screen.say(_unbounded(work.pool, unbounded), "yellow")

    def _check_ids(self) -> None:
        """Refuse queries whose own ids are not unique, before any is asked; derived ids are."""
        corpus, splits = self.work.corpus.for_tasks, self.work.splits
        if corpus.columns.id is None:
            return
        hashes = ray.get(repeated.remote(*(hash_ids.remote(corpus, split) for split in splits)))
        if not hashes:
            return
        found = ray.get([ids_hashed_to.remote(corpus, split, hashes) for split in splits])
        twice = sorted(name for name, count in sum(found, Counter()).items() if count > 1)
        if twice:
            raise DataError(
                f"The id '{twice[0]}' (column '{corpus.columns.id}') occurs more than once in {corpus.uri}. "
                "Make the ids unique, or name no id column: then rows get ids by position."
            )

    def _cells(self) -> dict[str, tuple[Candidate, int]]:
        """The plan parts of this collection, each with its candidate and split; older ones stay there."""
        there = set(self.folder.plans())
        wanted = {
            cell_key(self.work.pool, candidate, n): (candidate, n)
            for n in range(len(self.work.splits))
            for candidate in self.work.candidates
        }
        return {key: cell for key, cell in wanted.items() if key in there}

    def _answer(self, answering: Answering, keys: Sequence[str]) -> _Answered:
        """Answer what some plan parts have left, and compare the books."""
        folder = answering.folder
        before, looks = tally_results(folder), _looked_at(folder, keys)
        planned, settled = sum(rows for rows, _ in looks), [_settled(tally) for _, tally in looks]
        # counted by cells, not by candidates: a smaller sample or fewer repeats were other cells
        parts = [
            Part(key, self._deployment(answering.pool, key), rows)
            for key, (rows, _), done in zip(keys, looks, settled, strict=True)
            if rows > done
        ]
        # what is shown counts all rows of the folder as done, and some are of older plans
        answering.rows_total = planned + _settled(before) - sum(settled)
        snapshot = answering.answer(Given(parts))
        whole, mine = tally_results(folder), summed(tally for _, tally in _looked_at(folder, keys))
        _check_books(folder, whole, snapshot, planned, mine)
        return _Answered(planned, mine, whole.cost_usd - mine.cost_usd, snapshot)

    @staticmethod
    def _deployment(pool: Pool, key: str) -> str:
        model = unquote(key.split("/")[1].removeprefix("model="))
        return pool.models[model].deployment

    def _judge_folder(self) -> RunFolder:
        """The folder of a judge's calls; opened only where there is a judge."""
        grader, uri = self.work.grader, judge_folder(self.folder.store.uri)
        if isinstance(grader, grading.Judge):
            return RunFolder.open(uri, {"judge": fingerprint(grader.prompt)}, "")[0]
        return RunFolder(open_store(uri))

    def _judge(
        self, answering: Answering, asking: Grading, folder: RunFolder, keys: Sequence[str], gone: Snapshot
    ) -> _Answered | None:
        """Have a judge look at every answer."""
        if not isinstance(self.work.grader, grading.Judge):
            return None
        asked = ray.get([write_judged.remote(asking, key) for key in keys])
        budget = self.work.file.budget_usd
        if budget is not None:
            budget = max(budget - gone.balance.spent_usd - gone.balance.unknown_usd, ZERO)
        judging = replace(answering, folder=folder, budget_usd=budget)
        try:
            return self._answer(judging, [key for key in asked if key is not None])
        finally:
            answering.guard = judging.guard  # of what the judge may have started: ended with the rest

    def _grade(self, work: Grading, cells: Mapping[str, tuple[Candidate, int]]) -> dict[Candidate, Grades]:
        """Grade every answer and write the outcomes, one part per split and candidate."""
        grades = {candidate: Grades() for candidate in self.work.candidates}
        with self.screen.stage("grade", len(cells), "parts") as stage:
            tasks = {grade_cells.remote(work, *cell): cell[0] for cell in cells.values()}
            while tasks:
                for done in ray.wait(list(tasks))[0]:
                    grades[tasks.pop(done)].add(ray.get(done))
                    stage.done += 1
                    self.screen.tick(stage)
        output = open_store(work.output)
        # of a candidate that behaves differently now, or of a run that was moved aside
        for old in set(output.keys("part-")) - self._recorded():
            output.delete(old)
        return grades

    def _recorded(self) -> set[str]:
        """The outcome parts of the pool's candidates, whether this collection runs them or not."""
        answered = {key.removeprefix(RESULTS).split("-")[0] for key in self.folder.results()}
        keys = (
            cell_key(self.whole, candidate, n)
            for candidate in self.whole.candidates
            for n in range(len(self.work.splits))
        )
        return {outcome_name(key) for key in keys if part_name(key) in answered}

    def _finish(
        self,
        answered: _Answered,
        judged: _Answered | None,
        grades: Mapping[Candidate, Grades],
        judging: RunFolder,
    ) -> dict[str, Any]:
        tally, judge = answered.tally, tally_results(judging)
        skipped = judged.tally.rows["skipped_budget"] if judged else 0
        status = "budget_exhausted" if tally.rows["skipped_budget"] or skipped else "completed"
        tally.grades = dict(grades)
        found = summary(tally, status, answered.rows, self.work.file.budget_usd, None, self.screen.seconds)
        # of other samples and candidates, or of a pool that was another one: it counts in the budget too
        found["cost_usd"]["earlier"] = plain(answered.elsewhere_usd)
        found["judge"] = {
            "calls": judge.rows["answered"],
            "skipped_budget": skipped,
            "cost_usd": str(judge.cost_usd),
        }
        self.folder.write_json(SUMMARY, found)
        self.folder.update(status=status, stage="done")
        return found


def _looked_at(folder: RunFolder, keys: Sequence[str]) -> list[tuple[int, Tally]]:
    found: list[tuple[int, Tally]] = ray.get([look.remote(folder.store.uri, key) for key in keys])
    return found


def _settled(tally: Tally) -> int:
    return sum(tally.settled.values())


def _gone_usd(folder: RunFolder) -> Decimal:
    """What the calls of a folder have cost, and may have cost beside what their results show."""
    return sum(_money(folder), ZERO)


def _money(folder: RunFolder) -> tuple[Decimal, Decimal]:
    """What the calls of a folder have cost by their results, and what may have been paid beside."""
    spent, saved = tally_results(folder).cost_usd, folder.read_json(LEDGER)
    return spent, ZERO if saved is None else Record.from_json(saved).unknown_beside(spent)


def collected_usd(output: str) -> tuple[Decimal, Decimal]:
    """What outcomes have cost, over all collections into a folder; on a connected cluster.

    Returns:
        Exact dollars of candidates and judge, and what may have been paid for replies that were lost.
    """
    uri = f"{output.rstrip('/')}/_run"
    asked, judged = (_money(RunFolder(open_store(one))) for one in (uri, judge_folder(uri)))
    return asked[0] + judged[0], asked[1] + judged[1]


def _check_books(folder: RunFolder, whole: Tally, snapshot: Snapshot, planned: int, mine: Tally) -> None:
    """Refuse a collection whose money or rows do not add up.

    Raises:
        LedgerError: With both sides of the sum.
    """
    kept = f"The run folder {folder.store.uri} is kept as it is; please report this."
    booked = {c: account for c, account in snapshot.balance.accounts.items() if account.rows}
    if whole.accounts != booked:
        raise LedgerError(
            f"The results add up to {whole.cost_usd} dollars and the ledger to "
            f"{snapshot.balance.spent_usd}. {kept}"
        )
    counted = sum(mine.rows.values())
    if counted != planned:
        raise LedgerError(f"The plan has {planned} rows and the results {counted}. {kept}")


def _unbounded(pool: Pool, left_out: Mapping[Candidate, int]) -> str:
    lacking = ", ".join(_unique(f"'{pool.deployment(candidate).id}'" for candidate in left_out))
    return (
        f"{sum(left_out.values()):,} calls are left out: their queries hold more than text (an image, say), "
        f"which may be any number of tokens, and the context window of {lacking} is not known. "
        "Give it its context_tokens in the pool."
    )


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
