"""An ingress replica that takes over what is to be served, as soon as somebody says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rtr_ray.config import SwapKeys
from rtr_ray.errors import RtrError, StorageError
from rtr_ray.online.served import Entry, Served
from rtr_ray.yaml_door import validated

_LOG = logging.getLogger("rtr_ray.online")
LOOK_S = 2.0
_LOOKS = 5  # after so many it is also looked whether the router's folder is still there


@dataclass(slots=True, eq=False)
class Follower:
    """Serves what the history of an endpoint says, and goes on with what it has where that fails.

    Args:
        served: The history.
        take: Loads and takes over an entry's keys, their router from a place; raises RtrError and
            changes nothing where it cannot.
    """

    served: Served
    take: Callable[[SwapKeys, str], Awaitable[None]]
    entry: Entry | None = None  # what is served
    refused: str | None = None  # why the last change was not made
    warning: str | None = None  # what is wrong although it is served
    _refused_number: int | None = None
    _looks: int = 0

    async def configured(self, user_config: Mapping[str, Any]) -> None:
        """Take over what a configuration says, or what has been served under it since.

        Raises:
            RtrError: If nothing is served yet, and this cannot be.
        """
        try:
            keys = validated(SwapKeys, dict(user_config), "user_config")
            entry = await self._entry(keys)
            await self._change(entry)
        except RtrError as error:
            if self.entry is not None:
                self._refuse(error, None)
                return
            await self._instead(error)

    async def _entry(self, keys: SwapKeys) -> Entry:
        try:
            return await asyncio.to_thread(self.served.configure, keys)
        except StorageError as error:  # served all the same; there is no way back then
            self.warning = f"What is served is not written down: {error.message}"
            return Entry(-1, "configuration", "", keys.model_dump(mode="json"))

    async def _instead(self, error: RtrError) -> None:
        """What was served before an order that cannot be followed; a configuration must be."""
        history = await asyncio.to_thread(self.served.read)
        entry = history.now if history.entries else None
        while entry is not None and entry.cause == "use" and entry.before is not None:
            entry = history.entries[entry.before]
            try:
                await self._change(entry)
            except RtrError:
                continue
            self._refuse(error, history.now.number)
            return
        raise error

    async def look(self) -> None:
        """See whether something else is to be served."""
        try:
            entry = (await asyncio.to_thread(self.served.read)).now
        except (RtrError, IndexError):
            return  # what is served is served
        known = None if self.entry is None else self.entry.number
        if known == -1 or entry.number == self._refused_number:
            return
        if entry.number == known:
            self._looks += 1
            if self._looks % _LOOKS == 0:
                self.warning = await asyncio.to_thread(self._wrong, entry)
            return
        try:
            await self._change(entry)
        except RtrError as error:
            self._refuse(error, entry.number)
        except Exception as error:  # an estimator from outside may stumble in any way; what serves goes on
            _LOG.exception("entry %d was not taken over", entry.number)
            what = f"{type(error).__name__} while entry {entry.number} was loaded; the logs have more."
            self._refuse(RtrError(what), entry.number)

    async def follow(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def _change(self, entry: Entry) -> None:
        if entry.number < 0:
            place, warning = entry.swap.router_path or "", self.warning
        else:
            place, warning = await asyncio.to_thread(self.served.place_of, entry)
        await self.take(entry.swap, place)
        self.entry, self.warning = entry, warning
        self.refused = self._refused_number = None

    def _refuse(self, error: RtrError, number: int | None) -> None:
        self.refused, self._refused_number = error.message, number
        _LOG.error("the router stays as it is: %s", error.message)

    def _wrong(self, entry: Entry) -> str | None:
        try:
            return self.served.place_of(entry)[1]
        except RtrError as error:
            return f"{error.message} The endpoint serves from memory; another replica could not start."

    def shown(self) -> dict[str, Any]:
        """What is served, for a person."""
        entry = self.entry
        serving = None
        if entry is not None:
            serving = {
                "number": entry.number,
                "cause": entry.cause,
                "at": entry.at,
                "router": entry.swap.router_path,
            }
        return {"serving": serving, "refused_change": self.refused, "warning": self.warning}
