"""Collecting outcomes: every candidate on every query, and the rows that come of it.

Pure functions from Arrow to Arrow, as in `rtr_ray.parts`.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from rtr_ray.corpus import GOLD, MESSAGES, QUERY_ID, ROW_ERROR, TEXT
from rtr_ray.errors import DataError
from rtr_ray.grading import Item
from rtr_ray.policies.base import stable_hash
from rtr_ray.pool import Pool
from rtr_ray.schemas import OUTCOMES, PREDICTIONS, stamped
from rtr_ray.types import Candidate

SAMPLE = "_sample"
FACTS = {"dataset": "", "group_id": "", "split": "train", "ood": False}
"""Columns of the queries that outcomes keep, and what stands there where the queries lack them."""


def sampled(ids: Iterable[str], count: int) -> list[int]:
    """The hashes of a fixed random sample of ids: the smallest ones.

    The samples of parts, merged, give that of the whole.
    """
    return heapq.nsmallest(count, map(stable_hash, ids))


def cell_rows(
    block: pa.Table,
    candidate: Candidate,
    repeats: int,
    below: int | None,
    only: Collection[str] | None = None,
) -> pa.Table:
    """The plan rows that put each usable query of a block to one candidate.

    Args:
        block: From `reading.read_split`.
        candidate: Whom the queries are put to.
        repeats: How often each is asked.
        below: Only queries whose id hashes to at most this; None: all.
        only: Only queries with one of these ids; None: all.

    Raises:
        DataError: If a column that outcomes keep (`FACTS`) cannot be what it is there.
    """
    keep = [
        error is None and (below is None or stable_hash(name) <= below) and (only is None or name in only)
        for name, error in zip(block[QUERY_ID].to_pylist(), block[ROW_ERROR].to_pylist(), strict=True)
    ]
    rows = block.filter(pa.array(keep, pa.bool_()))
    sizes = np.array([len(text) for text in rows[TEXT].to_pylist()], dtype=np.int64)
    # nothing is predicted yet: the longest prompts first, as the best guess of the longest answers
    order = np.tile(np.argsort(-sizes, kind="stable"), repeats)
    rows = rows.take(pa.array(order))
    for name in FACTS:
        if name in rows.column_names:
            rows = rows.set_column(rows.column_names.index(name), name, _fact(rows[name], name))
    values: dict[str, Any] = {
        "model": [candidate.model] * len(rows),
        "strategy": [candidate.strategy] * len(rows),
        "samples": [candidate.samples] * len(rows),
    }
    for field in PREDICTIONS:
        column = pa.array(values.get(field.name, [None] * len(rows)), field.type)
        rows = rows.append_column(field, column)
    number = np.repeat(np.arange(repeats, dtype=np.int32), len(sizes))
    return rows.append_column(SAMPLE, pa.array(number, pa.int32()))


def bounded(rows: pa.Table, pool: Pool, candidate: Candidate) -> pa.Table:
    """The rows of which anybody can say what they cost at most when they are put to a candidate."""
    if pool.deployment(candidate).context_tokens is not None or rows[MESSAGES].null_count == len(rows):
        return rows
    keep = [
        messages is None or pool.input_bound(json.loads(messages), candidate) is not None
        for messages in rows[MESSAGES].to_pylist()
    ]
    return rows.filter(pa.array(keep, pa.bool_()))


def _fact(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    kind = OUTCOMES.field(name).type
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"The column '{name}' of the queries goes into the outcomes as {kind}, and this one is "
            f"{column.type} with other values. Rename it, or make it {kind}."
        ) from error


def cell_key(pool: Pool, candidate: Candidate, number: int) -> str:
    """Where the plan rows of a candidate lie; another place when it begins to behave differently."""
    return _key(pool, candidate, f"{number:06d}")


def judge_key(pool: Pool, judge: Candidate, part: str) -> str:
    """Where the questions to a judge lie about the answers of a plan part.

    Named after that part, not counted: what has been judged stays judged when candidates come or go.

    Args:
        pool: Says how the judge is asked.
        judge: The judge.
        part: The short name of the plan part whose answers are judged.
    """
    return _key(pool, judge, part)


def _key(pool: Pool, candidate: Candidate, name: str) -> str:
    folder = f"plan/model={quote(candidate.model, safe='')}/strategy={quote(candidate.strategy, safe='')}"
    return f"{folder}/part-{candidate.samples}x-{name}-{pool.behaviour(candidate)}.parquet"


def planned(part: pa.Table, results: pa.Table) -> pa.Table:
    """The results of the rows that a plan part has.

    There may be others: of a larger sample or more repeats, recorded before.
    """
    wanted = set(_cells(part, QUERY_ID))
    return results.filter(pa.array([cell in wanted for cell in _cells(results, "query_id")], pa.bool_()))


def _cells(table: pa.Table, name: str, sample: str = SAMPLE) -> list[tuple[str, int]]:
    return list(zip(table[name].to_pylist(), table[sample].to_pylist(), strict=True))


def items(part: pa.Table, results: pa.Table) -> list[Item]:
    """What a grader looks at, one per row of results."""
    queries = {
        name: (text, gold)
        for name, text, gold in zip(
            part[QUERY_ID].to_pylist(), part[TEXT].to_pylist(), part[GOLD].to_pylist(), strict=True
        )
    }
    columns = [
        results[c].to_pylist() for c in ("query_id", "model", "strategy", "samples", "answer", "response")
    ]
    return [
        Item(queries[name][0], Candidate(model, strategy, samples), answer, response or "", queries[name][1])
        for name, model, strategy, samples, answer, response in zip(*columns, strict=True)
    ]


def outcome_rows(
    pool: Pool,
    candidate: Candidate,
    part: pa.Table,
    results: pa.Table,
    correct: Sequence[float | None],
    pool_fingerprint: str,
) -> pa.Table:
    """Outcomes of one candidate.

    Args:
        pool: Says how the candidate was asked.
        candidate: The candidate.
        part: Its plan rows.
        results: What came of them, in any order.
        correct: A grade for each row of results.
        pool_fingerprint: Of the whole pool.
    """
    queries = {name: row for row, name in enumerate(part[QUERY_ID].to_pylist())}
    index = pa.array([queries[name] for name in results["query_id"].to_pylist()], pa.int64())
    asked = part.take(index)
    sampling = pool.sampling(candidate)
    count = len(results)
    values: dict[str, Any] = {
        "query": asked[TEXT],
        "gold": asked[GOLD],
        "sample": results[SAMPLE],
        "correct": pa.array(correct, pa.float32()),
        "max_tokens": pa.array([pool.max_tokens(candidate)] * count, pa.int32()),
        "temperature": pa.array([sampling.temperature] * count, pa.float32()),
        "pool_fingerprint": pa.array([pool_fingerprint] * count, pa.string()),
    }
    for name, default in FACTS.items():
        kind = OUTCOMES.field(name).type
        values[name] = asked[name] if name in asked.column_names else pa.array([default] * count, kind)
    columns = [(values[f.name] if f.name in values else results[f.name]).cast(f.type) for f in OUTCOMES]
    return stamped(pa.table(columns, schema=OUTCOMES))


def with_earlier(rows: pa.Table, earlier: pa.Table, part: pa.Table, results: pa.Table) -> pa.Table:
    """Outcomes, and behind them those recorded before of cells that are not asked for now.

    Args:
        rows: The outcomes of a plan part.
        earlier: Those that were recorded before.
        part: The plan part.
        results: All that was ever answered there. What lies elsewhere (an older run was moved aside) is
            not kept.
    """
    kept = set(_cells(results, "query_id")) - set(_cells(part, QUERY_ID))
    keep = [cell in kept for cell in _cells(earlier, "query_id", "sample")]
    if not any(keep):
        return rows
    others = earlier.filter(pa.array(keep, pa.bool_())).select(OUTCOMES.names)
    tables = [table.replace_schema_metadata(None).cast(OUTCOMES) for table in (rows, others)]
    return stamped(pa.concat_tables(tables))


def judge_ids(results: pa.Table) -> list[str]:
    """An id for each answer that may be judged."""
    columns = [results[c].to_pylist() for c in ("query_id", "model", "strategy", "samples", SAMPLE)]
    return [
        f"{name}|{Candidate(model, strategy, samples)}|{sample}"
        for name, model, strategy, samples, sample in zip(*columns, strict=True)
    ]


def judge_rows(prompts: Sequence[str], keys: Sequence[str], candidate: Candidate) -> pa.Table:
    """Plan rows that put prompts to a judge.

    Args:
        prompts: What the judge is asked.
        keys: An id for each.
        candidate: The judge.
    """
    messages = [json.dumps([{"role": "user", "content": prompt}]) for prompt in prompts]
    rows = pa.table(
        {
            QUERY_ID: pa.array(keys, pa.string()),
            TEXT: pa.array(prompts, pa.string()),
            MESSAGES: pa.array(messages, pa.string()),
            GOLD: pa.nulls(len(keys), pa.string()),
            ROW_ERROR: pa.nulls(len(keys), pa.string()),
        }
    )
    values: dict[str, Any] = {
        "model": [candidate.model] * len(keys),
        "strategy": [candidate.strategy] * len(keys),
        "samples": [candidate.samples] * len(keys),
    }
    for field in PREDICTIONS:
        rows = rows.append_column(field, pa.array(values.get(field.name, [None] * len(keys)), field.type))
    return rows.append_column(SAMPLE, pa.array([0] * len(keys), pa.int32()))
