"""What the tests of the keys share: a clock that is set by hand, offers, a store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from rtr_ray.gate import Hold, Offer, Refusal
from rtr_ray.keys import GLOBAL, Ask, Close, KeyStore
from rtr_ray.types import Candidate

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@dataclass(slots=True)
class Clock:
    """What a person sets, and what the machine counts by itself."""

    wall: datetime = NOON
    machine: float = 1000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.machine

    def pass_by(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.machine += seconds


def usd(text: str | int) -> Decimal:
    return Decimal(text)


def offer(worst: str | Decimal, name: str = "large:cot", tokens: int = 100) -> Offer:
    return Offer(Candidate.parse(name), Decimal(worst), tokens)


def opened(folder: Path, clock: Clock | None = None, **more: Any) -> KeyStore:
    clock = clock or Clock()
    return KeyStore(folder / "keys.sqlite", now=clock.now, monotonic=clock.monotonic, boot="boot", **more)


class Desk:
    """One replica, without a gate: it asks the store itself and counts its holds."""

    def __init__(self, store: KeyStore, owner: str = "replica") -> None:
        self.store, self.owner, self.number = store, owner, 0

    def ask(self, key_id: str, *offers: Offer) -> Hold | Refusal:
        self.number += 1
        (found,) = self.store.apply(self.owner, [Ask(f"{self.owner}-{self.number}", key_id, offers)])
        assert isinstance(found, Hold | Refusal)
        return found

    def hold(self, key_id: str, *offers: Offer) -> Hold:
        found = self.ask(key_id, *offers)
        assert isinstance(found, Hold), found
        return found

    def refusal(self, key_id: str, *offers: Offer) -> Refusal:
        found = self.ask(key_id, *offers)
        assert isinstance(found, Refusal), found
        return found

    def settle(self, hold: Hold, spent: str | Decimal, tokens: int = 10) -> None:
        self.store.apply(self.owner, [Close(hold.id, Decimal(spent), tokens)])

    def release(self, hold: Hold) -> None:
        self.store.apply(self.owner, [Close(hold.id)])

    def lose(self, hold: Hold) -> None:
        self.store.apply(self.owner, [Close(hold.id, unknown=True)])


def sums(store: KeyStore, key_id: str = GLOBAL, period: int = 2) -> tuple[Decimal, Decimal, Decimal]:
    """Spent, unknown, reserved; of today (0), this month (1) or in all (2)."""
    found = store.usage(key_id)[period]
    return found.spent_usd, found.unknown_usd, found.reserved_usd
