"""From a corpus to rows that can be routed: every row once, with an id, and a reason where it is unusable."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtr_ray.corpus import Columns, Corpus, filesystem, stable_id
from rtr_ray.errors import DataError
from rtr_ray.formats import READERS
from rtr_ray.reading import cut_file, open_corpus, read_split
from rtr_ray.storage import s3_client


def rows_of(
    uri: Any, columns: Columns | None = None, block: int = 1000, **options: Any
) -> list[dict[str, Any]]:
    corpus, splits = open_corpus(str(uri), columns or Columns(), **options)
    return [
        row for split in splits for table in read_split(corpus, split, block) for row in table.to_pylist()
    ]


def opened(uri: Any, columns: Columns | None = None, **options: Any) -> Corpus:
    return open_corpus(str(uri), columns or Columns(), **options)[0]


def refused(uri: Any, columns: Columns | None = None, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_corpus(str(uri), columns or Columns(), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jsonl(path: Path, *values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def parquet(path: Path, row_group_size: int = 1000, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_a_file_that_cannot_be_read_a_second_time_is_named(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", query=["1+1?"])
    corpus = opened(path)
    path.unlink()
    system, _ = filesystem(str(path))
    with pytest.raises(DataError, match=r"^Cannot read a\.parquet as parquet: "):
        cut_file(READERS["parquet"], system, corpus.files[0], 10, 10)


def texts(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["_text"] for row in rows]


def errors(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["_row_error"] for row in rows]


def not_utf8(*cells: bytes | None) -> pa.Array:
    """A column of text that says it is UTF-8 and is not."""
    return pa.array(cells, pa.binary()).view(pa.string())


# Rows and ids


def test_every_row_of_every_file_is_read_once_and_in_order(tmp_path):
    jsonl(tmp_path / "b.jsonl", {"query": "3"}, {"query": "4"})
    jsonl(tmp_path / "a.jsonl", {"query": "1"}, {"query": "2"})
    jsonl(tmp_path / "sub/c.jsonl", {"query": "5"})
    assert texts(rows_of(tmp_path)) == ["1", "2", "3", "4", "5"]


def test_a_row_is_known_by_its_file_and_its_place_in_it(tmp_path):
    jsonl(tmp_path / "a.jsonl", {"query": "same"}, {"query": "same"})
    jsonl(tmp_path / "sub/b.jsonl", {"query": "same"})
    ids = [row["query_id"] for row in rows_of(tmp_path)]
    assert ids == [stable_id("a.jsonl", 0), stable_id("a.jsonl", 1), stable_id("sub/b.jsonl", 0)]
    assert len(set(ids)) == 3


def test_ids_are_the_same_wherever_the_folder_lies_and_however_it_is_split(tmp_path):
    for folder in ("here", "there/deeper"):
        for name in ("a", "b"):
            jsonl(tmp_path / folder / f"{name}.jsonl", *({"query": f"question {i}"} for i in range(50)))
    ids = [row["query_id"] for row in rows_of(tmp_path / "here")]
    assert [row["query_id"] for row in rows_of(tmp_path / "there/deeper")] == ids
    assert [row["query_id"] for row in rows_of(f"{tmp_path}/here/*.jsonl", split_bytes=100, block=3)] == ids


def test_a_small_corpus_is_split_for_many_workers(tmp_path):
    path = parquet(tmp_path / "a.parquet", query=[f"question {i}" for i in range(1000)])
    _, few = open_corpus(str(path), Columns())
    corpus, many = open_corpus(str(path), Columns(), least_splits=8)
    assert len(few) == 1
    assert len(many) >= 8
    rows = [row for split in many for table in read_split(corpus, split, 1000) for row in table.to_pylist()]
    assert texts(rows) == [f"question {i}" for i in range(1000)]
    assert [row["query_id"] for row in rows] == [stable_id("a.parquet", i) for i in range(1000)]
    assert len({split.name for split in many}) == len(many)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_many_tiny_files_are_read_several_to_a_split_with_the_ids_that_each_row_would_have_alone(
    tmp_path, ending
):
    write = {
        "jsonl": lambda path, texts: path.write_text("".join(json.dumps({"query": t}) + "\n" for t in texts)),
        "csv": lambda path, texts: path.write_text("query\n" + "".join(f"{t}\n" for t in texts)),
        "parquet": lambda path, texts: pq.write_table(pa.table({"query": texts}), path),
    }[ending]
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(300):
        write(folder / f"{number:03d}.{ending}", [f"text {number} {row}" for row in range(1 + number % 3)])
    corpus, splits = open_corpus(str(folder), Columns())
    assert len(splits) == 1
    _, shared = open_corpus(str(folder), Columns(), least_splits=8)
    assert len(shared) == 9  # 37 files each, and what is left
    _, small = open_corpus(str(folder), Columns(), split_bytes=16 * sum(f.size for f in corpus.files[:4]))
    assert 60 < len(small) < 120  # about four files each: a sixteenth of a split
    wanted = [
        (stable_id(f"{number:03d}.{ending}", row), f"text {number} {row}")
        for number in range(300)
        for row in range(1 + number % 3)
    ]
    for chosen in (splits, shared, small):
        blocks = [block for split in chosen for block in read_split(corpus, split, 50)]
        assert max(map(len, blocks)) <= 50
        rows = [row for block in blocks for row in block.to_pylist()]
        assert [(row["query_id"], row["query"]) for row in rows] == wanted
    assert len(list(read_split(corpus, splits[0], 50))) <= 600 // 40  # not a block for every file


def test_categories_of_many_files_are_read_as_their_values(tmp_path):
    for number in range(4):  # 400 different values in all; an index of a byte counts to 127
        values = pa.array([f"{number}-{i}" for i in range(100)])
        category = values.dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
        parquet(tmp_path / f"{number}.parquet", query=["1+1?"] * 100, source=category)
    corpus, splits = open_corpus(str(tmp_path), Columns(query="query"))
    assert len(splits) == 1
    whole = pa.concat_tables(read_split(corpus, splits[0], 1000)).combine_chunks()
    assert whole["source"].to_pylist() == [f"{n}-{i}" for n in range(4) for i in range(100)]
    assert whole.schema.field("source").type == pa.string()


def test_one_broken_file_of_many_is_named_or_set_aside(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03d}.csv").write_text(f"query\ntext {number}\n")
    (tmp_path / "270.csv").write_text("query\na,b\n")
    said = refused(tmp_path)
    assert "270.csv" in said
    corpus = opened(tmp_path, unreadable="skip")
    assert list(corpus.unreadable) == ["270.csv"]
    assert len(corpus.files) == 299


@pytest.mark.parametrize("split_bytes", [20, 1 << 20])
def test_columns_that_a_later_file_adds_are_kept_however_large_the_files_are(tmp_path, split_bytes):
    jsonl(tmp_path / "0.jsonl", {"query": "the first"}, {"query": "the second"})
    jsonl(tmp_path / "1.jsonl", {"query": "the third", "more": 3}, {"query": "the fourth"})
    corpus = opened(tmp_path, split_bytes=split_bytes)
    assert corpus.schema.names == ["query", "more"]
    assert [row["more"] for row in rows_of(tmp_path, split_bytes=split_bytes)] == [None, None, 3, None]


def test_of_several_files_in_a_split_the_one_that_has_gone_is_named(tmp_path):
    for number in range(3):
        jsonl(tmp_path / f"{number}.jsonl", {"query": "a"})
    corpus, (split,) = open_corpus(str(tmp_path), Columns())
    (tmp_path / "1.jsonl").unlink()
    with pytest.raises(DataError, match=r"1\.jsonl"):
        list(read_split(corpus, split, 10))


def test_a_tiny_corpus_is_not_split_for_many_workers(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"query": "a"} for _ in range(60)))
    assert len(open_corpus(str(path), Columns(), least_splits=8)[1]) == 1


def test_the_users_id_is_the_id(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"query": "a", "key": 7}, {"query": "b", "key": 8})
    rows = rows_of(path, Columns(id="key"))
    assert [row["query_id"] for row in rows] == ["7", "8"]
    assert [row["key"] for row in rows] == [7, 8]


def test_a_row_whose_id_is_missing_is_unusable_and_known_by_its_place(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl", {"query": "a", "key": None}, {"query": "b", "key": " "}, {"query": "c"}
    )
    rows = rows_of(path, Columns(id="key"))
    assert [row["query_id"] for row in rows] == [stable_id("a.jsonl", i) for i in range(3)]
    assert errors(rows) == ["the id is null or empty"] * 3


def test_the_reference_answer_is_kept_apart(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"query": "2+2?", "gold": 4}, {"query": "all?", "gold": None})
    rows = rows_of(path, Columns(reference="gold"))
    assert [row["_gold"] for row in rows] == ["4", None]
    assert [row["_gold"] for row in rows_of(path)] == [None, None]


@pytest.mark.parametrize(
    ("query", "text", "error"),
    [
        ("2+2?", "2+2?", None),
        ("  2+2?\n", "  2+2?\n", None),
        (None, None, "the query is null"),
        ("", "", "the query is empty"),
        (" \n\t", " \n\t", "the query is empty"),
        ("x" * 100_000, "x" * 100_000, None),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_query_is_text_that_says_something(tmp_path, query, text, error, kind):
    if kind == "jsonl":
        path = jsonl(tmp_path / "a.jsonl", {"query": query}, {"query": "fine"})
    else:
        path = parquet(tmp_path / "a.parquet", query=pa.array([query, "fine"], pa.string()))
    first, second = rows_of(path)
    assert (first["_text"], first["_row_error"]) == (text, error)
    assert (second["_text"], second["_row_error"]) == ("fine", None)


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (pa.array([1, 2]), ["1", "2"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([b"a", "é".encode()], pa.binary()), ["a", "é"]),
        (pa.array([["a", "b"], []]), ['["a", "b"]', "[]"]),
    ],
)
def test_a_query_of_another_type_is_read_as_text(tmp_path, values, read):
    assert texts(rows_of(parquet(tmp_path / "a.parquet", query=values))) == read


def test_bytes_that_are_not_utf8_make_their_row_unusable_wherever_they_are_needed(tmp_path):
    good, bad = not_utf8(b"fine", b"fine"), not_utf8(b"fine", b"caf\xe9")
    for name in ("query", "key", "gold"):
        columns = {"query": good, "key": good, "gold": good, name: bad}
        path = parquet(tmp_path / f"{name}.parquet", **columns)
        rows = rows_of(path, Columns(id="key", reference="gold"))
        assert errors(rows) == [None, "not UTF-8: byte 0xe9 at position 3"]
        assert [row[name] for row in rows] == ["fine", "caf\ufffd"]  # what can be read is kept


def test_bytes_that_are_not_utf8_elsewhere_are_replaced(tmp_path):
    path = parquet(tmp_path / "a.parquet", query=["a", "b"], note=not_utf8(b"\xff!", None))
    rows = rows_of(path)
    assert errors(rows) == [None, None]
    assert [row["note"] for row in rows] == ["\ufffd!", None]


def test_a_binary_query_that_is_not_utf8_is_unusable(tmp_path):
    rows = rows_of(parquet(tmp_path / "a.parquet", query=pa.array([b"a", b"\xff"], pa.binary())))
    assert (texts(rows), errors(rows)) == (["a", None], [None, "not UTF-8: byte 0xff at position 0"])


def test_a_broken_line_is_a_row_among_the_others(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"query": "a"}\n{broken\n{"query": "b"}\n')
    rows = rows_of(path)
    assert texts(rows) == ["a", None, "b"]
    assert [row["query_id"] for row in rows] == [stable_id("a.jsonl", i) for i in range(3)]
    assert (errors(rows)[1] or "").startswith("not JSON: ")


# Conversations


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def batch(key: str, *messages: Any) -> dict[str, Any]:
    body = {"model": "any", "messages": list(messages), "max_tokens": 5}
    return {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_an_openai_batch_file_is_known_by_its_form(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    path = jsonl(tmp_path / "a.jsonl", batch("one", system, user("2+2?")), batch("two", user(parts)))
    corpus = opened(path)
    assert (corpus.format, corpus.columns.id, corpus.columns.messages) == (
        "openai_batch",
        "custom_id",
        "body",
    )
    rows = rows_of(path)
    assert [row["query_id"] for row in rows] == ["one", "two"]
    assert texts(rows) == ["2+2?", "What is this?"]
    assert [json.loads(row["_messages"]) for row in rows] == [[system, user("2+2?")], [user(parts)]]
    assert json.loads(rows[0]["body"])["max_tokens"] == 5  # the user's columns stay


def test_an_openai_batch_file_is_known_also_behind_an_empty_file(tmp_path):
    jsonl(tmp_path / "a.jsonl")
    jsonl(tmp_path / "b.jsonl", batch("one", user("2+2?")))
    assert opened(tmp_path).format == "openai_batch"


def test_a_request_of_a_batch_without_a_question_is_unusable(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        batch("one", user("2+2?")),
        batch("two", {"role": "system", "content": "Be brief."}),
        batch("three", user(" ")),
        batch("four"),
        {"custom_id": "five"},
    )
    assert errors(rows_of(path)) == [
        None,
        "the conversation has no user message with text",
        "the query is empty",
        "the conversation has no user message with text",
        "the conversation has no user message with text",
    ]


def test_a_column_may_hold_conversations_as_structs_or_as_json(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    named = [{"role": "user", "content": "3+3?", "name": "Ann"}]
    structs = parquet(tmp_path / "a.parquet", chat=[chat, named])
    text = parquet(tmp_path / "b.parquet", chat=[json.dumps(chat), json.dumps(named)])
    for path in (structs, text):
        rows = rows_of(path, Columns(messages="chat"))
        assert texts(rows) == ["2+2?", "3+3?"]
        assert [json.loads(row["_messages"]) for row in rows] == [chat, named]


@pytest.mark.parametrize("cell", ["not json", "5", '{"messages": 5}', "[5]", "[]"])
def test_what_is_no_conversation_is_unusable(tmp_path, cell):
    rows = rows_of(parquet(tmp_path / "a.parquet", chat=[cell]), Columns(messages="chat"))
    assert errors(rows) == ["the conversation has no user message with text"]


# Columns


def test_the_users_columns_stand_under_the_names_that_results_leave_free(tmp_path):
    (row,) = rows_of(jsonl(tmp_path / "a.jsonl", {"query": "a", "answer": "mine", "_text": "t", "n": 1}))
    assert row["corpus_answer"] == "mine"
    assert row["corpus__text"] == "t"
    assert (row["query"], row["n"], row["_text"]) == ("a", 1, "a")
    assert "answer" not in row


def test_columns_that_only_some_files_have_are_null_in_the_others(tmp_path):
    parquet(tmp_path / "p/a.parquet", query=["a"])
    parquet(tmp_path / "p/b.parquet", query=["b"], n=[1])
    jsonl(tmp_path / "j/a.jsonl", {"query": "a"})
    jsonl(tmp_path / "j/b.jsonl", {"query": "b", "n": 1})
    for folder in ("p", "j"):
        assert [row["n"] for row in rows_of(tmp_path / folder)] == [None, 1]


def test_numbers_of_several_widths_become_the_one_that_holds_all(tmp_path):
    parquet(tmp_path / "a.parquet", query=["a"], n=pa.array([1], pa.int32()), x=[1])
    parquet(tmp_path / "b.parquet", query=["b"], n=pa.array([2**40], pa.int64()), x=[0.5])
    assert [(row["n"], row["x"]) for row in rows_of(tmp_path)] == [(1, 1.0), (2**40, 0.5)]


def test_a_column_of_another_type_in_another_file_is_refused_before_anything_is_spent(tmp_path):
    parquet(tmp_path / "a.parquet", query=["a"], n=[1])
    parquet(tmp_path / "b.parquet", query=["b"], n=["two"])
    assert refused(tmp_path) == (
        "b.parquet has the column 'n' as string, and a file before it as int64. "
        "Give it the same type in all files."
    )


def test_a_json_column_of_several_types_is_kept_as_text(tmp_path):
    jsonl(tmp_path / "a.jsonl", {"query": "a", "n": 1})
    jsonl(tmp_path / "b.jsonl", {"query": "b", "n": {"m": 2}})
    assert [row["n"] for row in rows_of(tmp_path)] == ["1", '{"m": 2}']


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_missing_column_is_told_with_those_that_are_there(tmp_path, kind):
    if kind == "jsonl":
        path = jsonl(tmp_path / "a.jsonl", {"question": "a", "n": 1})
    elif kind == "parquet":
        path = parquet(tmp_path / "a.parquet", question=["a"], n=[1])
    else:
        path = tmp_path / "a.csv"
        path.write_text("question,n\na,1\n")
    assert (
        refused(path)
        == f"{path.name} has no column 'query' (corpus.columns.query). Its columns: question, n."
    )
    assert texts(rows_of(path, Columns(query="question"))) == ["a"]


def test_a_missing_column_in_a_later_file_is_told(tmp_path):
    parquet(tmp_path / "a.parquet", query=["a"])
    parquet(tmp_path / "b.parquet", question=["b"])
    assert refused(tmp_path).startswith("b.parquet has no column 'query'")


def test_a_column_that_is_there_twice_is_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("query,n,n\na,1,2\n")
    assert refused(path) == "a.csv has the column 'n' twice. Name each column once."


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b""), ("a.jsonl", b"\n\n"), ("a.csv", b""), ("a.csv", b"query,n\n")]
)
def test_an_empty_corpus_is_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path) == f"The corpus {tmp_path} is empty: 1 file(s) without a row."


def test_an_empty_parquet_corpus_is_told(tmp_path):
    parquet(tmp_path / "a.parquet", query=pa.array([], pa.string()))
    assert refused(tmp_path) == f"The corpus {tmp_path} is empty: 1 file(s) without a row."


def test_a_corpus_that_is_not_there_is_told(tmp_path):
    assert refused(tmp_path / "nope").startswith(f"No such file or folder: {tmp_path}/nope. Give ")


def test_an_empty_file_among_others_is_no_matter(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("" if name == "a.csv" else "query\nfine\n")
    assert texts(rows_of(tmp_path)) == ["fine"]


BROKEN = {
    "parquet": (b"PAR1 this is none", "parquet"),
    "gz": (b"this is not gzip", "jsonl"),
    "json": (b'[\n"query"\n]\n', "jsonl"),
    "csv": (b"query,n\nmy secret question,1,2\n", "csv"),
}


@pytest.mark.parametrize("place", ["0", "9"])  # before and behind the good ones
@pytest.mark.parametrize("kind", BROKEN)
def test_one_unreadable_file_among_good_ones_is_refused_by_name_or_set_aside(tmp_path, kind, place):
    content, format = BROKEN[kind]
    ending = {"gz": "jsonl.gz"}.get(kind, kind)
    (tmp_path / f"{place}.{ending}").write_bytes(content)
    for name in ("3", "4"):
        if format == "parquet":
            parquet(tmp_path / f"{name}.parquet", query=["fine"], n=[1])
        elif format == "csv":
            (tmp_path / f"{name}.csv").write_text("query,n\nfine,1\n")
        else:
            jsonl(tmp_path / f"{name}.jsonl", {"query": "fine", "n": 1})
    message = refused(tmp_path)
    assert message.startswith(f"Cannot read {place}.{ending} as {format}: ")
    assert message.endswith("Repair or remove it, or set corpus.unreadable: skip to go on without it.")
    assert "secret" not in message
    corpus = opened(tmp_path, unreadable="skip")
    assert list(corpus.unreadable) == [f"{place}.{ending}"]
    assert "secret" not in corpus.unreadable[f"{place}.{ending}"]
    assert texts(rows_of(tmp_path, unreadable="skip")) == ["fine", "fine"]


def test_a_corpus_of_unreadable_files_alone_is_empty(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"none")
    assert refused(tmp_path, unreadable="skip") == (
        f"The corpus {tmp_path} is empty: 1 file(s) without a row, 1 of them unreadable."
    )


def test_a_file_that_turns_out_to_be_cut_off_is_told_by_name(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(
        "".join(json.dumps({"query": f"{i} " * 50}) + "\n" for i in range(20_000)).encode(), 1
    )
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"^Cannot read a\.jsonl\.gz as jsonl: "):
        rows_of(path)


def test_a_file_that_vanishes_before_it_is_read_is_told_by_name(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"query": "a"})
    corpus, (split,) = open_corpus(str(path), Columns())
    path.unlink()
    with pytest.raises(DataError, match=r"^Cannot read a\.jsonl as jsonl: "):
        list(read_split(corpus, split, 10))


# The same on S3


def test_a_corpus_in_a_bucket_is_read_as_one_in_a_folder_is(tmp_path, s3_bucket):
    bucket = s3_bucket.removeprefix("s3://")
    jsonl(tmp_path / "j/a.jsonl", *({"query": f"question {i}", "key": i} for i in range(200)))
    jsonl(tmp_path / "j/sub/b.jsonl", {"query": "last", "key": 200})
    parquet(tmp_path / "p/a.parquet", 50, query=[f"question {i}" for i in range(200)], key=range(200))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.csv").write_text('query,key\n"two\nlines",1\nplain,2\n')
    for path in tmp_path.rglob("*.*"):
        s3_client().upload_file(str(path), bucket, f"in #1/{path.relative_to(tmp_path)}")
    for folder in "jpc":
        there = f"{s3_bucket}/in #1/{folder}"
        for columns in (Columns(), Columns(id="key")):
            assert rows_of(there, columns, split_bytes=1000, split_rows=60) == rows_of(
                tmp_path / folder, columns
            )
    assert texts(rows_of(f"{s3_bucket}/in #1/j/*.jsonl")) == [f"question {i}" for i in range(200)]
