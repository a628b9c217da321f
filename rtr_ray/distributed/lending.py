"""How an answer gets longer than it was paid for in advance: it asks the ledger while it grows.

It asks some tokens before the limit, for as much again each time, so that an answer of 32,000 tokens
asks a handful of times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from rtr_ray.executors.base import Limit
from rtr_ray.ledger import Grant

_AHEAD = 32  # tokens before the limit at which it asks at the latest
_AHEAD_SHARE = 8  # ... or this part of the limit, where that is more
_MORE = 32  # tokens that it asks for at least
_LEAST = 16  # ... and takes, where there are no more
_PATIENCE_S = 30.0  # for the ledger; an answer must not hang on it


class Lender(Protocol):
    """The ledger, as far as a running call knows it."""

    async def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        """Set more aside for a call that is running."""
        ...


@dataclass(slots=True)
class Allowance:
    """How long one answer may get just now, and when it asks for more.

    Attributes:
        tokens: Its limit. No more than these are paid for, whatever the engine generates.
        most: `max_tokens` of the request.
        ask_at: How long the answer is when it asks next; beyond `most` where it need not, or would
            in vain.
    """

    tokens: int
    most: int
    ask_at: int = 0

    def __post_init__(self) -> None:
        self._aim()

    @property
    def cuts(self) -> bool:
        """Whether the limit, and not `max_tokens`, is what would end the answer."""
        return self.tokens < self.most

    def wanted(self) -> tuple[int, int]:
        """Tokens to ask for: as many again, and the least that would help."""
        more = min(max(self.tokens, _MORE), self.most - self.tokens)
        return more, min(_LEAST, more)

    def answered(self, tokens: int, grant: Grant) -> None:
        """Take what the ledger said when the answer was so long."""
        if grant.given:
            self.tokens += self.wanted()[grant is Grant.LEAST]
            self._aim()
        elif grant is Grant.WAIT:  # others may settle until the limit is reached
            self.ask_at = tokens + max((self.tokens - tokens) // 2, 1)
        else:
            self.ask_at = self.most + 1

    def _aim(self) -> None:
        ahead = max(_AHEAD, self.tokens // _AHEAD_SHARE)
        self.ask_at = max(self.tokens - ahead, 0) if self.cuts else self.most + 1


@dataclass(slots=True)
class Extending:
    """An answer that grows: its allowance, and whom it asks."""

    allowance: Allowance
    lender: Lender
    key: str
    call: str
    usd_per_token: Decimal

    @classmethod
    def read(cls, body: dict[str, Any], lender: Lender | None) -> Extending | None:
        """Take the limit out of a request's body, if it has one; without a lender it ends there."""
        found: Mapping[str, Any] | None = body.pop("limit", None)
        if found is None:
            return None
        if lender is None:
            body["max_tokens"] = min(found["tokens"], body["max_tokens"])
            return None
        allowance = Allowance(found["tokens"], body["max_tokens"])
        return cls(allowance, lender, found["key"], found["call"], Decimal(found["usd_per_token"]))

    async def limit(self, tokens: int) -> int:
        """How long the answer may get, told how long it is; near the limit this asks for more.

        Never raises: a ledger that does not answer lends nothing.
        """
        if tokens >= self.allowance.ask_at:
            more, least = (count * self.usd_per_token for count in self.allowance.wanted())
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    grant = await self.lender.extend(self.key, self.call, more, least)
            except Exception:
                grant = Grant.NEVER
            self.allowance.answered(tokens, grant)
        return self.allowance.tokens


def limit_of(key: str, limit: Limit) -> dict[str, Any]:
    """A limit, as it travels in a request's body."""
    return {
        "key": key,
        "call": limit.call,
        "tokens": limit.tokens,
        "usd_per_token": f"{limit.usd_per_token:f}",
    }
