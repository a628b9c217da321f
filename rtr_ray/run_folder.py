"""A run is a folder: what it is of, how far it has come, and where its parts lie.

run.json        from the first minute: schema version, status, stage, fingerprints
config.yaml     the configuration, resolved
tables/         one part per split of the corpus: its rows and their routing table
slices.json     how the tables are cut into slices
policies/       each version of the plan: its policy, corrections, and the money that was left
plan.json       what the first version expects, by candidate
slices/         which slices have been planned, and what was expected of them
plan/model=.../strategy=.../part-*.parquet
ledger.json     what may have been paid beside what the results show
results/part-*.parquet
rest/, moved/   rows that were taken up again when the budget had not reached them
rent.json       what the engines' time adds up to
summary.json
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from rtr_ray.errors import DataError, StorageError
from rtr_ray.lease import TAKEOVER_S, Conditional, Lease
from rtr_ray.storage import Store, open_store

SCHEMA_VERSION = 1
RUN, CONFIG, PLAN, SUMMARY = "run.json", "config.yaml", "plan.json", "summary.json"
LEDGER = "ledger.json"
LOCK = ".lock"  # readers do not see it: its name begins with a dot
TABLES, RESULTS = "tables/part-", "results/part-"
WRITE_PAUSES_S = (0.5, 2.0, 6.0)  # a bucket that is busy, a disk that somebody is making room on


@dataclass(slots=True)
class _Lock:
    """A lock file that is held; freed with the process, with the object, or before."""

    file: BinaryIO
    path: Path

    def free(self) -> None:
        """Leave the folder to others, with nothing left behind; more than once is no matter."""
        if self.file.closed:
            return
        with contextlib.suppress(OSError):
            # while it is held: who has opened it meanwhile sees that it is no longer the one that lies there
            if _is_at(self.file, self.path):
                self.path.unlink()
        self.file.close()

    __del__ = free


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's folder."""

    store: Store
    _lock: _Lock | Lease | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        uri: str,
        fingerprints: Mapping[str, str],
        config: str,
        fresh: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> tuple[RunFolder, str | None]:
        """Begin a run in a folder, or go on with the one that it holds; nobody else may until `close`.

        Args:
            uri: Local or `s3://`.
            fingerprints: Of everything that must be the same for the run to go on, by name.
            config: The resolved configuration, for the record.
            fresh: Move an older run aside first.
            say: Told why it takes time, where it does.

        Returns:
            The folder, and where the older run was moved to, if it was.

        Raises:
            DataError: If the folder holds another run; the difference is named. If a run works on it now.
            StorageError: If it cannot be written to.
        """
        store = open_store(uri)
        aside = moved_aside(uri, say) if fresh else None
        folder = cls(store, _locked(store, say))
        try:
            folder._begin(uri, fingerprints, config)
        except BaseException:
            folder.close()
            raise
        return folder, aside

    def _begin(self, uri: str, fingerprints: Mapping[str, str], config: str) -> None:
        head = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "stage": "start",
            "fingerprints": dict(fingerprints),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if self.store.create(RUN, _json(head)):
            self.store.write(CONFIG, config.encode())
            return
        found = self.read_json(RUN) or {}
        if found.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{uri} holds a run of schema version {found.get('schema_version')}; this rtr-ray reads "
                f"version {SCHEMA_VERSION}. Take another output, or --fresh to move it aside."
            )
        before = found.get("fingerprints", {})
        for name, value in fingerprints.items():
            if before.get(name) != value:
                raise DataError(
                    f"{uri} holds another run: its {name} differs (it was {before.get(name)}, now {value}). "
                    "Take another output, or --fresh to move it aside."
                )
        self.update(status="running", error=None)

    def close(self) -> None:
        """The run has ended: another one may work on the folder."""
        if self._lock is not None:
            self._lock.free()

    def tell(self, told: Callable[[float], object] | None) -> None:
        """Have somebody told, again and again, for how many seconds nobody else can take the folder over.

        Nobody is told anything where that cannot happen while this process lives: a local folder.
        """
        if isinstance(self._lock, Lease):
            self._lock.told = told
            if told is not None:
                told(self._lock.valid_s)

    @property
    def lost(self) -> bool:
        """Whether another run has taken the folder over."""
        return isinstance(self._lock, Lease) and self._lock.lost

    def check(self) -> None:
        """Make sure that the folder is still ours.

        Raises:
            DataError: If it is not. Nothing more may be written to it then.
        """
        if self.lost:
            raise DataError(
                f"Another run has taken over {self.store.uri}, since this one could not write to it for "
                f"{TAKEOVER_S:g} s. This one has stopped; what it was asking counts as lost with the other."
            )

    def read_json(self, key: str) -> dict[str, Any] | None:
        """A JSON object of the folder; None where there is none."""
        data = self.store.read(key)
        if data is None:
            return None
        try:
            value: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self.store.uri}/{key} is damaged: {error}.") from error
        return value

    def write_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object, whole."""
        self.store.write(key, _json(value))

    def update(self, **values: Any) -> None:
        """Change some of what `run.json` says."""
        self.check()
        head = self.read_json(RUN) or {}
        head |= values | {"updated": datetime.now(UTC).isoformat(timespec="seconds")}
        self.write_json(RUN, head)

    def tables(self) -> list[str]:
        """The keys of the table parts that are there."""
        return self.store.keys(TABLES)

    def plans(self) -> list[str]:
        """The keys of the plan parts."""
        return self.store.keys("plan/")

    def results(self, name: str = "") -> list[str]:
        """The keys of the results parts, of one plan part or of all."""
        return self.store.keys(f"{RESULTS}{name}")


def moved_aside(uri: str, say: Callable[[str], object] = lambda text: None) -> str | None:
    """Move a run out of the way; gives where it lies now, None where there was none.

    Raises:
        DataError: If a run works on it now.
    """
    store = open_store(uri)
    with contextlib.closing(RunFolder(store, _locked(store, say, make=False))):
        aside = store.move_aside()
    if aside is not None:
        open_store(aside).delete(LOCK)  # it went along
    return aside


def taken(uri: str) -> DataError:
    """What the second of two runs in one folder is told."""
    return DataError(
        f"Another run works on {uri} just now, and two would pay for everything twice. "
        "Wait until it has ended, or take another output."
    )


def _locked(store: Store, say: Callable[[str], object], make: bool = True) -> _Lock | Lease | None:
    """The lock of a folder, held: in a bucket see `rtr_ray.lease`; locally the system frees it with us.

    None where there is nothing to lock: in a local folder that is not there or cannot be written to
    (the first write says so), on a file system without locks, and where there is nothing to be moved.

    Raises:
        DataError: If another run holds it.
        StorageError: If the bucket cannot be written to.
    """
    if isinstance(store, Conditional):
        if not make and store.tagged(RUN) is None:
            return None
        lease = Lease.take(
            store,
            LOCK,
            lambda: say(
                f"{store.uri} is locked by another machine's run: if it does not write there for "
                f"{TAKEOVER_S:g} s, it has died and this one goes on."
            ),
        )
        if lease is None:
            raise taken(store.uri)
        return lease
    path = Path(store.uri) / LOCK
    while True:
        try:
            if make:
                path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return _Lock(file, path)
        except BlockingIOError:
            file.close()
            raise taken(store.uri) from None
        except OSError:
            file.close()
            return None
        file.close()  # who held it has removed it, or moved it aside with its folder


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


def insist(write: Callable[[], None], pauses_s: Sequence[float] | None = None) -> None:
    """Write something that must not get lost: some times, if need be.

    Args:
        write: Puts one object under one key. Always the same one: a write that failed may have
            arrived all the same, and under another key its rows would be there twice.
        pauses_s: Before each further attempt; `WRITE_PAUSES_S` where not given.

    Raises:
        StorageError: That of the last attempt.
    """
    for pause_s in WRITE_PAUSES_S if pauses_s is None else pauses_s:
        try:
            return write()
        except StorageError:
            time.sleep(pause_s)
    return write()
