"""The gate of a replica: what the endpoint asks, and what becomes of it when things go wrong."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.errors import StorageError
from rtr_ray.gate import Caller, Gate, Hold, Refusal
from rtr_ray.keys import Ask, KeyGate, KeyStore, Limits, LocalBank
from rtr_ray.keys.operations import Operation, Result
from tests.keys.bench import Clock, offer, opened, sums, usd


@dataclass
class Recording:
    """A bank that writes down what it is asked, and can be broken."""

    store: KeyStore
    calls: list[list[Operation]] = field(default_factory=list)
    broken: str = ""  # "before": nothing is done; "after": it is done, and nobody hears of it
    waits: asyncio.Event | None = None

    async def apply(self, owner: str, operations: Sequence[Operation]) -> list[Result]:
        self.calls.append(list(operations))
        if self.waits is not None:
            await self.waits.wait()
        if self.broken == "before":
            raise StorageError("The keys cannot be used.")
        results = self.store.apply(owner, operations)
        if self.broken == "after":
            raise StorageError("The keys did not say.")
        return results


async def until(done: Any) -> None:
    for _ in range(6000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


def one_key(folder: Path, total: str = "1", **more: Any) -> tuple[KeyStore, str, Caller]:
    store = opened(folder, **more)
    token, key = store.create("ann", Limits(total_usd=usd(total)))
    return store, token, Caller(key.id, "ann")


async def test_who_has_a_key_gets_through_and_pays(tmp_path):
    store, token, _ = one_key(tmp_path)
    gate: Gate = KeyGate(LocalBank(store))
    for bearer in (token, f"Bearer {token}", f"bearer  {token} "):
        assert isinstance(await gate.admit(bearer), Caller)
    caller = await gate.admit(token)
    assert isinstance(caller, Caller)
    held = await gate.reserve(caller, [offer("0.7")])
    assert isinstance(held, Hold)
    assert isinstance(await gate.reserve(caller, [offer("0.7")]), Refusal)
    await gate.settle(held, usd("0.2"), 10)
    await gate.settle(held, usd("0.2"), 10)
    second = await gate.reserve(caller, [offer("0.7")])
    assert isinstance(second, Hold)
    await gate.release(second)
    third = await gate.reserve(caller, [offer("0.7")])
    assert isinstance(third, Hold)
    await gate.settle(third, usd("0.1"), 5, unknown=True)
    assert sums(store) == (usd("0.2"), usd("0.7"), 0)


@pytest.mark.parametrize(
    "bearer", [None, "", "rtr-", "Bearer", "sk-123", "Basic abc", "rtr-" + "x" * 43, "x" * 10**6]
)
async def test_who_has_no_key_does_not_get_through(tmp_path, bearer):
    store, _, _ = one_key(tmp_path)
    found = await KeyGate(LocalBank(store)).admit(bearer)
    assert isinstance(found, Refusal)
    assert (found.kind, found.retry_after_s) == ("invalid_api_key", None)
    assert len(bearer or "") < 6 or bearer == "Bearer" or bearer[4:40] not in found.message


async def test_what_comes_together_is_one_transaction(tmp_path):
    store, token, caller = one_key(tmp_path, "100")
    bank = Recording(store)
    gate = KeyGate(bank)

    async def request() -> None:
        assert isinstance(await gate.admit(token), Caller)
        held = await gate.reserve(caller, [offer("0.1")])
        assert isinstance(held, Hold)
        await gate.settle(held, usd("0.01"), 10)

    await asyncio.gather(*(request() for _ in range(50)))
    assert sums(store) == (usd("0.5"), 0, 0)
    assert len(bank.calls) <= 6
    assert gate.open_holds == gate.owed == 0


async def test_a_request_that_is_cancelled_while_it_asks_leaves_nothing_set_aside(tmp_path):
    store, _, caller = one_key(tmp_path)
    bank = Recording(store, waits=asyncio.Event())
    gate = KeyGate(bank, lease_s=0.3)
    for moment in (0, 1, 2, 3):  # before it is asked, while, ...
        asking = asyncio.create_task(gate.reserve(caller, [offer("1")]))
        for _ in range(moment):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert bank.waits is not None
    bank.waits.set()
    await until(lambda: sums(store) == (0, 0, 0) and not gate.owed)


async def test_a_request_that_is_cancelled_just_as_the_answer_comes_leaves_nothing_set_aside(tmp_path):
    store, _, caller = one_key(tmp_path)
    for turns in range(12):
        gate = KeyGate(Recording(store), lease_s=0.03)
        asking = asyncio.create_task(gate.reserve(caller, [offer("1")]))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        (found,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(found, Hold):
            await gate.release(found)
        await until(lambda gate=gate: sums(store) == (0, 0, 0) and not gate.owed)


async def test_a_settlement_arrives_although_its_request_is_cancelled(tmp_path):
    store, _, caller = one_key(tmp_path)
    gate = KeyGate(Recording(store))
    held = await gate.reserve(caller, [offer("1")])
    assert isinstance(held, Hold)
    settling = asyncio.create_task(gate.settle(held, usd("0.3"), 1))
    await asyncio.sleep(0)
    settling.cancel()
    await until(lambda: sums(store) == (usd("0.3"), 0, 0))


@pytest.mark.parametrize("broken", ["before", "after"])
async def test_keys_that_cannot_be_asked_grant_nothing_and_lose_nothing(tmp_path, broken):
    store, token, caller = one_key(tmp_path)
    bank = Recording(store)
    gate = KeyGate(bank, lease_s=0.06)
    held = await gate.reserve(caller, [offer("0.4")])
    assert isinstance(held, Hold)
    bank.broken = broken
    found = await gate.reserve(caller, [offer("0.1")])
    assert isinstance(found, Refusal)
    assert (found.kind, found.retry_after_s) == ("unavailable", 1.0)
    admitted = await gate.admit(token)
    assert isinstance(admitted, Refusal)
    assert admitted.kind == "unavailable"
    await gate.settle(held, usd("0.3"), 10)  # the endpoint goes on
    assert gate.owed == 2
    bank.broken = ""
    await until(lambda: not gate.owed)
    assert sums(store) == (usd("0.3"), 0, 0)
    assert isinstance(await gate.admit(token), Caller)


async def test_a_file_that_is_locked_for_a_while_is_used_again_by_itself(tmp_path, caplog):
    store, token, caller = one_key(tmp_path, busy_s=0.02)
    gate = KeyGate(LocalBank(store), lease_s=0.06)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    found = await gate.reserve(caller, [offer("0.1")])
    assert isinstance(found, Refusal)
    assert found.kind == "unavailable"
    assert str(tmp_path) not in found.message  # a client need not know
    assert "another process keeps the file locked. Nothing is spent until" in caplog.text
    other.execute("ROLLBACK")
    other.close()
    assert isinstance(await gate.reserve(caller, [offer("0.1")]), Hold)
    assert isinstance(await gate.admit(token), Caller)
    assert caplog.text.count("The keys can be read again") == 1


async def test_a_file_that_is_not_there_at_the_start_is_used_once_it_is(tmp_path):
    gate = KeyGate(LocalBank(opened(tmp_path)))
    found = await gate.admit("rtr-" + "x" * 43)
    assert isinstance(found, Refusal)
    assert found.kind == "unavailable"
    _, token, _ = one_key(tmp_path)
    assert isinstance(await gate.admit(token), Caller)


async def test_keys_that_do_not_answer_are_not_waited_for(tmp_path):
    store, _, caller = one_key(tmp_path)
    bank = Recording(store, waits=asyncio.Event())
    gate = KeyGate(bank, patience_s=0.02, lease_s=0.06)
    found = await gate.reserve(caller, [offer("0.1")])
    assert isinstance(found, Refusal)
    assert found.kind == "unavailable"
    assert bank.waits is not None
    bank.waits.set()
    await until(lambda: not gate.owed)
    assert sums(store) == (0, 0, 0)


async def test_the_lease_is_renewed_as_long_as_an_answer_is_generated(tmp_path):
    clock = Clock()
    store, _, caller = one_key(tmp_path, clock=clock, lease_s=60)
    bank = Recording(store)
    gate = KeyGate(bank, lease_s=0.06)
    held = await gate.reserve(caller, [offer("0.5")])
    assert isinstance(held, Hold)
    for _ in range(10):  # each time in the last third of a lease
        clock.pass_by(50)
        store.apply("other", [])
        heard = len(bank.calls)
        await until(lambda heard=heard: len(bank.calls) > heard)
    await gate.settle(held, usd("0.1"), 1)
    assert sums(store) == (usd("0.1"), 0, 0)


async def test_what_nobody_closes_for_hours_is_lost_and_not_leaked(tmp_path):
    store, _, caller = one_key(tmp_path)
    gate = KeyGate(LocalBank(store), lease_s=0.03, oldest_s=0.05)
    held = await gate.reserve(caller, [offer("0.5")])
    assert isinstance(held, Hold)
    await until(lambda: sums(store) == (0, usd("0.5"), 0))
    await gate.settle(held, usd("0.1"), 1)
    assert sums(store) == (0, usd("0.5"), 0)


async def test_a_gate_that_is_idle_runs_nothing(tmp_path):
    store, _, caller = one_key(tmp_path)
    gate = KeyGate(LocalBank(store), lease_s=0.03)
    held = await gate.reserve(caller, [offer("0.5")])
    assert isinstance(held, Hold)
    await gate.release(held)
    mine = {asyncio.current_task()}
    await until(lambda: asyncio.all_tasks() <= mine)


async def test_a_gate_that_is_closed_delivers_what_it_owes(tmp_path):
    store, _, caller = one_key(tmp_path)
    bank = Recording(store)
    gate = KeyGate(bank)
    held = await gate.reserve(caller, [offer("0.5")])
    assert isinstance(held, Hold)
    bank.broken = "before"
    await gate.settle(held, usd("0.2"), 1)
    bank.broken = ""
    await gate.aclose()
    assert sums(store) == (usd("0.2"), 0, 0)


async def test_no_log_error_or_call_holds_a_key(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    store, token, caller = one_key(tmp_path)
    bank = Recording(store)
    gate = KeyGate(bank)
    said: list[Any] = [await gate.admit(token)]
    bank.broken = "before"
    said += [await gate.admit(token + "x"), await gate.admit("Bearer " + token)]
    said.append(await gate.reserve(caller, [offer("0.1")]))
    store.path.unlink()
    bank.broken = ""
    said.append(await gate.reserve(caller, [offer("0.1")]))
    everything = repr(said) + repr(bank.calls) + caplog.text + repr(gate)
    assert token[4:] not in everything
    assert any(isinstance(one, Ask) for call in bank.calls for one in call)
