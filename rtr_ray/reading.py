"""From a corpus to rows that can be routed: opening, splitting, and the columns that every row gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs

from rtr_ray.corpus import (
    GOLD,
    MESSAGES,
    QUERY_ID,
    ROW_ERROR,
    TEXT,
    Columns,
    Corpus,
    Extent,
    File,
    Split,
    check_columns,
    filesystem,
    first_line,
    last_user_text,
    list_files,
    reading_error,
    result_names,
    stable_id,
)
from rtr_ray.errors import DataError
from rtr_ray.formats import READERS, Format, is_openai_batch
from rtr_ray.storage import several_at_once

_SNIFFED_FILES = 20
_LEAST_ROWS, _LEAST_BYTES = 64, 16 << 10  # of a split: below, a worker has more trouble than work
_SMALL = 16  # extents of so small a share of a split are read several to one split
_MOST_FILES = 1_000  # of a split: each is opened for itself


def open_corpus(
    uri: str,
    columns: Columns,
    format: str = "auto",
    unreadable: Literal["refuse", "skip"] = "refuse",
    split_rows: int = 20_000,
    split_bytes: int = 16 << 20,
    least_splits: int = 1,
) -> tuple[Corpus, tuple[Split, ...]]:
    """Find the files of a corpus, check their columns, and split them.

    Reads the footers of Parquet files, the beginning of JSONL files (and counts the lines of
    those larger than `split_bytes`), and CSV files whole.

    Args:
        uri: A file, folder or glob, local or `s3://`.
        columns: Which columns mean what.
        format: auto, parquet, jsonl, csv, openai_batch.
        unreadable: What becomes of a file that cannot be read: refuse the corpus, or go on without it.
        split_rows: About how many rows a split has; of JSONL, `split_bytes`. Files of which a sixteenth of
            that is not reached are read several to a split.
        least_splits: Smaller splits are made of a small corpus, so that so many workers have some.

    Raises:
        DataError: If there are no files or rows, a column is missing, or a file cannot be read.
    """
    files = list_files(uri, format)
    system, _ = filesystem(uri)
    kind = files[0].format
    if kind == "jsonl" and format == "auto" and _is_batch(system, files):
        kind = "openai_batch"
        files = tuple(replace(file, format=kind) for file in files)
    if kind == "openai_batch":
        columns = replace(columns, id=columns.id or "custom_id", messages="body")
    reader = READERS[kind]
    kept: list[File] = []
    extents: list[Extent] = []
    schema: pa.Schema | None = None
    set_aside: dict[str, str] = {}

    def look(file: File, sniff: bool) -> tuple[pa.Schema | None, list[Extent], Exception | None]:
        try:
            found = reader.schema(system, file) if sniff else None
            return found, reader.extents(system, file, split_rows, split_bytes), None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            return None, [], error

    def begin(number: int) -> tuple[pa.Schema | None, list[Extent], Exception | None] | None:
        if kind != "parquet" and files[number].size > split_bytes:  # read whole: not several at once
            return None
        return look(files[number], sniffed[number])

    sniffed = [kind != "jsonl" or number < _SNIFFED_FILES for number in range(len(files))]
    begun = several_at_once(begin, range(len(files)))
    for file, sniff, one in zip(files, sniffed, begun, strict=True):
        found, more, error = one or look(file, sniff)
        if schema is None and found is None and error is None:  # of lines, and no file before had one
            found, more, error = look(file, True)
        if error is not None:
            if unreadable == "refuse":
                raise reading_error(file, error) from error
            set_aside[file.relative] = first_line(error)
            continue
        if found is not None and file.size and len(found):
            check_columns(found.names, columns, file)
            schema = found if schema is None else _joined(schema, found, file)
        extents += more
        kept.append(file)
    if schema is None or not any(extent.rows is None or extent.rows > 0 for extent in extents):
        raise DataError(
            f"The corpus {uri} is empty: {len(files)} file(s) without a row"
            + (f", {len(set_aside)} of them unreadable." if set_aside else ".")
        )
    corpus = Corpus(uri, tuple(kept), kind, columns, schema, result_names(schema.names, columns), set_aside)
    rows, size = sum(extent.rows or 0 for extent in extents), sum(file.size for file in kept)
    if len(extents) < least_splits and (rows > _LEAST_ROWS or size > _LEAST_BYTES):
        few_rows = max(_LEAST_ROWS, rows // least_splits)
        few_bytes = max(_LEAST_BYTES, size // least_splits)
        extents = [one for file in kept for one in cut_file(reader, system, file, few_rows, few_bytes)]
    files_each = min(_MOST_FILES, max(1, len(extents) // least_splits))
    return corpus, tuple(_packed(extents, split_rows // _SMALL, split_bytes // _SMALL, files_each))


def _packed(extents: Sequence[Extent], rows: int, size: int, files: int) -> Iterator[Split]:
    """The extents in their order, those that are small several to a split: a file costs more than a row.

    Args:
        extents: Of all files.
        rows: That a split of several has at most.
        size: Its bytes at most.
        files: Its extents at most.
    """
    held: list[Extent] = []
    held_rows = held_bytes = 0
    for extent in extents:
        held_rows += extent.rows or 0
        held_bytes += extent.bytes
        if held and (len(held) >= files or held_rows > rows or held_bytes > size):
            yield Split(tuple(held))
            held, held_rows, held_bytes = [], extent.rows or 0, extent.bytes
        held.append(extent)
    if held:
        yield Split(tuple(held))


def cut_file(reader: Format, system: pafs.FileSystem, file: File, rows: int, size: int) -> list[Extent]:
    """A file's extents, of so many rows and bytes at most.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return reader.extents(system, file, rows, size)
    except (pa.ArrowException, OSError) as error:
        raise reading_error(file, error) from error


def _is_batch(system: pafs.FileSystem, files: Sequence[File]) -> bool:
    """Whether the first line of the first file that has one is a request of an OpenAI batch."""
    for file in files:
        with suppress(pa.ArrowException, OSError):  # it is told apart below
            if (found := is_openai_batch(system, file)) is not None:
                return found
    return False


def _joined(one: pa.Schema, other: pa.Schema, file: File) -> pa.Schema:
    """The columns of the files so far and of another one."""
    fields = {field.name: field for field in one}
    for field in other:
        known = fields.setdefault(field.name, field)
        if known.type != field.type:
            fields[field.name] = pa.field(field.name, _common(known, field, file))
    return pa.schema(list(fields.values()))


def _common(known: pa.Field, field: pa.Field, file: File) -> pa.DataType:
    both = [pa.schema([(field.name, type)]) for type in (known.type, field.type)]
    try:
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        if file.format == "parquet":
            raise DataError(
                f"{file.relative} has the column '{field.name}' as {field.type}, and a file before it as "
                f"{known.type}. Give it the same type in all files."
            ) from None
        return pa.string()  # JSON keeps its text


def read_split(corpus: Corpus, split: Split, rows: int) -> Iterator[pa.Table]:
    """The rows of a split in blocks of at most `rows`.

    Each block has `query_id`, `_text`, `_messages`, `_gold`, `_row_error` and the user's columns
    under the names that they will have in the results.

    Raises:
        DataError: If a file cannot be read after all.
    """
    if len(split.extents) == 1:
        yield from _read(corpus, split.extents[0], rows)
        return
    held: list[pa.Table] = []
    count = 0
    for blocks in several_at_once(lambda extent: list(_read(corpus, extent, rows)), split.extents):
        for block in blocks:
            if held and count + len(block) > rows:
                yield pa.concat_tables(held).combine_chunks()
                held, count = [], 0
            held.append(block)
            count += len(block)
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _read(corpus: Corpus, extent: Extent, rows: int) -> Iterator[pa.Table]:
    system, _ = filesystem(corpus.uri)
    row = extent.first_row
    try:
        for block in READERS[corpus.format].read(system, extent, corpus.schema, rows):
            yield _prepared(corpus, extent.file, row, block)
            row += block.num_rows
    except (pa.ArrowException, OSError) as error:
        raise reading_error(extent.file, error) from error


def _prepared(corpus: Corpus, file: File, first_row: int, block: pa.Table) -> pa.Table:
    columns = corpus.columns
    errors: list[str | None] = block[ROW_ERROR].to_pylist()
    derived = [stable_id(file.relative, first_row + i) for i in range(block.num_rows)]
    ids = derived if columns.id is None else _ids(_texts(block[columns.id], errors), derived, errors)
    if columns.messages is not None:
        texts, messages = _conversations(block[columns.messages], errors)
    else:
        texts = _texts(block[columns.query], errors)
        messages = [None] * block.num_rows
    for i, text in enumerate(texts):
        if errors[i] is None and (text is None or not text.strip()):
            errors[i] = "the query is null" if text is None else "the query is empty"
    gold = [None] * block.num_rows if columns.reference is None else _texts(block[columns.reference], errors)
    own = {
        QUERY_ID: pa.array(ids, pa.string()),
        TEXT: pa.array(texts, pa.string()),
        MESSAGES: pa.array(messages, pa.string()),
        GOLD: pa.array(gold, pa.string()),
        ROW_ERROR: pa.array(errors, pa.string()),
    }
    kept = {new: _readable(block[name]) for name, new in corpus.renamed.items()}
    return pa.table(own | kept)


def _ids(found: Sequence[str | None], derived: Sequence[str], errors: list[str | None]) -> list[str]:
    ids = []
    for i, value in enumerate(found):
        if value is None or not value.strip():
            errors[i] = errors[i] or "the id is null or empty"
            value = derived[i]
        ids.append(value)
    return ids


def _cells(column: pa.ChunkedArray, errors: list[str | None]) -> list[Any]:
    """The values of a column; None, with the reason, where one is not UTF-8."""
    with suppress(UnicodeDecodeError):
        values: list[Any] = column.to_pylist()
        return values
    return [_decoded(cell.as_py, i, errors) for i, cell in enumerate(column)]


def _decoded(value: Callable[[], Any], row: int, errors: list[str | None]) -> Any:
    try:
        return value()
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        errors[row] = errors[row] or f"not UTF-8: {found}"
        return None


def _texts(column: pa.ChunkedArray, errors: list[str | None]) -> list[str | None]:
    texts = []
    for i, cell in enumerate(_cells(column, errors)):
        if isinstance(cell, bytes):
            cell = _decoded(cell.decode, i, errors)
        elif isinstance(cell, list | dict):
            cell = json.dumps(cell, ensure_ascii=False, default=str)
        texts.append(None if cell is None else str(cell))
    return texts


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The user's column; of a text that is not UTF-8, what can be read."""
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return column
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        cells = column.cast(pa.large_binary()).to_pylist()
        return pa.array([None if c is None else c.decode(errors="replace") for c in cells], column.type)


def _conversations(
    column: pa.ChunkedArray, errors: list[str | None]
) -> tuple[list[str | None], list[str | None]]:
    """The last user text, and the conversation as JSON, of each row."""
    texts: list[str | None] = []
    conversations: list[str | None] = []
    for i, cell in enumerate(_cells(column, errors)):
        messages = _messages(cell)
        text = last_user_text(messages)
        if text is None and errors[i] is None:
            errors[i] = "the conversation has no user message with text"
        texts.append(text)
        conversations.append(None if messages is None else json.dumps(messages, ensure_ascii=False))
    return texts, conversations


def _messages(cell: Any) -> Any:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    if isinstance(cell, dict):  # the body of an OpenAI batch request
        cell = cell.get("messages")
    if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
        return None
    # Arrow gives every struct every field: drop those that this message does not have
    return [{key: value for key, value in message.items() if value is not None} for message in cell]
