"""What a row asks for itself: who may answer it, how long and for how much, and how the answer is drawn.

A corpus may hold such terms in a column of its own (`corpus.columns.settings`), as JSON. They bind a
row wherever it is planned and asked; a row without any has the pool's own settings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from rtr_ray.errors import DataError
from rtr_ray.pool import MTOK, Pool, Price
from rtr_ray.types import BoolArray, Candidate, FloatArray, Query, Request, Sampling

_UNBOUNDED_TOKENS = 4_096_000  # that are paid for where they cost nothing


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one row; as they are here, none."""

    candidates: tuple[str, ...] | None = None  # "model:strategy"; None: all
    max_tokens: int | None = None  # of one answer
    own_length: bool = False  # max_tokens stands over the strategy's, instead of shortening it
    max_usd: Decimal | None = None  # the worst case is never above it
    max_predicted_usd: float | None = None  # a candidate that is predicted above it may not answer
    sampling: Sampling = field(default=Sampling())
    stop: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str | None) -> Terms:
        """The terms that a cell holds.

        Raises:
            DataError: If it is not the JSON of `to_json`.
        """
        if text is None:
            return NO_TERMS
        try:
            found = json.loads(text)
            names, most, predicted = (found.get(k) for k in ("candidates", "max_usd", "max_predicted_usd"))
            return cls(
                None if names is None else tuple(map(str, names)),
                None if found.get("max_tokens") is None else int(found["max_tokens"]),
                bool(found.get("own_length")),
                None if most is None else Decimal(most),
                None if predicted is None else float(predicted),
                Sampling(**found.get("sampling", {})),
                tuple(map(str, found.get("stop", ()))),
            )
        except (ValueError, TypeError, AttributeError, InvalidOperation) as error:
            raise DataError(
                f"The settings of a row are not what rtr-ray writes ({type(error).__name__}). Leave "
                "corpus.columns.settings out."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """What `read` makes the same from; what is not asked is left out."""
        found: dict[str, Any] = {
            "candidates": None if self.candidates is None else list(self.candidates),
            "max_tokens": self.max_tokens,
            "own_length": self.own_length or None,
            "max_usd": None if self.max_usd is None else f"{self.max_usd:f}",
            "max_predicted_usd": self.max_predicted_usd,
            "sampling": self.sampling.given() or None,
            "stop": list(self.stop) or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def allow(
        self, pool: Pool, candidates: Sequence[Candidate], query: Query, cost_usd_C: FloatArray
    ) -> BoolArray:
        """(C,) which candidates may answer the row.

        Args:
            pool: For their prices.
            candidates: The columns.
            query: The row's.
            cost_usd_C: (C,) what each is predicted to cost.
        """
        greedy = self.sampling.temperature == 0  # engines refuse to draw several greedy answers
        allowed_C = np.array(
            [
                (self.candidates is None or str(one) in self.candidates) and not (greedy and one.samples > 1)
                for one in candidates
            ],
            dtype=bool,
        )
        if self.max_predicted_usd is not None:
            allowed_C &= cost_usd_C <= self.max_predicted_usd
        if self.max_usd is not None:
            for column in np.flatnonzero(allowed_C):
                allowed_C[column] = self._paid(pool, query, candidates[column]) >= 1
        return allowed_C

    def _paid(self, pool: Pool, query: Query, candidate: Candidate) -> int:
        assert self.max_usd is not None
        try:
            request = pool.request(query, candidate)
        except DataError:  # nobody can say what it costs at most
            return 0
        return paid_tokens(pool.price(candidate), request.max_input_tokens, self.max_usd, candidate.samples)

    def applied(self, request: Request, pool: Pool) -> Request:
        """The request on these terms."""
        if self is NO_TERMS and request.sampling.seed is None:
            return request
        longest = request.max_tokens
        if self.max_tokens is not None:
            longest = self.max_tokens if self.own_length else min(longest, self.max_tokens)
        if self.max_usd is not None:
            price, count = pool.price(request.candidate), request.candidate.samples
            longest = min(longest, paid_tokens(price, request.max_input_tokens, self.max_usd, count))
        sampling = self.sampling.over(request.sampling)
        if pool.deployment(request.candidate).accelerator == "cpu" and not sampling.temperature:
            sampling = replace(sampling, seed=None)  # vLLM's engine on the CPU dies of it; greedy needs none
        return replace(
            request, max_tokens=longest, sampling=sampling, stop=tuple((*request.stop, *self.stop))
        )


NO_TERMS = Terms()


def paid_tokens(price: Price, input_tokens: int, usd: Decimal, count: int = 1) -> int:
    """How long each of `count` answers may get for the money; below 1 it does not pay for any.

    Args:
        price: Of the candidate.
        input_tokens: Of the prompt at most.
        usd: What prompt and answers may cost together.
        count: Answers that are drawn.
    """
    left_usd = usd - price.worst_case_usd(input_tokens, 0)
    if left_usd < 0:
        return 0
    if not price.output_usd_per_mtok:
        return _UNBOUNDED_TOKENS
    return int(left_usd * MTOK / price.output_usd_per_mtok) // count
