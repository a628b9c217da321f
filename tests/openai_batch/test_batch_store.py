"""Files and batches that survive a restart."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from rtr_ray.errors import DataError, StorageError
from rtr_ray.keys import KeyStore
from rtr_ray.openai_batch import BatchStore, Counts, Problem, budget_of


def opened(folder: Path) -> BatchStore:
    return BatchStore(folder / "keys.sqlite", folder / "files", now=lambda: 1_700_000_000.9)


def made(store: BatchStore, key: str = "ann", **more: object) -> str:
    file = store.add_file(key, "in.jsonl", [b"{}", b"\n"])
    return str(store.create(key, file["id"], **more)["id"])  # type: ignore[arg-type]


def test_a_batch_goes_from_its_file_to_its_end_over_restarts(tmp_path):
    store = opened(tmp_path)
    file = store.add_file("ann", "in.jsonl", [b"one\n", b"two\n"])
    assert (file["bytes"], file["filename"], file["object"]) == (8, "in.jsonl", "file")
    assert opened(tmp_path).content("ann", file["id"]).read_bytes() == b"one\ntwo\n"
    batch = store.create("ann", file["id"], metadata={"budget_usd": "2.50"})
    assert (batch["status"], batch["created_at"]) == ("validating", 1_700_000_000)
    assert budget_of(batch["metadata"]) == Decimal("2.50")
    for status in ("in_progress", "finalizing", "completed"):
        store = opened(tmp_path)
        ((key, unfinished),) = store.unfinished()
        assert (key, unfinished["id"]) == ("ann", batch["id"])
        store.advance("ann", batch["id"], status, Counts(2, 1, 0))
    output = store.add_file("ann", "out.jsonl", [b"{}\n"], "batch_output")
    store.advance("ann", batch["id"], output_file_id=output["id"], counts=Counts(2, 2, 0))
    found = opened(tmp_path).retrieve("ann", batch["id"])
    assert found["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert found["output_file_id"] == output["id"]
    assert found["completed_at"] == 1_700_000_000
    assert store.unfinished() == []
    types = pytest.importorskip("openai.types")
    types.Batch.model_validate(found, strict=True)
    types.FileObject.model_validate(file, strict=True)


def test_it_lies_in_the_file_of_the_keys(tmp_path):
    _, key = KeyStore(tmp_path / "keys.sqlite").create("ann")
    batch = made(opened(tmp_path), key.id)
    assert KeyStore(tmp_path / "keys.sqlite").find("ann") == key
    assert opened(tmp_path).retrieve(key.id, batch)["id"] == batch


def test_what_belongs_to_another_key_is_not_there(tmp_path):
    store = opened(tmp_path)
    batch = made(store)
    file = store.retrieve("ann", batch)["input_file_id"]
    for act in (
        lambda: store.retrieve("bob", batch),
        lambda: store.cancel("bob", batch),
        lambda: store.file("bob", file),
        lambda: store.content("ann", "../keys.sqlite"),
        lambda: store.create("bob", file),
        lambda: store.page("bob", after=batch),
    ):
        with pytest.raises(DataError, match=r"There is no such (file|batch) of this API key"):
            act()
    assert store.page("bob")["data"] == []


def test_batches_are_listed_newest_first_in_pages(tmp_path):
    store = opened(tmp_path)
    ids = [made(store) for _ in range(5)]
    first = store.page("ann", limit=2)
    assert [one["id"] for one in first["data"]] == [ids[4], ids[3]]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[4], ids[3], True)
    rest = store.page("ann", after=first["last_id"], limit=20)
    assert [one["id"] for one in rest["data"]] == ids[2::-1]
    assert not rest["has_more"]
    for limit in (0, 101):
        with pytest.raises(DataError, match="is not from 1 to 100"):
            store.page("ann", limit=limit)


def test_a_batch_is_cancelled_and_nothing_is_done_with_it_afterwards(tmp_path):
    store = opened(tmp_path)
    batch = made(store)
    store.advance("ann", batch, "in_progress")
    assert store.cancel("ann", batch)["status"] == "cancelling"
    assert store.cancel("ann", batch)["status"] == "cancelling"
    with pytest.raises(DataError, match="is cancelling, and cannot become completed"):
        store.advance("ann", batch, "completed")
    store.advance("ann", batch, "cancelled", Counts(3, 1, 0))
    assert store.cancel("ann", batch)["status"] == "cancelled"


def test_a_batch_that_has_ended_is_not_cancelled(tmp_path):
    store = opened(tmp_path)
    batch = made(store)
    store.advance(
        "ann", batch, "failed", problems=[Problem(3, "invalid_json_line", "Line 3 is not JSON.")] * 200
    )
    with pytest.raises(DataError, match="is failed, and cannot become cancelling"):
        store.cancel("ann", batch)
    errors = store.retrieve("ann", batch)["errors"]
    assert errors["data"][0]["line"] == 3
    assert len(errors["data"]) == 100


def test_looking_and_telling_again_change_nothing(tmp_path):
    """Elsewhere each look at a batch added its dollars again."""
    store = opened(tmp_path)
    batch = made(store)
    for _ in range(3):
        found = store.advance("ann", batch, "in_progress", Counts(2, 1, 0), usage={"total_tokens": 5})
        assert store.retrieve("ann", batch) == found
    assert found["request_counts"]["completed"] == 1


def test_of_a_cancellation_and_an_end_at_once_one_comes_first(tmp_path):
    store = opened(tmp_path)
    start = threading.Barrier(2)

    def attempt(act: object) -> bool:
        start.wait()
        try:
            act()  # type: ignore[operator]
        except DataError:
            return False
        return True

    for _ in range(10):
        batch = made(store)
        store.advance("ann", batch, "in_progress")
        store.advance("ann", batch, "finalizing")
        acts = (lambda b=batch: store.cancel("ann", b), lambda b=batch: store.advance("ann", b, "completed"))
        with ThreadPoolExecutor(2) as threads:
            assert sum(threads.map(attempt, acts)) == 1
        assert store.retrieve("ann", batch)["status"] in ("cancelling", "completed")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"endpoint": "/v1/embeddings"}, "A batch runs on /v1/chat/completions only"),
        ({"window": "1h"}, "completion_window must be '24h'"),
        ({"metadata": [1]}, "metadata is not an object"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata has 17 entries. Give at most 16"),
        ({"metadata": {"a": 1}}, "a value that is no text"),
        ({"metadata": {"x" * 65: ""}}, "a name of more than 64 characters"),
        ({"metadata": {"budget_usd": "much"}}, "budget_usd is no amount"),
        ({"metadata": {"budget_usd": "NaN"}}, "budget_usd is no amount"),
        ({"metadata": {"budget_usd": "-1"}}, "budget_usd is no amount"),
    ],
)
def test_what_a_batch_cannot_be_is_told(tmp_path, more, message):
    store = opened(tmp_path)
    with pytest.raises(DataError, match=message):
        made(store, **more)
    assert store.page("ann")["data"] == []


def test_a_file_with_another_purpose_is_no_input(tmp_path):
    store = opened(tmp_path)
    output = store.add_file("ann", "out.jsonl", [b""], "batch_output")
    with pytest.raises(DataError, match="was not uploaded with the purpose 'batch'"):
        store.create("ann", output["id"])
    with pytest.raises(DataError, match="must be 'batch'"):
        store.add_file("ann", "x", [], "fine-tune")


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path):
    store = opened(tmp_path)

    def broken():
        yield b"half"
        raise OSError(5, "Input/output error")

    with pytest.raises(StorageError, match="cannot be kept"):
        store.add_file("ann", "in.jsonl", broken())
    assert list((tmp_path / "files").iterdir()) == []
