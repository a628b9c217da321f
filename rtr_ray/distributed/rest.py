"""Rows that the budget did not reach: taken out of their plan parts, so that another plan may take them up.

First their ids are written down, then they are planned as a slice of their own, and only then do
they leave their old parts: at whatever point that is broken off, it can be done again.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import ray

from rtr_ray.corpus import QUERY_ID
from rtr_ray.distributed.plan_parts import MOVED, part_of
from rtr_ray.run_folder import RESULTS
from rtr_ray.schemas import stamped
from rtr_ray.storage import open_store, read_metadata, read_table, write_table
from rtr_ray.thrift import thrifty

REST = "rest/"
_PART = "part"
SKIPPED = "-skipped.parquet"  # ends the key of a results part with rows that the budget did not reach


def rest_key(number: int) -> str:
    """Where the ids lie of the rows that a slice takes over."""
    return f"{REST}{number:06d}.parquet"


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def gather_skipped(output: str, number: int) -> dict[str, int]:
    """Write down which rows the budget did not reach.

    Returns:
        How many, by the short name of their plan part.
    """
    store = open_store(output)
    tables = []
    for key in store.keys(RESULTS):
        if key.endswith(SKIPPED):
            ids = read_table(store, key, ["query_id"])["query_id"]
            tables.append(pa.table({QUERY_ID: ids, _PART: pa.array([part_of(key)] * len(ids), pa.string())}))
    if not tables:
        return {}
    whole = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    write_table(store, rest_key(number), stamped(whole))
    counts: Mapping[str, int] = {
        row["values"]: row["counts"] for row in pc.value_counts(whole[_PART].combine_chunks()).to_pylist()
    }
    return dict(counts)


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def move(output: str, number: int) -> None:
    """Take the rows of a slice of the rest out of the plan parts that they came from; again is no matter."""
    store = open_store(output)
    rows = read_table(store, rest_key(number))
    for name in pc.unique(rows[_PART]).to_pylist():
        mine = rows.filter(pc.equal(rows[_PART], name)).select([QUERY_ID])
        write_table(store, f"{MOVED}{name}-{number:06d}.parquet", mine)
        store.delete(f"{RESULTS}{name}{SKIPPED}")


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def moved_counts(output: str) -> dict[str, int]:
    """How many rows have left each plan part, by its short name."""
    store = open_store(output)
    counts: dict[str, int] = {}
    for key in store.keys(MOVED):
        name = key.removeprefix(MOVED).partition("-")[0]
        counts[name] = counts.get(name, 0) + read_metadata(store, key).num_rows
    return counts


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def forget_failed(output: str, key: str) -> int:
    """Take the rows out of a results part that failed and cost nothing; tells how many.

    What failed after it was paid for stays: its dollars are nowhere else.
    """
    store = open_store(output)
    rows = read_table(store, key)
    free = pc.and_(pc.equal(rows["status"], "failed"), pc.is_null(rows["cost_usd"]))
    kept = rows.filter(pc.invert(free))
    if len(kept) < len(rows):
        write_table(store, key, kept)
    return len(rows) - len(kept)
