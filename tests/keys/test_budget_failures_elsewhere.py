"""What goes wrong with the budgets of other proxies, each as a test: here it does not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

import pytest

from rtr_ray.errors import StorageError
from rtr_ray.gate import Caller, Hold, Offer, Refusal
from rtr_ray.keys import Ask, Close, KeyGate, Limits, LocalBank
from rtr_ray.pool import Price
from rtr_ray.types import Candidate, Usage
from tests.keys.bench import Clock, Desk, offer, opened, sums, usd


async def test_check_then_act_many_requests_at_once_do_not_overspend(tmp_path):
    """Elsewhere "overage by a multiple of request concurrency": each looked before any had spent."""
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(day_usd=usd(1)))
    replicas = [KeyGate(LocalBank(store)) for _ in range(4)]

    async def request(number: int) -> bool:
        gate = replicas[number % 4]
        held = await gate.reserve(Caller(key.id, "ann"), [offer("0.1")])
        if isinstance(held, Refusal):
            assert held.kind == "budget_exceeded"
            return False
        await asyncio.sleep(0)
        await gate.settle(held, usd("0.1"), 10)
        return True

    answered = await asyncio.gather(*(request(n) for n in range(200)))
    assert sum(answered) == 10
    assert sums(store, key.id) == (1, 0, 0)


def test_a_budget_that_begins_anew_forgets_nothing_that_is_settled_at_that_moment(tmp_path):
    """Elsewhere the reset of a window overwrote what was being spent."""
    clock = Clock()
    store = opened(tmp_path, clock)
    _, key = store.create("ann", Limits(day_usd=usd(1), total_usd=usd(10)))
    desk = Desk(store)
    before = desk.hold(key.id, offer("1"))
    clock.wall += timedelta(days=1)
    after = desk.hold(key.id, offer("1"))
    desk.settle(before, "0.9")
    desk.settle(after, "0.8")
    assert sums(store, key.id, 0) == (usd("0.8"), 0, 0)
    assert sums(store, key.id, 2) == (usd("1.7"), 0, 0)


async def test_no_way_out_of_a_request_leaks_its_reservation(tmp_path):
    """Elsewhere reservations that nobody released refused later requests: phantom spend."""
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd("1.1")))
    gate = KeyGate(LocalBank(store))

    async def request(how: str) -> None:
        held = await gate.reserve(Caller(key.id, "ann"), [offer("1")])
        assert isinstance(held, Hold), held
        spent = None
        try:
            if how == "error":
                raise ValueError
            if how == "cancelled":
                raise asyncio.CancelledError
            spent = usd("0.01")
        finally:
            await (gate.release(held) if spent is None else gate.settle(held, spent, 5))

    for how in ("answered", "error", "cancelled") * 10:
        await asyncio.gather(request(how), return_exceptions=True)
    assert sums(store, key.id) == (usd("0.1"), 0, 0)


def test_after_ten_thousand_calls_the_sum_is_what_they_have_cost_to_the_last_digit(tmp_path):
    """Elsewhere counters drifted: $50 where $14 were spent."""
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(100)))
    price, expected = Price(usd("0.05"), usd("0.4")), usd(0)
    for start in range(0, 10_000, 500):
        ids = [f"hold-{n}" for n in range(start, start + 500)]
        costs = [price.cost_usd(Usage(7 + n, (n * 37) % 501)) for n in range(start, start + 500)]
        store.apply("r", [Ask(id, key.id, (offer("0.001"),)) for id in ids])
        store.apply("r", [Close(id, cost, 10) for id, cost in zip(ids, costs, strict=True)])
        expected += sum(costs)
    assert sums(store, key.id) == sums(store) == (expected, 0, 0)
    assert store.usage(key.id)[2].calls == 10_000


def test_what_was_reserved_by_the_estimate_is_enforced_by_what_it_really_cost(tmp_path):
    """Elsewhere $111 were enforced where $55 were real: estimates stayed booked."""
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    desk = Desk(store)
    for _ in range(10):
        desk.settle(desk.hold(key.id, offer("0.55")), "0.05")
    assert sums(store, key.id) == (usd("0.5"), 0, 0)


def test_a_counter_that_cannot_be_read_refuses(tmp_path):
    """Elsewhere "fail closed" failed open."""
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    store.path.unlink()
    with pytest.raises(StorageError):
        Desk(store).ask(key.id, offer("0"))


async def test_a_stream_that_breaks_off_is_paid_for_what_was_generated(tmp_path):
    """Elsewhere streams were priced at zero: 830 euros invoiced, $1.47 reported."""
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    gate = KeyGate(LocalBank(store))
    whole = await gate.reserve(Caller(key.id, "ann"), [offer("0.4")])
    lost = await gate.reserve(Caller(key.id, "ann"), [offer("0.4")])
    assert isinstance(whole, Hold)
    assert isinstance(lost, Hold)
    await gate.settle(whole, usd("0.013"), 130)  # the tokens so far
    await gate.settle(lost, usd("0"), 0, unknown=True)  # nobody knows: never zero
    assert sums(store, key.id) == (usd("0.013"), usd("0.4"), 0)


def test_a_model_of_ones_own_is_paid_at_its_price(tmp_path):
    """Elsewhere self-hosted models cost nothing."""
    store = opened(tmp_path)
    _, key = store.create("ann", Limits(total_usd=usd("0.00002")))
    price = Price(input_usd_per_mtok=usd("0.01"), output_usd_per_mtok=usd("0.04"))
    own = Offer(Candidate("own", "vanilla"), price.worst_case_usd(200, 400), 600)
    desk = Desk(store)
    desk.settle(desk.hold(key.id, own), price.cost_usd(Usage(200, 300)), 500)
    assert sums(store, key.id) == (usd("0.000014"), 0, 0)
    assert desk.refusal(key.id, own).kind == "budget_exceeded"


@pytest.mark.parametrize(
    "limits", [Limits(total_usd=usd(0)), Limits(day_usd=usd(1)), Limits(max_request_usd=usd(0))]
)
def test_an_exhausted_budget_does_not_block_what_costs_nothing(tmp_path, limits):
    """Elsewhere it did."""
    store = opened(tmp_path)
    _, key = store.create("ann", limits)
    desk = Desk(store)
    if limits.day_usd:
        desk.settle(desk.hold(key.id, offer("1")), "1")
    free = offer("0", "own:vanilla")
    assert desk.hold(key.id, offer("0.5"), free).offer == free
    held = desk.hold(key.id, free)
    desk.settle(held, "0", 10)


def test_many_keys_share_one_budget(tmp_path):
    """Asked for elsewhere: one budget over a group, whoever spends it."""
    store = opened(tmp_path)
    keys = [store.create(f"k{n}")[1] for n in range(5)]
    store.change("global", Limits(day_usd=usd(1)))
    desk = Desk(store)
    found = [desk.ask(keys[n % 5].id, offer("0.15")) for n in range(20)]
    assert sum(isinstance(one, Hold) for one in found) == 6
    assert sums(store) == (0, 0, Decimal("0.90"))
