"""The file formats of a corpus: which columns there are, how a file is cut, reading a piece of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rtr_ray.corpus import ROW_ERROR, Extent, File
from rtr_ray.errors import DataError

_SNIFFED_LINES = 1_000  # of a JSONL file, to find its columns and their types
_CHUNK_BYTES = 1 << 20
_PARQUET_BYTES = 8  # times those of an extent of lines: columns that nobody reads here count as well
_CSV_BLOCK_BYTES = 4 << 20  # a row cannot be longer
_BOM = b"\xef\xbb\xbf"


class Format(Protocol):
    """How one kind of file is read."""

    def schema(self, system: pafs.FileSystem, file: File) -> pa.Schema:
        """The user's columns."""
        ...

    def extents(self, system: pafs.FileSystem, file: File, rows: int, bytes: int) -> list[Extent]:
        """Extents of about so many rows or bytes; also finds out whether the file can be read."""
        ...

    def read(
        self, system: pafs.FileSystem, extent: Extent, schema: pa.Schema, rows: int
    ) -> Iterator[pa.Table]:
        """The rows in blocks of at most `rows`, in order, under `schema` and a column `_row_error`."""
        ...


class Parquet:
    """Extents are runs of row groups, or pieces of a large one."""

    def schema(self, system: pafs.FileSystem, file: File) -> pa.Schema:
        """As the footer has it, without dictionaries: those of two files may not fit into one."""
        with system.open_input_file(file.path) as source:
            found = pq.read_schema(source).remove_metadata()
        return pa.schema([field.with_type(_undone(field.type)) for field in found])

    def extents(self, system: pafs.FileSystem, file: File, rows: int, bytes: int) -> list[Extent]:
        """From the footer alone."""
        with system.open_input_file(file.path) as source:
            footer = pq.ParquetFile(source).metadata
        found: list[Extent] = []
        start, first, count, size = 0, 0, 0, 0
        most = _PARQUET_BYTES * bytes
        for group in range(footer.num_row_groups + 1):
            last = group == footer.num_row_groups
            more = 0 if last else footer.row_group(group).total_byte_size
            if count and (last or count >= rows or size + more > most):
                few = max(1, count * most // max(size, 1))
                for skip, piece in _pieces(count, min(rows, few)):
                    found.append(Extent(file, first + skip, start, group, piece, skip))
                start, first, count, size = group, first + count, 0, 0
            if not last:
                count += footer.row_group(group).num_rows
                size += more
        return found

    def read(
        self, system: pafs.FileSystem, extent: Extent, schema: pa.Schema, rows: int
    ) -> Iterator[pa.Table]:
        """Streamed: a large row group is never whole in memory as Arrow."""
        assert extent.end is not None
        with system.open_input_file(extent.file.path) as source:
            groups = list(range(extent.start, extent.end))
            batches = pq.ParquetFile(source).iter_batches(batch_size=rows, row_groups=groups)
            for table in _window(map(_table, batches), extent):
                columns = [
                    _cast(table[field.name], field)
                    if field.name in table.column_names
                    else pa.nulls(table.num_rows, field.type)
                    for field in schema
                ]
                columns.append(pa.nulls(table.num_rows, pa.string()))
                yield pa.table(columns, names=[*schema.names, ROW_ERROR])


class Jsonl:
    """One JSON object a line. Extents are runs of bytes; a line belongs where its first byte lies."""

    def schema(self, system: pafs.FileSystem, file: File) -> pa.Schema:
        """From the first lines: bool, int64, float64 or text; nested values are kept as JSON text.

        A key that first occurs later is not kept.
        """
        types: dict[str, pa.DataType] = {}
        lines = [line for line in islice(_lines(system, file, 0, None), _SNIFFED_LINES) if line.strip()]
        objects = [value for value, _ in map(_json_object, lines) if value is not None]
        if lines and not objects:
            raise pa.ArrowInvalid("none of its first lines is a JSON object; one object per line is needed")
        for value in objects:
            for name, item in value.items():
                types[name] = _unified(types.get(name, pa.null()), _type_of(item))
        return pa.schema([(n, pa.string() if pa.types.is_null(t) else t) for n, t in types.items()])

    def extents(self, system: pafs.FileSystem, file: File, rows: int, bytes: int) -> list[Extent]:
        """One extent, unless the file is larger than `bytes`: then its lines are counted first."""
        if file.size == 0:
            return []
        if file.size <= bytes or _compressed(file):
            return [Extent(file, 0)]
        found, first = [], 0
        for start in range(0, file.size, bytes):
            end = min(start + bytes, file.size)
            found.append(Extent(file, first, start, end))
            first += _count_lines(system, file, start, end)
        return found

    def read(
        self, system: pafs.FileSystem, extent: Extent, schema: pa.Schema, rows: int
    ) -> Iterator[pa.Table]:
        """A line that is not a JSON object becomes a row with the reason."""
        values: list[dict[str, Any] | None] = []
        errors: list[str | None] = []
        for line in _lines(system, extent.file, extent.start, extent.end):
            value, error = _json_object(line)
            values.append(value)
            errors.append(error)
            if len(values) >= rows:
                yield _table_of(values, errors, schema)
                values, errors = [], []
        if values:
            yield _table_of(values, errors, schema)


class Csv:
    """Comma- or tab-separated with a header. Values stay text, as they are written.

    A quoted value may hold newlines, so each extent is found by reading from the beginning.
    """

    def schema(self, system: pafs.FileSystem, file: File) -> pa.Schema:
        """The header."""
        return pa.schema([(name, pa.string()) for name in self._header(system, file)])

    def extents(self, system: pafs.FileSystem, file: File, rows: int, bytes: int) -> list[Extent]:
        """Reads the whole file: a row with too many fields shows only then."""
        if file.size == 0:
            return []
        names = self._header(system, file)
        count = sum(batch.num_rows for batch in self._reader(system, file, names))
        return [Extent(file, skip, rows=size, skip=skip) for skip, size in _pieces(count, rows)]

    def read(
        self, system: pafs.FileSystem, extent: Extent, schema: pa.Schema, rows: int
    ) -> Iterator[pa.Table]:
        """A value that is not UTF-8 makes its row unusable; what can be read of it is kept."""
        names = self._header(system, extent.file)
        for table in _window(map(_table, self._reader(system, extent.file, names)), extent):
            for start in range(0, table.num_rows, rows):
                part = table.slice(start, rows)
                errors: list[str | None] = [None] * part.num_rows
                columns = [
                    _decoded(part[field.name].to_pylist(), errors, field.name)
                    if field.name in names
                    else pa.nulls(part.num_rows, field.type)
                    for field in schema
                ]
                columns.append(pa.array(errors, pa.string()))
                yield pa.table(columns, names=[*schema.names, ROW_ERROR])

    def _header(self, system: pafs.FileSystem, file: File) -> list[str]:
        if file.size == 0:
            return []
        return [str(name) for name in next(self._reader(system, file, None)).schema.names]

    def _reader(
        self, system: pafs.FileSystem, file: File, names: Sequence[str] | None
    ) -> Iterator[pa.RecordBatch]:
        tabs = ".tsv" in file.path.lower()
        types = None if names is None else {name: pa.binary() for name in names}
        with (
            system.open_input_stream(file.path) as source,
            pacsv.open_csv(
                source,
                pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
                pacsv.ParseOptions(delimiter="\t" if tabs else ",", newlines_in_values=True),
                pacsv.ConvertOptions(check_utf8=False, column_types=types),
            ) as reader,
        ):
            if names is None:
                yield pa.RecordBatch.from_pylist([], schema=reader.schema)
                return
            yield from reader


READERS: dict[str, Format] = {
    "parquet": Parquet(),
    "jsonl": Jsonl(),
    "openai_batch": Jsonl(),
    "csv": Csv(),
}


def is_openai_batch(system: pafs.FileSystem, file: File) -> bool | None:
    """Whether the first line of a JSONL file is a request of an OpenAI batch; None where it has no line."""
    for line in _lines(system, file, 0, None):
        value, _ = _json_object(line)
        return value is not None and "custom_id" in value and isinstance(value.get("body"), dict)
    return None


def _table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def _pieces(count: int, rows: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of even pieces of at most about `rows`."""
    pieces = max(1, round(count / max(rows, 1))) if count else 0
    for number in range(pieces):
        begin, end = count * number // pieces, count * (number + 1) // pieces
        if end > begin:
            yield begin, end - begin


def _window(tables: Iterable[pa.Table], extent: Extent) -> Iterator[pa.Table]:
    """The rows of an extent out of all that lie between its start and end."""
    position = 0
    stop = None if extent.rows is None else extent.skip + extent.rows
    for table in tables:
        low = max(extent.skip - position, 0)
        high = len(table) if stop is None else min(stop - position, len(table))
        if high > low:
            yield table.slice(low, high - low)
        position += len(table)
        if stop is not None and position >= stop:
            return


def _compressed(file: File) -> bool:
    return file.path.lower().endswith((".gz", ".zst", ".bz2"))


def _lines(system: pafs.FileSystem, file: File, start: int, end: int | None) -> Iterator[bytes]:
    """The lines whose first byte lies in [start, end), without their newlines."""
    if start == 0:
        source = system.open_input_stream(file.path)
    else:
        source = system.open_input_file(file.path)
        source.seek(start - 1)
    with source:
        position, rest = max(start - 1, 0), b""
        skipping = start > 0  # up to the newline that ends the line of the extent before
        while chunk := source.read(_CHUNK_BYTES):
            if position == 0 and not rest and chunk.startswith(_BOM):
                chunk, position = chunk[len(_BOM) :], len(_BOM)
            pieces = (rest + chunk).split(b"\n")
            rest = pieces.pop()
            for piece in pieces:
                if not skipping:
                    if end is not None and position >= end:
                        return
                    yield piece.removesuffix(b"\r")
                skipping = False
                position += len(piece) + 1
        if rest and not skipping and (end is None or position < end):
            yield rest.removesuffix(b"\r")


def _count_lines(system: pafs.FileSystem, file: File, start: int, end: int) -> int:
    """How many lines begin in [start, end)."""
    count = 1 if start == 0 else 0
    with system.open_input_file(file.path) as source:
        position = max(start - 1, 0)
        source.seek(position)
        while position < end - 1:
            chunk = source.read(min(_CHUNK_BYTES, end - 1 - position))
            if not chunk:
                break
            count += chunk.count(b"\n")
            position += len(chunk)
    return count


def _json_object(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start} of the line"
    if not text.strip():
        return None, "the line is empty"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {str(error)[:120]}"
    if not isinstance(value, dict):
        return None, "the line is not a JSON object"
    if "\\u" in text and not _is_unicode(value):
        return None, "not Unicode: half of a surrogate pair, such as a cut emoji"
    return value, None


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _type_of(value: Any) -> pa.DataType:
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    return pa.float64() if isinstance(value, float) else pa.string()


def _unified(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _table_of(
    values: Sequence[dict[str, Any] | None], errors: list[str | None], schema: pa.Schema
) -> pa.Table:
    columns = []
    for field in schema:
        cells: list[Any] = []
        for row, value in enumerate(values):
            cell = None if value is None else value.get(field.name)
            fits, cell = _fitted(cell, field.type)
            if not fits:
                errors[row] = (
                    errors[row] or f"column '{field.name}' does not hold {field.type} as in the rows before"
                )
            cells.append(cell)
        columns.append(pa.array(cells, field.type))
    columns.append(pa.array(errors, pa.string()))
    return pa.table(columns, names=[*schema.names, ROW_ERROR])


def _fitted(cell: Any, type: pa.DataType) -> tuple[bool, Any]:
    if cell is None:
        return True, None
    if pa.types.is_string(type):
        return True, cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    found = _type_of(cell)
    if found == type or (type == pa.float64() and found == pa.int64() and int(float(cell)) == cell):
        return True, cell
    return False, None


def _decoded(cells: Sequence[bytes | None], errors: list[str | None], name: str) -> pa.Array:
    texts: list[str | None] = []
    for row, cell in enumerate(cells):
        if cell is None:
            texts.append(None)
            continue
        try:
            texts.append(cell.decode("utf-8"))
        except UnicodeDecodeError as error:
            errors[row] = f"not UTF-8: byte 0x{cell[error.start]:02x} in column '{name}'"
            texts.append(cell.decode("utf-8", errors="replace"))
    return pa.array(texts, pa.string())


def _undone(type: pa.DataType) -> pa.DataType:
    return type.value_type if pa.types.is_dictionary(type) else type


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"Column '{field.name}' is {column.type} here and {field.type} in the first file: {error}."
        ) from error
