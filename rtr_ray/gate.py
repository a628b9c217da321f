"""Who may spend: what the online endpoint asks before and after every generation.

The seam between the endpoint, which knows requests, and the keys, which know money. A gate says who
a caller is (`admit`), puts aside the worst case of the first of the given offers that the caller
can still pay (`reserve`), and is told what it came to (`settle`) or that nothing was spent
(`release`). Every hold ends by exactly one of the two, on every way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from rtr_ray.types import Candidate


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    `name` is shown in metrics and logs; `key_id` is never the key. `candidates` None means all.
    """

    key_id: str
    name: str
    candidates: tuple[str, ...] | None = None  # "model:strategy"
    max_request_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate that would answer, and the most that it could cost."""

    candidate: Candidate
    worst_usd: Decimal
    worst_tokens: int  # input and output


@dataclass(frozen=True, slots=True)
class Hold:
    """Money put aside for one request; `offer` is the one of those offered that could be paid."""

    id: str
    key_id: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller does not get through.

    `kind` is OpenAI's error type: "invalid_api_key" (401), "permission_denied" (403),
    "budget_exceeded" or "rate_limit_exceeded" (429), "unavailable" (503). `retry_after_s` None: no use
    to come again.
    """

    kind: str
    message: str
    retry_after_s: float | None = None
    reset_at: str | None = None  # ISO 8601, when a budget begins anew


class Gate(Protocol):
    """Keys and their budgets, as the endpoint sees them. No method raises for what a caller did."""

    async def admit(self, bearer: str | None) -> Caller | Refusal:
        """Who this is, by the token of the Authorization header; None where there was none."""
        ...

    async def reserve(self, caller: Caller, offers: Sequence[Offer]) -> Hold | Refusal:
        """Put aside for the first of the offers that the caller can pay; the caller's wish comes first.

        Offers are in the order of preference; one of price zero can always be paid. Counts one
        request, and the offer's tokens, against the limits per minute.
        """
        ...

    async def settle(self, hold: Hold, spent_usd: Decimal, tokens: int, *, unknown: bool = False) -> None:
        """What it came to; `unknown` where the count was lost and the worst case is taken.

        Settling or releasing a hold again changes nothing.
        """
        ...

    async def release(self, hold: Hold) -> None:
        """Nothing was generated."""
        ...


class OpenGate:
    """No keys: everybody may, nothing is bounded. For loopback only."""

    async def admit(self, bearer: str | None) -> Caller | Refusal:
        """Everybody is the same caller."""
        return Caller("", "anonymous")

    async def reserve(self, caller: Caller, offers: Sequence[Offer]) -> Hold | Refusal:
        """The first offer."""
        return Hold("", caller.key_id, offers[0])

    async def settle(self, hold: Hold, spent_usd: Decimal, tokens: int, *, unknown: bool = False) -> None:
        """Nobody keeps count."""

    async def release(self, hold: Hold) -> None:
        """Nothing was put aside."""
