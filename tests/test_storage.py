"""Folders, local or in a bucket, in which objects are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from rtr_ray.errors import StorageError
from rtr_ray.storage import (
    LocalStore,
    S3Store,
    Store,
    open_store,
    read_metadata,
    read_table,
    s3_client,
    write_table,
)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(str(tmp_path / "run"))
    else:
        yield open_store(request.getfixturevalue("s3_bucket") + "/some/run")


def refused(said: pytest.ExceptionInfo[StorageError]) -> str:
    message = str(said.value)
    assert "\n" not in message
    assert "Errno" not in message
    assert message.endswith(".")
    return message


# Both kinds


def test_opening_a_store_creates_nothing(store):
    assert store.keys() == []
    assert store.read("run.json") is None


def test_what_is_written_is_read(store):
    store.write("a/b.txt", b"one")
    assert store.read("a/b.txt") == b"one"
    store.write("a/b.txt", b"")
    assert store.read("a/b.txt") == b""
    with store.open("a/b.txt") as file:
        assert file.read() == b""


def test_keys_are_sorted_and_begin_with_the_prefix(store):
    for key in (
        "run.json",
        "tables/part-b",
        "tables/part-a",
        "tables/other",
        "results/part-a",
        "tables2/part-c",
    ):
        store.write(key, b"x")
    assert store.keys() == [
        "results/part-a",
        "run.json",
        "tables/other",
        "tables/part-a",
        "tables/part-b",
        "tables2/part-c",
    ]
    assert store.keys("tables/part-") == ["tables/part-a", "tables/part-b"]
    assert store.keys("tables/") == ["tables/other", "tables/part-a", "tables/part-b"]
    assert store.keys("nothing/") == []


def test_an_object_is_created_once(store):
    assert store.create("run.json", b"first")
    assert not store.create("run.json", b"second")
    assert store.read("run.json") == b"first"
    store.delete("run.json")
    assert store.create("run.json", b"third")


def test_of_many_that_create_at_once_exactly_one_does(store):
    store.write("warm", b"")  # clients are made
    for attempt in range(5):
        start, won = threading.Barrier(8), []

        def create(
            number: int, start: threading.Barrier = start, won: list[int] = won, key: str = str(attempt)
        ) -> None:
            start.wait()
            if store.create(key, str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read(str(attempt)) == str(won[0]).encode()


def test_deleting_what_is_not_there_is_no_matter(store):
    store.delete("nothing")
    store.write("a", b"x")
    store.delete("a")
    assert store.keys() == []


def test_a_run_is_moved_aside_whole(store):
    assert store.move_aside() is None
    store.write("run.json", b"1")
    store.write("results/part-a", b"2")
    aside = store.move_aside()
    assert aside is not None
    assert aside.startswith(store.uri)
    assert store.keys() == []
    old = open_store(aside)
    assert old.keys() == ["results/part-a", "run.json"]
    assert old.read("run.json") == b"1"


def test_in_a_bucket_the_lock_goes_last_and_what_was_spent_after_what_was_bought(s3_bucket, monkeypatch):
    store, gone = open_store(f"{s3_bucket}/run"), []
    for key in (".lock", "ledger.json", "results/part-a", "run.json"):
        store.write(key, b"1")
    deleted = type(store).delete
    monkeypatch.setattr(type(store), "delete", lambda self, key: (gone.append(key), deleted(self, key)))
    store.move_aside()
    assert gone == ["results/part-a", "ledger.json", "run.json", ".lock"]


def test_two_runs_moved_aside_in_one_second_stay_two(store):
    asides = set()
    for content in (b"1", b"2"):
        store.write("run.json", content)
        asides.add(store.move_aside())
    assert len(asides) == 2


def test_moving_aside_leaves_its_neighbours_alone(store):
    neighbour = open_store(store.uri + "2")
    neighbour.write("run.json", b"other")
    store.write("run.json", b"mine")
    store.move_aside()
    assert neighbour.read("run.json") == b"other"


def test_a_table_is_written_whole_and_read_in_columns(store):
    table = pa.table({"a": [1, 2], "b": ["x", None]}).replace_schema_metadata({"k": "v"})
    write_table(store, "tables/part-0.parquet", table)
    assert read_table(store, "tables/part-0.parquet").equals(table)
    assert read_table(store, "tables/part-0.parquet", ["b"]).column_names == ["b"]
    assert read_metadata(store, "tables/part-0.parquet").num_rows == 2


def test_opening_an_object_that_is_not_there_is_told(store):
    with pytest.raises(StorageError, match=r"nothing\.parquet") as said:
        read_table(store, "nothing.parquet")
    assert refused(said).startswith("Cannot read ")


@pytest.mark.parametrize("name", ["with space", "hash#tag", "question?", "per%20cent", "ü"])
def test_names_are_taken_as_they_are(store, name):
    odd = open_store(f"{store.uri}/{name}")
    odd.write(f"model={name}/part", b"x")
    assert odd.keys() == [f"model={name}/part"]
    assert odd.read(f"model={name}/part") == b"x"
    assert open_store(store.uri).keys() == [f"{name}/model={name}/part"]


# Local


def test_a_path_is_a_local_store_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("run", "./run", "run/", str(tmp_path / "run"), f"file://{tmp_path}/run"):
        assert open_store(uri) == LocalStore(str(tmp_path / "run"))


@pytest.mark.parametrize("uri", ["gs://bucket/run", "http://host/run", "s3://", "s3:///run", "hdfs://x/y"])
def test_another_kind_of_place_is_refused(uri):
    with pytest.raises(StorageError, match="is neither a local path nor s3://bucket/prefix"):
        open_store(uri)


def test_an_unfinished_file_is_not_seen_and_none_is_left(tmp_path):
    store = open_store(str(tmp_path))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/.part-a.1234").write_bytes(b"half")
    assert store.keys() == []
    store.write("tables/part-a", b"whole")
    store.create("tables/part-b", b"whole")
    store.create("tables/part-b", b"again")
    assert sorted(os.listdir(tmp_path / "tables")) == [".part-a.1234", "part-a", "part-b"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    store = open_store(str(tmp_path))
    contents = [bytes([number]) * 200_000 for number in range(4)]
    store.write("a", contents[0])
    done = threading.Event()

    def write() -> None:
        for content in contents * 10:
            store.write("a", content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert store.read("a") in contents
    writer.join()


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file")
    store = open_store(str(tmp_path / "run"))
    with pytest.raises(StorageError) as said:
        store.write("run.json", b"x")
    assert refused(said) == (
        f"Cannot write {tmp_path}/run/run.json: a file lies where a folder is needed. "
        "Give an output folder that can be written to."
    )
    assert store.read("run.json") is None


def test_a_folder_is_no_object(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(StorageError) as said:
        open_store(str(tmp_path)).read("run.json")
    assert refused(said) == f"Cannot read {tmp_path}/run.json: Is a directory."


ORDINARY = """
import os, sys
from rtr_ray.errors import StorageError
from rtr_ray.storage import open_store
os.setgroups([]), os.setgid(65534), os.setuid(65534)
store = open_store(sys.argv[1])
for act in (
    lambda: store.write("new", b"x"),
    lambda: store.create("run.json", b"x"),
    lambda: store.read("secret"),
    lambda: store.open("secret"),
    lambda: store.delete("run.json"),
    lambda: store.keys("closed/"),
    lambda: store.move_aside(),
):
    try:
        print("done", act())
    except StorageError as error:
        print(error)
print("read", store.read("run.json"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission_is_told_in_one_sentence_and_nothing_is_lost(tmp_path):
    for above in tmp_path.parents[:3]:
        if above.stat().st_uid == os.geteuid() and above != Path("/tmp"):
            above.chmod(0o755)
    tmp_path.chmod(0o755)
    run = tmp_path / "run"
    (run / "closed").mkdir(parents=True)
    (run / "run.json").write_text("mine")
    (run / "secret").write_text("mine")
    (run / "closed").chmod(0o700)
    (run / "secret").chmod(0o600)
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.environ["PATH"], "HOME": "/"}
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY, str(run)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout == textwrap.dedent(
        f"""\
        Cannot write {run}/new: Permission denied. Give an output folder that can be written to.
        Cannot write {run}/run.json: Permission denied. Give an output folder that can be written to.
        Cannot read {run}/secret: Permission denied.
        Cannot read {run}/secret: Permission denied.
        Cannot delete {run}/run.json: Permission denied.
        Cannot list {run}/closed: Permission denied.
        Cannot move {run} aside: Permission denied.
        read b'mine'
        """
    )
    assert sorted(os.listdir(run)) == ["closed", "run.json", "secret"]


# S3


def test_a_bucket_is_a_store(s3_bucket):
    store = open_store(s3_bucket + "/")
    assert store == S3Store(s3_bucket)
    store.write("a", b"x")
    assert open_store(s3_bucket).keys() == ["a"]


def test_a_whole_bucket_cannot_be_moved_aside(s3_bucket):
    store = open_store(s3_bucket)
    assert store.move_aside() is None
    store.write("a", b"x")
    with pytest.raises(StorageError, match="is a whole bucket, which cannot be moved; give a prefix in it"):
        store.move_aside()
    assert store.read("a") == b"x"


def test_more_keys_than_a_page_are_all_listed(s3_bucket):
    store, client = open_store(f"{s3_bucket}/run"), s3_client()
    for number in range(3):
        store.write(f"results/part-{number}", b"x")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=s3_bucket.removeprefix("s3://"), PaginationConfig={"PageSize": 2}
    )
    assert sum(1 for _ in pages) == 2  # such a server has pages
    assert len(store.keys("results/")) == 3


def test_a_bucket_that_is_not_there_is_told_in_one_sentence(s3_environment):
    store = open_store("s3://nowhere-at-all/run")
    for act in (
        lambda: store.write("a", b"x"),
        lambda: store.create("a", b"x"),
        lambda: store.read("a"),
        lambda: store.keys(),
        lambda: store.delete("a"),
        lambda: store.open("a"),
        lambda: store.move_aside(),
    ):
        with pytest.raises(StorageError, match=r"^Cannot .*nowhere-at-all") as said:
            act()
        assert refused(said).endswith(
            "Check the bucket's name, AWS_ENDPOINT_URL, the region and the credentials."
        )


def test_a_server_that_does_not_answer_is_told_in_one_sentence(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_client.cache_clear()
    with pytest.raises(StorageError, match=r"^Cannot read s3://bucket/run/a: Could not connect") as said:
        open_store("s3://bucket/run").read("a")
    assert "AWS_ENDPOINT_URL" in refused(said)


def test_credentials_that_are_missing_are_told_in_one_sentence(s3_environment, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it remembers credentials
    s3_client.cache_clear()
    with pytest.raises(StorageError, match="Unable to locate credentials") as said:
        open_store("s3://bucket/run").read("a")
    refused(said)


def test_a_part_that_was_cut_in_the_middle_is_named_and_what_removing_it_means(tmp_path):
    store = open_store(str(tmp_path))
    write_table(store, "results/part-1.parquet", pa.table({"a": list(range(1000))}))
    path = tmp_path / "results" / "part-1.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    for read in (read_table, read_metadata):
        with pytest.raises(StorageError, match=r"results/part-1\.parquet is damaged .* paid for again"):
            read(store, "results/part-1.parquet")


def test_a_bucket_that_gets_busy_in_the_middle_of_reading_is_told_in_a_sentence(tmp_path, monkeypatch):
    class Busy:
        closed = False

        def size(self) -> int:
            return 1000

        def seek(self, *_: object) -> None: ...

        def tell(self) -> int:
            return 1000

        def read(self, *_: object) -> bytes:
            raise OSError("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.")

        def close(self) -> None: ...

    monkeypatch.setattr(LocalStore, "open", lambda *_: pa.PythonFile(Busy(), mode="r"))
    with pytest.raises(StorageError, match=r"Cannot read .*/part: .*SLOW_DOWN.* goes on where"):
        read_table(LocalStore(str(tmp_path)), "part")
