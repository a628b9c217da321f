"""What is left of the keys' budgets, for gauges and for the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from ray.serve.metrics import Gauge

from rtr_ray.distributed.online.keys_actor import keys_actor
from rtr_ray.keys.store import Usage

_LOOK_S = 10.0
_TOGETHER = 20  # keys of one call: their owner has requests to answer in between
_PAUSE_S = 0.1
_WHOSE: tuple[Any, ...] = ("key", "period")  # Ray says tuple[str], and means several
_KINDS = ("day", "month", "all")  # as `KeyStore.usage` has them


class Budgets:
    """Asks the owner of the keys now and then, a few keys at a time.

    Args:
        path: Of the file of keys, as the head node sees it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._owner: Any = None
        self._left = Gauge(
            "rtr_budget_left_usd", "Dollars of a key's budget that can still be set aside.", _WHOSE
        )
        self._budget = Gauge("rtr_budget_usd", "Dollars that a key may spend.", _WHOSE)
        self._shown: set[tuple[str, str]] = set()
        self._looking: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Look from now on, if nobody does."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking())

    async def of(self, key_id: str) -> list[dict[str, Any]]:
        """A key's budgets by period; those that are unbounded are not among them."""
        (usage,) = await self._asked("usage", [key_id])
        return [
            {
                "period": one.period,
                "kind": kind,
                "budget_usd": f"{one.budget_usd:f}",
                "spent_usd": f"{one.spent_usd + one.unknown_usd:f}",
                "reserved_usd": f"{one.reserved_usd:f}",
                "left_usd": f"{one.left_usd:f}",
            }
            for kind, one in zip(_KINDS, usage, strict=True)
            if one.budget_usd is not None
        ]

    async def look(self) -> None:
        """Set the gauges of every key; of one that is gone nothing is left."""
        names: Sequence[tuple[str, str]] = await self._asked("names")
        found: set[tuple[str, str]] = set()
        for first in range(0, len(names), _TOGETHER):
            some = names[first : first + _TOGETHER]
            usages = await self._asked("usage", [key_id for key_id, _ in some])
            for (_, name), usage in zip(some, usages, strict=True):
                found |= self._set(name, usage)
            await asyncio.sleep(_PAUSE_S)
        for name, kind in self._shown - found:
            self._left.set(0.0, {"key": name, "period": kind})
            self._budget.set(0.0, {"key": name, "period": kind})
        self._shown = found

    async def _asked(self, method: str, *arguments: Any) -> Any:
        try:
            if self._owner is None:
                self._owner = keys_actor(self._path)
            return await getattr(self._owner, method).remote(*arguments)
        except Exception:
            self._owner = None  # the next call finds another one
            raise

    def _set(self, name: str, usage: Sequence[Usage]) -> set[tuple[str, str]]:
        found = set()
        for kind, one in zip(_KINDS, usage, strict=True):
            if one.budget_usd is not None and one.left_usd is not None:
                tags = {"key": name, "period": kind}
                self._left.set(float(one.left_usd), tags)
                self._budget.set(float(one.budget_usd), tags)
                found.add((name, kind))
        return found

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # the owner may be restarting
                await self.look()
            await asyncio.sleep(_LOOK_S)
