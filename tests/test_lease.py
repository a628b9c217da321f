"""The lock of a folder in a bucket: one holder at a time, on a real S3 server, whatever becomes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from decimal import Decimal

import pytest

from rtr_ray import lease
from rtr_ray.books import Reservation
from rtr_ray.distributed.ledger_actor import SharedLedger
from rtr_ray.errors import DataError, StorageError
from rtr_ray.lease import Lease
from rtr_ray.ledger import Grant
from rtr_ray.run_folder import LOCK, RunFolder, moved_aside
from rtr_ray.storage import S3Store, open_store
from rtr_ray.types import Candidate


@pytest.fixture
def store(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "TAKEOVER_S", 60.0)  # a machine may stand still for a while
    monkeypatch.setattr(lease, "_WATCH_S", 0.05)
    return S3Store(f"{s3_bucket}/run")


def elsewhere(store: S3Store, beats: int = 0) -> None:
    """A lock that a process of another machine has written."""
    process = {"boot": "another", "namespace": "pid:[1]", "pid": 1, "started": 1}
    store.write(LOCK, json.dumps({"holder": "other", "beats": beats, "process": process}).encode())


def until(true: object, patience_s: float = 60.0) -> None:
    assert callable(true)
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_two_one_holds_it_and_gives_it_to_the_next(store: S3Store) -> None:
    first = Lease.take(store, LOCK)
    assert first is not None
    assert Lease.take(store, LOCK) is None, "this process lives and rewrites it"
    first.free()
    first.free()
    assert store.read(LOCK) is None
    second = Lease.take(store, LOCK)
    assert second is not None
    second.free()


def test_it_is_rewritten_all_the_time_and_says_for_how_long_it_is_certain(store: S3Store) -> None:
    held = Lease.take(store, LOCK)
    assert held is not None
    told: list[float] = []
    held.told = told.append
    until(lambda: len(told) >= 3)
    assert json.loads(store.read(LOCK) or b"")["beats"] >= 3
    assert all(0 < valid_s <= lease.TAKEOVER_S / 2 for valid_s in told)
    held.free()


def test_one_of_another_machine_that_lives_is_left_alone(store: S3Store) -> None:
    elsewhere(store)
    waited: list[int] = []

    def wait() -> None:
        waited.append(1)
        elsewhere(store, beats=1)

    assert Lease.take(store, LOCK, wait) is None
    assert waited == [1]


def test_one_that_nobody_rewrites_any_more_is_taken_over_after_a_time(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_S", 1.0)
    elsewhere(store)
    began_s = time.monotonic()
    held = Lease.take(store, LOCK)
    assert time.monotonic() - began_s >= lease.TAKEOVER_S
    assert held is not None
    held.free()


def test_one_of_a_process_of_this_machine_that_was_killed_is_taken_over_at_once(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = (
        "import os, sys\nfrom rtr_ray.lease import Lease\nfrom rtr_ray.storage import S3Store\n"
        "assert Lease.take(S3Store(sys.argv[1]), sys.argv[2])\nos._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", killed, store.uri, LOCK], env=os.environ, check=False)
    assert done.returncode == 9
    assert store.read(LOCK) is not None
    monkeypatch.setattr(lease, "TAKEOVER_S", 3600.0)
    held = Lease.take(store, LOCK, lambda: pytest.fail("nobody needs to wait"))
    assert held is not None
    held.free()


def test_a_holder_that_stood_still_learns_that_it_has_lost_and_leaves_the_other_alone(store: S3Store) -> None:
    held = Lease.take(store, LOCK)
    assert held is not None
    elsewhere(store)  # taken over
    until(lambda: held.lost)
    assert held.valid_s < 0
    held.free()
    assert json.loads(store.read(LOCK) or b"")["holder"] == "other"


def test_a_beat_that_seemed_to_fail_and_arrived_is_its_own(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = S3Store.replace, []

    def cut_off(self: S3Store, key: str, data: bytes, tag: str) -> bool:
        arrived = real(self, key, data, tag)
        if len(failed) < 2:
            failed.append(arrived)
            raise StorageError("the connection was cut before the reply")
        return arrived

    monkeypatch.setattr(S3Store, "replace", cut_off)
    held = Lease.take(store, LOCK)
    assert held is not None
    told: list[float] = []
    held.told = told.append
    until(lambda: len(told) >= 2)
    assert failed[0]
    assert not held.lost
    held.free()


def test_who_takes_over_right_behind_a_beat_that_was_tried_again_is_left_alone(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = S3Store.replace, []

    def cut_off(self: S3Store, key: str, data: bytes, tag: str) -> bool:
        said.append(real(self, key, data, tag))
        if len(said) == 1:
            raise StorageError("the connection was cut before the reply")
        if said[1:] == [False, True]:
            elsewhere(self)
        return said[-1]

    monkeypatch.setattr(S3Store, "replace", cut_off)
    held = Lease.take(store, LOCK)
    assert held is not None
    until(lambda: held.lost)
    assert said == [True, False, True]
    held.free()
    assert json.loads(store.read(LOCK) or b"")["holder"] == "other"


def test_who_takes_over_right_before_a_beat_is_tried_again_is_seen_at_once(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said, told = S3Store.replace, [], list[float]()

    def cut_off(self: S3Store, key: str, data: bytes, tag: str) -> bool:
        if said[1:] == [False]:
            elsewhere(self)
        said.append(real(self, key, data, tag))
        if len(said) == 1:
            raise StorageError("the connection was cut before the reply")
        return said[-1]

    monkeypatch.setattr(S3Store, "replace", cut_off)
    held = Lease.take(store, LOCK)
    assert held is not None
    held.told = told.append
    until(lambda: held.lost)
    assert said == [True, False, False]  # the beat that finds it out is the last one
    held.free()
    assert [valid_s for valid_s in told if valid_s > 0] == []


def test_a_beat_that_fails_in_a_way_that_nobody_knows_is_not_the_last_one(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Lease.take(store, LOCK)
    assert held is not None
    with monkeypatch.context() as patch:
        tried: list[int] = []
        patch.setattr(S3Store, "replace", lambda *_: tried.append(1) or 1 / 0)
        until(lambda: len(tried) >= 2)
    told: list[float] = []
    held.told = told.append
    until(lambda: told)
    assert not held.lost
    held.free()


def test_without_the_bucket_it_is_certain_for_half_the_time_and_no_longer(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "TAKEOVER_S", 2.0)
    held = Lease.take(store, LOCK)
    assert held is not None
    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "replace", lambda *_: (_ for _ in ()).throw(StorageError("503")))
        until(lambda: held.valid_s < 0)
        assert not held.lost, "nobody has taken over"
    until(lambda: held.valid_s > 0)
    held.free()


def test_two_runs_of_one_folder_in_a_bucket_do_not_work_at_once(store: S3Store) -> None:
    folder, _ = RunFolder.open(store.uri, {"corpus": "a"}, "")
    for fresh in (False, True):
        with pytest.raises(DataError, match="Another run works on s3://"):
            RunFolder.open(store.uri, {"corpus": "a"}, "", fresh=fresh)
    folder.close()
    again, _ = RunFolder.open(store.uri, {"corpus": "a"}, "")
    again.close()
    assert store.read(LOCK) is None


def test_a_run_that_is_moved_aside_takes_no_lock_along(store: S3Store) -> None:
    RunFolder.open(store.uri, {"corpus": "a"}, "")[0].close()
    folder, aside = RunFolder.open(store.uri, {"corpus": "b"}, "", fresh=True)
    assert aside is not None
    assert [key for key in open_store(aside).keys() if key == LOCK] == []  # noqa: SIM118
    folder.close()
    assert moved_aside(f"{store.uri}-that-is-not-there") is None


def test_who_has_lost_the_folder_writes_no_more_into_it(store: S3Store) -> None:
    folder, _ = RunFolder.open(store.uri, {"corpus": "a"}, "")
    elsewhere(store)
    until(lambda: folder.lost)
    with pytest.raises(DataError, match="Another run has taken over s3://"):
        folder.update(status="failed")
    folder.close()


def test_a_ledger_whose_folder_is_not_certain_grants_nothing_until_it_is(tmp_path) -> None:
    shared = SharedLedger(str(tmp_path), Decimal(1))
    shared.resume({}, {})
    shared.begin("part", {})
    asked = Reservation("q0", Candidate("small", "cot"), Decimal("0.5"), Decimal("0.1"), True, "call")
    shared.hold(-1.0)
    assert shared.reserve("part", [asked]) == [Grant.WAIT]
    assert shared.snapshot().balance.reserved_usd == 0
    shared.hold(60.0)
    assert shared.reserve("part", [asked])[0].given
    shared.hold(-1.0)
    assert shared.extend("q0", "call", Decimal("0.1"), Decimal("0.1")) is Grant.WAIT
