"""What would change if another router served: both choose for the same queries."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rtr_ray import registry
from rtr_ray.corpus import MESSAGES, QUERY_ID, ROW_ERROR, TEXT, Columns
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import ConfigError, DataError, RouterError
from rtr_ray.online.loading import frozen
from rtr_ray.parts import table_part
from rtr_ray.policies.base import stable_hash
from rtr_ray.pool import Pool
from rtr_ray.reading import open_corpus, read_split
from rtr_ray.router import RouterFolder
from rtr_ray.types import Candidate, IntArray, Plan, RoutingTable

_BLOCK = 1024
MOST_CHANGED = 10


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Queries that both routers choose for."""

    block: Any  # pyarrow.Table with the columns of `reading.read_split`
    left_out: int = 0  # rows that are no query

    @classmethod
    def read(cls, uri: str, query_column: str = "query", most: int = 1000) -> Sample:
        """Some of the rows of a file or folder, the same ones every time.

        Args:
            uri: As of a job's corpus.
            query_column: The column with the text.
            most: Rows that are taken, by a hash of their id.

        Raises:
            DataError: If there is no row that is a query.
        """
        import pyarrow as pa

        corpus, splits = open_corpus(uri, Columns(query=query_column))
        kept: list[tuple[int, int, Any]] = []  # the smallest hashes, largest first
        rows = left_out = 0
        for split in splits:
            for block in read_split(corpus, split, _BLOCK):
                block = block.select([QUERY_ID, TEXT, MESSAGES, ROW_ERROR])
                for row in block.to_pylist():
                    rows += 1
                    if row[ROW_ERROR] is not None:
                        left_out += 1
                        continue
                    item = (-stable_hash(row[QUERY_ID]), -rows, row)
                    if len(kept) < most:
                        heapq.heappush(kept, item)
                    else:
                        heapq.heappushpop(kept, item)
        if not kept:
            raise DataError(f"{uri} holds no query: {left_out:,} of its {rows:,} rows cannot be used.")
        chosen = [row for _, _, row in sorted(kept, key=lambda item: -item[1])]
        schema = pa.schema([(name, pa.string()) for name in (QUERY_ID, TEXT, MESSAGES, ROW_ERROR)])
        return cls(pa.Table.from_pylist(chosen, schema=schema), left_out)


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One router: what it believes of the queries, and whom it would choose."""

    router: str  # the folder
    fingerprint: str
    encoder: str
    plan: Plan  # over the whole pool's candidates
    unknown: tuple[Candidate, ...]  # candidates of the pool that it has no outcomes of
    texts: tuple[str, ...] = ()  # of the queries; none: not known


def sides(
    one: str,
    other: str,
    pool: Pool,
    policies: tuple[Mapping[str, Any], Mapping[str, Any]],
    sample: Sample | None = None,
) -> tuple[Side, Side]:
    """Both routers over the same queries.

    Args:
        one, other: The folders.
        pool: Whose candidates both may choose; what a router has no outcomes of, it does not choose.
        policies: Of each; the unit of dollars is each router's own, as when it serves.
        sample: None: the held-out queries that both have kept from their training.

    Raises:
        RouterError: If a folder is none, or does not fit the pool.
        ConfigError: If there are no queries, or a policy cannot be frozen.
    """
    folders = [RouterFolder.load(uri) for uri in (one, other)]
    pools = [_own_pool(folder, uri, pool) for folder, uri in zip(folders, (one, other), strict=True)]
    if sample is None:
        tables, texts = _kept_tables(folders, (one, other), pools), ()
    else:
        tables, encoder = [], None
        for folder, own in zip(folders, pools, strict=True):
            if encoder is None or encoder.identity != folder.encoder_identity:
                built: Encoder = registry.build(dict(folder.encoder), ENCODERS, "encoder")
                encoder = built
            tables.append(table_part(sample.block, folder.bind(own, encoder))[1])
        texts = tuple(sample.block[TEXT].to_pylist())
    found = []
    for uri, folder, own, table, policy in zip((one, other), folders, pools, tables, policies, strict=True):
        held_out = None if folder.held_out is None else folder.held_out.table(own)
        chosen = frozen(policy, own, held_out).choose(table)
        plan = _widened(chosen, pool.candidates)
        unknown = tuple(c for c in pool.candidates if c not in own.candidates)
        found.append(Side(uri, folder.fingerprint, folder.encoder_identity, plan, unknown, texts))
    return found[0], found[1]


def _own_pool(folder: RouterFolder, uri: str, pool: Pool) -> Pool:
    """The pool with those candidates alone that a router has outcomes of."""
    known = [c for c in pool.candidates if c in folder.estimator.candidates]
    pairs = {(c.model, c.strategy) for c in known}
    lacking = {(c.model, c.strategy) for c in pool.candidates if (c.model, c.strategy) not in pairs}
    if not known:
        raise RouterError(
            f"{uri} has outcomes of {', '.join(map(str, folder.estimator.candidates))[:300]}, none of which "
            "is in the pool. Name the pool that it was trained for with --pool."
        )
    own = replace(pool, excluded=pool.excluded | lacking)
    folder.check(own)
    return own


def _kept_tables(
    folders: Sequence[RouterFolder], uris: Sequence[str], pools: Sequence[Pool]
) -> list[RoutingTable]:
    kept = []
    for folder, uri, pool in zip(folders, uris, pools, strict=True):
        if folder.held_out is None:
            raise ConfigError(f"{uri} keeps no held-out queries. Give some with --sample FILE.")
        kept.append(folder.held_out.table(pool))
    places = [{name: row for row, name in enumerate(table.query_ids)} for table in kept]
    common = [name for name in kept[0].query_ids if name in places[1]]
    if not common:
        raise ConfigError(
            f"{uris[0]} and {uris[1]} were trained on different queries, and have none in common. Give some "
            "with --sample FILE."
        )
    return [
        table.rows(np.array([place[name] for name in common]))
        for table, place in zip(kept, places, strict=True)
    ]


def _widened(plan: Plan, candidates: tuple[Candidate, ...]) -> Plan:
    """The plan over more candidates, of which nothing is believed and none is allowed."""
    table = plan.table
    columns = np.array([candidates.index(candidate) for candidate in table.candidates])

    def of(name: str, filling: Any = np.nan) -> Any:
        values_QC = getattr(table, name)
        wide_QC = np.full((len(table.query_ids), len(candidates)), filling, dtype=values_QC.dtype)
        wide_QC[:, columns] = values_QC
        return wide_QC

    wide = RoutingTable(
        table.query_ids,
        candidates,
        accuracy=of("accuracy"),
        output_tokens=of("output_tokens"),
        output_tokens_p95=of("output_tokens_p95"),
        cost_usd=of("cost_usd"),
        allowed=of("allowed", False),
    )
    choice_Q: IntArray = np.where(plan.choice >= 0, columns[plan.choice], -1)
    return Plan(wide, choice_Q)


def difference(before: Side, after: Side) -> dict[str, Any]:
    """What changes from one to the other, as JSON.

    Each judges its own choices; `before_judged_by_after` tells whether a change of the sums comes of
    other choices or of other beliefs. The queries that change most are those whose choice gains or
    loses most predicted accuracy, as the other router sees both; then those with most dollars.
    """
    one, other = before.plan, after.plan
    changed_Q = one.choice != other.choice
    rows = len(changed_Q)
    return {
        "queries": rows,
        "changed": int(changed_Q.sum()),
        "changed_share": float(changed_Q.mean()),
        "routers": [
            {
                "router": side.router,
                "fingerprint": side.fingerprint,
                "encoder": side.encoder,
                "unknown": [str(candidate) for candidate in side.unknown],
            }
            for side in (before, after)
        ],
        "before": _sums(one, one.table),
        "after": _sums(other, other.table),
        "before_judged_by_after": _sums(one, other.table),
        "moves": _moves(one, other),
        "most_changed": _most_changed(before, after, np.flatnonzero(changed_Q)),
    }


def _sums(plan: Plan, judge: RoutingTable) -> dict[str, float | int | None]:
    """Of the choices, as a table has them; None where it does not know a chosen candidate."""
    routed_Q = plan.routed
    found: dict[str, float | int | None] = {"routed": int(routed_Q.sum())}
    for name, kind in (("accuracy", np.mean), ("output_tokens", np.sum), ("cost_usd", np.sum)):
        values = plan.chosen(getattr(judge, name))[routed_Q].astype(np.float64)
        value = float(kind(values)) if len(values) else np.nan
        found[name] = None if np.isnan(value) else value
    return found


def _moves(one: Plan, other: Plan) -> list[dict[str, Any]]:
    """How many queries go from which candidate to which, those that stay included; the most first."""
    names = [*map(str, one.table.candidates), "nowhere"]
    pairs, counts = np.unique(np.stack([one.choice, other.choice]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [{"from": names[pairs[0, i]], "to": names[pairs[1, i]], "queries": int(counts[i])} for i in order]


def _most_changed(before: Side, after: Side, changed_N: IntArray) -> list[dict[str, Any]]:
    one, other = before.plan, after.plan
    names = [*map(str, one.table.candidates), "nowhere"]

    def gain(name: str, row: int) -> float:
        values_C = getattr(other.table, name)[row].astype(np.float64)
        found = values_C[other.choice[row]] - values_C[one.choice[row]]
        return float(found) if one.choice[row] >= 0 and other.choice[row] >= 0 else np.nan

    rows = sorted(
        map(int, changed_N),
        key=lambda row: tuple(-abs(np.nan_to_num(gain(name, row))) for name in ("accuracy", "cost_usd")),
    )
    return [
        {
            "query_id": one.table.query_ids[row],
            "query": before.texts[row] if before.texts else None,
            "from": names[one.choice[row]],
            "to": names[other.choice[row]],
            **{name: _known(gain(name, row)) for name in ("accuracy", "output_tokens", "cost_usd")},
        }
        for row in rows[:MOST_CHANGED]
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
