"""A run is a folder that knows what it is a run of."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.errors import DataError, StorageError
from rtr_ray.run_folder import CONFIG, LOCK, RUN, RunFolder, insist

PRINTS = {"config": "c1", "corpus": "d1", "router": "r1", "pool": "p1"}


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    return (
        str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/run"
    )


def opened(uri: str, fresh: bool = False, **changed: str) -> tuple[RunFolder, str | None]:
    """As a run that ends at once: what it leaves is looked at afterwards."""
    folder, aside = RunFolder.open(uri, PRINTS | changed, "budget_usd: 1\n", fresh)
    folder.close()
    return folder, aside


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


# --- one run at a time ------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from rtr_ray.run_folder import RunFolder
folder, _ = RunFolder.open(sys.argv[1], {"config": "c1", "corpus": "d1", "router": "r1", "pool": "p1"}, "")
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("fresh", [False, True])
def test_while_a_run_works_on_a_folder_a_second_one_is_refused_and_changes_nothing(tmp_path, fresh):
    uri = str(tmp_path / "run")
    first, _ = RunFolder.open(uri, PRINTS, "")
    first.update(stage="answer")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError) as caught:
        opened(uri, fresh)
    assert str(caught.value) == (
        f"Another run works on {uri} just now, and two would pay for everything twice. "
        "Wait until it has ended, or take another output."
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    first.close()
    first.close()  # twice is no matter
    assert (opened(uri, fresh)[1] is not None) == fresh


def test_a_run_in_another_process_holds_the_folder_until_it_is_killed(tmp_path):
    uri = str(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, uri], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="Another run works on"):
            opened(uri)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert head(opened(uri)[0])["status"] == "running"


def test_the_lock_is_seen_by_nobody_and_gone_with_the_run(tmp_path):
    uri = str(tmp_path / "run")
    folder, _ = RunFolder.open(uri, PRINTS, "")
    assert (tmp_path / "run" / LOCK).exists()
    assert folder.store.keys() == [CONFIG, RUN]
    folder.close()
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_run_that_was_refused_for_another_reason_holds_nothing(tmp_path):
    uri = str(tmp_path / "run")
    opened(uri)
    with pytest.raises(DataError, match="its pool differs") as kept:  # its traceback holds the frames
        opened(uri, pool="other")
    opened(uri)
    assert kept


def test_a_folder_moved_aside_takes_no_lock_along(tmp_path):
    uri = str(tmp_path / "run")
    opened(uri)
    (tmp_path / "run" / LOCK).touch()  # of a run that was killed
    _, aside = opened(uri, fresh=True)
    assert aside is not None
    assert not (Path(aside) / LOCK).exists()


def test_of_many_that_come_at_the_same_time_one_at_a_time_has_the_folder(tmp_path):
    # the lock file is removed at every ending: who has just opened it must not take it for the right one
    uri, inside, most, ended = str(tmp_path / "run"), [], [], []
    opened(uri)
    until_s = time.monotonic() + 60

    def work() -> None:
        tried = had = 0
        # nobody can say who is how often refused while another one writes; at the end each gets its turns
        while tried < 60 or (had < 2 and time.monotonic() < until_s):
            tried += 1
            try:
                folder, _ = RunFolder.open(uri, PRINTS, "")
            except DataError:
                continue
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            folder.close()
            had += 1
        ended.append(had)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(ended) == 4
    assert min(ended) >= 2


# --- insisting --------------------------------------------------------------------------------------------


def test_a_write_that_fails_is_made_again_and_the_last_error_is_told():
    calls: list[int] = []

    def failing(times: int) -> None:
        calls.append(1)
        if len(calls) <= times:
            raise StorageError(f"full {len(calls)}")

    insist(lambda: failing(2), (0, 0))
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(StorageError, match="full 3"):
        insist(lambda: failing(9), (0, 0))
    with pytest.raises(ZeroDivisionError):  # a bug is not mended by trying again
        insist(lambda: print(1 // 0), (60,))
