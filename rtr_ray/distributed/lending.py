"""How an answer gets longer than it was paid for in advance: it asks the ledger while it grows.

`Allowance` is what an engine keeps of one such answer. It asks some tokens before the limit, for
as much again each time, so that an answer of 32,000 tokens asks a handful of times.
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
_STEP = 64  # tokens that are worth asking for
_PATIENCE_S = 30.0  # for the ledger; an answer must not hang on it


class Lender(Protocol):
    """The ledger, as far as a running call knows it."""

    async def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        """Set more aside for a call that is running."""
        ...


@dataclass(slots=True)
class Allowance:
    """How long one answer may get just now.

    Attributes:
        tokens: Its limit. No more than these are paid for, whatever the engine generates.
    """

    lender: Lender
    key: str
    call: str
    tokens: int
    most: int  # max_tokens of the request
    usd_per_token: Decimal
    _ask_at: int = 0  # tokens; beyond `most`: not any more

    def __post_init__(self) -> None:
        self._aim()

    @classmethod
    def read(cls, body: dict[str, Any], lender: Lender | None) -> Allowance | None:
        """Take the limit out of a request's body, if it has one."""
        found: Mapping[str, Any] | None = body.pop("limit", None)
        if found is None or lender is None:
            return None
        return cls(
            lender,
            found["key"],
            found["call"],
            found["tokens"],
            body["max_tokens"],
            Decimal(found["usd_per_token"]),
        )

    @property
    def cuts(self) -> bool:
        """Whether the limit, and not `max_tokens`, is what would end the answer."""
        return self.tokens < self.most

    async def reached(self, tokens: int) -> None:
        """Tell how long the answer is; near the limit this asks for more. Never raises.

        A ledger that does not answer lends nothing.
        """
        if not self.cuts or tokens < self._ask_at:
            return
        more = min(max(self.tokens, _STEP), self.most - self.tokens)
        step = min(_STEP, more)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                grant = await self.lender.extend(
                    self.key, self.call, more * self.usd_per_token, step * self.usd_per_token
                )
        except Exception:
            grant = Grant.NEVER
        if grant.given:
            self.tokens += more if grant is Grant.GRANTED else step
            self._aim()
        elif grant is Grant.WAIT:  # others may settle until the limit is reached
            self._ask_at = tokens + max((self.tokens - tokens) // 2, 1)
        else:
            self._ask_at = self.most + 1

    def _aim(self) -> None:
        self._ask_at = self.tokens - max(_AHEAD, self.tokens // _AHEAD_SHARE)


def limit_of(key: str, limit: Limit) -> dict[str, Any]:
    """A limit, as it travels in a request's body."""
    return {
        "key": key,
        "call": limit.call,
        "tokens": limit.tokens,
        "usd_per_token": f"{limit.usd_per_token:f}",
    }
