"""Reading a corpus: Parquet, JSONL, CSV or an OpenAI batch file, in splits that can be read apart.

Every row gets an id that is the same on every run: the user's own column, or a hash of (file
relative to the corpus, row position). A row that cannot be used is passed on with the reason;
a file that cannot be read is refused before anything is spent, or set aside if so configured.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.fs as pafs

from rtr_ray.errors import DataError
from rtr_ray.pool import fingerprint
from rtr_ray.storage import s3_filesystem

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
COMPRESSED = (".gz", ".zst", ".bz2")

QUERY_ID, TEXT, MESSAGES, GOLD, ROW_ERROR = "query_id", "_text", "_messages", "_gold", "_row_error"
"""Columns that reading adds: the id, what the router reads, the conversation as JSON, the
reference answer, and why the row cannot be used (null: it can)."""

OWN = (TEXT, MESSAGES, GOLD, ROW_ERROR)
RESULT_COLUMNS = (
    "query_id",
    "status",
    "answer",
    "response",
    "model",
    "strategy",
    "samples",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_usd",
    "predicted_accuracy",
    "predicted_output_tokens",
    "predicted_cost_usd",
    "runner_up",
    "finish_reason",
    "latency_s",
    "attempts",
    "error",
    "correct",
    "all_samples",
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the corpus mean what."""

    query: str = "query"
    id: str | None = None  # None: derived
    messages: str | None = None  # a conversation in OpenAI's form, as JSON text or list of structs
    reference: str | None = None  # the right answer; for grading only, no estimator sees it


@dataclass(frozen=True, slots=True)
class File:
    """One file of a corpus."""

    path: str  # as its file system names it
    relative: str  # to the corpus; part of derived row ids
    size: int
    version: str  # changes when the file does
    format: str


@dataclass(frozen=True, slots=True)
class Split:
    """A run of rows of one file that is read in one go."""

    file: File
    first_row: int
    start: int = 0  # bytes (JSONL) or row groups (Parquet)
    end: int | None = None  # None: to the end of the file
    rows: int | None = None  # None: not known before reading
    skip: int = 0  # rows behind `start` that belong to the splits before

    @property
    def name(self) -> str:
        """A short name that is the same on every run, and another for other rows."""
        return stable_id(f"{self.file.relative}\0{self.end}\0{self.rows}", self.first_row)[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Files of one format with the same columns."""

    uri: str
    files: tuple[File, ...]
    format: str
    columns: Columns
    schema: pa.Schema  # the user's columns, as they will stand in the results
    renamed: dict[str, str] = field(default_factory=dict)  # the user's name -> the name in the results
    unreadable: dict[str, str] = field(default_factory=dict)  # relative name -> why it was set aside

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed or changed, or columns are read differently."""
        return fingerprint(
            [
                sorted([file.relative, file.size, file.version] for file in self.files),
                [self.columns.query, self.columns.id, self.columns.messages, self.columns.reference],
            ]
        )


def stable_id(relative: str, row: int) -> str:
    """The derived id of a row: 24 hexadecimal digits."""
    return hashlib.blake2b(f"{relative}\0{row}".encode(), digest_size=12).hexdigest()


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    parsed = urlparse(uri)
    if parsed.scheme == "s3":
        return s3_filesystem(), f"{parsed.netloc}{parsed.path}".rstrip("/")
    return pafs.LocalFileSystem(), uri.removeprefix("file://")


def list_files(uri: str, format: str = "auto") -> tuple[File, ...]:
    """The files that a path, folder or glob names, sorted.

    Args:
        uri: Local or `s3://`. In a folder, files with an unknown ending and hidden files are passed over.
        format: auto (by ending), parquet, jsonl, csv or openai_batch.

    Raises:
        DataError: If there is nothing, or nothing with a known ending, or several formats.
    """
    system, path = filesystem(uri)
    found = list(_found(system, path, uri))
    files = [
        File(info.path, relative, info.size or 0, str(info.mtime_ns), kind)
        for info, relative in found
        if (kind := _format(info.path, format)) and (info.size or 0) >= 0
    ]
    if not files:
        what = "No such file or folder" if not found else f"None of {len(found)} files has a known ending"
        raise DataError(f"{what}: {uri}. Give a file, folder or glob of {', '.join(sorted(FORMATS))}.")
    kinds = sorted({file.format for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{uri} holds files of several formats: {', '.join(kinds)}. "
            "Narrow it with a glob such as *.parquet."
        )
    return tuple(sorted(files, key=lambda file: file.relative))


def _found(system: pafs.FileSystem, path: str, uri: str) -> Iterator[tuple[pafs.FileInfo, str]]:
    try:
        if any(sign in path for sign in "*?["):
            fixed = path[: min(path.index(sign) for sign in "*?[" if sign in path)]
            base = fixed.rpartition("/")[0]
            for info in _files_below(system, base or "."):
                if fnmatch.fnmatchcase(info.path, path):
                    yield info, info.path.removeprefix(base).lstrip("/")
            return
        info = system.get_file_info(path)
        if info.type == pafs.FileType.File:
            yield info, info.base_name
        elif info.type == pafs.FileType.Directory:
            root = path.rstrip("/")
            for below in _files_below(system, path):
                relative = below.path.removeprefix(root).lstrip("/")
                if not any(part.startswith((".", "_")) for part in relative.split("/")):
                    yield below, relative
    except OSError as error:
        raise DataError(f"Cannot list {uri}: {str(error).splitlines()[0][:300]}.") from error


def _files_below(system: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    return [info for info in system.get_file_info(selector) if info.type == pafs.FileType.File]


def _format(path: str, format: str) -> str | None:
    name = path.rsplit("/", 1)[-1].lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    by_ending = next((kind for ending, kind in FORMATS.items() if name.endswith(ending)), None)
    return by_ending if format == "auto" else format


def result_names(user_columns: Sequence[str], columns: Columns) -> dict[str, str]:
    """The user's columns under the names that they get in the results.

    A name that the results need for themselves (`answer`, `model`, ...) is kept as
    `corpus_answer` and so on; the id column is `query_id` there.
    """
    taken = set(RESULT_COLUMNS) | set(OWN)
    renamed: dict[str, str] = {}
    for name in user_columns:
        if name == "query_id" and columns.id == "query_id":
            continue
        new = name
        while new in taken or new in renamed.values() or (new != name and new in user_columns):
            new = f"corpus_{new}"
        renamed[name] = new
    return renamed


def reading_error(file: File, error: Exception) -> DataError:
    """What is said of a file that cannot be read."""
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DataError(
        f"Cannot read {file.relative} as {file.format}: {reason}. Repair or remove it, or set "
        "corpus.unreadable: skip to go on without it."
    )


def check_columns(names: Sequence[str], columns: Columns, file: File) -> None:
    """Refuse a file that lacks a column that the configuration names."""
    for key, wanted in (
        ("query", None if columns.messages else columns.query),
        ("id", columns.id),
        ("messages", columns.messages),
        ("reference", columns.reference),
    ):
        if wanted is not None and wanted not in names:
            raise DataError(
                f"{file.relative} has no column '{wanted}' (corpus.columns.{key}). "
                f"Its columns: {', '.join(names) or 'none'}."
            )


def last_user_text(messages: Any) -> str | None:
    """The text of the last user message; None where there is none."""
    if not isinstance(messages, list):
        return None
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
                content = "\n".join(p for p in parts if isinstance(p, str))
            return content if isinstance(content, str) else None
    return None
