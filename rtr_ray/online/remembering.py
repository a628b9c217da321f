"""Requests that may get feedback, and the outcomes that they become."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rtr_ray.online.asking import parse_json
from rtr_ray.online.problems import RequestError
from rtr_ray.schemas import OUTCOMES, stamped
from rtr_ray.storage import Store, write_table


def parse_feedback(raw: bytes) -> tuple[str, float]:
    """The id of a request and how right its answer was.

    Raises:
        RequestError: If one is missing, or the score is not between 0 and 1.
    """
    body = parse_json(raw)
    for name in body:
        if name not in ("request_id", "id", "score"):
            raise RequestError(
                f"The field '{name[:60]}' is not known. Give request_id and score.", param=name[:60]
            )
    found = body.get("request_id", body.get("id"))
    if not isinstance(found, str) or not 0 < len(found) <= 200:
        raise RequestError(
            "request_id is missing: the id of a completion, or its x-request-id.", param="request_id"
        )
    score = body.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise RequestError(
            "score is missing or out of range: 0 (wrong) to 1 (right) is needed.", param="score"
        )
    return found, float(score)


@dataclass(slots=True)
class Remembered:
    """The last requests by id, until feedback comes; the oldest are forgotten.

    Args:
        store: Where the outcomes go, one part per `write`; None: feedback is not kept.
        most: Requests that are remembered.
    """

    store: Store | None
    most: int = 10_000
    _rows: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    _names: OrderedDict[str, str] = field(default_factory=OrderedDict)  # other name -> id
    _given: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, row: Mapping[str, Any], other_name: str = "") -> None:
        """Keep a row of outcomes without `correct`."""
        self._rows[row["query_id"]] = dict(row)
        if other_name:
            self._names[other_name] = row["query_id"]
        for kept in (self._rows, self._names):
            while len(kept) > self.most:
                kept.popitem(last=False)

    def score(self, name: str, score: float) -> str:
        """Take in what somebody says of a request.

        Returns:
            Its id.

        Raises:
            RequestError: 404 where nobody remembers it, 409 where it has a score, 404 where none are kept.
        """
        if self.store is None:
            raise RequestError(
                "This endpoint keeps no feedback: its configuration has no feedback folder.", status=404
            )
        query_id = self._names.get(name, name)
        row = self._rows.get(query_id)
        if row is None:
            raise RequestError(
                f"No finished request '{name[:80]}' is remembered. The last {self.most:,} are.",
                status=404,
                param="request_id",
                code="not_found",
            )
        if "correct" in row:
            raise RequestError(f"The request '{name[:80]}' has a score already.", status=409, code="conflict")
        row["correct"] = score
        self._given.append(row)
        return query_id

    def write(self) -> int:
        """Make what was given durable, in one part.

        Returns:
            How many rows; they stay to be written where the store fails.
        """
        if self.store is None or not self._given:
            return 0
        rows = list(self._given)
        full = [{name: row.get(name) for name in OUTCOMES.names} for row in rows]
        table = pa.Table.from_pylist(full, schema=OUTCOMES)
        write_table(self.store, f"part-{uuid.uuid4().hex}.parquet", stamped(table))
        del self._given[: len(rows)]
        return len(rows)
