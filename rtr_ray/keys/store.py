"""The keys: made, listed, revoked; and money set aside and settled, for any number of processes at once.

Every operation is one transaction on one SQLite file, so check and act cannot be torn apart, and a
process that is killed leaves whole operations behind. What it held is counted as spent in full, and
marked unknown, once its lease has ended.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from rtr_ray.errors import ConfigError
from rtr_ray.gate import Caller, Refusal
from rtr_ray.keys.accounts import Books, Counter, read_counter
from rtr_ray.keys.database import Database, boot
from rtr_ray.keys.limits import GLOBAL, Key, Limits, period_names, to_pusd, to_usd
from rtr_ray.keys.operations import Admit, Ask, Close, Operation, Result
from rtr_ray.keys.tokens import digest, new_token
from rtr_ray.types import check_name

LEASE_S = 60.0
"""A replica that has not been heard of for so long is dead, and what it held is lost."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an account has used in one period, beside its budget."""

    period: str  # "2026-11-27", "2026-11" or "all"
    budget_usd: Decimal | None
    spent_usd: Decimal
    unknown_usd: Decimal  # worst cases of calls of which the count was lost
    reserved_usd: Decimal
    calls: int
    tokens: int
    lost: int  # calls of which the count was lost

    @property
    def left_usd(self) -> Decimal | None:
        """What can still be set aside; None without a budget."""
        if self.budget_usd is None:
            return None
        return self.budget_usd - self.spent_usd - self.unknown_usd - self.reserved_usd


@dataclass(slots=True)
class KeyStore:
    """The keys in one file. Safe for threads; other processes may have the same file open."""

    path: Path
    lease_s: float = LEASE_S
    busy_s: float = 5.0  # how long to wait for another process that keeps the file locked
    power_safe: bool = False  # whether every commit survives a power cut, for an fsync each
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    boot: str = field(default_factory=boot)
    _database: Database = field(init=False)

    def __post_init__(self) -> None:
        self._database = Database(Path(self.path), self.busy_s, self.power_safe)

    # --- keys ---

    def create(self, name: str, limits: Limits | None = None) -> tuple[str, Key]:
        """A new key, and its token, which is never shown again. Makes the file if there is none.

        Raises:
            ConfigError: If the name cannot be used or is taken.
            StorageError: If the file cannot be written.
        """
        check_name(name, "key")
        if name == GLOBAL:
            raise ConfigError(f"A key cannot be named '{GLOBAL}': that is the budget over all keys.")
        token = new_token()
        key = Key(f"key-{secrets.token_hex(6)}", name, limits or Limits(), self._stamp())
        with self._database.transaction(create=True) as db:
            taken = db.execute("SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL", (name,))
            if taken.fetchone():
                raise ConfigError(f"There is a key '{name}' already. Revoke it first, or take another name.")
            db.execute(
                "INSERT INTO keys (id, digest, name, created_at) VALUES (?, ?, ?, ?)",
                (key.id, digest(token), name, key.created_at),
            )
            _write_limits(db, key.id, key.limits)
        return token, key

    def change(self, name: str, limits: Limits) -> Key:
        """Give a key, or `global`, other limits; they hold from the next request on.

        Raises:
            ConfigError: If there is no such key.
            StorageError: If the file cannot be written.
        """
        with self._database.transaction(create=name == GLOBAL) as db:
            key = _find(db, name, "change")
            _write_limits(db, key.id, limits)
            return _key(db, key.id)

    def revoke(self, name: str) -> Key:
        """End a key: its next request is refused; those on their way are still settled.

        Raises:
            ConfigError: If there is no such key.
            StorageError: If the file cannot be written.
        """
        if name == GLOBAL:
            raise ConfigError(f"'{GLOBAL}' is the budget over all keys, and cannot be revoked.")
        with self._database.transaction() as db:
            key = _find(db, name, "revoke")
            db.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (self._stamp(), key.id))
            return _key(db, key.id)

    def find(self, name: str) -> Key:
        """A key by its name or id; of several with that name the one that is not revoked.

        Raises:
            ConfigError: If there is no such key.
            StorageError: If the file cannot be read.
        """
        with self._database.transaction() as db:
            return _find(db, name, "show", revoked=True)

    def all_keys(self) -> list[Key]:
        """All keys, those that were revoked too; oldest first.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self._database.transaction() as db:
            ids = db.execute("SELECT id FROM keys WHERE id != ? ORDER BY created_at, rowid", (GLOBAL,))
            return [_key(db, id) for (id,) in ids.fetchall()]

    def names(self) -> list[tuple[str, str]]:
        """Id and name of every key that is not revoked, oldest first; one query, however many there are.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self._database.transaction() as db:
            found = db.execute(
                "SELECT id, name FROM keys WHERE id != ? AND revoked_at IS NULL ORDER BY created_at, rowid",
                (GLOBAL,),
            )
            return [(id, name) for id, name in found.fetchall()]

    def has_keys(self) -> bool:
        """Whether there is a key that is not revoked.

        Raises:
            StorageError: If the file cannot be read.
        """
        return any(key.revoked_at is None for key in self.all_keys())

    def limits(self, name: str = GLOBAL) -> Limits:
        """The limits of a key, or of all together."""
        return self.find(name).limits

    def usage(self, key_id: str = GLOBAL) -> tuple[Usage, ...]:
        """What a key, or all together, has used today, this month and in all.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self._database.transaction() as db:
            self._sweep(db)
            budgets = _key(db, key_id).limits.by_period()
            return tuple(
                _usage(period, budgets[kind], read_counter(db, key_id, period))
                for kind, period in period_names(self.now()).items()
            )

    # --- money ---

    def apply(self, owner: str, operations: Sequence[Operation]) -> list[Result]:
        """Carry out operations of one replica, in order, in one transaction; one result each.

        Also says that the replica is alive; and settles what dead ones have held.

        Raises:
            StorageError: If the file cannot be used; nothing was done then.
        """
        with self._database.transaction() as db:
            self._renew(db, owner)
            self._sweep(db)
            books = Books(db, self.now(), self.monotonic())
            results: list[Result] = []
            for one in operations:
                if isinstance(one, Admit):
                    results.append(_admit(db, one))
                elif isinstance(one, Ask):
                    results.append(books.ask(owner, one))
                else:
                    books.close(one)
                    results.append(None)
            books.flush()
            return results

    def shut(self) -> None:
        """Let go of the file; it is opened again when needed."""
        self._database.close()

    # --- who is alive ---

    def _renew(self, db: sqlite3.Connection, owner: str) -> None:
        at = self.monotonic()
        row = db.execute("SELECT boot, until FROM owners WHERE id = ?", (owner,)).fetchone()
        if row is None or row[0] != self.boot or row[1] < at + self.lease_s * 2 / 3:
            db.execute(
                "INSERT OR REPLACE INTO owners VALUES (?, ?, ?)", (owner, self.boot, at + self.lease_s)
            )

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Settle what dead replicas have held at its worst case, since it may have been spent."""
        at = self.monotonic()
        # after a start of the machine, or on another one, nobody knows how long they have been silent
        db.execute(
            "UPDATE owners SET boot = ?, until = ? WHERE boot != ?", (self.boot, at + self.lease_s, self.boot)
        )
        dead = db.execute("SELECT id FROM owners WHERE until < ?", (at,)).fetchall()
        if not dead:
            return
        books = Books(db, self.now(), at)
        for (owner,) in dead:
            held = db.execute("SELECT id FROM holds WHERE owner = ?", (owner,)).fetchall()
            for (hold_id,) in held:
                books.close(Close(hold_id, unknown=True))
            db.execute("DELETE FROM owners WHERE id = ?", (owner,))
        books.flush()

    def _stamp(self) -> str:
        return f"{self.now().astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _admit(db: sqlite3.Connection, admit: Admit) -> Caller | Refusal:
    row = db.execute(
        "SELECT id FROM keys WHERE digest = ? AND revoked_at IS NULL", (admit.token_digest,)
    ).fetchone()
    if row is None:
        return Refusal("invalid_api_key", "The API key is not valid, or was revoked.")
    key = _key(db, row[0])
    return Caller(key.id, key.name, key.limits.candidates, key.limits.max_request_usd)


def _find(db: sqlite3.Connection, name: str, what: str, revoked: bool = False) -> Key:
    row = db.execute(
        "SELECT id FROM keys WHERE (name = ? OR id = ?) AND (revoked_at IS NULL OR ?) "
        "ORDER BY revoked_at IS NOT NULL, revoked_at DESC",
        (name, name, revoked),
    ).fetchone()
    if row is None:
        # what was typed may be a token: it is not repeated
        raise ConfigError(
            f"There is no such key to {what}. Give its name or id, as rtr-ray keys list shows them; not its "
            "token."
        )
    return _key(db, row[0])


def _key(db: sqlite3.Connection, id: str) -> Key:
    row = db.execute(
        "SELECT name, created_at, revoked_at, day, month, total, max_request, rpm, tpm, candidates "
        "FROM keys WHERE id = ?",
        (id,),
    ).fetchone()
    if row is None:
        raise ConfigError("There is no key with this id. rtr-ray keys list shows the ids.")
    name, created, revoked, day, month, total, most, rpm, tpm, candidates = row
    day_usd, month_usd, total_usd, most_usd = (
        None if pusd is None else to_usd(pusd) for pusd in (day, month, total, most)
    )
    names = None if candidates is None else tuple(json.loads(candidates))
    return Key(id, name, Limits(day_usd, month_usd, total_usd, most_usd, rpm, tpm, names), created, revoked)


def _write_limits(db: sqlite3.Connection, id: str, limits: Limits) -> None:
    day, month, total, most = (
        None if usd is None else to_pusd(usd)
        for usd in (limits.day_usd, limits.month_usd, limits.total_usd, limits.max_request_usd)
    )
    names = None if limits.candidates is None else json.dumps(limits.candidates)
    db.execute(
        "UPDATE keys SET day = ?, month = ?, total = ?, max_request = ?, rpm = ?, tpm = ?, candidates = ? "
        "WHERE id = ?",
        (day, month, total, most, limits.requests_per_minute, limits.tokens_per_minute, names, id),
    )


def _usage(period: str, budget_usd: Decimal | None, counter: Counter) -> Usage:
    return Usage(
        period,
        budget_usd,
        to_usd(counter.spent),
        to_usd(counter.unknown),
        to_usd(counter.reserved),
        counter.calls,
        counter.tokens,
        counter.lost,
    )
