"""The keys' owner on a real cluster: replicas in other processes, and deaths on both sides."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.gate import Caller, Hold, Refusal
from rtr_ray.keys import KeyStore, Limits
from tests.keys.bench import offer, sums, usd

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("connected")]


def replica(path: Path, lease_s: float) -> Any:
    """An ingress replica, as far as the keys know it."""
    import ray

    from rtr_ray.distributed.online.keys_actor import keys_actor

    class Replica:
        def __init__(self, path: str, lease_s: float) -> None:
            from rtr_ray.distributed.online.keys_actor import remote_gate

            self.gate = remote_gate(path, lease_s)
            self.held: list[Hold] = []

        async def admit(self, token: str) -> Caller | Refusal:
            return await self.gate.admit(token)

        async def hold(self, caller: Caller, worst: str, count: int) -> list[str]:
            found = await asyncio.gather(*(self.gate.reserve(caller, [offer(worst)]) for _ in range(count)))
            self.held += [one for one in found if isinstance(one, Hold)]
            return ["held" if isinstance(one, Hold) else one.kind for one in found]

        async def settle(self, spent: str) -> int:
            mine, self.held = self.held, []
            await asyncio.gather(*(self.gate.settle(one, Decimal(spent), 10) for one in mine))
            return self.gate.owed

        async def owed(self) -> int:
            return self.gate.owed

    # a gate waits ten seconds for an answer, and a process may take as long to start
    ray.get(keys_actor(str(path), lease_s).__ray_ready__.remote())
    return ray.remote(num_cpus=0)(Replica).remote(str(path), lease_s)


@pytest.fixture
def path(tmp_path: Path) -> Any:
    from rtr_ray.distributed.online.keys_actor import end_keys_actor

    path = tmp_path / "keys.sqlite"
    yield path
    end_keys_actor(str(path))


def until(done: Any, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def test_replicas_in_several_processes_do_not_overspend_together(path):
    import ray

    store = KeyStore(path)
    token, key = store.create("ann", Limits(day_usd=usd(1)))
    replicas = [replica(path, 60.0) for _ in range(3)]
    callers = ray.get([one.admit.remote(token) for one in replicas])
    assert callers == [Caller(key.id, "ann")] * 3
    found = ray.get([one.hold.remote(callers[0], "0.1", 40) for one in replicas])
    kinds = [kind for each in found for kind in each]
    assert kinds.count("held") == 10
    assert kinds.count("budget_exceeded") == 110
    assert ray.get([one.settle.remote("0.05") for one in replicas]) == [0, 0, 0]
    assert sums(store, key.id) == (usd("0.5"), 0, 0)


@pytest.mark.parametrize("for_good", [False, True])
def test_an_owner_that_dies_comes_back_and_knows_everything(path, for_good):
    import ray

    from rtr_ray.distributed.online.keys_actor import keys_actor

    store = KeyStore(path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    caller, one = Caller(key.id, "ann"), replica(path, 3.0)
    assert ray.get(one.hold.remote(caller, "0.4", 2)) == ["held", "held"]
    ray.kill(keys_actor(str(path)), no_restart=for_good)
    kinds: list[str] = []
    until(lambda: kinds.extend(ray.get(one.hold.remote(caller, "0.3", 1))) or kinds[-1] != "unavailable")
    assert kinds[-1] == "budget_exceeded"
    ray.get(one.settle.remote("0.1"))
    until(lambda: ray.get(one.owed.remote()) == 0)
    assert sums(store, key.id) == (usd("0.2"), 0, 0)
    assert ray.get(one.hold.remote(caller, "0.8", 1)) == ["held"]


def test_what_a_dead_replica_held_is_spent_in_full_and_no_more_can_be_spent_with_it(path):
    import ray

    store = KeyStore(path)
    _, key = store.create("ann", Limits(total_usd=usd(1)))
    caller, dying, living = Caller(key.id, "ann"), replica(path, 60.0), replica(path, 60.0)
    assert ray.get(dying.hold.remote(caller, "0.3", 2)) == ["held"] * 2
    assert ray.get(living.hold.remote(caller, "0.1", 1)) == ["held"]
    ray.kill(dying)
    assert ray.get(living.hold.remote(caller, "0.4", 1)) == ["budget_exceeded"]
    ray.get(living.settle.remote("0.05"))
    later = KeyStore(path, monotonic=lambda: time.monotonic() + 61)
    later.apply("another", [])
    assert sums(store, key.id) == (usd("0.05"), usd("0.6"), 0)
    assert ray.get(living.hold.remote(caller, "0.36", 1)) == ["budget_exceeded"]
    assert ray.get(living.hold.remote(caller, "0.35", 1)) == ["held"]


def test_a_file_that_is_not_there_grants_nothing_and_is_used_once_it_is(path):
    import ray

    from rtr_ray.distributed.online.keys_actor import keys_actor

    one = replica(path, 60.0)
    found = ray.get(one.admit.remote("rtr-" + "x" * 43))
    assert isinstance(found, Refusal)
    assert found.kind == "unavailable"
    token, _ = KeyStore(path).create("ann")
    assert isinstance(ray.get(one.admit.remote(token)), Caller)
    assert ray.get(keys_actor(str(path)).has_keys.remote())
    together, ann = ray.get(keys_actor(str(path)).standing.remote())
    assert together[0] is None
    assert ann[0].name == "ann"
