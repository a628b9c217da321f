"""Which gate an endpoint has: the one place that knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rtr_ray.config import ServeFile
from rtr_ray.distributed.online.keys_actor import remote_gate
from rtr_ray.errors import ConfigError, StorageError
from rtr_ray.gate import Gate, OpenGate
from rtr_ray.keys import KeyStore, check_binding


def keys_path(file: ServeFile) -> str | None:
    """Where the keys are, absolute; None where the endpoint has none."""
    return None if file.keys is None else str(Path(file.keys).absolute())


def gate_of(file: ServeFile) -> Callable[[], Gate]:
    """What makes the gate of an ingress replica: an open one where no keys are configured."""
    path = keys_path(file)
    return OpenGate if path is None else partial(remote_gate, path)


def check_gate(file: ServeFile, insecure: bool) -> str | None:
    """Refuse keys that cannot be used, and an open door; gives the warning that is due.

    On a cluster that runs already the keys are the head node's, and not looked at here.

    Raises:
        ConfigError: If there is no key, or others could reach an endpoint without keys.
        StorageError: If the file of keys cannot be read.
    """
    path = keys_path(file)
    if path is not None and file.cluster.address is None and not _has_keys(path):
        raise ConfigError(
            f"There is no key in {file.keys}. Make one with rtr-ray keys create NAME --keys {file.keys}."
        )
    return check_binding(file.host, path is not None, insecure)


def _has_keys(path: str) -> bool:
    if not Path(path).exists():
        return False
    try:
        return KeyStore(Path(path)).has_keys()
    except StorageError as error:
        raise StorageError(f"{error.message} Give another file as keys.") from error
