"""Who works on a folder in a bucket: an object there, held by rewriting it, taken over when that stops.

A local folder is locked by the operating system, which frees the lock with its process. A bucket
knows nobody's process, but it can put an object on a condition. So the holder writes `.lock` where
there was none, and rewrites it every `BEAT_S` on condition that it is still the one that it wrote last.
Who finds one that is held watches it: if it does not change for `TAKEOVER_S` by the watcher's own
monotonic clock, it is rewritten on condition that it has not changed since. No two clocks are
compared, and a clock that is set anew matters nowhere; they only have to run about equally fast.

A holder that could not rewrite it for half of that time may spend nothing more until it can
(`Lease.valid_s`), so that a process that stood still meanwhile does not spend beside its successor.
Where holder and watcher are processes of one machine, the watcher knows at once that a holder is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rtr_ray.errors import StorageError

BEAT_S = 10.0
TAKEOVER_S = 60.0
_WATCH_S = 1.0  # between two looks at the lock of another


@runtime_checkable
class Conditional(Protocol):
    """A store that puts objects on a condition."""

    @property
    def uri(self) -> str:
        """Where it is."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put an object there if there is none; tells whether it did."""
        ...

    def tagged(self, key: str) -> tuple[bytes, str] | None:
        """The object, and a tag that another content would not have; None where there is none."""
        ...

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """Put an object there if the one that lies there has the tag; tells whether it did."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...


@dataclass(slots=True)
class Lease:
    """A lock that is held in a bucket. Kept up by a thread of its own until `free`."""

    store: Conditional
    key: str
    token: str
    _tag: str
    _beaten_s: float  # the monotonic time at which the last beat that arrived was begun
    lost: bool = False  # another has taken over
    told: Callable[[float], object] | None = None  # after each beat: for how long it is certainly held
    _beats: int = 0
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @classmethod
    def take(cls, store: Conditional, key: str, waiting: Callable[[], object] = lambda: None) -> Lease | None:
        """Hold the lock; None where another does.

        Args:
            store: The bucket's folder.
            key: Of the lock.
            waiting: Called once, where it must be seen whether the holder still lives; that takes
                up to `TAKEOVER_S`.

        Raises:
            StorageError: If the bucket cannot be written to.
        """
        token, began_s = uuid.uuid4().hex, time.monotonic()
        if store.create(key, _said(token, 0)):
            found = store.tagged(key)
        else:
            found = store.tagged(key)
            if found is not None and _holder(found[0]) != token:  # else ours has arrived after all
                began_s = time.monotonic()
                if not _is_free(store, key, found, waiting) or not store.replace(
                    key, _said(token, 0), found[1]
                ):
                    return None
                found = store.tagged(key)
        if found is None or _holder(found[0]) != token:
            return None  # another one was faster
        lease = cls(store, key, token, found[1], began_s)
        lease._thread = threading.Thread(target=lease._keep, daemon=True, name="lease")
        lease._thread.start()
        return lease

    @property
    def valid_s(self) -> float:
        """For how long nobody else can have taken over; negative where one may have."""
        return -1.0 if self.lost else self._beaten_s + TAKEOVER_S / 2 - time.monotonic()

    def free(self) -> None:
        """Leave the folder to others; more than once is no matter."""
        if self._ending.is_set():
            return
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(StorageError):  # then it is taken over some time
            found = self.store.tagged(self.key)
            if found is not None and _holder(found[0]) == self.token:
                self.store.delete(self.key)

    def _keep(self) -> None:
        pause_s = BEAT_S
        while not self._ending.wait(pause_s) and not self.lost:
            began_s = time.monotonic()
            try:
                self._beat()
                self._beaten_s, pause_s = began_s, BEAT_S
                self._tell()
            except Exception:  # whatever it was: what is held runs out by itself, and the next may arrive
                pause_s = BEAT_S / 5

    def _tell(self) -> None:
        if self.told is not None:
            with contextlib.suppress(Exception):  # whoever is told may be gone; the next beat tells again
                self.told(self.valid_s)

    def _beat(self) -> None:
        self._beats += 1
        data = _said(self.token, self._beats)
        arrived = self.store.replace(self.key, data, self._tag)
        # also where a beat had arrived that seemed to have failed: then it has another tag, and beats again
        if self._is_ours() and not arrived:
            self.store.replace(self.key, data, self._tag)
            self._is_ours()

    def _is_ours(self) -> bool:
        """Look whether nobody has taken over, and by which tag the next beat replaces this one."""
        found = self.store.tagged(self.key)
        if found is None or _holder(found[0]) != self.token:
            self.lost = True
            return False
        self._tag = found[1]
        return True


def _said(token: str, beats: int) -> bytes:
    return (json.dumps({"holder": token, "beats": beats, "process": _process()}) + "\n").encode()


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _holder(data: bytes) -> Any:
    return _read(data).get("holder")


def _is_free(store: Conditional, key: str, found: tuple[bytes, str], waiting: Callable[[], object]) -> bool:
    """Whether the holder of a lock is gone, seen by watching it."""
    if _is_gone(_read(found[0]).get("process")):
        return True
    waiting()
    until_s = time.monotonic() + TAKEOVER_S
    while time.monotonic() < until_s:
        time.sleep(_WATCH_S)
        now = store.tagged(key)
        if now is None or now[1] != found[1]:
            # given back just now, it is free for those who come next: no need to fight for it
            return False
    return True


def _process() -> dict[str, Any] | None:
    """What tells this process from all others, on whatever machine; None where that is not known."""
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink("/proc/self/ns/pid"),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
    except OSError:
        return None


def _started(pid: int) -> int:
    """When a process was started, in ticks since the machine was."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _is_gone(process: Any) -> bool:
    """Whether a process is known to have ended: only one of this machine can be."""
    mine = _process()
    if mine is None or not isinstance(process, dict):
        return False
    if (process.get("boot"), process.get("namespace")) != (mine["boot"], mine["namespace"]):
        return False
    try:
        return bool(_started(int(process["pid"])) != process["started"])
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, KeyError, TypeError, ValueError):
        return False
