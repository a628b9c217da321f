"""Recorded outcomes: reading long tables into what an estimator learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rtr_ray.corpus import filesystem, first_line, list_files
from rtr_ray.errors import DataError
from rtr_ray.types import Candidate, FloatArray, IntArray, Outcomes

_TEXTS = pa.dictionary(pa.int32(), pa.string())  # each once: a table has a query's text in every row
NEEDED = {
    "query_id": pa.string(),
    "query": _TEXTS,
    "model": pa.string(),
    "strategy": pa.string(),
    "correct": pa.float64(),
    "output_tokens": pa.float64(),
}
OPTIONAL = {
    "samples": pa.int32(),
    "input_tokens": pa.int32(),
    "cost_usd": pa.float64(),
    "max_tokens": pa.int32(),
    "finish_reason": pa.string(),
    "error": pa.string(),
    "group_id": pa.string(),
    "dataset": pa.string(),
    "split": pa.string(),
    "ood": pa.bool_(),
    "pool_fingerprint": pa.string(),
}
SCHEMA = pa.schema(NEEDED | OPTIONAL)


def read_long(uri: str) -> pa.Table:
    """A long table of outcomes: one row per query, candidate and sample.

    Args:
        uri: A Parquet file, folder or glob, local or `s3://`. Columns beyond those that are
            needed may be missing, and others are ignored; `gold` is never read.

    Raises:
        DataError: If there is no such file, a needed column is missing, or values are impossible.
    """
    system, _ = filesystem(uri)
    tables = []
    for file in list_files(uri, "parquet"):
        try:
            with system.open_input_file(file.path) as source:
                parquet = pq.ParquetFile(source, read_dictionary=["query"])
                names = parquet.schema_arrow.names
                missing = [name for name in NEEDED if name not in names]
                if missing:
                    raise DataError(
                        f"{file.relative} lacks the column(s) {', '.join(missing)}. "
                        f"A table of outcomes has {', '.join(NEEDED)}; see docs/outcomes.md."
                    )
                table = parquet.read(columns=[n for n in SCHEMA.names if n in names])
            columns = [
                _cast(table[field.name], field.type)
                if field.name in names
                else pa.nulls(len(table), field.type)
                for field in SCHEMA
            ]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"Cannot read {file.relative} as outcomes: {first_line(error)}.") from error
        tables.append(pa.table(columns, schema=SCHEMA))
    return checked(pa.concat_tables(tables).unify_dictionaries(), uri)


def _cast(column: pa.ChunkedArray, type: pa.DataType) -> pa.ChunkedArray:
    """A column as our type; where that is a dictionary, encoded chunk by chunk."""
    if type != _TEXTS or column.type == _TEXTS:
        return column.cast(type)
    if pa.types.is_dictionary(column.type):  # of another width, or of large strings
        column = column.cast(column.type.value_type)
    return pc.dictionary_encode(column.cast(pa.string()))


def checked(table: pa.Table, uri: str) -> pa.Table:
    """The table, whose values are possible.

    Args:
        table: A long table of outcomes.
        uri: What it is called in errors.

    Raises:
        DataError: If ids or names are null, or a number is none or beyond what is possible.
    """
    for name in ("query_id", "query", "model", "strategy"):
        if nulls := table[name].null_count:
            raise DataError(f"{uri}: {name} is null in {nulls} of {len(table)} rows.")
    for name, low, high in (
        ("correct", 0, 1),
        ("output_tokens", 0, None),
        ("input_tokens", 0, None),
        ("cost_usd", 0, None),
    ):
        column = table[name].cast(pa.float64())
        if strange := pc.sum(pc.invert(pc.is_finite(column))).as_py():
            raise DataError(
                f"{uri}: {name} is no number (NaN), or infinite, in {strange} of {len(table)} rows. Leave a "
                "value that is not known empty (null)."
            )
        extremes = pc.min_max(column).as_py()
        if extremes["min"] is None:
            continue
        if extremes["min"] < low or (high is not None and extremes["max"] > high):
            raise DataError(
                f"{uri}: {name} lies between {extremes['min']:g} and {extremes['max']:g}; "
                f"{low} to {high if high is not None else 'any number'} is possible."
            )
    return table


def split_rows(table: pa.Table, split: str | None, ood: bool | None = False) -> pa.Table:
    """The rows of one split.

    Args:
        table: From `read_long`.
        split: "train", "test", ...; rows without a split count as "train". None: all.
        ood: False leaves out the rows marked as out of distribution, True keeps only them,
            None keeps all.
    """
    if split is not None:
        given = pc.if_else(pc.equal(table["split"], ""), None, table["split"])
        table = table.filter(pc.equal(pc.fill_null(given, "train"), split))
    if ood is not None:
        table = table.filter(pc.equal(pc.fill_null(table["ood"], False), ood))
    return table


def pivot(table: pa.Table, candidates: Sequence[Candidate] | None = None) -> Outcomes:
    """From a long table to Outcomes: cells that were run several times are averaged.

    Rows with an error were paid, perhaps, but tell nothing of accuracy and length: they are
    left out. Queries and candidates come in the order in which they first appear.

    Raises:
        DataError: If no row is left.
    """
    table = table.filter(pc.is_null(table["error"])) if table["error"].null_count < len(table) else table
    if not len(table):
        raise DataError("The table of outcomes has no usable row: all are errors, or none is in this split.")
    names = pc.binary_join_element_wise(
        table["model"], table["strategy"], pc.cast(pc.fill_null(table["samples"], 1), pa.string()), "\n"
    )
    cell_R, seen = _codes(names)
    found = [Candidate(m, s, int(n)) for m, s, n in (text.split("\n") for text in seen)]
    order = list(candidates) if candidates is not None else found
    column_of = np.array([order.index(c) if c in order else -1 for c in found])
    row_R, ids = _codes(table["query_id"])
    keep_R = column_of[cell_R] >= 0
    row_R, column_R = row_R[keep_R], column_of[cell_R][keep_R]
    shape = (len(ids), len(order))
    index_R = row_R * shape[1] + column_R
    first = np.full(shape[0], -1)
    all_rows, _ = _codes(table["query_id"])
    positions = np.arange(len(table))[::-1]
    first[all_rows[::-1]] = positions

    def mean(name: str) -> FloatArray:
        values_R = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)[keep_R]
        return _cell_means(values_R, index_R, shape)

    cut = pc.is_in(table["finish_reason"], pa.array(["length", "budget"]))
    cut_R = pc.fill_null(cut, False).cast(pa.float64())
    texts = {
        name: table[name].take(pa.array(first)).to_pylist()
        for name in ("query", "group_id", "dataset", "split")
    }
    return Outcomes(
        query_ids=tuple(ids),
        queries=tuple(texts["query"]),
        candidates=tuple(order),
        accuracy=mean("correct"),
        input_tokens=mean("input_tokens"),
        output_tokens=mean("output_tokens"),
        cost_usd=mean("cost_usd"),
        cut=_cell_means(cut_R.to_numpy(zero_copy_only=False)[keep_R], index_R, shape),
        max_tokens=mean("max_tokens"),
        runs=np.bincount(index_R, minlength=shape[0] * shape[1]).reshape(shape),
        group_ids=_filled(texts["group_id"]),
        datasets=_filled(texts["dataset"]),
        splits=_filled(texts["split"]),
    )


def _codes(column: pa.ChunkedArray) -> tuple[IntArray, list[str]]:
    encoded = pc.dictionary_encode(column.combine_chunks())
    array: Any = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    return array.indices.to_numpy(zero_copy_only=False), array.dictionary.to_pylist()


def _cell_means(values_R: FloatArray, index_R: IntArray, shape: tuple[int, int]) -> FloatArray:
    known_R = ~np.isnan(values_R)
    size = shape[0] * shape[1]
    total = np.bincount(index_R[known_R], values_R[known_R], size)
    count = np.bincount(index_R[known_R], minlength=size)
    with np.errstate(invalid="ignore"):
        mean: FloatArray = (total / np.where(count == 0, np.nan, count)).reshape(shape)
    return mean


def _filled(values: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(value or "" for value in values) if any(values) else ()
