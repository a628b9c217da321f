"""Collecting outcomes: candidates are run on queries through the deployments, graded, and recorded.

The work lies in `<output>/_run/`, a run folder like any other; what is there is not run again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa
import ray
import yaml

from rtr_ray import grading
from rtr_ray.cells import SAMPLE, cell_key, cell_rows, items, judge_rows, outcome_rows, sampled
from rtr_ray.collection import Collection
from rtr_ray.corpus import QUERY_ID, Corpus, Split
from rtr_ray.distributed.answering import Answering, tally_results
from rtr_ray.distributed.batch import recorded_ending, side_by_side, terminable
from rtr_ray.distributed.cluster import TASK_CPUS, Needs, connected
from rtr_ray.distributed.dispatching import part_name
from rtr_ray.errors import DataError
from rtr_ray.parts import plan_key
from rtr_ray.pool import Pool, fingerprint
from rtr_ray.reading import read_split
from rtr_ray.run_folder import RESULTS, SUMMARY, RunFolder
from rtr_ray.sandbox import Sandbox
from rtr_ray.schemas import RESULTS as RESULTS_SCHEMA
from rtr_ray.screen import Screen
from rtr_ray.storage import Store, open_store, read_table, write_table
from rtr_ray.summary import Grades, Tally, summary
from rtr_ray.types import Candidate

_BLOCK_ROWS = 4096
_COMPARING = (grading.Exact, grading.Numeric, grading.MultipleChoice, grading.Code)


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
        {"queries": work.corpus.fingerprint},
        yaml.safe_dump(json.loads(file.model_dump_json())),
        fresh,
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
        return _Collecting(replace(work, pool=pool), folder, screen).run()


@ray.remote(num_cpus=1, max_retries=5)
def sample_split(corpus: Corpus, split: Split, count: int) -> list[int]:
    """The hashes of a random sample of the ids of a split."""
    ids = [name for block in read_split(corpus, split, _BLOCK_ROWS) for name in block[QUERY_ID].to_pylist()]
    return sampled(ids, count)


@ray.remote(num_cpus=1, max_retries=5)
def write_cells(
    output: str,
    corpus: Corpus,
    split: Split,
    number: int,
    pool: Pool,
    candidates: Sequence[Candidate],
    repeats: int,
    below: int | None,
) -> dict[Candidate, int]:
    """Write the plan rows of all candidates for the queries of a split; gives their numbers."""
    store = open_store(output)
    blocks = list(read_split(corpus, split, _BLOCK_ROWS))
    counts = {}
    for candidate in candidates:
        tables = [cell_rows(block, candidate, repeats, below) for block in blocks]
        rows = pa.concat_tables(tables) if tables else None
        if rows is not None and len(rows):
            write_table(store, cell_key(pool, candidate, number), rows.replace_schema_metadata(None))
            counts[candidate] = len(rows)
    return counts


@dataclass(slots=True)
class _Collecting:
    """One collection on a connected cluster."""

    work: Collection
    folder: RunFolder
    screen: Screen

    def run(self) -> dict[str, Any]:
        """All stages."""
        file = self.work.file
        answering = Answering.prepare(self.folder, self.work.pool, file, self.screen, file.budget_usd)
        try:
            answering.rows = self._plan()
            answering.rows_total = sum(answering.rows.values())
            answering.parts = self._keys()
            snapshot = answering.answer()
            judged = self._judge(answering, snapshot.balance.spent_usd + snapshot.balance.unknown_usd)
        finally:
            answering.stop()
        graded = self._grade(judged)
        return self._finish(answering.rows_total, graded, judged)

    def _plan(self) -> Counter[Candidate]:
        work, uri = self.work, self.folder.store.uri
        with self.screen.stage("plan") as stage:
            below = None
            if work.file.sample is not None:
                parts = ray.get([sample_split.remote(work.corpus, s, work.file.sample) for s in work.splits])
                smallest = sorted(value for part in parts for value in part)[: work.file.sample]
                below = smallest[-1] if smallest else None
            tasks = [
                write_cells.remote(
                    uri, work.corpus, split, n, work.pool, work.candidates, work.file.repeats, below
                )
                for n, split in enumerate(work.splits)
            ]
            total: Counter[Candidate] = Counter()
            for counts in map(ray.get, tasks):
                total.update(counts)
                stage.done = total.total()
                self.screen.tick(stage)
        if not total:
            raise DataError(f"The queries {work.corpus.uri} have no usable row.")
        return total

    def _keys(self) -> list[str]:
        """The plan parts of this pool and these candidates; older ones stay where they are."""
        there = set(self.folder.plans())
        wanted = [
            cell_key(self.work.pool, candidate, n)
            for n in range(len(self.work.splits))
            for candidate in self.work.candidates
        ]
        return [key for key in wanted if key in there]

    def _results(self, store: Store, key: str) -> pa.Table:
        """What was answered of a plan part."""
        keys = [k for k in store.keys(f"{RESULTS}{part_name(key)}-") if not k.endswith("-skipped.parquet")]
        wanted = [*RESULTS_SCHEMA.names, SAMPLE]
        tables = [read_table(store, k, wanted).replace_schema_metadata(None) for k in keys]
        if tables:
            return pa.concat_tables(tables)
        return RESULTS_SCHEMA.append(pa.field(SAMPLE, pa.int32())).empty_table()

    def _judge(self, answering: Answering, gone_usd: Decimal) -> dict[str, str | None]:
        """What a judge says of every answer, by its key; its calls are a run folder of their own."""
        grader = self.work.grader
        if not isinstance(grader, grading.Judge):
            return {}
        candidate = Candidate.parse(grader.candidate)
        budget = self.work.file.budget_usd
        folder, _ = RunFolder.open(
            f"{self.folder.store.uri}/judge", {"judge": fingerprint(grader.prompt)}, ""
        )
        for number_, key in enumerate(self._keys()):
            part, results = read_table(self.folder.store, key), self._results(self.folder.store, key)
            asked = [
                (item, name)
                for item, name in zip(items(part, results), _keys_of(results), strict=True)
                if item.answer is not None
            ]
            rows = judge_rows(
                [grader.filled(item) for item, _ in asked], [name for _, name in asked], candidate
            )
            if len(rows):
                write_table(folder.store, plan_key(candidate, number_), rows)
        judging = replace(
            answering,
            folder=folder,
            budget_usd=None if budget is None else max(budget - gone_usd, Decimal("1e-12")),
            rows_total=None,
            parts=None,
        )
        judging.answer()
        said: dict[str, str | None] = {}
        for key in folder.results():
            table = read_table(folder.store, key, ["query_id", "response"])
            said |= dict(zip(table["query_id"].to_pylist(), table["response"].to_pylist(), strict=True))
        return said

    def _grade(self, judged: Mapping[str, str | None]) -> dict[Candidate, list[float | None]]:
        """Grade every answer and write the outcomes, one part per split and candidate."""
        store, output = self.folder.store, open_store(self.work.file.output)
        scores: dict[Candidate, list[float | None]] = {c: [] for c in self.work.candidates}
        keys = self._keys()
        kept = set()
        with self.screen.stage("grade", len(keys), "parts") as stage:
            for key in keys:
                part, results = read_table(store, key), self._results(store, key)
                if len(results):
                    candidate = Candidate(*(results[c][0].as_py() for c in ("model", "strategy", "samples")))
                    correct = self._scores(part, results, key, judged)
                    scores[candidate] += correct
                    name = f"part-{part_name(key)}.parquet"
                    rows = outcome_rows(
                        self.work.pool, candidate, part, results, correct, self.work.pool_fingerprint
                    )
                    write_table(output, name, rows)
                    kept.add(name)
                stage.done += 1
                self.screen.tick(stage)
        for old in set(output.keys("part-")) - kept:
            output.delete(old)  # of a candidate that behaves differently now; its answers are still in _run
        return scores

    def _scores(
        self, part: pa.Table, results: pa.Table, key: str, judged: Mapping[str, str | None]
    ) -> list[float | None]:
        grader = self.work.grader
        if grader is None or not len(results):
            return [None] * len(results)
        found = items(part, results)
        if isinstance(grader, grading.Reference):
            gold = self._reference_answers(key, Candidate.parse(grader.candidate))
            names = results["query_id"].to_pylist()
            found = [replace(item, gold=gold.get(name)) for item, name in zip(found, names, strict=True)]
        if isinstance(grader, grading.Judge):
            grades = [
                0.0 if item.answer is None else grading.score(judged.get(name))
                for item, name in zip(found, _keys_of(results), strict=True)
            ]
        else:
            grades = asyncio.run(self._graded(grader, found))
        failed = [status != "answered" for status in results["status"].to_pylist()]
        return [None if bad else grade for grade, bad in zip(grades, failed, strict=True)]

    async def _graded(self, grader: grading.Grader, found: Sequence[grading.Item]) -> list[float | None]:
        if not isinstance(grader, grading.Code):
            return await grader.grade(found)
        async with Sandbox(self.work.file.sandbox_keys.mode) as sandbox:

            async def check_program(code: str, tests: str) -> bool:
                return (await sandbox.run(code, check=tests)).status == "ok"

            return await replace(grader, check_program=check_program).grade(found)

    def _reference_answers(self, key: str, candidate: Candidate) -> dict[str, str | None]:
        """The reference candidate's first answers to the queries of the same split."""
        split = int(key.rsplit("/", 1)[1].split("-")[2])
        results = self._results(self.folder.store, cell_key(self.work.pool, candidate, split))
        names, answers, samples = (results[c].to_pylist() for c in ("query_id", "answer", SAMPLE))
        return {name: a for name, a, sample in zip(names, answers, samples, strict=True) if sample == 0}

    def _finish(
        self, total: int, scores: Mapping[Candidate, Sequence[float | None]], judged: Mapping[str, str | None]
    ) -> dict[str, Any]:
        tally = tally_results(self.folder)
        judge = self._judge_tally() if judged else Tally()
        status = "budget_exhausted" if tally.rows["skipped_budget"] else "completed"
        for candidate, values in scores.items():
            graded = [value for value in values if value is not None]
            tally.grades[candidate] = Grades(len(graded), sum(graded))
        found = summary(tally, status, total, self.work.file.budget_usd, None, self.screen.seconds)
        found["judge"] = {"calls": judge.rows["answered"], "cost_usd": str(judge.cost_usd)}
        self.folder.write_json(SUMMARY, found)
        self.folder.update(status=status, stage="done")
        return found

    def _judge_tally(self) -> Tally:
        return tally_results(RunFolder(open_store(f"{self.folder.store.uri}/judge")))


def _keys_of(results: pa.Table) -> list[str]:
    """The keys of the requests that results answer."""
    columns = [results[c].to_pylist() for c in ("query_id", "model", "strategy", "samples", SAMPLE)]
    return [
        f"{name}|{Candidate(model, strategy, samples)}|{sample}"
        for name, model, strategy, samples, sample in zip(*columns, strict=True)
    ]
