"""Tables become plans: Ray tasks that sketch, expect and plan the rows of a slice.

Each reads some table parts and gives back a few numbers; texts stay in the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from rtr_ray.corpus import QUERY_ID, ROW_ERROR
from rtr_ray.corrections import TAUGHT_BY, Bucket, Corrections, Seen, seen_in
from rtr_ray.corrections import merged as merged_seen
from rtr_ray.distributed.rest import SKIPPED
from rtr_ray.parts import (
    ESTIMATES,
    Expected,
    Version,
    expected,
    longest_first,
    plan_key,
    plan_part,
    routing_table,
    unrouted_key,
)
from rtr_ray.policies.base import Policy, Sketch, merged
from rtr_ray.pool import Pool
from rtr_ray.run_folder import RESULTS
from rtr_ray.slices import Slice
from rtr_ray.storage import Store, open_store, parquet, read_table, several_at_once, write_table
from rtr_ray.thrift import thrifty
from rtr_ray.types import Candidate

SLICES = "slices/"
_NUMBERS = [QUERY_ID, ROW_ERROR, *(f"_{name}" for name in ESTIMATES), "_allowed"]
_TOGETHER = 8  # slices that one task sketches
_AT_A_TIME = 4_096  # rows that are computed with
_LOOKED_AT = 64  # plan parts that one task looks back at


@dataclass(frozen=True, slots=True)
class PlannedSlice:
    """A slice whose plan parts lie in the run folder."""

    slice: Slice
    version: int
    parts: Mapping[str, tuple[Candidate, int]]  # key of a plan part -> whom it is put to, its rows
    expected: Mapping[Candidate, Expected]  # with the corrections of its version
    unrouted: int

    @property
    def cost_usd(self) -> float:
        """What its plan expects."""
        return sum(sums.cost_usd for sums in self.expected.values())

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same from."""
        return {
            "slice": self.slice.to_json(),
            "version": self.version,
            "parts": [[key, str(candidate), rows] for key, (candidate, rows) in self.parts.items()],
            "expected": {str(c): asdict(sums) for c, sums in self.expected.items()},
            "unrouted": self.unrouted,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> PlannedSlice:
        """What `to_json` was taken from."""
        return cls(
            Slice.from_json(found["slice"]),
            found["version"],
            {key: (Candidate.parse(candidate), rows) for key, candidate, rows in found["parts"]},
            {Candidate.parse(c): Expected(**sums) for c, sums in found["expected"].items()},
            found["unrouted"],
        )


def slice_key(one: Slice) -> str:
    """Where it is written that a slice has been planned: after its plan parts, so that they are whole."""
    return f"{SLICES}{one.name}.json"


def _tables(store: Store, one: Slice, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a slice, some at a time: what is computed of them takes more memory than they do."""
    ids = None
    if one.ids is not None:
        ids = read_table(store, one.ids, [QUERY_ID])[QUERY_ID].combine_chunks()
    for key in one.tables:
        part = read_table(store, key, columns)
        if ids is not None:
            keep = pc.is_in(part[QUERY_ID], ids)
        else:
            keep = pa.array(one.rows(part[QUERY_ID].to_pylist()))
        rows = part.filter(keep)
        for begin in range(0, max(len(rows), 1), _AT_A_TIME):
            yield rows.slice(begin, _AT_A_TIME)


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def sketch_slices(
    output: str, slices: Sequence[Slice], pool: Pool, policy: Policy, corrections: Corrections
) -> Sketch | None:
    """The policy's sketch of some slices."""
    store = open_store(output)
    return merged(
        policy,
        (
            policy.sketch(corrections.apply(routing_table(part), pool))
            for one in slices
            for part in _tables(store, one, _NUMBERS)
            if len(part)
        ),
    )


def sketching(
    output: str, slices: Sequence[Slice], pool: Pool, policy: Policy, corrections: Corrections
) -> list[Any]:
    """Begin to sketch slices; gives what to wait for."""
    batches = [slices[i : i + _TOGETHER] for i in range(0, len(slices), _TOGETHER)]
    return [sketch_slices.remote(output, batch, pool, policy, corrections) for batch in batches]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What some rows come to: under a plan, and if all went to one candidate."""

    rows: int = 0
    unrouted: int = 0
    expected: Mapping[Candidate, Expected] | None = None
    fixed: Mapping[Candidate, Expected] | None = None  # each row that the candidate may take

    def __add__(self, other: Ahead) -> Ahead:
        return Ahead(
            self.rows + other.rows,
            self.unrouted + other.unrouted,
            added([self.expected or {}, other.expected or {}]),
            added([self.fixed or {}, other.fixed or {}]),
        )


def added(many: Iterable[Mapping[Candidate, Expected]]) -> dict[Candidate, Expected]:
    """The sums of several, by candidate."""
    total: dict[Candidate, Expected] = {}
    for one in many:
        for candidate, sums in one.items():
            total[candidate] = total.get(candidate, Expected()) + sums
    return total


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def look_ahead(output: str, slices: Sequence[Slice], pool: Pool, version: Version) -> Ahead:
    """What slices would come to if they were planned now; writes nothing."""
    store, total = open_store(output), Ahead()
    for one in slices:
        for part in _tables(store, one, _NUMBERS):
            table = version.corrections.apply(routing_table(part), pool)
            plan = version.policy.choose(table)
            fixed = {}
            for column, candidate in enumerate(table.candidates):
                allowed_Q = table.allowed[:, column]
                values = (
                    float(getattr(table, name)[allowed_Q, column].sum(dtype=np.float64))
                    for name in ("accuracy", "output_tokens", "cost_usd")
                )
                fixed[candidate] = Expected(int(allowed_Q.sum()), *values)
            total += Ahead(len(part), int((~plan.routed).sum()), expected(plan), fixed)
    return total


def looking_ahead(output: str, slices: Sequence[Slice], pool: Pool, version: Version) -> list[Any]:
    """Begin to look ahead; gives what to wait for."""
    batches = [slices[i : i + _TOGETHER] for i in range(0, len(slices), _TOGETHER)]
    return [look_ahead.remote(output, batch, pool, version) for batch in batches]


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def plan_slices(output: str, slices: Sequence[Slice], pool: Pool, version: Version) -> list[PlannedSlice]:
    """Plan slices, one after the other."""
    store = open_store(output)
    return [plan_slice(store, one, pool, version) for one in slices]


def plan_slice(store: Store, one: Slice, pool: Pool, version: Version) -> PlannedSlice:
    """Choose for every row of a slice; write a plan part per chosen candidate, then that it is planned."""
    groups: dict[Candidate, list[pa.Table]] = {}
    sums: list[Mapping[Candidate, Expected]] = []
    nowhere: list[pa.Table] = []
    for table in _tables(store, one):
        planned = plan_part(table, pool, version)
        nowhere.append(planned.nowhere)
        sums.append(planned.expected)
        for candidate, rows in planned.rows.items():
            groups.setdefault(candidate, []).append(rows)
    parts: dict[str, tuple[Candidate, int]] = {}
    written: list[tuple[str, bytes]] = []
    for candidate, tables in groups.items():
        whole = pa.concat_tables(tables)
        whole = whole.take(pa.array(longest_first(whole["predicted_output_tokens"].to_numpy())))
        key = plan_key(candidate, one.number)
        written.append((key, parquet(whole)))  # one by one, for the memory; a bucket takes them all at once
        parts[key] = candidate, len(whole)
    for _ in several_at_once(lambda part: store.write(*part), written):
        pass
    unrouted = pa.concat_tables(nowhere) if nowhere else None
    if unrouted is not None and len(unrouted):
        write_table(store, unrouted_key(one.number), unrouted)
    else:  # of a try that was killed before it was done, when all of this looked dearer
        store.delete(unrouted_key(one.number))
    found = PlannedSlice(one, version.number, parts, added(sums), 0 if unrouted is None else len(unrouted))
    store.write(slice_key(one), (json.dumps(found.to_json(), indent=2) + "\n").encode())
    return found


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def look_back(output: str, names: Sequence[str], pool: Pool) -> tuple[dict[Bucket, Seen], float]:
    """What the results of some plan parts say about the predictions, and what they cost.

    Args:
        output: The run folder.
        names: Short names of plan parts of which every row has been answered.
        pool: For the prices.
    """
    store = open_store(output)
    found, spent_usd = [], 0.0
    for name in names:
        for key in store.keys(f"{RESULTS}{name}-"):
            if key.endswith(SKIPPED):  # nothing was paid, and `rest.move` may take it away meanwhile
                continue
            seen, usd = seen_in(read_table(store, key, TAUGHT_BY), pool)
            found.append(seen)
            spent_usd += usd
    return merged_seen(found), spent_usd


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def together(*many: tuple[dict[Bucket, Seen], float]) -> tuple[dict[Bucket, Seen], float]:
    """Several looks back in one."""
    return merged_seen(seen for seen, _ in many), sum(usd for _, usd in many)


def looking_back(output: str, names: Sequence[str], pool: Pool) -> Any:
    """Begin to look back; gives what to wait for."""
    batches = [names[i : i + _LOOKED_AT] for i in range(0, len(names), _LOOKED_AT)]
    return together.remote(*(look_back.remote(output, batch, pool) for batch in batches))
