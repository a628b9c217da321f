"""The parts of a run: a block of the corpus becomes a table part, plan parts, and results.

Pure functions from Arrow to Arrow; where the parts lie and who computes them is said elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from rtr_ray.corpus import MESSAGES, OWN, QUERY_ID, ROW_ERROR, TEXT
from rtr_ray.corrections import Corrections
from rtr_ray.policies.base import FittedPolicy, with_runner_up
from rtr_ray.pool import Pool, only_text, size_of
from rtr_ray.router import Router
from rtr_ray.schemas import PREDICTIONS, RESULTS, UNFAMILIAR, stamp, stamped
from rtr_ray.terms import Terms
from rtr_ray.types import BoolArray, Candidate, FloatArray, IntArray, Outcome, Plan, Query, RoutingTable

ESTIMATES = ("accuracy", "output_tokens", "output_tokens_p95", "cost_usd")
"""The columns of a table part that hold one number per candidate: `_accuracy`, ..."""
UNROUTED = "unrouted"


def table_part(
    block: pa.Table,
    router: Router,
    keep_embeddings: bool = False,
    seen: Callable[[FloatArray], None] | None = None,
    settings: str | None = None,
) -> tuple[pa.Table, RoutingTable]:
    """Encode a block of rows and predict its routing table.

    Args:
        block: From `reading.read_split`.
        router: Predicts.
        keep_embeddings: Whether a column `_embedding` keeps what was encoded.
        seen: Told the embeddings of the usable rows.
        settings: The column with each row's own terms, as it is named here; None: there are none.

    Returns:
        The block with the table's columns, and the table of its usable rows.
    """
    usable = np.array([error is None for error in block[ROW_ERROR].to_pylist()], dtype=bool)
    texts = [text for text, fine in zip(block[TEXT].to_pylist(), usable, strict=True) if fine]
    sizes = _sizes(block.filter(pa.array(usable)))
    ids = [name for name, fine in zip(block[QUERY_ID].to_pylist(), usable, strict=True) if fine]
    embeddings_QD = router.encoder.encode(texts)
    if seen is not None and len(embeddings_QD):
        seen(embeddings_QD)
    table = router.table(ids, embeddings_QD, sizes, texts)
    bounded_QC = _bounded(block.filter(pa.array(usable)), router.pool, table.candidates)
    table = replace(table, allowed=table.allowed & bounded_QC)
    if settings is not None:
        table = _on_terms(block.filter(pa.array(usable)), settings, router.pool, table)
    for name in ESTIMATES:
        block = block.append_column(f"_{name}", _spread(getattr(table, name), usable, pa.float32()))
    block = block.append_column("_allowed", _spread(table.allowed, usable, pa.bool_()))
    if table.unfamiliar is not None:
        far = np.zeros(len(usable), dtype=bool)
        far[usable] = table.unfamiliar
        block = block.append_column(UNFAMILIAR, pa.array(far))
    if keep_embeddings:
        block = block.append_column("_embedding", _spread(embeddings_QD, usable, pa.float32()))
    return stamped(block, candidates=[str(c) for c in table.candidates]), table


def _bounded(block: pa.Table, pool: Pool, candidates: Sequence[Candidate]) -> BoolArray:
    """(Q, C) whether anybody can say what a query costs at most with a candidate (see `Pool.input_bound`)."""
    known_C = np.array([pool.deployment(c).context_tokens is not None for c in candidates], dtype=bool)
    text_Q = np.array(
        [messages is None or only_text(json.loads(messages)) for messages in block[MESSAGES].to_pylist()],
        dtype=bool,
    )
    bounded_QC: BoolArray = text_Q[:, None] | known_C
    return bounded_QC


def _on_terms(block: pa.Table, settings: str, pool: Pool, table: RoutingTable) -> RoutingTable:
    """The table with what the rows themselves allow."""
    columns = [block[name].to_pylist() for name in (QUERY_ID, TEXT, MESSAGES, settings)]
    allowed_QC = table.allowed.copy()
    for row, (name, text, messages, terms) in enumerate(zip(*columns, strict=True)):
        query = Query(name, text, None if messages is None else tuple(json.loads(messages)))
        allowed_QC[row] &= Terms.read(terms).allow(pool, table.candidates, query, table.cost_usd[row])
    return replace(table, allowed=allowed_QC)


def _sizes(block: pa.Table) -> FloatArray:
    sizes = []
    for text, messages in zip(block[TEXT].to_pylist(), block[MESSAGES].to_pylist(), strict=True):
        sizes.append(len(text.encode()) if messages is None else size_of(json.loads(messages)))
    return np.array(sizes, dtype=np.float64)


def _spread(values_QC: Any, usable: Any, kind: pa.DataType) -> pa.Array:
    """A list per row; nothing (all zeros, not allowed) where the row is not usable."""
    full = np.zeros((len(usable), values_QC.shape[1]), dtype=values_QC.dtype)
    full[usable] = values_QC
    flat = pa.array(full.reshape(-1)).cast(kind)
    return pa.FixedSizeListArray.from_arrays(flat, values_QC.shape[1])


def routing_table(part: pa.Table) -> RoutingTable:
    """The routing table of a table part, unusable rows included (nothing is allowed for them)."""
    candidates = tuple(Candidate.parse(text) for text in stamp(part.schema.metadata, "candidates"))

    def matrix(name: str) -> Any:
        flat = part[name].combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(len(part), len(candidates))

    values = {name: matrix(f"_{name}") for name in (*ESTIMATES, "allowed")}
    return RoutingTable(
        tuple(part[QUERY_ID].to_pylist()),
        candidates,
        **values,
        unfamiliar=part[UNFAMILIAR].to_numpy() if UNFAMILIAR in part.column_names else None,
    )


@dataclass(frozen=True, slots=True)
class Version:
    """By what a plan was made."""

    policy: FittedPolicy
    number: int = 0
    corrections: Corrections = field(default_factory=Corrections)
    dual_price: float | None = None  # accuracy per dollar, of a policy that has a budget


@dataclass(frozen=True, slots=True)
class Expected:
    """What a plan expects of one candidate: sums over its rows."""

    rows: int = 0
    accuracy: float = 0.0
    output_tokens: float = 0.0
    cost_usd: float = 0.0

    def __add__(self, other: Expected) -> Expected:
        return Expected(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def expected(plan: Plan) -> dict[Candidate, Expected]:
    """What a plan expects, by candidate."""
    table = plan.table
    sums = {}
    for candidate, index_G in plan.groups().items():
        column = table.candidates.index(candidate)
        values = (getattr(table, name)[index_G, column] for name in ("accuracy", "output_tokens", "cost_usd"))
        sums[candidate] = Expected(len(index_G), *(float(v.sum(dtype=np.float64)) for v in values))
    return sums


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """What becomes of the rows of a table part."""

    rows: Mapping[Candidate, pa.Table]  # in the order of `longest_first`
    expected: Mapping[Candidate, Expected]
    nowhere: pa.Table  # results of rows that are unusable, or too long for every candidate


def plan_part(part: pa.Table, pool: Pool, version: Version) -> Planned:
    """Choose for every row of a table part.

    The rows say what the router predicted; how much longer answers have turned out since is in the
    version, and in the upper quantile that is set aside for an answer.
    """
    raw = routing_table(part)
    plan = with_runner_up(version.policy, version.corrections.apply(raw, pool))
    assert plan.runner_up is not None
    dropped = [f"_{name}" for name in ESTIMATES] + ["_allowed", "_embedding"]
    rows = part.drop_columns([name for name in dropped if name in part.column_names])
    names = [str(candidate) for candidate in raw.candidates]
    groups: dict[Candidate, pa.Table] = {}
    for candidate, index_G in plan.groups().items():
        column = raw.candidates.index(candidate)
        index_G = index_G[longest_first(raw.output_tokens[index_G, column])]
        count = len(index_G)
        values = {
            "model": [candidate.model] * count,
            "strategy": [candidate.strategy] * count,
            "samples": [candidate.samples] * count,
            "predicted_accuracy": raw.accuracy[index_G, column],
            "predicted_output_tokens": raw.output_tokens[index_G, column],
            "predicted_output_tokens_p95": plan.table.output_tokens_p95[index_G, column],
            "predicted_cost_usd": raw.cost_usd[index_G, column],
            "runner_up": [names[c] if c >= 0 else None for c in plan.runner_up[index_G]],
            "plan_version": [version.number] * count,
            "dual_price": [version.dual_price] * count,
        }
        group = rows.take(pa.array(index_G))
        for kept in PREDICTIONS:
            value = values[kept.name]
            column_G = pa.array(value, kept.type) if isinstance(value, list) else pa.array(value)
            group = group.append_column(kept, column_G.cast(kept.type))
        groups[candidate] = group.replace_schema_metadata(None)
    nowhere = rows.filter(pa.array(~plan.routed)).replace_schema_metadata(None)
    return Planned(groups, expected(plan), _unrouted(nowhere))


def longest_first(output_tokens: FloatArray) -> IntArray:
    """The order in which rows are answered: by the power of four that their predicted tokens reach.

    Among those of one power as they were: neighbours in a corpus often begin alike, and what they share is in
    the engine's cache then. Longest first, so that a run does not end with one long answer; exactly longest
    first would tear neighbours apart (benchmarks/prefix_cache.py has the figures).

    Args:
        output_tokens: (Q,) predicted.

    Returns:
        (Q,) places in `output_tokens`.
    """
    power_Q = np.floor(np.log2(np.maximum(output_tokens, 1.0)) / 2)
    order_Q: IntArray = np.argsort(-power_Q, kind="stable")
    return order_Q


def _unrouted(rows: pa.Table) -> pa.Table:
    errors = [
        error
        or "the query is too long for the context window of every candidate, holds more than text (an image, "
        "say) where no candidate's context_tokens are known, or none is allowed"
        for error in rows[ROW_ERROR].to_pylist()
    ]
    values = {"query_id": rows[QUERY_ID], "status": ["failed"] * len(rows), "error": errors}
    return _results(rows, values)


def plan_key(candidate: Candidate, number: int) -> str:
    """Where a plan part lies in its run folder."""
    folder = f"plan/model={quote(candidate.model, safe='')}/strategy={quote(candidate.strategy, safe='')}"
    return f"{folder}/part-{candidate.samples}x-{number:06d}.parquet"


def unrouted_key(number: int) -> str:
    """Where the results lie of a slice's rows that go nowhere."""
    return f"results/part-{UNROUTED}-{number:06d}.parquet"


def queries(part: pa.Table) -> Iterator[tuple[Query, Candidate]]:
    """The queries of a plan part, and whom each is put to."""
    columns = [part[name].to_pylist() for name in (QUERY_ID, TEXT, MESSAGES, "model", "strategy", "samples")]
    for name, text, messages, model, strategy, samples in zip(*columns, strict=True):
        conversation = None if messages is None else tuple(json.loads(messages))
        yield Query(name, text, conversation), Candidate(model, strategy, samples)


def result_rows(
    part: pa.Table,
    rows: Sequence[int],
    outcomes: Sequence[Outcome],
    costs: Sequence[Decimal | None],
    correct: Sequence[float | None],
) -> pa.Table:
    """Results of some rows of a plan part.

    Args:
        part: The plan part.
        rows: Which row of it each outcome belongs to.
        outcomes: What came of them.
        costs: Exact dollars; None where nobody knows.
        correct: Grades; None where there is none.
    """
    taken = part.take(pa.array(rows, pa.int64()))
    usages = [outcome.usage for outcome in outcomes]
    firsts = [outcome.samples[0] if outcome.samples else None for outcome in outcomes]
    values: dict[str, Any] = {
        "query_id": taken[QUERY_ID],
        "status": [outcome.status for outcome in outcomes],
        "answer": [outcome.answer for outcome in outcomes],
        "response": [None if sample is None else sample.text for sample in firsts],
        **{
            name: taken[name]
            for name in (
                "model",
                "strategy",
                "samples",
                "predicted_accuracy",
                "predicted_output_tokens",
                "predicted_cost_usd",
                "runner_up",
                "plan_version",
                "dual_price",
            )
        },
        **{
            name: [None if usage is None else getattr(usage, name) for usage in usages]
            for name in ("input_tokens", "cached_input_tokens", "output_tokens")
        },
        "cost_usd": list(costs),
        "finish_reason": [None if sample is None else sample.finish_reason for sample in firsts],
        "latency_s": [outcome.latency_s for outcome in outcomes],
        "attempts": [outcome.attempts for outcome in outcomes],
        "error": [outcome.error for outcome in outcomes],
        "correct": list(correct),
        "all_samples": [_all_samples(outcome) for outcome in outcomes],
    }
    return _results(taken, values)


def _all_samples(outcome: Outcome) -> list[dict[str, Any]] | None:
    if outcome.candidate.samples == 1:
        return None
    return [
        {
            "response": sample.text,
            "answer": sample.answer,
            "finish_reason": sample.finish_reason,
            "output_tokens": sample.output_tokens,
        }
        for sample in outcome.samples
    ]


def _results(rows: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    """The user's columns, then those of a result; what is not given is null."""
    table = rows.drop_columns(
        [name for name in rows.column_names if name in (*OWN, QUERY_ID) or name in PREDICTIONS.names]
    )
    for wanted in RESULTS:
        value = values.get(wanted.name)
        if value is None:
            column = pa.nulls(len(rows), wanted.type)
        elif isinstance(value, pa.ChunkedArray):
            column = value.cast(wanted.type)
        else:
            column = pa.array(value, wanted.type)
        table = table.append_column(wanted, column)
    return stamped(table)
