"""The Ray tasks of collecting: each reads and writes parts, and only a few numbers come back.

So neither the driver nor the object store ever holds texts, however many there are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from rtr_ray import grading
from rtr_ray.cells import (
    SAMPLE,
    bounded,
    cell_key,
    cell_rows,
    items,
    judge_ids,
    judge_key,
    judge_rows,
    outcome_rows,
    planned,
    sampled,
    with_earlier,
)
from rtr_ray.config import SandboxKeys
from rtr_ray.corpus import QUERY_ID, Corpus, Split
from rtr_ray.distributed.plan_parts import part_name
from rtr_ray.distributed.programs import sandbox_of, with_checker
from rtr_ray.policies.base import stable_hash
from rtr_ray.pool import Pool
from rtr_ray.reading import read_split
from rtr_ray.run_folder import RESULTS
from rtr_ray.schemas import RESULTS as RESULTS_SCHEMA
from rtr_ray.storage import Store, open_store, read_table, write_table
from rtr_ray.summary import COLUMNS, Grades, Tally
from rtr_ray.thrift import thrifty
from rtr_ray.types import Candidate

_BLOCK_ROWS = 4096
_LOOKED_AT = 100  # ids that seem to occur twice and are compared letter by letter

Hashes = npt.NDArray[np.uint64]


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def sample_split(corpus: Corpus, split: Split, count: int) -> list[int]:
    """The hashes of a random sample of the ids of a split."""
    return sampled(_ids(corpus, split), count)


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def hash_ids(corpus: Corpus, split: Split) -> Hashes:
    """The hashes of all ids of a split."""
    return np.array([stable_hash(name) for name in _ids(corpus, split)], dtype=np.uint64)


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def repeated(*hashes: Hashes) -> list[int]:
    """Some of the hashes that occur more than once."""
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return [int(value) for value in values[counts > 1][:_LOOKED_AT]]


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def ids_hashed_to(corpus: Corpus, split: Split, hashes: Sequence[int]) -> Counter[str]:
    """How often each id of a split occurs that hashes to one of these."""
    wanted = set(hashes)
    return Counter(name for name in _ids(corpus, split) if stable_hash(name) in wanted)


def _ids(corpus: Corpus, split: Split) -> list[str]:
    return [name for block in read_split(corpus, split, _BLOCK_ROWS) for name in block[QUERY_ID].to_pylist()]


@dataclass(frozen=True, slots=True)
class Cells:
    """The plan rows of some candidates, counted."""

    rows: Mapping[Candidate, int]
    left_out: Mapping[Candidate, int]  # nobody can say what they cost at most


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which of the queries are put to a candidate."""

    below: int | None = None  # those whose id hashes to at most this; None: all
    chosen: Mapping[Candidate, frozenset[str]] | None = None  # those with these ids; None: all


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def write_cells(
    output: str,
    corpus: Corpus,
    split: Split,
    number: int,
    pool: Pool,
    candidates: Sequence[Candidate],
    repeats: int,
    wanted: Wanted,
) -> Cells:
    """Write the plan rows of all candidates for the queries of a split."""
    store = open_store(output)
    blocks = list(read_split(corpus, split, _BLOCK_ROWS))
    rows: dict[Candidate, int] = {}
    left_out: dict[Candidate, int] = {}
    for candidate in candidates:
        only = None if wanted.chosen is None else wanted.chosen.get(candidate, frozenset())
        every = [cell_rows(block, candidate, repeats, wanted.below, only) for block in blocks]
        tables = [bounded(table, pool, candidate) for table in every]
        rows[candidate] = sum(map(len, tables))
        left_out[candidate] = sum(map(len, every)) - rows[candidate]
        key = cell_key(pool, candidate, number)
        if rows[candidate]:
            write_table(store, key, pa.concat_tables(tables).replace_schema_metadata(None))
        else:
            store.delete(key)  # of a larger sample: its rows are not asked for any more
    return Cells(rows, left_out)


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def look(output: str, key: str) -> tuple[int, Tally]:
    """How many rows a plan part has, and the tally of their results."""
    store = open_store(output)
    part = read_table(store, key, [QUERY_ID, SAMPLE])
    return len(part), Tally.of(planned(part, _results(store, key, COLUMNS, skipped=True)))


def _results(store: Store, key: str, columns: Sequence[str], skipped: bool = False) -> pa.Table:
    """What was ever recorded of a plan part; rows that a budget skipped only where asked for."""
    found = store.keys(f"{RESULTS}{part_name(key)}-")
    if not skipped:
        found = [name for name in found if not name.endswith("-skipped.parquet")]
    wanted = list(dict.fromkeys(["query_id", *columns, SAMPLE]))
    schema = pa.schema([*(RESULTS_SCHEMA.field(n) for n in wanted if n != SAMPLE), (SAMPLE, pa.int32())])
    tables = [read_table(store, name, wanted).replace_schema_metadata(None) for name in found]
    return pa.concat_tables(tables) if tables else schema.empty_table()


@dataclass(frozen=True, slots=True)
class Grading:
    """Everything that a grading task must know."""

    run: str  # folder of the run
    output: str  # folder of the outcomes
    pool: Pool
    grader: grading.Grader | None
    sandbox: SandboxKeys
    pool_fingerprint: str

    @property
    def judging(self) -> str:
        """The judge's calls are a run folder of their own."""
        return judge_folder(self.run)


def judge_folder(run: str) -> str:
    """Where the judge's calls of a run lie."""
    return f"{run}/judge"


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def write_judged(work: Grading, key: str) -> str | None:
    """Write what a judge is to be asked about the answers of a plan part; gives its key, if any."""
    grader, store, folder = work.grader, open_store(work.run), open_store(work.judging)
    assert isinstance(grader, grading.Judge)
    judge = Candidate.parse(grader.candidate)
    part = read_table(store, key)
    results = planned(part, _results(store, key, RESULTS_SCHEMA.names))
    asked = [
        (grader.filled(item), name)
        for item, name in zip(items(part, results), judge_ids(results), strict=True)
        if item.answer is not None
    ]
    if not asked:
        return None
    where = judge_key(work.pool, judge, part_name(key))
    write_table(folder, where, judge_rows([text for text, _ in asked], [name for _, name in asked], judge))
    return where


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def grade_cells(work: Grading, candidate: Candidate, number: int) -> Grades:
    """Grade the answers of a plan part, and write its outcomes."""
    store, output = open_store(work.run), open_store(work.output)
    key = cell_key(work.pool, candidate, number)
    part, every = read_table(store, key), _results(store, key, RESULTS_SCHEMA.names)
    results = planned(part, every)
    if not len(results):
        return Grades()
    correct = _scores(work, candidate, number, part, results)
    rows = outcome_rows(work.pool, candidate, part, results, correct, work.pool_fingerprint)
    name = outcome_name(key)
    before = output.read(name)
    if before is not None:
        rows = with_earlier(rows, pq.read_table(pa.BufferReader(before)), part, every)
    write_table(output, name, rows)
    graded = [value for value in correct if value is not None]
    return Grades(len(graded), sum(graded))


def outcome_name(key: str) -> str:
    """Where the outcomes of a plan part lie."""
    return f"part-{part_name(key)}.parquet"


def _scores(
    work: Grading, candidate: Candidate, number: int, part: pa.Table, results: pa.Table
) -> list[float | None]:
    grader = work.grader
    if grader is None:
        return [None] * len(results)
    found = items(part, results)
    if isinstance(grader, grading.Reference):
        gold = _reference_answers(work, Candidate.parse(grader.candidate), number)
        names = results["query_id"].to_pylist()
        found = [replace(item, gold=gold.get(name)) for item, name in zip(found, names, strict=True)]
    if isinstance(grader, grading.Judge):
        said = _said(work, grader, cell_key(work.pool, candidate, number))
        grades = [
            0.0 if item.answer is None else grading.score(said.get(name))
            for item, name in zip(found, judge_ids(results), strict=True)
        ]
    else:
        grades = asyncio.run(_graded(grader, found, work.sandbox))
    failed = [status != "answered" for status in results["status"].to_pylist()]
    return [None if bad else grade for grade, bad in zip(grades, failed, strict=True)]


async def _graded(
    grader: grading.Grader, found: Sequence[grading.Item], keys: SandboxKeys
) -> list[float | None]:
    if not isinstance(grader, grading.Code):
        return await grader.grade(found)
    async with sandbox_of(keys) as sandbox:
        return await with_checker(grader, sandbox).grade(found)


def _reference_answers(work: Grading, candidate: Candidate, number: int) -> dict[str, str | None]:
    """The reference candidate's first answers to the queries of a split."""
    results = _results(open_store(work.run), cell_key(work.pool, candidate, number), ["answer"])
    columns = (results[name].to_pylist() for name in ("query_id", "answer", SAMPLE))
    return {name: answer for name, answer, sample in zip(*columns, strict=True) if sample == 0}


def _said(work: Grading, grader: grading.Judge, key: str) -> dict[str, str | None]:
    """What the judge says of the answers of a plan part, by their ids."""
    where = judge_key(work.pool, Candidate.parse(grader.candidate), part_name(key))
    table = _results(open_store(work.judging), where, ["response"])
    return dict(zip(table["query_id"].to_pylist(), table["response"].to_pylist(), strict=True))
