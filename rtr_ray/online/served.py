"""What an endpoint serves, and what it served before: a file in its folder, with copies of the routers.

The file is the order to all replicas of the ingress: each looks at it now and then, and takes over
what it names. The copies are why one can go back to a router whose folder was trained anew since, and
why a replica starts although the folder is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from rtr_ray.config import SwapKeys
from rtr_ray.errors import ConfigError, RtrError
from rtr_ray.router import RouterFolder
from rtr_ray.storage import Store
from rtr_ray.yaml_door import validated

HISTORY = "served.json"
ROUTERS = "routers"
Cause = Literal["configuration", "use"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was served."""

    number: int
    cause: Cause  # the serve file or Serve's user_config; or `rtr-ray router use`
    at: str  # UTC
    keys: Mapping[str, Any]  # of `SwapKeys`
    router: str | None = None  # the fingerprint of what was learned; None: it could not be read
    before: int | None = None  # what was served then; None: it is the first

    @property
    def swap(self) -> SwapKeys:
        """What to serve."""
        return validated(SwapKeys, dict(self.keys), f"{HISTORY}, entry {self.number}")


@dataclass(frozen=True, slots=True)
class History:
    """All that was served, by number, and what is served now."""

    entries: tuple[Entry, ...] = ()
    current: int = -1
    configured: int = -1  # the newest entry that came of a configuration

    @property
    def now(self) -> Entry:
        """What is served."""
        return self.entries[self.current]

    def with_entry(self, cause: Cause, keys: SwapKeys, router: str | None, at: str) -> History:
        """Another thing is served from now on."""
        number = len(self.entries)
        before = None if self.current < 0 else self.current
        entry = Entry(number, cause, at, keys.model_dump(mode="json"), router, before)
        configured = number if cause == "configuration" else self.configured
        return History((*self.entries, entry), number, configured)

    def with_router(self, number: int, router: str | None) -> History:
        """It is known now which router an entry has."""
        entries = list(self.entries)
        entries[number] = replace(entries[number], router=router)
        return replace(self, entries=tuple(entries))

    def configures(self, keys: SwapKeys) -> bool:
        """Whether the newest configuration said this."""
        if self.configured < 0:
            return False
        known = self.entries[self.configured].keys
        return known == keys.model_dump(mode="json")

    def back(self) -> History:
        """What was served before is served again.

        Raises:
            ConfigError: If nothing was.
        """
        if self.current < 0 or self.now.before is None:
            raise ConfigError("Nothing was served before what is served now, so that there is no way back.")
        return replace(self, current=self.now.before)


@dataclass(frozen=True, slots=True)
class Served:
    """The history in the folder of an endpoint."""

    store: Store

    def read(self) -> History:
        """The history; an empty one where nothing was served yet.

        Raises:
            ConfigError: If the file is damaged.
        """
        text = self.store.read(HISTORY)
        if text is None:
            return History()
        try:
            found = json.loads(text)
            entries = tuple(Entry(**one) for one in found["entries"])
            history = History(entries, found["current"], found["configured"])
            _ = history.now, entries[history.configured]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ConfigError(
                f"{self.store.uri}/{HISTORY} is damaged ({type(error).__name__}). Move it away: the endpoint "
                "then serves what its configuration says."
            ) from error
        return history

    def write(self, history: History) -> None:
        """Let it be served."""
        self.store.write(HISTORY, json.dumps(asdict(history), indent=1).encode())

    def configure(self, keys: SwapKeys, anew: bool = False) -> Entry:
        """What is to be served where a configuration says this.

        That is the configuration, where it is another one than before; else whatever was served since.

        Args:
            keys: What it says.
            anew: Somebody has just started the endpoint: then it is also the configuration where its
                router was trained anew since.
        """
        history = self.read()
        folder = _readable(keys.router_path)
        router = None if folder is None else folder.fingerprint
        if not history.configures(keys):
            history = history.with_entry("configuration", keys, router, _now())
        else:
            known = history.entries[history.configured]
            if router in (None, known.router) or not (anew or known.router is None):
                return history.now
            if known.router is None:  # it could not be read then
                history = history.with_router(known.number, router)
            else:
                history = history.with_entry("configuration", keys, router, _now())
        if folder is not None:
            self.keep(folder)
        self.write(history)
        return history.now

    def use(self, keys: SwapKeys) -> Entry:
        """Let something else be served from now on.

        Raises:
            RouterError: If its router cannot be read.
        """
        folder = RouterFolder.load(keys.router_path or "")
        self.keep(folder)
        history = self.read().with_entry("use", keys, folder.fingerprint, _now())
        self.write(history)
        return history.now

    def roll_back(self) -> Entry:
        """Let what was served before be served again.

        Raises:
            ConfigError: If nothing was.
        """
        history = self.read().back()
        self.write(history)
        return history.now

    def keep(self, folder: RouterFolder) -> None:
        """Put a copy of a router aside, if there is none yet."""
        place = self.copy_of(folder.fingerprint)
        if self.store.read(f"{ROUTERS}/{folder.fingerprint}/router.json") is None:
            folder.save(place)

    def copy_of(self, router: str) -> str:
        """Where the copy of a router is, or would be."""
        return f"{self.store.uri.rstrip('/')}/{ROUTERS}/{router}"

    def place_of(self, entry: Entry) -> tuple[str, str | None]:
        """From where an entry's router is loaded, and what is wrong with its folder if something is.

        Raises:
            RouterError: If neither folder nor copy is there.
        """
        path = entry.swap.router_path
        if path is None:
            raise ConfigError("The endpoint has no router. Name a folder that rtr-ray train wrote.")
        try:
            found = RouterFolder.load(path).fingerprint
        except RtrError as error:
            if entry.router is None or self._lacks(entry.router):
                raise
            return self.copy_of(entry.router), (
                f"{error.message} Its copy in {self.copy_of(entry.router)} is served. Put the folder back, "
                "or name another one with rtr-ray router use."
            )
        if entry.router is None or found == entry.router or self._lacks(entry.router):
            return path, None
        return self.copy_of(entry.router), (
            f"{path} holds another router ({found}) than the one that is served ({entry.router}), of which "
            f"there is a copy. To serve the new one: rtr-ray router use {path}."
        )

    def _lacks(self, router: str) -> bool:
        return self.store.read(f"{ROUTERS}/{router}/router.json") is None


def _readable(path: str | None) -> RouterFolder | None:
    try:
        return None if path is None else RouterFolder.load(path)
    except RtrError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
