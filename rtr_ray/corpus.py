"""Reading a corpus: Parquet, JSONL, CSV or an OpenAI batch file, in splits that can be read apart.

Every row gets an id that is the same on every run: the user's own column, or a hash of (file
relative to the corpus, row position). A row that cannot be used is passed on with the reason;
a file that cannot be read is refused before anything is spent, or set aside if so configured.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from rtr_ray.errors import DataError
from rtr_ray.pool import fingerprint
from rtr_ray.schemas import PREDICTIONS, RESULTS, UNFAMILIAR
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
WORKING = (
    *(
        "_accuracy",
        "_output_tokens",
        "_output_tokens_p95",
        "_cost_usd",
        "_allowed",
        "_embedding",
    ),  # of a table
    "_sample",  # of a collection
)
"""Columns that stand beside the user's on the way to the results."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the corpus mean what."""

    query: str = "query"
    id: str | None = None  # None: derived
    messages: str | None = None  # a conversation in OpenAI's form, as JSON text or list of structs
    reference: str | None = None  # the right answer; for grading only, no estimator sees it
    settings: str | None = None  # what each row asks for itself, see `rtr_ray.terms`


@dataclass(frozen=True, slots=True)
class File:
    """One file of a corpus."""

    path: str  # as its file system names it
    relative: str  # to the corpus; part of derived row ids
    size: int
    version: str  # changes when the file does
    format: str


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of rows of one file."""

    file: File
    first_row: int
    start: int = 0  # bytes (JSONL) or row groups (Parquet)
    end: int | None = None  # None: to the end of the file
    rows: int | None = None  # None: not known before reading
    skip: int = 0  # rows behind `start` that belong to the extents before

    @property
    def name(self) -> str:
        """A short name that is the same on every run, and another for other rows."""
        return stable_id(f"{self.file.relative}\0{self.end}\0{self.rows}", self.first_row)[:16]

    @property
    def bytes(self) -> int:
        """Of its file, about: where rows are counted instead, the whole file's."""
        return self.file.size if self.rows is not None or self.end is None else self.end - self.start


@dataclass(frozen=True, slots=True)
class Split:
    """What one worker reads in one go: an extent, or several small ones one behind the other."""

    extents: tuple[Extent, ...]

    @property
    def name(self) -> str:
        """A short name that is the same on every run, and another for other rows."""
        names = [extent.name for extent in self.extents]
        return names[0] if len(names) == 1 else stable_id("\0".join(names), len(names))[:16]

    @property
    def rows(self) -> int | None:
        """How many it has; None: not known before reading."""
        found = [extent.rows for extent in self.extents]
        return None if None in found else sum(rows or 0 for rows in found)


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
    def settings(self) -> str | None:
        """The column with the rows' own terms, as it is named in the results."""
        return None if self.columns.settings is None else self.renamed[self.columns.settings]

    @property
    def for_tasks(self) -> Corpus:
        """What reading its splits takes; the list of its files, which may be long, stays behind."""
        return replace(self, files=())

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed or changed, or columns are read differently."""
        return fingerprint(
            [
                sorted([file.relative, file.size, file.version] for file in self.files),
                [
                    *(self.columns.query, self.columns.id, self.columns.messages, self.columns.reference),
                    *([self.columns.settings] if self.columns.settings else []),
                ],
            ]
        )


def stable_id(relative: str, row: int) -> str:
    """The derived id of a row: 24 hexadecimal digits."""
    return hashlib.blake2b(f"{relative}\0{row}".encode(), digest_size=12).hexdigest()


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    if uri.startswith("s3://"):
        return s3_filesystem(), uri.removeprefix("s3://").rstrip("/")
    return pafs.LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))


def list_files(uri: str, format: str = "auto") -> tuple[File, ...]:
    """The files that a path, folder or glob names, sorted.

    Args:
        uri: Local or `s3://`. In a folder, files with an unknown ending and hidden files (their name
            begins with '.' or '_') are passed over. In a glob, `*` stays within a folder and `**` goes
            down any number of them.
        format: auto (by ending), parquet, jsonl, csv or openai_batch: then files of that ending, or
            where there are none, those without a known one.

    Raises:
        DataError: If there is nothing, or nothing with a known ending, or several formats.
    """
    system, path = filesystem(uri)
    found = [(info, relative, _ending(info.path)) for info, relative in _found(system, path, uri)]
    if format != "auto":
        wanted = "jsonl" if format == "openai_batch" else format
        chosen = [one for one in found if one[2] == wanted] or [one for one in found if one[2] is None]
        found = [(info, relative, format) for info, relative, _ in chosen or found]
    files = [
        File(info.path, relative, info.size, str(info.mtime_ns), kind)
        for info, relative, kind in found
        if kind
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
        info = system.get_file_info(path)
        if info.type == pafs.FileType.File:
            yield info, info.base_name
        elif info.type == pafs.FileType.Directory:
            yield from _files_below(system, path, ["**", "*"])
        elif signs := [path.index(sign) for sign in "*?[" if sign in path]:
            base = path[: min(signs)].rpartition("/")[0]
            yield from _files_below(system, base or "/", path.removeprefix(base).lstrip("/").split("/"))
    except OSError as error:
        raise DataError(f"Cannot list {uri}: {first_line(error)}.") from error


def _files_below(
    system: pafs.FileSystem, folder: str, pattern: list[str]
) -> Iterator[tuple[pafs.FileInfo, str]]:
    selector = pafs.FileSelector(folder, recursive=len(pattern) > 1, allow_not_found=True)
    for info in system.get_file_info(selector):
        relative = info.path.removeprefix(folder).lstrip("/")
        if info.type == pafs.FileType.File and _matches(relative.split("/"), pattern):
            yield info, relative


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a glob, part by part; a hidden part fits only a pattern that is hidden itself."""
    if not pattern or not parts:
        return not pattern and not parts
    hidden = parts[0].startswith((".", "_")) and parts[0][0] != pattern[0][:1]
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (not hidden and _matches(parts[1:], pattern))
    return not hidden and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _ending(path: str) -> str | None:
    name = path.rsplit("/", 1)[-1].lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return next((kind for ending, kind in FORMATS.items() if name.endswith(ending)), None)


def result_names(user_columns: Sequence[str], columns: Columns) -> dict[str, str]:
    """The user's columns under the names that they get in the results.

    A name that the results need for themselves (`answer`, `model`, ...) is kept as
    `corpus_answer` and so on; the id column is `query_id` there.
    """
    taken = {*RESULTS.names, *PREDICTIONS.names, *OWN, *WORKING, UNFAMILIAR}
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
    return DataError(
        f"Cannot read {file.relative} as {file.format}: {first_line(error)}. Repair or remove it, or set "
        "corpus.unreadable: skip to go on without it."
    )


def first_line(error: Exception) -> str:
    """What an error says, without the row that it may quote."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"(got \d+): .*", r"\1", line)[:200].rstrip(".: ")


def check_columns(names: Sequence[str], columns: Columns, file: File) -> None:
    """Refuse a file that lacks a column that the configuration names, or has one twice."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file.relative} has the column '{twice[0]}' twice. Name each column once.")
    for key, wanted in (
        ("query", None if columns.messages else columns.query),
        ("id", columns.id),
        ("messages", columns.messages),
        ("reference", columns.reference),
        ("settings", columns.settings),
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
