"""Batches and files that survive a restart: what they are in the SQLite file of the keys, their bytes beside.

Each change is one transaction, so that of a cancellation and a completion at the same moment one
comes first. Whoever asks names the key that asks: what belongs to another key is not there.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from rtr_ray.errors import BudgetError, DataError, MissingError, StorageError
from rtr_ray.gate import Refusal
from rtr_ray.keys.accounts import Books
from rtr_ray.keys.database import Database
from rtr_ray.keys.operations import Close
from rtr_ray.openai_batch.objects import FOLLOWS, STAMPS, Counts, budget_of, check_metadata, new_batch
from rtr_ray.openai_batch.requests import CHAT, Problem

_TABLES = (
    "CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, key_id TEXT NOT NULL, object TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, key_id TEXT NOT NULL, object TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, object TEXT NOT NULL)",
)
_PURPOSES = ("batch", "batch_output")
_MOST_LISTED, _MOST_FILES = 100, 10_000
_MOST_ERRORS = 100  # of a file's lines that are told; a thousand alike help nobody


@dataclass(slots=True)
class BatchStore:
    """Files and batches of all keys. Safe for threads and processes."""

    path: Path  # the SQLite file
    folder: Path  # for the bytes of files
    busy_s: float = 5.0
    now: Callable[[], float] = time.time
    may_create: bool = True  # False: a file of keys that is gone must not come back empty
    _database: Database = field(init=False)

    def __post_init__(self) -> None:
        self._database = Database(Path(self.path), self.busy_s)

    # --- files ---

    def add_file(
        self, key_id: str, filename: str, chunks: Iterable[bytes], purpose: str = "batch"
    ) -> dict[str, Any]:
        """Keep a file; gives its object.

        Raises:
            DataError: If the purpose is another one.
            StorageError: If it cannot be written; nothing is kept then.
        """
        if purpose not in _PURPOSES:
            raise DataError("The purpose of a file must be 'batch'.")
        file_id = f"file-{secrets.token_hex(12)}"
        temporary = self.folder / f".{file_id}"
        size = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as sink:
                for chunk in chunks:
                    size += sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(temporary, self.folder / file_id)
        except OSError as error:
            raise StorageError(f"The file cannot be kept in {self.folder}: {error.strerror}.") from error
        finally:
            temporary.unlink(missing_ok=True)
        made = {
            "id": file_id, "object": "file", "bytes": size, "created_at": int(self.now()),
            "filename": filename, "purpose": purpose, "status": "processed",
        }  # fmt: skip
        with self._database.transaction(create=self.may_create) as db:
            self._put(db, "files", key_id, made, new=True)
        return made

    def file(self, key_id: str, file_id: str) -> dict[str, Any]:
        """A file's object.

        Raises:
            MissingError: If this key has no such file.
        """
        with self._database.transaction() as db:
            return self._get(db, "files", key_id, file_id)

    def content(self, key_id: str, file_id: str) -> Path:
        """Where the bytes of a file are.

        Raises:
            MissingError: If this key has no such file.
        """
        return self.folder / str(self.file(key_id, file_id)["id"])

    def delete_file(self, key_id: str, file_id: str) -> dict[str, Any]:
        """Forget a file and its bytes. A batch that has begun has what it needs of it.

        Raises:
            MissingError: If this key has no such file.
        """
        with self._database.transaction() as db:
            found = self._get(db, "files", key_id, file_id)
            db.execute("DELETE FROM files WHERE id = ?", (found["id"],))
        (self.folder / str(found["id"])).unlink(missing_ok=True)
        return {"id": found["id"], "object": "file", "deleted": True}

    def files(
        self,
        key_id: str,
        after: str | None = None,
        limit: int = 10_000,
        purpose: str | None = None,
        order: str = "desc",
    ) -> dict[str, Any]:
        """The files of a key as a page in OpenAI's form.

        Raises:
            DataError: If `after` is no file of this key, or the limit is not 1 to 10000.
        """
        if not 1 <= limit <= _MOST_FILES:
            raise DataError(f"limit={limit} is not from 1 to {_MOST_FILES}.")
        return self._page("files", key_id, after, limit, purpose, newest=order != "asc")

    # --- batches ---

    def create(
        self,
        key_id: str,
        input_file_id: str,
        endpoint: str = CHAT,
        window: str = "24h",
        metadata: Any = None,
        order: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A new batch, to be validated.

        Args:
            key_id: Who pays.
            input_file_id: Of an uploaded file.
            endpoint: Of its requests.
            window: OpenAI's completion_window.
            metadata: OpenAI's; may have a budget_usd.
            order: What whoever runs it must know, now and after a restart; no client sees it.

        Raises:
            DataError: If something else was asked than a batch can do.
            MissingError: If the key has no such file.
        """
        if endpoint != CHAT:
            raise DataError(f"A batch runs on {CHAT} only. Set endpoint to it.")
        if window != "24h":
            raise DataError("completion_window must be '24h'.")
        pairs = check_metadata(metadata)
        made = new_batch(f"batch_{secrets.token_hex(12)}", input_file_id, endpoint, pairs, int(self.now()))
        with self._database.transaction(create=self.may_create) as db:
            if self._get(db, "files", key_id, input_file_id)["purpose"] != "batch":
                raise DataError(f"The file '{input_file_id}' was not uploaded with the purpose 'batch'.")
            self._put(db, "batches", key_id, made, new=True)
            if order is not None:
                db.execute("INSERT INTO orders VALUES (?, ?)", (made["id"], json.dumps(order)))
        return made

    def order(self, batch_id: str) -> dict[str, Any]:
        """What `create` was told of a batch; empty where nothing was."""
        with self._database.transaction() as db:
            self._tables(db)
            row = db.execute("SELECT object FROM orders WHERE id = ?", (batch_id,)).fetchone()
        found: dict[str, Any] = {} if row is None else json.loads(row[0])
        return found

    def retrieve(self, key_id: str, batch_id: str) -> dict[str, Any]:
        """A batch's object. Looking changes nothing.

        Raises:
            MissingError: If this key has no such batch.
        """
        with self._database.transaction() as db:
            return self._get(db, "batches", key_id, batch_id)

    def page(self, key_id: str, after: str | None = None, limit: int = 20) -> dict[str, Any]:
        """The batches of a key, newest first, as a page in OpenAI's form.

        Raises:
            DataError: If `after` is no batch of this key, or the limit is not 1 to 100.
        """
        if not 1 <= limit <= _MOST_LISTED:
            raise DataError(f"limit={limit} is not from 1 to {_MOST_LISTED}.")
        return self._page("batches", key_id, after, limit)

    def _page(
        self,
        table: str,
        key_id: str,
        after: str | None,
        limit: int,
        purpose: str | None = None,
        newest: bool = True,
    ) -> dict[str, Any]:
        with self._database.transaction(create=self.may_create) as db:
            self._tables(db)
            edge = 2**62 if newest else 0
            if after is not None:
                self._get(db, table, key_id, after)
                edge = db.execute(f"SELECT rowid FROM {table} WHERE id = ?", (after,)).fetchone()[0]
            wanted = "" if purpose is None else "AND json_extract(object, '$.purpose') = ? "
            rows = db.execute(
                f"SELECT object FROM {table} WHERE key_id = ? AND rowid {'<' if newest else '>'} ? {wanted}"
                f"ORDER BY rowid {'DESC' if newest else 'ASC'} LIMIT ?",
                (key_id, edge, *([] if purpose is None else [purpose]), limit + 1),
            ).fetchall()
        found = [json.loads(text) for (text,) in rows]
        data = found[:limit]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }

    def cancel(self, key_id: str, batch_id: str) -> dict[str, Any]:
        """Ask that a batch ends; one that is being cancelled already stays so.

        Raises:
            MissingError: If this key has no such batch.
            DataError: If it has ended.
        """
        with self._database.transaction() as db:
            found = self._get(db, "batches", key_id, batch_id)
            if found["status"] in ("cancelling", "cancelled"):
                return found
            return self._move(db, key_id, found, "cancelling")

    # --- for the one who runs them ---

    def unfinished(self) -> list[tuple[str, dict[str, Any]]]:
        """(key, batch) of all batches that have not ended, oldest first: what a restart goes on with."""
        with self._database.transaction(create=self.may_create) as db:
            self._tables(db)
            rows = db.execute("SELECT key_id, object FROM batches ORDER BY rowid").fetchall()
        found = [(key_id, json.loads(text)) for key_id, text in rows]
        return [(key_id, one) for key_id, one in found if one["status"] in FOLLOWS]

    def advance(
        self,
        key_id: str,
        batch_id: str,
        status: str | None = None,
        counts: Counts | None = None,
        problems: Sequence[Problem] = (),
        spent_usd: Decimal | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Say how far a batch has come. Telling the same again changes nothing.

        Args:
            key_id: Whose it is.
            batch_id: Which.
            status: The new one; None: as before.
            counts: Of its requests.
            problems: Why its file cannot be used.
            spent_usd: What it came to, at its end: the rest of what was allotted is free again.
            **more: `output_file_id`, `error_file_id`, `usage`.

        Raises:
            DataError: If that status cannot follow the one it has (it was cancelled meanwhile, say).
        """
        with self._database.transaction() as db:
            found = self._get(db, "batches", key_id, batch_id)
            if counts is not None:
                found["request_counts"] = counts.to_json()
            if problems:
                told = [problem.to_json() for problem in problems[:_MOST_ERRORS]]
                found["errors"] = {"object": "list", "data": told}
            found |= more
            if spent_usd is not None:
                books = self._books(db)
                books.close(Close(batch_id, spent_usd))
                books.flush()
            if status is not None and status != found["status"]:
                return self._move(db, key_id, found, status)
            self._put(db, "batches", key_id, found)
            return found

    def allot(
        self, key_id: str, batch_id: str, counts: Counts, most_usd: Decimal | None = None
    ) -> dict[str, Any]:
        """Begin a batch: what it may spend is set aside from its key's budgets, in the same transaction.

        That is its `metadata.budget_usd`, or all that the key has left, but no more than `most_usd`,
        which it can come to at most. The object says how much, as `rtr.budget_usd`; null where nothing
        bounds it.

        Raises:
            BudgetError: If the key has not got as much.
            DataError: If the batch cannot begin (it was cancelled meanwhile, say).
        """
        with self._database.transaction() as db:
            batch = self._get(db, "batches", key_id, batch_id)
            books = self._books(db)
            found = books.allot(batch_id, key_id, budget_of(batch["metadata"] or {}), most_usd)
            if isinstance(found, Refusal):
                raise BudgetError(found.message)
            books.flush()
            batch["request_counts"] = counts.to_json()
            batch["rtr"] = {"budget_usd": None if found is None else f"{found:f}"}
            return self._move(db, key_id, batch, "in_progress")

    def _books(self, db: sqlite3.Connection) -> Books:
        return Books(db, datetime.fromtimestamp(self.now(), UTC), time.monotonic())

    def _move(
        self, db: sqlite3.Connection, key_id: str, found: dict[str, Any], status: str
    ) -> dict[str, Any]:
        if status not in FOLLOWS.get(found["status"], ()):
            raise DataError(f"The batch '{found['id']}' is {found['status']}, and cannot become {status}.")
        found["status"] = status
        found[STAMPS[status]] = int(self.now())
        self._put(db, "batches", key_id, found)
        return found

    def _tables(self, db: sqlite3.Connection) -> None:
        for statement in _TABLES:
            db.execute(statement)

    def _get(self, db: sqlite3.Connection, table: str, key_id: str, id: str) -> dict[str, Any]:
        self._tables(db)
        row = db.execute(f"SELECT object FROM {table} WHERE id = ? AND key_id = ?", (id, key_id)).fetchone()
        if row is None:
            what = "file" if table == "files" else "batch"
            raise MissingError(f"There is no such {what} of this API key.")
        found: dict[str, Any] = json.loads(row[0])
        return found

    def _put(
        self, db: sqlite3.Connection, table: str, key_id: str, made: Mapping[str, Any], new: bool = False
    ) -> None:
        self._tables(db)
        text = json.dumps(made, ensure_ascii=False, allow_nan=False)
        if new:
            db.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (made["id"], key_id, text))
        else:
            db.execute(f"UPDATE {table} SET object = ? WHERE id = ?", (text, made["id"]))
