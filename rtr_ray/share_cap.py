"""The share of a key's requests that the router may send to the dearest candidates."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from rtr_ray.errors import ConfigError
from rtr_ray.gate import Caller, Gate, Hold, Offer, Refusal
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate

_MOST_KEYS = 10_000


@dataclass(slots=True)
class ShareCap:
    """Of each key's last so many routed requests no more than a share went to the dearest candidates.

    However a query is worded, that holds: a text that was searched for to be sent to a dear candidate
    gets there no more often than this.
    """

    dearest: frozenset[Candidate]
    share: float  # of the last `window` requests
    window: int = 100
    _seen: OrderedDict[str, deque[bool]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.window < 1:
            raise ConfigError(
                f"share_cap has share={self.share}, window={self.window}; a share from 0 to 1, and a "
                "window of one request at least, are needed."
            )

    @classmethod
    def of(cls, pool: Pool, share: float, window: int, times: float) -> ShareCap:
        """Dear is what costs, per output token, so many times what the median candidate does, at least.

        Raises:
            ConfigError: If every candidate would be dear, or none.
        """
        price = {
            c: float(pool.price(c).output_usd_per_mtok) * c.samples * pool.max_tokens(c)
            for c in pool.candidates
        }
        middle = sorted(price.values())[(len(price) - 1) // 2]
        dearest = frozenset(c for c, usd in price.items() if usd >= times * middle and usd > 0)
        if not dearest or len(dearest) == len(price):
            raise ConfigError(
                f"share_cap.times is {times:g}: {len(dearest)} of {len(price)} candidates cost so many times "
                "what the median one may. Give another number."
            )
        return cls(dearest, share, window)

    def full(self, key: str) -> bool:
        """Whether one more of a key's requests at a dear candidate would be beyond the share."""
        seen = self._seen.get(key, ())
        last = list(seen)[-(self.window - 1) :] if self.window > 1 else []
        # what is not asked yet counts as not dear: a first burst gets no more than a window's share
        return sum(last) + 1 > self.share * self.window + 1e-9

    def count(self, key: str, candidate: Candidate) -> None:
        """A request was sent to a candidate."""
        seen = self._seen.setdefault(key, deque(maxlen=self.window))
        seen.append(candidate in self.dearest)
        self._seen.move_to_end(key)
        while len(self._seen) > _MOST_KEYS:
            self._seen.popitem(last=False)

    def permitted(self, key: str, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Without the dearest where their share is used up; all where nothing else is there."""
        wanted = list(candidates)
        if not self.full(key):
            return wanted
        return [c for c in wanted if c not in self.dearest] or wanted


@dataclass(frozen=True, slots=True)
class CappedGate:
    """A gate that passes over offers of the dearest candidates where a key has had its share of them.

    A request with one offer was asked for by name, or has nowhere else to go: it is not routed, and
    neither held back nor counted. Each replica counts for itself.
    """

    gate: Gate
    cap: ShareCap

    async def admit(self, bearer: str | None) -> Caller | Refusal:
        """As the gate behind it."""
        return await self.gate.admit(bearer)

    async def reserve(self, caller: Caller, offers: Sequence[Offer]) -> Hold | Refusal:
        """Put aside for the first offer that is within the share and can be paid."""
        if len(offers) < 2:
            return await self.gate.reserve(caller, offers)
        kept = self.cap.permitted(caller.key_id, (offer.candidate for offer in offers))
        held = await self.gate.reserve(caller, [offer for offer in offers if offer.candidate in kept])
        if isinstance(held, Hold):
            self.cap.count(caller.key_id, held.offer.candidate)
        return held

    async def settle(self, hold: Hold, spent_usd: Decimal, tokens: int, *, unknown: bool = False) -> None:
        """As the gate behind it."""
        await self.gate.settle(hold, spent_usd, tokens, unknown=unknown)

    async def release(self, hold: Hold) -> None:
        """As the gate behind it."""
        await self.gate.release(hold)
