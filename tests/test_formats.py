"""File formats: their columns, and splits that together hold every row exactly once."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.corpus import ROW_ERROR, File, filesystem, list_files
from rtr_ray.formats import READERS, is_openai_batch

WHOLE = 10**9


def file_of(path: Path) -> File:
    (file,) = list_files(str(path))
    return file


def read(path: Path, rows: int = WHOLE, bytes: int = WHOLE, block: int = 1000) -> list[dict[str, Any]]:
    """All rows of a file, split as told."""
    system, _ = filesystem(str(path))
    file = file_of(path)
    reader = READERS[file.format]
    schema = reader.schema(system, file)
    found, position = [], 0
    for split in reader.extents(system, file, rows, bytes):
        assert split.first_row == position
        tables = list(reader.read(system, split, schema, block))
        assert all(table.num_rows <= block for table in tables)
        count = sum(table.num_rows for table in tables)
        assert split.rows in (None, count)
        found += [row for table in tables for row in table.to_pylist()]
        position += count
    return found


def schema(path: Path) -> dict[str, str]:
    system, _ = filesystem(str(path))
    file = file_of(path)
    return {field.name: str(field.type) for field in READERS[file.format].schema(system, file)}


def lines(folder: Path, *values: Any, name: str = "a.jsonl") -> Path:
    """A JSONL file; bytes are lines as they are."""
    path = folder / name
    path.write_bytes(
        b"".join((v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n" for v in values)
    )
    return path


def values(rows: Sequence[dict[str, Any]], name: str = "q") -> list[Any]:
    return [row[name] for row in rows]


def errors(rows: Sequence[dict[str, Any]]) -> list[Any]:
    return values(rows, ROW_ERROR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


# JSONL

LINES = st.one_of(
    st.builds(lambda text: json.dumps({"q": text}, ensure_ascii=False).encode(), st.text(max_size=12)),
    st.builds(lambda text: json.dumps({"q": text, "n": 1}).encode(), st.text(max_size=12)),
    st.sampled_from([b"", b" ", b"{", b"[1]", b'{"q": "caf\xe9"}', b'{"q": null}', "ä€😀".encode()]),
    st.binary(max_size=8).filter(lambda line: b"\n" not in line and not line.endswith(b"\r")),
)


@given(
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n"])), min_size=1, max_size=12),
    st.booleans(),
    st.integers(1, 60),
    st.integers(1, 5),
)
def test_however_a_file_is_split_its_lines_are_the_same(folder, content, ends, bytes, block):
    data = b"".join(line + newline for line, newline in [(b'{"q": "first"}', b"\n"), *content])
    path = folder / "property.jsonl"
    path.write_bytes(data if ends else data.rstrip(b"\r\n"))
    whole = read(path)
    assert read(path, bytes=bytes, block=block) == whole
    assert len(whole) == len(path.read_bytes().removesuffix(b"\n").split(b"\n"))


def test_a_file_larger_than_what_is_read_at_once_is_split_anywhere(tmp_path):
    generator = random.Random(0)
    texts = ["x" * generator.choice([1, 50, 200, 5000]) for _ in range(1200)]
    path = lines(tmp_path, *({"q": f"{i} {text}"} for i, text in enumerate(texts)))
    assert path.stat().st_size > 1 << 20
    for bytes in (100_003, 1 << 20, (1 << 20) - 1):
        assert values(read(path, bytes=bytes)) == [f"{i} {text}" for i, text in enumerate(texts)]


def test_a_line_longer_than_several_splits_is_read_once(tmp_path):
    path = lines(tmp_path, {"q": "a"}, {"q": "b" * 3_000_000}, {"q": "c"})
    assert [len(text) for text in values(read(path, bytes=1 << 20))] == [1, 3_000_000, 1]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'{"q": "a"}\r\n{"q": "b"}\r\n', ["a", "b"]),
        (b'{"q": "a"}\n{"q": "b"}', ["a", "b"]),
        (b'\xef\xbb\xbf{"q": "a"}\n{"q": "b"}\n', ["a", "b"]),
        (b'  {"q": "a"}  \n', ["a"]),
        (b'{"q": "a\\nb"}\n', ["a\nb"]),
    ],
)
def test_line_endings_and_a_byte_order_mark_are_no_content(tmp_path, data, texts):
    path = lines(tmp_path)
    path.write_bytes(data)
    assert values(read(path)) == texts
    assert values(read(path, bytes=4)) == texts


def test_a_line_that_cannot_be_read_is_a_row_with_the_reason(tmp_path):
    bad = [b"{oops", b"[1, 2]", b'"text"', b"", b'{"q": "caf\xe9"}', b'{"q": "\\ud83d"}', b"[" * 100_000]
    rows = read(lines(tmp_path, {"q": "a"}, *bad, {"q": "b"}))
    assert values(rows) == ["a", *[None] * len(bad), "b"]
    assert [error and error.split(":")[0] for error in errors(rows)] == [
        None,
        "not JSON",
        "the line is not a JSON object",
        "the line is not a JSON object",
        "the line is empty",
        "not UTF-8",
        "not Unicode",
        "not JSON",
        None,
    ]
    assert "byte 0xe9 at position 10" in errors(rows)[5]


def test_emoji_are_text_also_where_they_are_escaped(tmp_path):
    assert values(read(lines(tmp_path, b'{"q": "\\ud83d\\ude00"}', {"q": "😀"}))) == ["😀", "😀"]


@pytest.mark.parametrize(
    ("given_values", "type", "kept"),
    [
        ([1, 2], "int64", [1, 2]),
        ([1, 2.5], "double", [1.0, 2.5]),
        ([True, False], "bool", [True, False]),
        (["a", None], "string", ["a", None]),
        ([None, None], "string", [None, None]),
        ([1, "a"], "string", ["1", "a"]),
        ([True, 1], "string", ["true", "1"]),
        ([{"b": [1]}, [2]], "string", ['{"b": [1]}', "[2]"]),
        ([2**63 - 1, -(2**63)], "int64", [2**63 - 1, -(2**63)]),
        ([2**63, 1], "string", [str(2**63), "1"]),
        (["é", {"é": 1}], "string", ["é", '{"é": 1}']),
    ],
)
def test_a_column_has_the_type_that_holds_all_its_values(tmp_path, given_values, type, kept):
    path = lines(tmp_path, *({"q": value} for value in given_values))
    assert schema(path) == {"q": type}
    rows = read(path)
    assert values(rows) == kept
    assert errors(rows) == [None] * len(kept)


def test_a_value_that_does_not_fit_the_type_of_its_column_is_told_and_never_bent(tmp_path):
    many = [{"n": 1, "x": 0.5}] * 1000
    path = lines(tmp_path, *many, {"n": 2, "x": 3}, {"n": "two", "x": 1.5}, {"n": 2.5, "x": 2**60 + 1})
    assert schema(path) == {"n": "int64", "x": "double"}
    rows = read(path)[1000:]
    assert [(row["n"], row["x"]) for row in rows] == [(2, 3.0), (None, 1.5), (None, None)]
    assert errors(rows) == [
        None,
        "column 'n' does not hold int64 as in the rows before",
        "column 'n' does not hold int64 as in the rows before",
    ]


def test_keys_that_a_line_lacks_are_null(tmp_path):
    rows = read(lines(tmp_path, {"q": "a"}, {"n": 1}, {"n": 2, "q": "b"}))
    assert [(row["q"], row["n"]) for row in rows] == [("a", None), (None, 1), ("b", 2)]


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_compressed_file_is_read_in_one_split(tmp_path, ending, pack):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(b'{"q": "a"}\n{"q": "b"}\n'))
    assert values(read(path, bytes=3)) == ["a", "b"]


def test_a_file_without_any_object_is_no_jsonl(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"q": "a"}, {"q": "b"}], indent=2).replace("  {", "  [{"))
    with pytest.raises(pa.ArrowInvalid, match="one object per line is needed"):
        schema(path)


@pytest.mark.parametrize(("data", "rows"), [(b"", 0), (b"\n", 1), (b"\n\n", 2)])
def test_an_empty_file_has_no_columns(tmp_path, data, rows):
    path = lines(tmp_path)
    path.write_bytes(data)
    assert schema(path) == {}
    assert len(read(path)) == rows


def test_a_batch_of_openai_is_known_by_its_first_line(tmp_path):
    def found(*content: Any) -> bool | None:
        system, _ = filesystem(str(tmp_path))
        return is_openai_batch(system, file_of(lines(tmp_path, *content)))

    request = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
    assert found(request, {"query": "a"}) is True
    assert found({"custom_id": "1", "body": "text"}) is False
    assert found({"query": "a"}, request) is False
    assert found() is None


# CSV


def csv(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


FIELDS = st.text(alphabet='ab,"\n é', max_size=6).filter(lambda text: text.strip() != "")


@given(st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=15), st.integers(1, 20), st.integers(1, 4))
def test_however_a_table_of_text_is_split_its_rows_are_the_same(folder, cells, rows, block):
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    path = csv(folder, "q,n\n" + "".join(f"{quoted(q)},{quoted(n)}\n" for q, n in cells), "property.csv")
    found = read(path, rows=rows, block=block)
    assert [(row["q"], row["n"]) for row in found] == cells


def test_values_stay_text_as_they_are_written(tmp_path):
    rows = read(csv(tmp_path, "q,n,e\n1.50,007,\nNA,null,true\n"))
    assert [(row["q"], row["n"], row["e"]) for row in rows] == [("1.50", "007", ""), ("NA", "null", "true")]


def test_tabs_separate_where_the_name_says_so(tmp_path):
    rows = read(csv(tmp_path, "q\tn\na,b\t1\n", "a.tsv"))
    assert [(row["q"], row["n"]) for row in rows] == [("a,b", "1")]


def test_a_value_that_is_not_utf8_makes_its_row_unusable_and_keeps_what_can_be_read(tmp_path):
    rows = read(csv(tmp_path, b"q,n\ngood,1\ncaf\xe9,2\n"))
    assert values(rows) == ["good", "caf\ufffd"]
    assert errors(rows) == [None, "not UTF-8: byte 0xe9 in column 'q'"]


@pytest.mark.parametrize("row", ["a,1,2", "a"])
def test_a_row_with_another_number_of_fields_is_found_before_anything_is_spent(tmp_path, row):
    path = csv(tmp_path, f"q,n\nfine,1\n{row}\n")
    with pytest.raises(pa.ArrowInvalid, match="Expected 2 columns, got"):
        read(path)


@pytest.mark.parametrize("text", ["", "q,n\n"])
def test_a_table_without_rows_has_none(tmp_path, text):
    assert read(csv(tmp_path, text)) == []


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert list(schema(csv(tmp_path, b"\xef\xbb\xbfq,n\na,1\n"))) == ["q", "n"]


def test_a_value_of_a_million_characters_is_read(tmp_path):
    path = csv(tmp_path, "q,n\n" + "x" * 1_500_000 + ",1\nb,2\n")
    assert [len(text) for text in values(read(path))] == [1_500_000, 1]


# Parquet


def parquet(folder: Path, table: pa.Table, row_group_size: int = 1000, name: str = "a.parquet") -> Path:
    pq.write_table(table, folder / name, row_group_size=row_group_size)
    return folder / name


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 30), st.integers(1, 9))
def test_however_row_groups_are_joined_or_cut_their_rows_are_the_same(folder, count, group, rows, block):
    path = parquet(folder, pa.table({"q": pa.array(range(count), pa.int64())}), group, "property.parquet")
    assert values(read(path, rows=rows, block=block)) == list(range(count))


def split_sizes(path: Path, rows: int) -> list[int | None]:
    system, _ = filesystem(str(path))
    file = file_of(path)
    return [split.rows for split in READERS["parquet"].extents(system, file, rows, WHOLE)]


def test_small_row_groups_are_read_together_and_a_large_one_in_even_pieces(tmp_path):
    path = parquet(tmp_path, pa.table({"q": range(100)}), 10)
    assert split_sizes(path, 25) == [30, 30, 30, 10]
    path = parquet(tmp_path, pa.table({"q": range(100)}), 100)
    assert split_sizes(path, 33) == [33, 33, 34]


def test_rows_of_great_length_are_split_by_their_bytes(tmp_path):
    texts = ["short"] * 60 + [f"{number:05d}" * 20_000 for number in range(40)]
    path = parquet(tmp_path, pa.table({"q": texts}), 20)
    system, _ = filesystem(str(path))
    splits = READERS["parquet"].extents(system, file_of(path), 1000, 100_000)  # 8 times as many bytes
    assert [split.rows for split in splits] == [60, 6, 7, 7, 6, 7, 7]
    assert sum(split.rows for split in splits) == 100
    assert values(read(path, rows=1000)) == texts


def test_columns_of_every_type_come_through(tmp_path):
    table = pa.table(
        {
            "q": ["a", None],
            "list": [[1, 2], []],
            "struct": pa.array([{"x": 1, "y": "z"}, None], pa.struct([("x", pa.int8()), ("y", pa.string())])),
            "when": pa.array([0, 1], pa.timestamp("ms", "UTC")),
            "money": pa.array([1, 2], pa.decimal128(10, 2)),
            "kind": pa.array(["u", "v"]).dictionary_encode(),
            "bytes": [b"\xff", b""],
        }
    )
    rows = read(parquet(tmp_path, table))
    assert [{k: v for k, v in row.items() if k != ROW_ERROR} for row in rows] == table.to_pylist()


def test_the_footers_notes_are_not_the_users_columns(tmp_path):
    path = parquet(tmp_path, pa.table({"q": ["a"]}).replace_schema_metadata({"pandas": "{}"}))
    system, _ = filesystem(str(path))
    assert READERS["parquet"].schema(system, file_of(path)).metadata is None


def test_a_file_that_is_no_parquet_cannot_be_split(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no it is not PAR1")
    with pytest.raises((pa.ArrowException, OSError)):
        split_sizes(path, 10)


def each(iterator: Iterator[Any]) -> int:
    return sum(1 for _ in iterator)


def test_a_large_row_group_is_streamed(tmp_path):
    path = parquet(tmp_path, pa.table({"q": range(10_000)}), 10_000)
    system, _ = filesystem(str(path))
    file = file_of(path)
    reader = READERS["parquet"]
    (split,) = reader.extents(system, file, WHOLE, WHOLE)
    assert each(reader.read(system, split, reader.schema(system, file), 1000)) == 10
