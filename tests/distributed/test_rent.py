"""What engines cost while they are up: by the hour, whatever they do."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from rtr_ray.distributed.rent import Rent, rent_usd
from rtr_ray.run_folder import RunFolder
from rtr_ray.storage import open_store
from tests.fakes import pool_of

DEPLOYMENT = next(iter(pool_of(("small:cot",)).deployments.values()))
RENTED = replace(DEPLOYMENT, gpu_usd_per_hour=Decimal("3.60"), num_gpus=2.0)


def test_a_replica_costs_its_gpus_by_the_second() -> None:
    assert rent_usd(RENTED, 1.0) == Decimal("0.002")
    assert rent_usd(RENTED, 0.0) == 0
    assert rent_usd(replace(RENTED, num_gpus=0.5), 7200.0) == Decimal("3.6")


def test_a_replica_without_a_gpu_counts_as_one() -> None:
    assert rent_usd(replace(RENTED, num_gpus=0.0), 3600.0) == Decimal("3.6")


def test_without_a_price_nobody_knows() -> None:
    assert rent_usd(DEPLOYMENT, 5.0) is None


def test_seconds_add_up_over_sessions_and_stand_in_the_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(open_store(str(tmp_path)))
    counts = {"a": 2, "b": 0}
    for _ in range(2):
        before = (folder.read_json("rent.json") or {"replica_seconds": {}})["replica_seconds"].get("a", 0.0)
        rent = Rent(folder, {"a": RENTED, "b": DEPLOYMENT}, lambda: counts)
        rent.start()
        rent.start()  # every group of engines begins it; it runs once
        deadline = time.monotonic() + 60
        while rent.seconds.get("a", 0.0) <= before and time.monotonic() < deadline:
            time.sleep(0.05)
        rent.stop()
        found = folder.read_json("rent.json")
        assert found is not None
        assert found["replica_seconds"]["a"] > before
        assert rent.usd == rent_usd(RENTED, rent.seconds["a"])  # b never ran: its price is not missed


def test_what_earlier_sessions_took_is_known_where_no_engine_starts_again(tmp_path: Path) -> None:
    folder = RunFolder(open_store(str(tmp_path)))
    folder.write_json("rent.json", {"schema_version": 1, "replica_seconds": {"a": 500.0}})
    rent = Rent(folder, {"a": RENTED}, dict)
    assert rent.usd == Decimal(1)
    rent.stop()
    assert (folder.read_json("rent.json") or {})["replica_seconds"] == {"a": 500.0}


def test_who_cannot_look_counts_on_with_what_was_there(tmp_path: Path) -> None:
    looks = iter([{"a": 1}])
    rent = Rent(RunFolder(open_store(str(tmp_path))), {"a": RENTED}, lambda: next(looks))
    rent.start()
    deadline = time.monotonic() + 60
    while rent.seconds.get("a", 0.0) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    rent.stop()
    assert rent.seconds["a"] >= 3
