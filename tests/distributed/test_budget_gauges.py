"""Gauges of what is left: by the names of keys, and nothing of one that is revoked."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.keys import Admit, Ask, Close, KeyStore, Limits
from rtr_ray.keys.tokens import digest
from tests.keys.bench import offer

pytestmark = pytest.mark.ray


@dataclass
class Gauge:
    """Keeps what it is set to."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)

    def set(self, value: float, tags: dict[str, str]) -> None:
        """The last value counts."""
        self.values[tags["key"], tags["period"]] = value


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    """A store with a key of two budgets, and one of none."""
    found = KeyStore(tmp_path / "keys.sqlite")
    found.create("free", Limits())
    return found


def budgets(tmp_path: Path) -> Any:
    """Budgets that ask the file's owner in this process."""
    from rtr_ray.distributed.online.budgets import Budgets
    from rtr_ray.distributed.online.keys_actor import SharedKeys

    owner = SharedKeys(str(tmp_path / "keys.sqlite"))

    class Here(Budgets):
        async def _asked(self, method: str, *arguments: Any) -> Any:
            return getattr(owner, method)(*arguments)

    here = Here("")
    here._left, here._budget = Gauge(), Gauge()  # type: ignore[assignment]
    return here


async def test_what_is_left_is_told_by_name_and_period(store: KeyStore, tmp_path: Path) -> None:
    token, key = store.create("ann", Limits(day_usd=Decimal(1), total_usd=Decimal(5)))
    store.change("global", Limits(month_usd=Decimal(100)))
    store.apply("replica", [Admit(digest(token)), Ask("h1", key.id, (offer("0.25"),))])
    store.apply("replica", [Close("h1", Decimal("0.25"), 10), Ask("h2", key.id, (offer("0.5"),))])
    here = budgets(tmp_path)
    await here.look()
    assert here._left.values == {("ann", "day"): 0.25, ("ann", "all"): 4.25, ("global", "month"): 99.25}
    assert here._budget.values == {("ann", "day"): 1.0, ("ann", "all"): 5.0, ("global", "month"): 100.0}
    day, whole = await here.of(key.id)
    assert (day["kind"], day["left_usd"], day["reserved_usd"], day["spent_usd"]) == (
        "day", "0.250000000000", "0.500000000000", "0.250000000000",
    )  # fmt: skip
    assert (whole["kind"], whole["period"]) == ("all", "all")
    store.revoke("ann")
    await here.look()
    assert here._left.values[("ann", "day")] == here._budget.values[("ann", "all")] == 0.0
    assert token not in repr(here._left.values)


async def test_many_keys_are_looked_at_a_few_at_a_time(store: KeyStore, tmp_path: Path) -> None:
    for number in range(30):
        store.create(f"key{number}", Limits(day_usd=Decimal(number)))
    here, calls = budgets(tmp_path), []
    asked = here._asked

    async def counted(method: str, *arguments: Any) -> Any:
        calls.append(len(arguments[0]) if arguments else 0)
        return await asked(method, *arguments)

    here._asked = counted
    await here.look()
    assert calls == [0, 20, 12]
    assert len(here._left.values) == 30
