"""What a run learns about its own predictions: by how much answers are longer or shorter than expected.

A router that was trained on other questions, or for engines that have changed since, may be wrong by
the same factor on every row; no number of rows averages that out. The answers that have come in show
it, and the rows that are still to be planned are planned with the corrected predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rtr_ray.policies.upgrades import below
from rtr_ray.pool import MTOK, Pool
from rtr_ray.types import Candidate, FloatArray, RoutingTable

_BUCKETS = 24  # predicted lengths up to 2^23 tokens
_TRUST_ROWS = 40  # so many answers weigh as much as what was believed before
_LEAST, _MOST = 0.02, 50.0  # a ratio beyond this is an accident, not a finding

Bucket = tuple[Candidate, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was predicted of some answered rows, and what they took: sums."""

    rows: int = 0
    predicted_tokens: float = 0.0
    tokens: int = 0
    predicted_input_usd: float = 0.0
    input_usd: float = 0.0

    def __add__(self, other: Seen) -> Seen:
        return Seen(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Corrections:
    """Factors for the predicted output tokens, by candidate and length, and for the input dollars.

    ratio = (rows * observed + trust * expected) / (rows + trust), with what is expected taken from the
    level above: a bucket from its candidate, a candidate from all of them, all of them from 1.
    """

    tokens: Mapping[Bucket, float] = field(default_factory=dict)
    by_candidate: Mapping[Candidate, float] = field(default_factory=dict)
    overall: float = 1.0
    input_usd: Mapping[Candidate, float] = field(default_factory=dict)
    cautious: bool = False  # count every answer at its 95% quantile
    max_row_usd: float | None = None  # allow nothing that is expected above it, caution apart

    @classmethod
    def of(cls, seen: Mapping[Bucket, Seen]) -> Corrections:
        """The factors that answered rows show."""
        overall = _ratio(_sum(seen.values()), 1.0)
        candidates = sorted({candidate for candidate, _ in seen})
        each = {c: _sum(one for (who, _), one in seen.items() if who == c) for c in candidates}
        by_candidate = {c: _ratio(one, overall) for c, one in each.items()}
        return cls(
            {key: _ratio(one, by_candidate[key[0]]) for key, one in seen.items()},
            by_candidate,
            overall,
            {c: _shrunken(one.rows, one.predicted_input_usd, one.input_usd, 1.0) for c, one in each.items()},
        )

    def factor(self, candidate: Candidate) -> float:
        """The factor of a candidate, all lengths together."""
        return self.by_candidate.get(candidate, self.overall)

    def ratios(self, candidate: Candidate) -> FloatArray:
        """(buckets,) the factors of one candidate; where nothing was seen, its general one."""
        general = self.factor(candidate)
        return np.array([self.tokens.get((candidate, b), general) for b in range(_BUCKETS)])

    def apply(self, table: RoutingTable, pool: Pool) -> RoutingTable:
        """The table with corrected tokens and dollars."""
        if not self.tokens and not self.cautious and self.max_row_usd is None:
            return table
        ratios_CB = np.array([self.ratios(c) for c in table.candidates])
        tokens_QC = table.output_tokens.astype(np.float64)
        class_QC = np.clip(np.log2(np.maximum(tokens_QC, 1.0)), 0, _BUCKETS - 1).astype(np.intp)
        ratio_QC = ratios_CB[np.arange(len(table.candidates)), class_QC]
        price_C = np.array([float(pool.price(c).output_usd_per_mtok / MTOK) for c in table.candidates])
        input_C = np.array([self.input_usd.get(c, 1.0) for c in table.candidates])
        input_QC = np.maximum(table.cost_usd - tokens_QC * price_C, 0.0) * input_C
        longest_QC = table.output_tokens_p95 * ratio_QC
        cost_QC = input_QC + tokens_QC * ratio_QC * price_C
        return replace(
            table,
            output_tokens=tokens_QC * ratio_QC,
            output_tokens_p95=longest_QC,
            allowed=below(table.allowed, cost_QC, self.max_row_usd),
            cost_usd=input_QC + longest_QC * price_C if self.cautious else cost_QC,
        )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same factors from."""
        return {
            "overall": self.overall,
            "by_candidate": {str(c): ratio for c, ratio in self.by_candidate.items()},
            "tokens": [[str(c), b, ratio] for (c, b), ratio in sorted(self.tokens.items())],
            "input_usd": {str(c): ratio for c, ratio in self.input_usd.items()},
            "cautious": self.cautious,
            "max_row_usd": self.max_row_usd,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Corrections:
        """The factors that `to_json` was taken from."""
        return cls(
            {(Candidate.parse(c), b): ratio for c, b, ratio in found["tokens"]},
            {Candidate.parse(c): ratio for c, ratio in found["by_candidate"].items()},
            found["overall"],
            {Candidate.parse(c): ratio for c, ratio in found["input_usd"].items()},
            found["cautious"],
            found.get("max_row_usd"),
        )


TAUGHT_BY = (
    *("model", "strategy", "samples", "predicted_output_tokens", "predicted_cost_usd"),
    *("output_tokens", "cost_usd", "finish_reason"),
)
"""The columns of results that teach something."""


def seen_in(results: pa.Table, pool: Pool) -> tuple[dict[Bucket, Seen], float]:
    """What results say about the predictions, and what they cost.

    An answer that was cut since the budget was used up says nothing about lengths.

    Args:
        results: Rows with the columns `TAUGHT_BY`.
        pool: For the prices.
    """
    paid = results.filter(pc.is_valid(results["cost_usd"]))
    usd_R = paid["cost_usd"].cast(pa.float64()).to_numpy()
    taught = pc.and_(
        pc.is_valid(paid["predicted_output_tokens"]),
        pc.fill_null(pc.not_equal(paid["finish_reason"], "budget"), True),
    )
    taught_R = taught.to_numpy(zero_copy_only=False) if len(paid) else np.zeros(0, dtype=bool)
    found: dict[Bucket, Seen] = {}
    names = list(zip(*(paid[n].to_pylist() for n in ("model", "strategy", "samples")), strict=True))
    for name in sorted(set(names)):
        candidate = Candidate(*name)
        rows_R = np.flatnonzero(taught_R & np.array([one == name for one in names]))
        price = float(pool.price(candidate).output_usd_per_mtok / MTOK)
        predicted_R, predicted_usd_R, tokens_R = (
            paid[n].take(pa.array(rows_R)).cast(pa.float64()).to_numpy()
            for n in ("predicted_output_tokens", "predicted_cost_usd", "output_tokens")
        )
        class_R = np.clip(np.log2(np.maximum(predicted_R, 1.0)), 0, _BUCKETS - 1).astype(int)
        for one in np.unique(class_R):
            mine_R = class_R == one
            predicted, tokens = predicted_R[mine_R], tokens_R[mine_R]
            found[candidate, int(one)] = Seen(
                int(mine_R.sum()),
                float(predicted.sum()),
                int(tokens.sum()),
                float(np.maximum(predicted_usd_R[mine_R] - predicted * price, 0.0).sum()),
                float(np.maximum(usd_R[rows_R][mine_R] - tokens * price, 0.0).sum()),
            )
    return found, float(usd_R.sum())


def merged(many: Iterable[Mapping[Bucket, Seen]]) -> dict[Bucket, Seen]:
    """All of them in one."""
    total: dict[Bucket, Seen] = {}
    for one in many:
        for key, seen in one.items():
            total[key] = total.get(key, Seen()) + seen
    return total


def _sum(many: Iterable[Seen]) -> Seen:
    return sum(many, Seen())


def _ratio(seen: Seen, expected: float) -> float:
    return _shrunken(seen.rows, seen.predicted_tokens, seen.tokens, expected)


def _shrunken(rows: int, predicted: float, actual: float, expected: float) -> float:
    if rows == 0 or predicted <= 0:
        return expected
    ratio = (rows * (actual / predicted) + _TRUST_ROWS * expected) / (rows + _TRUST_ROWS)
    return min(max(ratio, _LEAST), _MOST)
