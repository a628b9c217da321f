"""Keys and their money, one operation after the other."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from rtr_ray.errors import ConfigError, LedgerError, StorageError
from rtr_ray.gate import Caller, Hold, Refusal
from rtr_ray.keys import GLOBAL, Admit, Ask, Close, KeyStore, Limits
from rtr_ray.keys.tokens import digest
from tests.keys.bench import NOON, Clock, Desk, offer, opened, sums, usd

ROOT = Path(__file__).parents[2]


# --- keys -------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_only_its_hash_is_kept(tmp_path):
    store = opened(tmp_path)
    token, key = store.create("ann")
    assert re.fullmatch(r"rtr-[\w-]{43}", token)
    store.shut()
    for file in tmp_path.iterdir():
        assert token.encode() not in file.read_bytes()
        assert token[4:].encode() not in file.read_bytes()
    assert token not in repr(store.all_keys()) + repr(key)
    assert store.apply("r", [Admit(digest(token))]) == [Caller(key.id, "ann")]


def test_only_its_owner_may_read_the_file(tmp_path):
    store = opened(tmp_path)
    store.create("ann")
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600


def test_a_key_has_what_it_was_given(tmp_path):
    limits = Limits(usd("1.5"), usd(20), usd(100), usd("0.000000000001"), 60, 100_000, ("small:cot", "a:b@5"))
    store = opened(tmp_path)
    _, key = store.create("ann", limits)
    assert key.limits == limits
    assert opened(tmp_path).find("ann") == key == opened(tmp_path).find(key.id)


def test_two_keys_do_not_have_one_name_unless_the_first_was_revoked(tmp_path):
    store = opened(tmp_path)
    store.create("ann")
    with pytest.raises(ConfigError, match="There is a key 'ann' already"):
        store.create("ann")
    store.revoke("ann")
    _, second = store.create("ann")
    assert store.find("ann").id == second.id
    assert [key.revoked_at is None for key in store.all_keys()] == [False, True]


def test_a_revoked_key_is_refused_and_what_it_has_on_the_way_is_still_settled(tmp_path):
    store = opened(tmp_path)
    token, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    held = desk.hold(key.id, offer("0.5"))
    store.revoke("ann")
    (found,) = store.apply("r", [Admit(digest(token))])
    assert isinstance(found, Refusal)
    assert found.kind == "invalid_api_key"
    assert desk.refusal(key.id, offer("0.1")).kind == "invalid_api_key"  # admitted before, and no more now
    desk.settle(held, "0.4")
    assert sums(store, key.id) == (usd("0.4"), 0, 0)


@pytest.mark.parametrize("name", ["global", "", "two words", "-x"])
def test_some_names_cannot_be(tmp_path, name):
    with pytest.raises(ConfigError):
        opened(tmp_path).create(name)
    assert not (tmp_path / "keys.sqlite").exists() or name == ""


def test_what_was_typed_for_a_name_is_not_repeated_since_it_may_be_a_token(tmp_path):
    store = opened(tmp_path)
    token, _ = store.create("ann")
    for act in (store.find, store.revoke):
        with pytest.raises(ConfigError, match="no such key") as error:
            act(token)
        assert token not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"day_usd": usd(-1)},
        {"month_usd": Decimal("NaN")},
        {"total_usd": Decimal("Infinity")},
        {"max_request_usd": usd(9_000_001)},
        {"day_usd": Decimal("1e-13")},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -5},
        {"candidates": ("small",)},
    ],
)
def test_limits_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        Limits(**wrong)


# --- money ------------------------------------------------------------------------------------------------


def test_money_is_exact_to_a_trillionth_of_a_dollar(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd("0.000000000003")))
    desk = Desk(store)
    held = [desk.hold(key.id, offer("0.000000000001")) for _ in range(3)]
    assert desk.refusal(key.id, offer("0.000000000001")).kind == "budget_exceeded"
    for one in held:
        desk.settle(one, "0.000000000001")
    assert sums(store, key.id) == (usd("0.000000000003"), 0, 0)


def test_a_part_of_a_trillionth_counts_as_a_whole_one(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    desk.settle(desk.hold(key.id, offer("0.5")), "1e-20")
    assert sums(store, key.id) == (Decimal("1e-12"), 0, 0)


def test_the_first_offer_that_can_be_paid_is_taken(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    dear, fair, cheap = offer("0.8"), offer("0.5", "small:cot"), offer("0.2", "small:vanilla")
    assert desk.hold(key.id, dear, fair, cheap).offer == dear
    assert desk.hold(key.id, dear, fair, cheap).offer == cheap
    assert desk.refusal(key.id, dear, fair, cheap).kind == "budget_exceeded"
    assert desk.hold(key.id, dear, offer("0", "own:vanilla")).offer.candidate.model == "own"


def test_all_keys_together_keep_to_the_global_budget(tmp_path):
    store = opened(tmp_path)
    keys = [store.create(name, Limits(total_usd=usd(1)))[1] for name in ("ann", "bob")]
    store.change(GLOBAL, Limits(month_usd=usd("1.5")))
    desk = Desk(store)
    desk.hold(keys[0].id, offer("1"))
    refusal = desk.refusal(keys[1].id, offer("1"))
    assert refusal.message == (
        "The endpoint has too little left this month, and large:cot may cost $1.00; the rest is set aside "
        "for requests that are on their way."
    )
    desk.hold(keys[1].id, offer("0.5"))
    assert sums(store) == (0, 0, usd("1.5"))


def test_a_settlement_is_booked_once(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    held = desk.hold(key.id, offer("0.5"))
    desk.settle(held, "0.3")
    desk.settle(held, "0.3")
    desk.release(held)
    desk.lose(held)
    assert sums(store, key.id) == (usd("0.3"), 0, 0)
    assert store.usage(key.id)[0].calls == 1


def test_a_call_of_which_the_count_was_lost_counts_in_full(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    desk.lose(desk.hold(key.id, offer("0.5", tokens=70)))
    assert sums(store, key.id) == (0, usd("0.5"), 0)
    today = store.usage(key.id)[0]
    assert (today.lost, today.calls, today.tokens) == (1, 1, 70)


def test_what_cost_more_than_its_worst_case_is_booked_as_it_was(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    desk.settle(desk.hold(key.id, offer("1")), "1.2")  # an endpoint that charges more than it says
    assert sums(store, key.id) == (usd("1.2"), 0, 0)
    assert "has $0.00 left of $1.00 in all" in desk.refusal(key.id, offer("0.1")).message


def test_an_id_that_is_none_is_told(tmp_path):
    store = opened(tmp_path)
    store.create("ann")
    with pytest.raises(ConfigError, match="no key with this id"):
        store.usage("nobody")


def test_a_reservation_that_is_asked_for_again_is_the_same_one(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    ask = Ask("hold-1", key.id, (offer("0.6"),))
    first, again = store.apply("r", [ask, ask])
    assert first == again
    assert sums(store, key.id) == (0, 0, usd("0.6"))


def test_the_cap_of_one_request_is_no_matter_of_time(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(max_request_usd=usd("0.1")))
    desk = Desk(store)
    found = desk.refusal(key.id, offer("0.2"))
    assert (found.kind, found.retry_after_s, found.reset_at) == ("budget_exceeded", None, None)
    assert found.message == "The API key 'ann' may spend $0.10 on one request, and large:cot may cost $0.20."
    assert desk.hold(key.id, offer("0.2"), offer("0.1", "small:cot")).offer.worst_usd == usd("0.1")


def test_a_key_uses_the_candidates_that_it_may(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(candidates=("small:cot",)))
    desk = Desk(store)
    assert desk.hold(key.id, offer("1"), offer("1", "small:cot")).offer.candidate.model == "small"
    found = desk.refusal(key.id, offer("0"), offer("0", "small:cot@5"))
    assert found.kind == "permission_denied"
    assert found.message == "The API key 'ann' may not use large:cot, small:cot@5; it may use small:cot."


def test_other_limits_hold_from_the_next_request_on(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    held = desk.hold(key.id, offer("1"))
    store.change("ann", Limits(total_usd=usd("0.5")))
    found = desk.refusal(key.id, offer("0.1"))
    assert "has $0.00 left of $0.50 in all" in found.message
    desk.settle(held, "0.6")
    store.change("ann", Limits(total_usd=usd(2)))
    desk.hold(key.id, offer("1.4"))


def test_what_cannot_be_an_amount_is_a_bug_and_not_booked():
    for worst in ("-1", "NaN", "Infinity"):
        with pytest.raises(LedgerError):
            Ask("h", "k", (offer(worst),))
        with pytest.raises(LedgerError):
            Close("h", Decimal(worst), 1)
    with pytest.raises(LedgerError, match="makes no offer"):
        Ask("h", "k", ())


# --- when a budget begins anew ----------------------------------------------------------------------------


def test_a_budget_of_a_day_begins_anew_at_midnight_utc(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock)
    _, key = store.create("ann", Limits(day_usd=usd(1)))
    desk = Desk(store)
    desk.settle(desk.hold(key.id, offer("1")), "1")
    found = desk.refusal(key.id, offer("0.1"))
    assert found.reset_at == "2026-11-28T00:00:00Z"
    assert found.retry_after_s == 12 * 3600
    clock.wall = datetime(2026, 11, 27, 23, 59, 59, tzinfo=UTC)
    desk.refusal(key.id, offer("0.1"))
    clock.wall = datetime(2026, 11, 28, tzinfo=UTC)
    desk.hold(key.id, offer("1"))
    assert sums(store, key.id, 2) == (1, 0, 1)


def test_of_two_budgets_the_one_that_lasts_longer_says_when_to_come_again(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(day_usd=usd(1), month_usd=usd(1)))
    desk = Desk(store)
    desk.settle(desk.hold(key.id, offer("1")), "1")
    assert desk.refusal(key.id, offer("0.1")).reset_at == "2026-12-01T00:00:00Z"
    store.change(GLOBAL, Limits(total_usd=usd(1)))
    found = desk.refusal(key.id, offer("0.1"))
    assert (found.reset_at, found.retry_after_s) == (None, None)


def test_an_offer_over_the_whole_budget_need_not_come_again(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(day_usd=usd(1)))
    found = Desk(store).refusal(key.id, offer("1.1"))
    assert (found.reset_at, found.retry_after_s) == (None, None)
    # ... but a cheaper one may
    desk = Desk(store, "other")
    desk.settle(desk.hold(key.id, offer("1")), "1")
    assert desk.refusal(key.id, offer("1.1"), offer("0.5", "small:cot")).reset_at == "2026-11-28T00:00:00Z"


def test_what_is_only_on_its_way_is_worth_coming_again_soon(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(day_usd=usd(1)))
    desk = Desk(store)
    held = desk.hold(key.id, offer("0.8"))
    found = desk.refusal(key.id, offer("0.5"))
    assert (found.retry_after_s, found.reset_at) == (1.0, None)
    desk.settle(held, "0.1")
    desk.hold(key.id, offer("0.5"))


def test_a_hold_belongs_to_the_day_on_which_it_was_made(tmp_path):
    clock = Clock(datetime(2026, 11, 30, 23, 59, tzinfo=UTC))
    store = opened(tmp_path, clock)
    _, key = store.create("ann", Limits(day_usd=usd(1), month_usd=usd(5)))
    desk = Desk(store)
    held = desk.hold(key.id, offer("0.9"))
    clock.pass_by(30)
    desk.store.apply("replica", [])
    clock.pass_by(30)
    assert sums(store, key.id, 0) == (0, 0, 0)
    desk.settle(held, "0.8")
    assert sums(store, key.id, 0) == sums(store, key.id, 1) == (0, 0, 0)
    desk.hold(key.id, offer("1"))
    clock.wall -= timedelta(days=1)
    assert sums(store, key.id, 0) == sums(store, key.id, 1) == (usd("0.8"), 0, 0)


def test_a_clock_that_jumps_backwards_gives_nothing_twice(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock)
    _, key = store.create("ann", Limits(day_usd=usd(1), requests_per_minute=3))
    desk = Desk(store)
    spent = []
    for days in (0, 1, 0, -1, 0, 1):  # three days, some of them three times
        clock.wall = NOON + timedelta(days=days)
        clock.machine += 60
        found = desk.ask(key.id, offer("1"))
        if isinstance(found, Hold):
            desk.settle(found, "1")
            spent.append(days)
    assert spent == [0, 1, -1]
    assert sums(store, key.id) == (3, 0, 0)


# --- limits per minute ------------------------------------------------------------------------------------


def test_requests_per_minute(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock)
    _, key = store.create("ann", Limits(requests_per_minute=3))
    desk = Desk(store)
    for _ in range(3):
        desk.hold(key.id, offer("0"))
    found = desk.refusal(key.id, offer("0"))
    assert found.kind == "rate_limit_exceeded"
    assert found.retry_after_s == pytest.approx(20)
    assert found.message == "The API key 'ann' has used up its 3 requests a minute."
    clock.pass_by(20)
    desk.hold(key.id, offer("0"))
    desk.refusal(key.id, offer("0"))
    clock.pass_by(3600)
    for _ in range(3):
        desk.hold(key.id, offer("0"))
    desk.refusal(key.id, offer("0"))


def test_tokens_per_minute_count_the_worst_case_until_the_count_is_known(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock)
    _, key = store.create("ann", Limits(tokens_per_minute=1000))
    desk = Desk(store)
    held = desk.hold(key.id, offer("1", tokens=900))
    found = desk.refusal(key.id, offer("1", tokens=200))
    assert (found.kind, round(found.retry_after_s or 0, 6)) == ("rate_limit_exceeded", 6)
    assert desk.hold(key.id, offer("1", tokens=200), offer("1", "small:cot", 100)).offer.worst_tokens == 100
    desk.settle(held, "1", tokens=100)
    desk.hold(key.id, offer("1", tokens=800))
    desk.refusal(key.id, offer("1", tokens=1))
    never = desk.refusal(key.id, offer("1", tokens=1001))
    assert (never.kind, never.retry_after_s) == ("rate_limit_exceeded", None)


def test_all_keys_together_keep_to_the_limits_per_minute_of_the_endpoint(tmp_path):
    store = opened(tmp_path)
    store.change(GLOBAL, Limits(requests_per_minute=2))
    desk = Desk(store)
    for name in ("ann", "bob"):
        desk.hold(store.create(name)[1].id, offer("1"))
    found = desk.refusal(store.create("eve")[1].id, offer("1"))
    assert found.message == "The endpoint has used up its 2 requests a minute."


def test_after_a_start_of_the_machine_a_minute_is_enough(tmp_path):
    clock = Clock(machine=1e6)
    store = opened(tmp_path, clock)
    _, key = store.create("ann", Limits(requests_per_minute=1, tokens_per_minute=100))
    Desk(store).hold(key.id, offer("0"))
    clock.machine = 5.0
    again = Desk(opened(tmp_path, clock), "other")
    assert (again.refusal(key.id, offer("0")).retry_after_s or 0) <= 60
    clock.pass_by(60)
    again.hold(key.id, offer("0"))


# --- replicas that die ------------------------------------------------------------------------------------


def test_what_a_dead_replica_has_held_is_spent_in_full_and_marked_unknown(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock, lease_s=60)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    dead, alive = Desk(store, "dead"), Desk(store, "alive")
    dead.hold(key.id, offer("0.6"))
    held = alive.hold(key.id, offer("0.3"))
    for _ in range(5):
        clock.pass_by(20)
        store.apply("alive", [])
    assert sums(store, key.id) == (0, usd("0.6"), usd("0.3"))
    alive.settle(held, "0.1")
    assert alive.refusal(key.id, offer("0.31")).retry_after_s is None
    alive.hold(key.id, offer("0.3"))


def test_a_replica_that_was_taken_for_dead_changes_nothing_afterwards(tmp_path):
    clock = Clock()
    store = opened(tmp_path, clock, lease_s=60)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    late = Desk(store, "late")
    held = late.hold(key.id, offer("0.6"))
    clock.pass_by(61)
    store.apply("other", [])
    late.settle(held, "0.2")
    late.release(held)
    assert sums(store, key.id) == (0, usd("0.6"), 0)
    late.hold(key.id, offer("0.4"))


def test_after_a_start_of_the_machine_replicas_have_a_lease_to_come_back(tmp_path):
    clock = Clock(machine=1e6)
    store = opened(tmp_path, clock, lease_s=60)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    held = Desk(store, "a").hold(key.id, offer("0.6"))
    Desk(store, "b").hold(key.id, offer("0.3"))
    clock.machine = 5.0
    anew = KeyStore(store.path, lease_s=60, now=clock.now, monotonic=clock.monotonic, boot="another")
    Desk(anew, "a").settle(held, "0.1")
    assert sums(anew, key.id) == (usd("0.1"), 0, usd("0.3"))
    clock.pass_by(61)
    assert sums(anew, key.id) == (usd("0.1"), usd("0.3"), 0)


# --- many at once -----------------------------------------------------------------------------------------


def test_two_hundred_threads_race_for_a_budget_that_pays_for_ten(tmp_path):
    store = opened(tmp_path, busy_s=60)
    _, key = store.create("ann", Limits(day_usd=usd(1)))
    start = threading.Barrier(200)

    def race(number: int) -> Hold | Refusal:
        desk = Desk(store, f"r{number}")
        start.wait()
        return desk.ask(key.id, offer("0.1"))

    with ThreadPoolExecutor(200) as threads:
        found = list(threads.map(race, range(200)))
    assert sum(isinstance(one, Hold) for one in found) == 10
    assert {one.kind for one in found if isinstance(one, Refusal)} == {"budget_exceeded"}
    assert sums(store, key.id) == (0, 0, 1)


_RACE = """
import sys
from decimal import Decimal
from pathlib import Path
from rtr_ray.gate import Hold, Offer
from rtr_ray.keys import Ask, Close, KeyStore
from rtr_ray.types import Candidate
path, key, me, kill = sys.argv[1:]
store, got = KeyStore(Path(path), busy_s=60), 0
print("ready", flush=True)
sys.stdin.readline()
for number in range(10**9 if kill == "kill" else 30):
    id = f"{me}-{number}"
    (held,) = store.apply(me, [Ask(id, key, (Offer(Candidate("m", "v"), Decimal("0.01"), 10),))])
    if isinstance(held, Hold):
        got += 1
        store.apply(me, [Close(id, Decimal("0.0025"), 5)])
        print(number, flush=True)
print("got", got)
"""


def _racers(store: KeyStore, key_id: str, count: int, kill: str = "") -> list[subprocess.Popen[str]]:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, str(store.path), key_id, f"p{number}", kill],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for number in range(count)
    ]  # fmt: skip
    for one in racers:
        assert one.stdout is not None
        assert one.stdin is not None
        assert one.stdout.readline() == "ready\n"
    for one in racers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    return racers


def test_processes_that_hammer_one_file_spend_a_budget_to_the_last_cent_and_no_more(tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite", busy_s=60)
    _, key = store.create("ann", Limits(total_usd=usd("0.15")))
    outputs = [one.communicate(timeout=120)[0] for one in _racers(store, key.id, 3)]
    got = sum(int(out.split("got ")[1]) for out in outputs)
    spent, unknown, reserved = sums(store, key.id)
    assert (unknown, reserved) == (0, 0)
    assert spent == got * usd("0.0025")
    assert usd("0.10") < spent <= usd("0.15")


def test_a_process_that_is_killed_in_the_middle_leaves_whole_operations_behind(tmp_path):
    store = KeyStore(tmp_path / "keys.sqlite", busy_s=60)
    _, key = store.create("ann")
    racers = _racers(store, key.id, 2, "kill")
    done = []
    for one in racers:
        assert one.stdout is not None
        for line in one.stdout:
            if int(line) >= 50:
                break
    for one in racers:
        one.kill()
        assert one.stdout is not None
        done.append(50 + sum(1 for line in one.stdout if line.endswith("\n")) + 1)
        one.wait()
        one.stdout.close()
    connection = sqlite3.connect(store.path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    spent, unknown, reserved = sums(store, key.id)
    calls = store.usage(key.id)[2].calls
    assert spent == calls * usd("0.0025")
    assert sum(done) <= calls <= sum(done) + 2  # one each was settled and not said
    assert unknown == 0
    assert reserved in (0, usd("0.01"), usd("0.02"))  # one each was on its way
    later = replace(Clock(), machine=1e12)
    anew = KeyStore(store.path, monotonic=later.monotonic)
    anew.apply("another", [])
    assert sums(anew, key.id) == (spent, reserved, 0)


# --- a file that cannot be used ---------------------------------------------------------------------------


def test_a_file_that_is_not_there_grants_nothing_and_is_not_made_by_asking(tmp_path):
    store = opened(tmp_path)
    with pytest.raises(StorageError, match=r"keys\.sqlite cannot be used: there is no such file"):
        store.apply("r", [])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_taken_away_while_running_grants_nothing_until_it_is_back(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    held = desk.hold(key.id, offer("0.4"))
    store.path.rename(tmp_path / "aside")
    for side in ("-wal", "-shm"):
        Path(f"{store.path}{side}").rename(tmp_path / f"aside{side}")
    with pytest.raises(StorageError, match="no such file"):
        desk.ask(key.id, offer("0.1"))
    with pytest.raises(StorageError):
        desk.settle(held, "0.1")
    for side in ("-wal", "-shm"):
        (tmp_path / f"aside{side}").rename(f"{store.path}{side}")
    (tmp_path / "aside").rename(store.path)
    desk.settle(held, "0.1")
    assert sums(store, key.id) == (usd("0.1"), 0, 0)


def test_a_locked_file_grants_nothing_until_it_is_free(tmp_path):
    store = opened(tmp_path, busy_s=0.05)
    _, key = store.create("ann")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="another process keeps the file locked"):
        Desk(store).ask(key.id, offer("0.1"))
    other.execute("ROLLBACK")
    other.close()
    Desk(store).hold(key.id, offer("0.1"))


@pytest.mark.parametrize("content", [b"", b"no database at all, and long enough to be sure of it" * 100])
def test_a_file_that_is_none_of_ours_is_left_alone(tmp_path, content):
    store = opened(tmp_path)
    store.path.write_bytes(content)
    for act in (lambda: store.apply("r", []), lambda: store.create("ann"), store.all_keys):
        with pytest.raises(StorageError, match="cannot be used"):
            act()
    assert store.path.read_bytes() == content


def test_a_file_of_another_version_is_left_alone(tmp_path):
    store = opened(tmp_path)
    store.create("ann")
    store.shut()
    other = sqlite3.connect(store.path)
    other.execute("PRAGMA user_version = 7")
    other.close()
    with pytest.raises(StorageError, match="it has version 7; version 1 is needed"):
        store.all_keys()


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(StorageError, match="there is no such folder"):
        opened(tmp_path / "nowhere").create("ann")


def test_a_sum_that_the_file_cannot_hold_is_refused_whole(tmp_path):
    store = opened(tmp_path)
    _, key = store.create("ann")
    desk = Desk(store)
    desk.hold(key.id, offer("9000000"))
    with pytest.raises(StorageError, match=r"a sum would exceed 9\.2 million dollars"):
        desk.ask(key.id, offer("9000000"))
    assert sums(store, key.id) == (0, 0, 9_000_000)


def test_of_many_who_make_the_file_at_once_all_write_into_the_same(tmp_path):
    start = threading.Barrier(8)

    def make(number: int) -> None:
        start.wait()
        opened(tmp_path, busy_s=30).create(f"key{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, range(8)))
    assert sorted(key.name for key in opened(tmp_path).all_keys()) == [f"key{n}" for n in range(8)]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
