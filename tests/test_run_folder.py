"""A run is a folder that knows what it is a run of."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from rtr_ray.errors import DataError, StorageError
from rtr_ray.run_folder import CONFIG, RUN, RunFolder

PRINTS = {"config": "c1", "corpus": "d1", "router": "r1", "pool": "p1"}


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    return (
        str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/run"
    )


def opened(uri: str, fresh: bool = False, **changed: str) -> tuple[RunFolder, str | None]:
    return RunFolder.open(uri, PRINTS | changed, "budget_usd: 1\n", fresh)


def head(folder: RunFolder) -> dict[str, Any]:
    return folder.read_json(RUN) or {}


def test_a_run_says_from_the_first_minute_what_it_is_of(uri):
    folder, aside = opened(uri)
    assert aside is None
    found = head(folder)
    assert found.pop("created").endswith("+00:00")
    assert found == {"schema_version": 1, "status": "running", "stage": "start", "fingerprints": PRINTS}
    assert folder.store.read(CONFIG) == b"budget_usd: 1\n"


def test_the_same_run_goes_on(uri):
    opened(uri)[0].store.write("tables/part-a.parquet", b"x")
    folder, aside = opened(uri)
    assert aside is None
    assert folder.tables() == ["tables/part-a.parquet"]


def test_a_run_that_goes_on_is_running_again_without_its_old_error(uri):
    opened(uri)[0].update(status="failed", stage="answer", error="out of luck")
    folder, _ = opened(uri)
    found = head(folder)
    assert (found["status"], found["stage"], found["error"]) == ("running", "answer", None)
    assert found["fingerprints"] == PRINTS


@pytest.mark.parametrize("name", PRINTS)
def test_another_run_is_refused_and_what_differs_is_named(uri, name):
    opened(uri)
    with pytest.raises(DataError) as caught:
        opened(uri, **{name: "other"})
    assert str(caught.value) == (
        f"{uri} holds another run: its {name} differs (it was {PRINTS[name]}, now other). "
        "Take another output, or --fresh to move it aside."
    )


def test_a_refused_run_leaves_the_other_as_it_was(uri):
    folder, _ = opened(uri)
    folder.update(status="completed")
    before = {key: folder.store.read(key) for key in folder.store.keys("")}
    with pytest.raises(DataError):
        opened(uri, pool="other")
    assert {key: folder.store.read(key) for key in folder.store.keys("")} == before


def test_fresh_moves_the_old_run_aside_and_begins_anew(uri):
    opened(uri)[0].store.write("results/part-a.parquet", b"paid for")
    folder, aside = opened(uri, fresh=True, pool="other")
    assert aside is not None
    assert folder.results() == []
    assert head(folder)["fingerprints"]["pool"] == "other"
    old, _ = RunFolder.open(aside, PRINTS, "")
    assert old.store.read("results/part-a.parquet") == b"paid for"


def test_fresh_where_there_is_nothing_is_no_matter(uri):
    assert opened(uri, fresh=True)[1] is None


def test_a_run_of_another_version_is_refused(uri):
    folder, _ = opened(uri)
    folder.update(schema_version=99)
    with pytest.raises(DataError, match="holds a run of schema version 99; this rtr-ray reads version 1"):
        opened(uri)


def test_a_damaged_run_is_told(uri):
    folder, _ = opened(uri)
    folder.store.write(RUN, b'{"status": ')
    with pytest.raises(StorageError, match=r"run.json is damaged: "):
        opened(uri)


def test_of_two_that_begin_at_once_one_begins_and_the_other_finds_it(tmp_path):
    found, start = [], threading.Barrier(2)

    def begin(corpus: str) -> None:
        start.wait()
        try:
            opened(str(tmp_path / "run"), corpus=corpus)
            found.append("began")
        except DataError:
            found.append("refused")

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("mine", "yours")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["began", "refused"]


def test_what_changes_is_written_beside_the_rest(uri):
    folder, _ = opened(uri)
    folder.update(stage="plan", rows=7)
    found = head(folder)
    assert (found["stage"], found["rows"], found["status"]) == ("plan", 7, "running")
    assert found["fingerprints"] == PRINTS
    assert found["updated"]


def test_parts_are_found_by_their_kind(uri):
    folder, _ = opened(uri)
    for key in (
        "tables/part-1.parquet",
        "plan/model=a/strategy=b/part-1x-000000.parquet",
        "results/part-a-1.parquet",
        "results/part-b-1.parquet",
    ):
        folder.store.write(key, b"x")
    assert folder.tables() == ["tables/part-1.parquet"]
    assert folder.plans() == ["plan/model=a/strategy=b/part-1x-000000.parquet"]
    assert folder.results() == ["results/part-a-1.parquet", "results/part-b-1.parquet"]
    assert folder.results("a-") == ["results/part-a-1.parquet"]


def test_json_is_written_for_people_to_read(uri):
    folder, _ = opened(uri)
    folder.write_json("plan.json", {"rows": 1})
    assert (folder.store.read("plan.json") or b"").decode() == json.dumps({"rows": 1}, indent=2) + "\n"
    assert folder.read_json("nothing.json") is None


def test_an_output_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        StorageError, match=r"^Cannot write .*Give an output folder that can be written to\.$"
    ):
        opened(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
