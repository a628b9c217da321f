"""The shared ledger over a real run folder, without Ray: what a killed session leaves to the next one."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray import run_folder
from rtr_ray.dispatch import Reservation, Settlement
from rtr_ray.distributed import ledger_actor
from rtr_ray.distributed.ledger_actor import _STEP, SharedLedger
from rtr_ray.errors import LedgerError, StorageError
from rtr_ray.ledger import Account, Grant
from rtr_ray.storage import LocalStore
from rtr_ray.types import Candidate, Usage

SMALL = Candidate("small", "cot")
ONE = Decimal("0.9")


def opened(
    folder: Path, budget: str | None = "1", spent: str = "0", rows: Mapping[str, int] | None = None
) -> SharedLedger:
    """A session that begins, with what the results show."""
    shared = SharedLedger(str(folder), None if budget is None else Decimal(budget))
    accounts = {SMALL: Account(1, 1, 0, 1, Decimal(spent))} if Decimal(spent) else {}
    shared.resume(accounts, rows or {})
    shared.begin("part", {})
    return shared


def asked(shared: SharedLedger, *worst: str | Decimal, first: int = 0) -> list[Grant]:
    return shared.reserve(
        "part", [Reservation(f"q{first + i}", SMALL, Decimal(usd)) for i, usd in enumerate(worst)]
    )


def paid(key: str, usd: str) -> Settlement:
    return Settlement(key, Usage(1, 1), Decimal(usd))


def saved(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ledger.json").read_text())
    return found


def test_a_call_that_was_lost_is_not_forgotten_by_the_same_command(tmp_path):
    first = opened(tmp_path)
    assert asked(first, "0.9") == [Grant.GRANTED]
    first.settle("part", [Settlement("q0", lost=True)], {}, 1)
    assert asked(first, "0.9") == [Grant.NEVER]
    first.finish("part")
    first.close()
    second = opened(tmp_path)
    assert asked(second, "0.9") == [Grant.NEVER]
    found = second.snapshot()
    assert (found.balance.unknown_usd, found.balance.unknown_calls, found.sent_again) == (ONE, 1, 1)


def test_what_was_in_flight_at_a_kill_is_not_granted_again(tmp_path):
    assert asked(opened(tmp_path), "0.9") == [Grant.GRANTED]
    # no word of farewell: the process is gone
    second = opened(tmp_path)
    assert asked(second, "0.9") == [Grant.NEVER]
    found = second.snapshot()
    assert (found.balance.unknown_calls, found.sent_again) == (1, 1)
    assert found.balance.unknown_usd >= ONE


def test_what_the_results_show_is_not_unknown_as_well(tmp_path):
    asked(opened(tmp_path), "0.9")
    second = opened(tmp_path, spent="0.5")  # it was written, but not settled, when the kill came
    assert Decimal("0.4") <= second.snapshot().balance.unknown_usd <= Decimal("0.42")


def test_a_clean_end_locks_nothing_up_and_counts_add_up_over_the_sessions(tmp_path):
    spent = Decimal(0)
    for session in range(3):
        shared = opened(tmp_path, "10", str(spent))
        asked(shared, "0.9", "0.9")
        shared.settle("part", [paid("q0", "0.1"), Settlement("q1", lost=True)], {"answered": 1}, 1)
        shared.finish("part")
        found = shared.close()
        spent += Decimal("0.1")
        assert found.balance.unknown_usd == (session + 1) * ONE
        assert (found.balance.unknown_calls, found.sent_again) == (session + 1, session + 1)
        assert Decimal(saved(tmp_path)["committed_usd"]) == spent + (session + 1) * ONE
        assert saved(tmp_path)["in_flight"] == 0


def test_after_the_end_nothing_is_granted(tmp_path):
    shared = opened(tmp_path)
    shared.close()
    with pytest.raises(LedgerError, match="has ended; nothing more may be asked"):
        asked(shared, "0.1")


def test_what_is_not_durable_is_not_granted(tmp_path, monkeypatch):
    def full(self: Any, key: str, data: bytes) -> None:
        raise StorageError("disk full")

    shared = opened(tmp_path)
    monkeypatch.setattr(run_folder, "WRITE_PAUSES_S", (0, 0))
    with monkeypatch.context() as broken:
        broken.setattr(LocalStore, "write", full)
        with pytest.raises(StorageError, match="disk full"):
            asked(shared, "0.5")
        assert shared.snapshot().balance.in_flight == 0
    assert asked(shared, "0.5") == [Grant.GRANTED]


def test_without_a_budget_a_full_disk_stops_no_grant_and_what_was_lost_is_still_told_later(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ledger_actor, "_SAVE_S", 0.0)
    first = opened(tmp_path, None)
    with monkeypatch.context() as broken:
        broken.setattr(LocalStore, "write", lambda *_: (_ for _ in ()).throw(StorageError("disk full")))
        assert asked(first, "0.5") == [Grant.GRANTED]
    assert asked(first, "0.25", first=1) == [Grant.GRANTED]
    second = opened(tmp_path, None)
    balance = second.snapshot().balance
    assert balance.unknown_usd >= Decimal("0.75")  # a record covers the next grants, too
    assert balance.unknown_calls == 2


def test_without_a_budget_a_kill_forgets_nothing_that_was_granted(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_actor, "_SAVE_S", 1e9)
    shared = opened(tmp_path, None)
    for number in range(60):
        assert asked(shared, "0.5", first=number) == [Grant.GRANTED]
        unknown = opened(tmp_path, None).snapshot().balance.unknown_usd
        assert unknown >= shared.snapshot().balance.reserved_usd == Decimal("0.5") * (number + 1)


def test_a_kill_locks_up_what_answers_cost_that_were_in_and_not_durable_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_actor, "_SAVE_S", 0.0)
    shared = opened(tmp_path)
    assert asked(shared, "0.4", "0.4") == [Grant.GRANTED, Grant.GRANTED]
    take = shared.begin("another", {})
    shared.trim("another", take + 1, [("q0", Decimal("0.01"))])  # of a worker that was replaced
    assert shared.snapshot().balance.reserved_usd == Decimal("0.8")
    shared.trim("part", 1, [("q0", Decimal("0.01")), ("nobody", Decimal("0.02"))])
    assert shared.snapshot().balance.reserved_usd == Decimal("0.41")
    unknown = opened(tmp_path).snapshot().balance.unknown_usd
    assert Decimal("0.41") <= unknown <= Decimal("0.41") + Decimal(1) / 200


def test_a_damaged_record_ends_the_run_instead_of_forgetting(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "ledger.json").write_text("{}")
    with pytest.raises(StorageError, match=r"ledger\.json is damaged"):
        opened(tmp_path)


def test_a_session_that_asked_nothing_forgets_nothing(tmp_path):
    first = opened(tmp_path)
    asked(first, "0.9")
    first.settle("part", [Settlement("q0", lost=True)], {}, 0)
    first.close()
    before = saved(tmp_path)
    SharedLedger(str(tmp_path), Decimal(1)).close()  # its plan was over the budget, say
    assert saved(tmp_path) == before


def test_what_is_settled_after_the_end_is_recorded_exactly(tmp_path, monkeypatch):
    # an interrupted run: its workers may still write what they have
    monkeypatch.setattr(ledger_actor, "_SAVE_S", 0.0)
    first = opened(tmp_path)
    asked(first, "0.5")
    first.close()
    assert Decimal(saved(tmp_path)["committed_usd"]) == Decimal("0.5")
    first.settle("part", [paid("q0", "0.2")], {"answered": 1}, 0)
    assert Decimal(saved(tmp_path)["committed_usd"]) == Decimal("0.2")
    assert opened(tmp_path, spent="0.2").snapshot().balance.unknown_usd == 0


def test_records_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_actor, "_SAVE_S", 3600.0)
    writes: list[str] = []
    write = LocalStore.write
    monkeypatch.setattr(LocalStore, "write", lambda s, k, d: (writes.append(k), write(s, k, d))[1])
    shared = opened(tmp_path, "10")
    for number in range(1000):
        assert asked(shared, "0.01", first=number) == [Grant.GRANTED]
        shared.settle("part", [paid(f"q{number}", "0.01")], {}, 0)
    assert 0.6 * _STEP <= len(writes) <= 1.2 * _STEP  # of 1,000 grants


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment_the_sessions_together_keep_to_the_budget(tmp_path, monkeypatch, seed):
    """The truth is kept by hand: what each call really cost, known to the ledger or not."""
    dice = random.Random(seed)
    monkeypatch.setattr(ledger_actor, "_SAVE_S", dice.choice([0.0, 3600.0]))
    budget, truth, durable, number = Decimal(3), Decimal(0), Decimal(0), 0
    for _ in range(6):
        shared = opened(tmp_path, str(budget), str(durable))
        out: dict[str, Decimal] = {}
        for _ in range(dice.randint(0, 40)):
            if out and dice.random() < 0.5:
                key = dice.choice(list(out))
                worst = out.pop(key)
                cost = (worst * dice.randint(0, 10) / 10).quantize(Decimal("1e-12"))
                how = dice.choice(["paid", "lost", "unsent"])
                if how == "paid":
                    truth, durable = truth + cost, durable + cost
                    if dice.random() < 0.1:
                        break  # killed between the results and the settlement
                    shared.settle("part", [paid(key, str(cost))], {}, 0)
                else:
                    truth += worst if how == "lost" else 0
                    shared.settle("part", [Settlement(key, lost=how == "lost")], {}, 0)
            else:
                worst = Decimal(dice.randint(1, 40)) / 100
                if asked(shared, worst, first=number) == [Grant.GRANTED]:
                    out[f"q{number}"] = worst
                number += 1
        if dice.random() < 0.3:
            shared.close()
        truth += sum(out.values(), Decimal(0))  # all that was out was generated, and paid in full
        assert truth <= budget


# --- less than the worst case, and more later -------------------------------------------------------------


def partly(key: str, worst: str, least: str) -> Reservation:
    return Reservation(key, SMALL, Decimal(worst), Decimal(least), True, f"call of {key}")


def test_an_extension_is_durable_before_anybody_hears_of_it(tmp_path):
    shared = opened(tmp_path)
    assert shared.reserve("part", [partly("q0", "2", "0.5")]) == [Grant.LEAST]
    covered = Decimal(saved(tmp_path)["committed_usd"])
    assert Decimal("0.5") <= covered < Decimal("0.8")
    assert shared.extend("q0", "call of q0", Decimal("0.3"), Decimal("0.1")) is Grant.GRANTED
    assert Decimal(saved(tmp_path)["committed_usd"]) >= Decimal("0.8")
    # no word of farewell
    assert opened(tmp_path).snapshot().balance.unknown_usd >= Decimal("0.8")


def test_an_extension_that_cannot_be_made_durable_is_taken_back(tmp_path, monkeypatch):
    shared = opened(tmp_path)
    shared.reserve("part", [partly("q0", "2", "0.5")])
    monkeypatch.setattr(run_folder, "WRITE_PAUSES_S", ())
    monkeypatch.setattr(LocalStore, "write", lambda *_: (_ for _ in ()).throw(StorageError("disk full")))
    with pytest.raises(StorageError, match="disk full"):
        shared.extend("q0", "call of q0", Decimal("0.3"), Decimal("0.1"))
    assert shared.snapshot().balance.reserved_usd == Decimal("0.5")


def test_the_call_of_a_dead_worker_gets_no_more(tmp_path):
    shared = opened(tmp_path)
    shared.reserve("part", [partly("q0", "2", "0.3")])
    shared.begin("part", {})  # another worker takes the part up: what was out is lost
    assert shared.extend("q0", "call of q0", Decimal("0.3"), Decimal("0.1")) is Grant.NEVER
    assert shared.snapshot().balance.unknown_usd == Decimal("0.3")


def test_after_the_end_nothing_is_extended(tmp_path):
    shared = opened(tmp_path)
    shared.reserve("part", [partly("q0", "2", "0.3")])
    shared.close()
    with pytest.raises(LedgerError, match="has ended"):
        shared.extend("q0", "call of q0", Decimal("0.3"), Decimal("0.1"))


def test_a_chunk_of_which_one_request_is_reserved_already_leaves_nothing_behind(tmp_path):
    shared = opened(tmp_path)
    asked(shared, "0.1", first=1)
    with pytest.raises(LedgerError, match="q1 is reserved already"):
        asked(shared, "0.1", "0.1", "0.1")
    assert shared.snapshot().balance.in_flight == 1


def test_a_record_covers_what_is_granted_and_not_what_was_asked_for(tmp_path):
    shared = opened(tmp_path, "10")
    assert asked(shared, "9", "9") == [Grant.GRANTED, Grant.WAIT]
    # the grant and a step for those that follow, not the request that waits
    assert Decimal(saved(tmp_path)["committed_usd"]) == 9 + Decimal(10) / _STEP


# --- a dispatch actor that dies ---------------------------------------------------------------------------


def begun(tmp_path: Path, durable: Mapping[str, tuple[str, Settlement | None]]) -> SharedLedger:
    """Three calls were out when the worker of their part died; another one begins."""
    shared = opened(tmp_path, "10", rows={"answered": 5})
    asked(shared, "0.9", "0.9", "0.9")
    shared.begin("part", durable)
    return shared


def test_what_was_written_before_its_worker_died_is_settled_and_only_the_rest_is_lost(tmp_path):
    shared = begun(tmp_path, {"q0": ("answered", paid("q0", "0.2")), "q1": ("failed", paid("q1", "0.1"))})
    found = shared.snapshot()
    assert found.balance.accounts == {SMALL: Account(2, 2, 0, 2, Decimal("0.3"))}
    assert (found.balance.unknown_calls, found.balance.unknown_usd, found.sent_again) == (1, ONE, 1)
    assert (found.balance.in_flight, found.rows) == (0, {"answered": 6, "failed": 1})


def test_an_answer_without_usage_that_was_written_is_lost_but_not_sent_again(tmp_path):
    found = begun(tmp_path, {"q0": ("answered", None)}).snapshot()
    assert (found.balance.unknown_calls, found.sent_again) == (3, 2)
    assert found.rows == {"answered": 6}


def test_what_was_settled_before_its_worker_died_is_counted_once(tmp_path):
    shared = opened(tmp_path, "10")
    asked(shared, "0.9", "0.9")
    shared.settle("part", [paid("q0", "0.2")], {"answered": 1}, 0)
    durable: Sequence[tuple[str, str]] = [("q0", "0.2"), ("q1", "0.3")]
    for _ in range(2):
        shared.begin("part", {key: ("answered", paid(key, usd)) for key, usd in durable})
    shared.finish("part")
    found = shared.close()
    assert found.rows == {"answered": 2}
    assert found.balance.spent_usd == Decimal("0.5")
    assert (found.balance.unknown_calls, found.parts_done) == (0, 1)
