"""The Parquet schemas of everything that rtr-ray writes.

Money is decimal128(38, 12): exact, since prices have at most 6 decimals per million tokens.
Estimates are float64. Unknown is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rtr_ray.errors import DataError

VERSION = 1
WRITTEN = "written"
"""In the metadata of a results part: when it was written, in ISO 8601 with its zone."""
USD = pa.decimal128(38, 12)

SAMPLES = pa.list_(
    pa.struct(
        [
            ("response", pa.string()),
            ("answer", pa.string()),
            ("finish_reason", pa.string()),
            ("output_tokens", pa.int64()),
        ]
    )
)
"""All answers of a candidate that draws several; null where there is one."""

OUTCOMES = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("dataset", pa.string()),
        ("group_id", pa.string()),
        ("split", pa.string()),
        ("ood", pa.bool_()),
        ("model", pa.string()),
        ("strategy", pa.string()),
        ("samples", pa.int32()),
        ("sample", pa.int32()),
        ("correct", pa.float32()),  # null: not graded
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cost_usd", USD),
        ("max_tokens", pa.int32()),
        ("temperature", pa.float32()),
        ("finish_reason", pa.string()),
        ("answer", pa.string()),
        ("gold", pa.string()),
        ("response", pa.string()),
        ("error", pa.string()),
        ("pool_fingerprint", pa.string()),
    ]
)
"""One row per query, candidate and sample: what an estimator is trained on."""

PREDICTIONS = pa.schema(
    [
        ("model", pa.string()),
        ("strategy", pa.string()),
        ("samples", pa.int32()),
        ("predicted_accuracy", pa.float64()),
        ("predicted_output_tokens", pa.float64()),
        ("predicted_output_tokens_p95", pa.float64()),
        ("predicted_cost_usd", pa.float64()),
        ("runner_up", pa.string()),
        ("plan_version", pa.int32()),
        ("dual_price", pa.float64()),  # accuracy per dollar at which the row was chosen; null: no budget
    ]
)
"""What a plan row says beside the query and the user's columns."""

UNFAMILIAR = "unfamiliar"
"""A column of plan rows and results where `router.ood` is set: is the query unlike those of training?"""

RESULTS = pa.schema(
    [
        ("query_id", pa.string()),
        ("status", pa.string()),
        ("answer", pa.string()),
        ("response", pa.string()),
        ("model", pa.string()),
        ("strategy", pa.string()),
        ("samples", pa.int32()),
        ("input_tokens", pa.int64()),
        ("cached_input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost_usd", USD),
        ("predicted_accuracy", pa.float64()),
        ("predicted_output_tokens", pa.float64()),
        ("predicted_cost_usd", pa.float64()),
        ("runner_up", pa.string()),
        ("plan_version", pa.int32()),
        ("dual_price", pa.float64()),
        ("finish_reason", pa.string()),
        ("latency_s", pa.float64()),
        ("attempts", pa.int32()),
        ("error", pa.string()),
        ("correct", pa.float32()),  # null: no reference, or not graded
        ("all_samples", SAMPLES),
    ]
)
"""What a results row says behind the user's columns."""


def stamped(table: pa.Table, **values: Any) -> pa.Table:
    """The table with the schema version, and JSON values by name, in its Parquet metadata."""
    metadata = {"schema_version": str(VERSION)} | {key: json.dumps(value) for key, value in values.items()}
    return table.replace_schema_metadata(metadata)


def stamp(metadata: Mapping[bytes, bytes] | None, name: str) -> Any:
    """A value that `stamped` put there.

    Raises:
        DataError: If there is none.
    """
    value = (metadata or {}).get(name.encode())
    if value is None:
        raise DataError(f"A Parquet part lacks '{name}' in its metadata; it was not written by rtr-ray.")
    return json.loads(value)
