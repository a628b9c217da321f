"""The benchmark of the ledger in a small form: what it claims of partial reservations holds there, too."""

from __future__ import annotations

import pytest

from benchmarks.ledger import BUSY_TARGET, SPENT_TARGET, Simulation, measure_records
from rtr_ray.ledger import Ledger


def test_with_partial_reservations_the_slots_are_busy_until_the_budget_is_nearly_spent() -> None:
    found = Simulation(rows=60_000, slots=200, partial=True).run()
    assert found["busy_worst_percent"] >= BUSY_TARGET
    assert found["first_percent_below_95_busy"] >= 100 * SPENT_TARGET
    assert found["spent_share"] > 0.999
    assert found["overspent_usd"] == "0.00"
    assert found["extensions"] > 100, "nothing was extended: the simulation shows nothing"
    assert found["cut"] <= found["answered"] / 1000


def test_with_worst_cases_alone_they_starve_long_before() -> None:
    found = Simulation(rows=60_000, slots=200, partial=False).run()
    assert found["first_percent_below_95_busy"] < 95
    assert found["overspent_usd"] == "0.00"


def test_the_simulation_notices_a_ledger_that_overspends(monkeypatch: pytest.MonkeyPatch) -> None:
    def generous(self: Ledger, *_: object) -> object:
        from rtr_ray.ledger import Grant

        return Grant.GRANTED

    monkeypatch.setattr(Ledger, "_grant", generous)
    assert Simulation(rows=20_000, slots=200, partial=True).run()["overspent_usd"] != "0.00"


def test_records_are_at_most_one_per_chunk_and_some_five_hundred_per_budget() -> None:
    assert measure_records(2_000, 0.98)["records"] <= 2_000 / 64 + 2
    assert 250 < measure_records(50_000, 0.98)["records"] <= 550
    assert 250 < measure_records(100_000, 0.98)["records"] <= 550
