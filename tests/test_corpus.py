"""A corpus: which files it has, what its rows are called, where its columns go."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtr_ray import cells, parts
from rtr_ray.corpus import (
    WORKING,
    Columns,
    Corpus,
    Extent,
    File,
    check_columns,
    first_line,
    last_user_text,
    list_files,
    reading_error,
    result_names,
    stable_id,
)
from rtr_ray.errors import DataError
from rtr_ray.schemas import RESULTS
from rtr_ray.storage import s3_client

FILE = File("/data/a.jsonl", "a.jsonl", 10, "1", "jsonl")


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return folder


def listed(uri: object, format: str = "auto") -> list[str]:
    return [file.relative for file in list_files(str(uri), format)]


# Files


def test_a_file_is_a_corpus_of_one(tmp_path):
    assert listed(tree(tmp_path, "a.jsonl") / "a.jsonl") == ["a.jsonl"]


def test_a_folder_is_all_its_files_with_a_known_ending_in_order(tmp_path):
    tree(tmp_path, "b.jsonl", "a.jsonl", "sub/deep/c.jsonl", "README.md", "notes.txt")
    assert listed(tmp_path) == listed(f"{tmp_path}/") == ["a.jsonl", "b.jsonl", "sub/deep/c.jsonl"]


def test_hidden_files_of_a_folder_are_passed_over(tmp_path):
    tree(tmp_path, "a.jsonl", ".hidden.jsonl", "_SUCCESS.jsonl", ".git/b.jsonl", "_run/c.jsonl")
    assert listed(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jsonl", ["a.jsonl", "b1.jsonl", "b2.jsonl"]),
        ("b?.jsonl", ["b1.jsonl", "b2.jsonl"]),
        ("b[2-9].jsonl", ["b2.jsonl"]),
        ("*/*.jsonl", ["sub/c.jsonl"]),
        ("sub/*.jsonl", ["c.jsonl"]),
        ("s*/deep/*", ["sub/deep/d.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b1.jsonl", "b2.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("**/deep/*.jsonl", ["sub/deep/d.jsonl"]),
        (".*.jsonl", [".hidden.jsonl"]),
        ("_run/*.jsonl", ["e.jsonl"]),
    ],
)
def test_a_star_stays_in_its_folder_and_two_stars_go_down(tmp_path, pattern, found):
    names = (
        "a.jsonl",
        "b1.jsonl",
        "b2.jsonl",
        ".hidden.jsonl",
        "sub/c.jsonl",
        "sub/deep/d.jsonl",
        "_run/e.jsonl",
    )
    tree(tmp_path, *names)
    assert listed(tmp_path / pattern) == found


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    tree(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert listed(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_a_relative_path_is_the_same_corpus_as_an_absolute_one(tmp_path, monkeypatch):
    tree(tmp_path, "in/a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert list_files("in") == list_files(str(tmp_path / "in")) == list_files(f"file://{tmp_path}/in")
    assert listed("in/*.jsonl") == ["a.jsonl"]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.csv.zst", "csv"),
        ("a.tsv", "csv"),
    ],
)
def test_the_format_follows_from_the_ending(tmp_path, name, format):
    (file,) = list_files(str(tree(tmp_path, name)))
    assert file.format == format


def test_a_format_that_is_named_takes_the_files_of_its_ending(tmp_path):
    tree(tmp_path, "a.jsonl", "README.md", "other.csv", "plain")
    assert listed(tmp_path, "jsonl") == listed(tmp_path, "openai_batch") == ["a.jsonl"]


def test_a_format_that_is_named_takes_files_without_an_ending_where_none_has_it(tmp_path):
    assert listed(tree(tmp_path, "part-0", "part-1", "other.csv"), "jsonl") == ["part-0", "part-1"]


def test_a_format_that_is_named_takes_the_one_file_that_is_named(tmp_path):
    (file,) = list_files(str(tree(tmp_path, "a.csv") / "a.csv"), "jsonl")
    assert file.format == "jsonl"


@pytest.mark.parametrize("name", ["nope", "nope.jsonl", "nope/*.jsonl", "*.parquet"])
def test_a_corpus_that_is_not_there_is_told(tmp_path, name):
    with pytest.raises(
        DataError, match=r"^No such file or folder: .*Give a file, folder or glob of .*jsonl.*parquet"
    ):
        list_files(str(tree(tmp_path, "a.jsonl") / name))


def test_files_of_unknown_endings_are_told(tmp_path):
    with pytest.raises(DataError, match=r"^None of 2 files has a known ending: "):
        list_files(str(tree(tmp_path, "a.txt", "b.md")))


def test_several_formats_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"holds files of several formats: csv, jsonl\. Narrow it with a glob"
    ):
        list_files(str(tree(tmp_path, "a.jsonl", "b.csv")))


def test_a_bucket_is_listed_as_a_folder_is(s3_bucket):
    for key in ("in/a.jsonl", "in/b.jsonl", "in/sub/c.jsonl", "in/_tmp/d.jsonl", "in/readme", "out/e.jsonl"):
        s3_client().put_object(Bucket=s3_bucket.removeprefix("s3://"), Key=key, Body=b"{}\n")
    assert listed(f"{s3_bucket}/in") == listed(f"{s3_bucket}/in/") == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert listed(f"{s3_bucket}/in/?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert listed(f"{s3_bucket}/in/a.jsonl") == ["a.jsonl"]
    with pytest.raises(DataError, match=r"^No such file or folder: s3://"):
        list_files(f"{s3_bucket}/nope")


def test_a_bucket_that_is_not_there_is_told_in_one_sentence(s3_environment):
    with pytest.raises(DataError, match="nowhere-at-all") as caught:
        list_files("s3://nowhere-at-all/in")
    assert "\n" not in str(caught.value)


# Rows and columns


def test_the_id_of_a_row_is_the_same_on_every_run():
    assert stable_id("a.jsonl", 0) == "e3613fd84cfe70c069b8c87a"
    assert len({stable_id(name, row) for name in ("a", "a\0", "b") for row in range(100)}) == 300


def test_splits_of_other_rows_have_other_names():
    splits = [
        Extent(FILE, 0, 0, 50),
        Extent(FILE, 5, 50, 60),
        Extent(FILE, 5, 60, 99),
        Extent(FILE, 0, rows=5),
    ]
    assert len({split.name for split in splits}) == len(splits)
    assert Extent(FILE, 0, 0, 50).name == splits[0].name


def test_a_name_that_the_results_need_is_kept_under_another():
    names = ["query", "answer", "model", "status", "query_id", "correct", "mine"]
    assert result_names(names, Columns()) == {
        "query": "query",
        "answer": "corpus_answer",
        "model": "corpus_model",
        "status": "corpus_status",
        "query_id": "corpus_query_id",
        "correct": "corpus_correct",
        "mine": "mine",
    }


def test_no_name_of_the_user_clashes_with_one_that_is_needed_on_the_way():
    needed = [
        *RESULTS.names,
        *WORKING,
        "_text",
        "_messages",
        "_gold",
        "_row_error",
        "predicted_output_tokens_p95",
    ]
    renamed = result_names(needed, Columns())
    assert not set(renamed.values()) & set(needed)
    assert len(set(renamed.values())) == len(needed)


def test_the_columns_that_stand_beside_the_users_on_the_way_are_known():
    assert {f"_{name}" for name in parts.ESTIMATES} <= set(WORKING)
    assert cells.SAMPLE in WORKING


def test_a_new_name_is_not_one_that_the_user_has_already():
    renamed = result_names(["answer", "corpus_answer"], Columns())
    assert renamed == {"answer": "corpus_corpus_answer", "corpus_answer": "corpus_answer"}


def test_the_users_own_query_id_is_the_query_id():
    assert result_names(["query_id", "query"], Columns(id="query_id")) == {"query": "query"}
    assert result_names(["query_id", "id"], Columns(id="id")) == {"query_id": "corpus_query_id", "id": "id"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns(query="question"),
            "a.jsonl has no column 'question' (corpus.columns.query). Its columns: query, n.",
        ),
        (Columns(id="key"), "a.jsonl has no column 'key' (corpus.columns.id). Its columns: query, n."),
        (
            Columns(messages="chat"),
            "a.jsonl has no column 'chat' (corpus.columns.messages). Its columns: query, n.",
        ),
        (
            Columns(reference="gold"),
            "a.jsonl has no column 'gold' (corpus.columns.reference). Its columns: query, n.",
        ),
    ],
)
def test_a_column_that_is_missing_is_told_with_those_that_are_there(columns, message):
    with pytest.raises(DataError) as caught:
        check_columns(["query", "n"], columns, FILE)
    assert str(caught.value) == message


def test_a_conversation_needs_no_query_column():
    check_columns(["chat"], Columns(messages="chat"), FILE)


def test_a_column_that_is_there_twice_is_refused():
    with pytest.raises(DataError, match=r"^a.jsonl has the column 'n' twice\."):
        check_columns(["query", "n", "n"], Columns(), FILE)


def corpus(*files: File, **columns: str) -> Corpus:
    return Corpus("/data", files, "jsonl", Columns(**columns), None)


def test_the_fingerprint_of_a_corpus_changes_with_its_files_and_columns():
    other = File("/data/b.jsonl", "b.jsonl", 10, "1", "jsonl")
    prints = [
        corpus(FILE),
        corpus(FILE, other),
        corpus(File("/data/a.jsonl", "a.jsonl", 11, "1", "jsonl")),
        corpus(File("/data/a.jsonl", "a.jsonl", 10, "2", "jsonl")),
        corpus(FILE, query="question"),
        corpus(FILE, id="key"),
    ]
    assert len({one.fingerprint for one in prints}) == len(prints)
    assert corpus(FILE, other).fingerprint == corpus(other, FILE).fingerprint
    assert corpus(File("/moved/a.jsonl", "a.jsonl", 10, "1", "jsonl")).fingerprint == corpus(FILE).fingerprint


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("one line", "one line"),
        ("one line.\nand another", "one line"),
        (
            "CSV parse error: Expected 2 columns, got 3: a secret,1,2",
            "CSV parse error: Expected 2 columns, got 3",
        ),
        ("", "ValueError"),
        ("x" * 500, "x" * 200),
    ],
)
def test_what_an_error_says_is_one_line_without_the_row(said, line):
    assert first_line(ValueError(said)) == line


def test_a_file_that_cannot_be_read_is_told_with_what_to_do():
    assert str(reading_error(FILE, OSError("Damaged.\nReally."))) == (
        "Cannot read a.jsonl as jsonl: Damaged. Repair or remove it, or set corpus.unreadable: skip to go on "
        "without it."
    )


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "b"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "a\nb",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "a"}],
                }
            ],
            "a",
        ),
        ([{"role": "user", "content": None}], None),
        ([{"role": "system", "content": "a"}], None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_what_the_router_reads_of_a_conversation_is_its_last_user_text(messages, text):
    assert last_user_text(messages) == text
