"""The keys as an actor: one owner of the SQLite file for the ingress replicas of all nodes.

No slices of the budget are lent to replicas. A replica gathers what it has to ask into one call, and
the actor makes one transaction of it, so that one actor does thousands of pairs a second
(docs/keys.md has the figures) while the whole budget stays usable by every replica to its last cent.

The actor has no state of its own: everything is in the file before it answers. So where it dies it
is started again on the head node, where the file is, and nothing is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from rtr_ray.errors import RtrError, StorageError
from rtr_ray.keys import GLOBAL, Key, KeyGate, KeyStore, Limits
from rtr_ray.keys.operations import Operation, Result
from rtr_ray.keys.store import LEASE_S, Usage
from rtr_ray.pool import fingerprint

NAMESPACE = "rtr-ray-keys"
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node


class SharedKeys:
    """Owns the file. `KeysActor`, without Ray."""

    def __init__(self, path: str, lease_s: float = LEASE_S, power_safe: bool = False) -> None:
        self._store = KeyStore(Path(path), lease_s=lease_s, power_safe=power_safe)

    def apply(self, owner: str, operations: Sequence[Operation]) -> list[Result] | str:
        """One transaction (see `KeyStore.apply`); a text says why nothing was done."""
        try:
            return self._store.apply(owner, operations)
        except RtrError as error:
            return error.message

    def has_keys(self) -> bool:
        """Whether there is a key that is not revoked.

        Raises:
            StorageError: If the file cannot be read.
        """
        return self._store.has_keys()

    def standing(self) -> list[tuple[Key | None, Limits, tuple[Usage, ...]]]:
        """Every key that is not revoked, with its usage; before them all together, as None.

        Raises:
            StorageError: If the file cannot be read.
        """
        keys = [key for key in self._store.all_keys() if key.revoked_at is None]
        together = (None, self._store.limits(), self._store.usage())
        return [together, *((key, key.limits, self._store.usage(key.id)) for key in keys)]

    def names(self) -> list[tuple[str, str]]:
        """Id and name of every account that is not revoked; first that of all together.

        Raises:
            StorageError: If the file cannot be read.
        """
        return [(GLOBAL, GLOBAL), *self._store.names()]

    def usage(self, key_ids: Sequence[str]) -> list[tuple[Usage, ...]]:
        """What some accounts have used.

        Raises:
            StorageError: If the file cannot be read.
        """
        return [self._store.usage(key_id) for key_id in key_ids]


KeysActor = ray.remote(num_cpus=0, max_restarts=-1)(SharedKeys)


def keys_name(path: str) -> str:
    """The name of the actor that owns a file of keys, in `NAMESPACE`."""
    return f"keys-{fingerprint(str(path))}"


def keys_actor(path: str, lease_s: float = LEASE_S, power_safe: bool = False) -> Any:
    """The owner of a file of keys, started if the cluster has none; outlives who started it.

    Args:
        path: Of the file, absolute, as the head node sees it.
        lease_s: A replica that has not been heard of for so long is dead.
        power_safe: Whether every commit survives a power cut.
    """
    return KeysActor.options(
        name=keys_name(path),
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        resources={_HEAD: 0.001},
    ).remote(str(path), lease_s, power_safe)


def end_keys_actor(path: str) -> None:
    """End the owner of a file of keys; the file stays. Gates that go on asking start it again."""
    with contextlib.suppress(ValueError):  # there is none
        ray.kill(ray.get_actor(keys_name(path), namespace=NAMESPACE))


@dataclass(slots=True)
class RemoteBank:
    """The actor as a gate sees it. Ray carries out the calls of one caller in their order."""

    path: str
    lease_s: float = LEASE_S
    power_safe: bool = False
    _actor: Any = None

    async def apply(self, owner: str, operations: Sequence[Operation]) -> list[Result]:
        """One call."""
        try:
            if self._actor is None:
                self._actor = keys_actor(self.path, self.lease_s, self.power_safe)
            found: list[Result] | str = await self._actor.apply.remote(owner, list(operations))
        except RayError as error:
            if isinstance(error, ActorDiedError):  # for good: the next call starts another one
                self._actor = None
            raise StorageError(
                f"The keys' owner cannot be reached ({type(error).__name__}); it is started again by itself."
            ) from error
        if isinstance(found, str):
            raise StorageError(found)
        return found


def remote_gate(path: str, lease_s: float = LEASE_S, power_safe: bool = False) -> KeyGate:
    """The gate of an ingress replica."""
    return KeyGate(RemoteBank(str(path), lease_s, power_safe), lease_s=lease_s)
