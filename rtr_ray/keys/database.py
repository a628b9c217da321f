"""The SQLite file behind the keys: its tables, and one transaction at a time.

The standard library's sqlite3, and no object mapper above it: what matters here is exactly where a
transaction begins and what it reads, in six statements.

Commits survive the death of any process. With `power_safe` they also survive a power cut, for one
fsync each; without it a cut may undo the last commits (never a part of one).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rtr_ray.errors import StorageError
from rtr_ray.keys.limits import GLOBAL

VERSION = 1
_SCHEMA = (
    """CREATE TABLE keys (
        id TEXT PRIMARY KEY, digest BLOB UNIQUE, name TEXT NOT NULL,
        created_at TEXT NOT NULL, revoked_at TEXT,
        day INTEGER, month INTEGER, total INTEGER, max_request INTEGER,
        rpm INTEGER, tpm INTEGER, candidates TEXT,
        requests_tat REAL NOT NULL DEFAULT 0, tokens_tat REAL NOT NULL DEFAULT 0)""",
    "CREATE UNIQUE INDEX names ON keys (name) WHERE revoked_at IS NULL",
    """CREATE TABLE counters (
        account TEXT NOT NULL, period TEXT NOT NULL,
        spent INTEGER NOT NULL CHECK (spent >= 0), unknown INTEGER NOT NULL CHECK (unknown >= 0),
        reserved INTEGER NOT NULL CHECK (reserved >= 0),
        calls INTEGER NOT NULL, tokens INTEGER NOT NULL, lost INTEGER NOT NULL,
        PRIMARY KEY (account, period)) WITHOUT ROWID""",
    """CREATE TABLE holds (
        id TEXT PRIMARY KEY, key_id TEXT NOT NULL, owner TEXT NOT NULL, candidate TEXT NOT NULL,
        worst INTEGER NOT NULL, tokens INTEGER NOT NULL, day TEXT NOT NULL, month TEXT NOT NULL)
        WITHOUT ROWID""",
    "CREATE INDEX owned ON holds (owner)",
    "CREATE TABLE owners (id TEXT PRIMARY KEY, boot TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    f"INSERT INTO keys (id, name, created_at) VALUES ('{GLOBAL}', '{GLOBAL}', '')",
    f"PRAGMA user_version = {VERSION}",
)


@dataclass(slots=True)
class Database:
    """One connection, shared by the threads of a process; opened when it is needed, again after an error."""

    path: Path
    busy_s: float = 5.0  # how long to wait for another process
    power_safe: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _connection: sqlite3.Connection | None = None
    _file: tuple[int, int] = (0, 0)  # device and inode
    _pid: int = 0

    @contextmanager
    def transaction(self, create: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing, while nobody else writes.

        Args:
            create: Make the file if there is none.

        Raises:
            StorageError: If the file is gone, locked, full or none of ours. Nothing has changed then.
        """
        if not self._lock.acquire(timeout=2 * self.busy_s):
            raise StorageError(f"The keys in {self.path} cannot be used: too many wait for them.")
        try:
            try:
                connection = self._open(create)
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OSError, OverflowError) as error:
                self._close()
                if isinstance(error, StorageError):
                    raise
                raise StorageError(f"The keys in {self.path} cannot be used: {_reason(error)}.") from error
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._close()

    def _open(self, create: bool) -> sqlite3.Connection:
        # a file that was moved away is written to no more, nor made anew: that would forget what was spent
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            if not create:
                raise StorageError(
                    f"The keys in {self.path} cannot be used: there is no such file. Restore it; "
                    "rtr-ray keys create makes a new one."
                ) from None
            self._make()
            found = os.stat(self.path)
        identity = (found.st_dev, found.st_ino)
        if self._connection is not None and (identity, os.getpid()) != (self._file, self._pid):
            self._close()
        if self._connection is None:
            connection = self._connect(self.path)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                connection.close()
                what = "it is empty or none of ours" if not version else f"it has version {version}"
                raise StorageError(
                    f"The keys in {self.path} cannot be used: {what}; version {VERSION} is needed. Restore "
                    "the file, or name another one."
                )
            self._connection, self._file, self._pid = connection, identity, os.getpid()
        return self._connection

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=self.busy_s, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.power_safe else 'NORMAL'}")
        return connection

    def _make(self) -> None:
        """Make the file under another name first: it is seen with all of its tables, or not at all."""
        if not self.path.parent.is_dir():
            raise StorageError(f"The keys in {self.path} cannot be used: there is no such folder. Make it.")
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
            connection = self._connect(temporary)
            try:
                connection.execute("PRAGMA journal_mode = WAL")  # kept in the file
                for statement in ("BEGIN", *_SCHEMA, "COMMIT"):
                    connection.execute(statement)
            finally:
                connection.close()
            with suppress(FileExistsError):  # another process was faster
                os.link(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            with suppress(sqlite3.Error):
                connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return "a sum would exceed 9.2 million dollars, more than it can hold"
    if "locked" in str(error) or "busy" in str(error):
        return "another process keeps the file locked"
    return (str(error) or type(error).__name__).splitlines()[0][:150].rstrip(". ")


def boot() -> str:
    """What tells one start of the machine from the next: its monotonic clock began anew then."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
