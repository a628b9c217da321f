"""Batches on a real cluster: jobs on the parts of a running application, cancelled, left, taken up again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from rtr_ray.config import ServeFile, load_pool
from rtr_ray.gate import Caller
from rtr_ray.keys import KeyStore, Limits
from rtr_ray.online.problems import RequestError
from rtr_ray.types import Usage
from tests.distributed.conftest import Cluster
from tests.distributed.engine import FakeEngine, metered
from tests.distributed.workbench import Workbench

pytestmark = pytest.mark.ray

APP = "endpoint"
ANYBODY = Caller("", "anonymous")


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Front:
    """What stands before the engines in one application, as the ingress does."""

    def __init__(self, **engines: Any) -> None:
        self._engines = engines


@pytest.fixture
def place(tmp_path: Path, connected: Cluster) -> Iterator[Callable[..., Any]]:
    """A running application of two fake engines; gives places for its batches."""
    from rtr_ray.distributed.online.batches_actor import BatchPlace

    bench = Workbench(tmp_path, "none")
    bench.pool()
    bench.router({"weak": 0.3, "strong": 0.9})
    engines = {
        name: FakeEngine.options(name=f"OnlineServer:{name}").bind(
            name, skill=0.5, meter=str(bench.meter), latency_s=0.02
        )
        for name in ("weak", "strong")
    }
    serve.start(proxy_location="Disabled")
    serve.run(Front.bind(**engines), name=APP, route_prefix=None)

    def made(**more: Any) -> Any:
        file = ServeFile(
            pool=str(tmp_path / "pool.yaml"),
            router=str(tmp_path / "router"),
            folder=str(tmp_path / "kept"),
            **more,
        )
        return BatchPlace.of(file, APP)

    try:
        yield made
    finally:
        serve.delete(APP)


def order(place: Any, caller: Caller = ANYBODY) -> dict[str, Any]:
    from rtr_ray.online.batches import BatchOrder

    policy = {"kind": "score", "lam": 1.0}
    return BatchOrder.of(place.file.router, "refuse", policy, 1e-4, caller).to_json()


def line(id: str, text: str, model: str = "auto", **more: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    value = {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(value).encode() + b"\n"


def begun(batches: Any, lines: list[bytes], place: Any, caller: Caller = ANYBODY, **metadata: str) -> str:
    upload = batches.append(None, lines[0])
    for one in lines[1:]:
        batches.append(upload, one)
    file = batches.keep(caller.key_id, upload, "in.jsonl", "batch")
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "metadata": metadata or None}
    made: dict[str, Any] = batches.create(caller.key_id, asked, order(place, caller))
    return str(made["id"])


def until(batches: Any, batch: str, *statuses: str, key: str = "") -> dict[str, Any]:
    deadline = time.monotonic() + 240
    while (found := batches.retrieve(key, batch))["status"] not in statuses:
        assert found["status"] not in ("failed", "completed", "cancelled"), found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return dict(found)


def lines_of(batches: Any, file_id: str | None, key: str = "") -> dict[str, Any]:
    if file_id is None:
        return {}
    rows = batches.read(key, file_id, 0, 1 << 24).decode().splitlines()
    found = {row["custom_id"]: row for row in map(json.loads, rows)}
    assert len(found) == len(rows)
    return found


def test_a_mixed_file_is_answered_by_the_engines_of_the_application_within_its_keys_limits(
    place: Any, tmp_path: Path
) -> None:
    from rtr_ray.distributed.online.batches_actor import SharedBatches

    keys = KeyStore(tmp_path / "keys.sqlite")
    limits = Limits(total_usd=Decimal("0.01"), candidates=("weak:vanilla", "strong:cot", "strong:vanilla"))
    _, key = keys.create("ann", limits)
    caller = Caller(key.id, "ann", limits.candidates, Decimal("0.0005"))
    here = place(keys=str(tmp_path / "keys.sqlite"))
    batches = SharedBatches(here)
    lines = [line(f"r{i}", f"what is {i} + 1?") for i in range(6)]
    lines += [line("n", "what is 1 + 1?", "weak"), line("s", "POISON 2 + 2", "strong:cot")]
    lines += [line("t", "what is 3 + 3?", "strong", max_tokens=3)]
    batch = begun(batches, lines, here, caller)
    done = until(batches, batch, "completed", key=key.id)
    assert done["request_counts"] == {"total": 9, "completed": 8, "failed": 1}
    output = lines_of(batches, done["output_file_id"], key.id)
    bodies = {id: row["response"]["body"] for id, row in output.items()}
    assert {bodies[f"r{i}"]["model"] for i in range(6)} <= set(limits.candidates or ())
    assert (bodies["n"]["model"], bodies["t"]["model"]) == ("weak:vanilla", "strong:vanilla")
    assert bodies["t"]["usage"]["completion_tokens"] <= 3
    errors = lines_of(batches, done["error_file_id"], key.id)
    assert errors["s"]["error"]["message"].startswith("refused: POISON")
    (used,) = [one for one in keys.usage(key.id) if one.period == "all"]
    assert used.spent_usd == sum(Decimal(body["rtr"]["cost_usd"]) for body in bodies.values()) > 0
    assert (used.reserved_usd, used.unknown_usd) == (0, 0)
    assert len(metered(tmp_path / "meter.jsonl")) == 8
    assert batches.leave()


def test_what_was_answered_before_a_cancellation_is_in_the_output_and_a_batch_that_is_left_goes_on(
    place: Any, tmp_path: Path
) -> None:
    from rtr_ray.distributed.online.batches_actor import SharedBatches

    here = place(batches={"share": 0.01})  # a few at a time
    first = SharedBatches(here)
    cancelled, left = (
        begun(first, [line(f"r{i}", f"SLOW what is {i} + {more}?", "weak") for i in range(300)], here)
        for more in (1, 2)
    )

    def paid(more: int) -> list[str]:
        texts = [one["text"] for one in metered(tmp_path / "meter.jsonl")]
        return [text for text in texts if f" + {more}?" in text]

    _wait_until(lambda: first.retrieve("", cancelled)["request_counts"]["completed"] > 0)
    assert first.cancel("", cancelled)["status"] == "cancelling"
    done = until(first, cancelled, "cancelled")
    answered = lines_of(first, done["output_file_id"])
    assert 0 < len(answered) < 300
    assert done["request_counts"]["completed"] == len(answered)
    assert len(paid(1)) == len(answered)

    _wait_until(lambda: len(paid(2)) >= 3)
    assert first.leave()
    second = SharedBatches(here)
    assert until(second, left, "completed")["request_counts"]["completed"] == 300
    assert set(Counter(paid(2)).values()) == {1}
    assert len(paid(1)) == len(answered)
    assert second.leave()


async def test_a_batch_whose_actor_is_killed_goes_on_and_its_key_pays_for_what_was_in_flight(
    place: Any, tmp_path: Path
) -> None:
    import ray

    from rtr_ray.distributed.online.batches_actor import NAMESPACE, RemoteBatches, end_batches
    from rtr_ray.errors import MissingError

    keys = KeyStore(tmp_path / "keys.sqlite")
    _, key = keys.create("ann", Limits(total_usd=Decimal(1)))
    caller, count = Caller(key.id, "ann"), 200
    here = place(batches={"share": 0.01}, keys=str(tmp_path / "keys.sqlite"))
    remote = RemoteBatches(here)
    with pytest.raises(MissingError, match="no such batch"):
        await remote.call("retrieve", key.id, "batch_nobody")
    upload = await remote.call("append", None, b"")
    lines = (line(f"r{i}", f"SLOW what is {i} + 1?", "weak") for i in range(count))
    await remote.call("append", upload, b"".join(lines))
    file = await remote.call("keep", key.id, upload, "in.jsonl", "batch")
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    batch = (await remote.call("create", key.id, asked, order(here, caller)))["id"]
    meter = tmp_path / "meter.jsonl"
    _wait_until(lambda: len(metered(meter)) >= 5)
    ray.kill(ray.get_actor(here.name, namespace=NAMESPACE), no_restart=False)
    deadline = time.monotonic() + 240
    while True:
        with contextlib.suppress(RequestError):  # until it is there again
            found = await remote.call("retrieve", key.id, batch)
            if found["status"] == "completed":
                break
            assert found["status"] in ("in_progress", "finalizing"), found
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert found["request_counts"] == {"total": count, "completed": count, "failed": 0}
    output = await remote.call("read", key.id, found["output_file_id"], 0, 1 << 24)
    rows = [json.loads(one) for one in output.splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows) == count
    price = load_pool(here.file.pool).deployments["weak"].price
    paid = sum(price.cost_usd(Usage(one["input_tokens"], one["output_tokens"], 1)) for one in metered(meter))
    (used,) = [one for one in keys.usage(key.id) if one.period == "all"]
    assert used.reserved_usd == 0
    assert used.spent_usd >= paid  # what was in flight counts as paid in full
    end_batches(here.file, APP)


def _wait_until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_cannot_be_asked_fails_before_anything_is(place: Any, tmp_path: Path) -> None:
    from rtr_ray.distributed.online.batches_actor import SharedBatches

    here = place()
    batches = SharedBatches(here)
    for lines, says in [
        ([b"\n"], "empty"),
        ([b"{\n"], "Line 1 is not JSON"),
        ([line("a", "x", "nobody")], "Line 1: There is no model 'nobody'"),
        ([line("a", "x"), line("a", "y")], "Line 2 has the custom_id of line 1"),
        ([line("a", "x")], "budget"),
    ]:
        batch = begun(batches, lines, here, budget_usd="0.000000001")
        found = until(batches, batch, "failed")
        assert says in found["errors"]["data"][0]["message"]
    assert metered(tmp_path / "meter.jsonl") == []
    deleted = begun(batches, [line("a", "x")], here)
    batches.delete_file("", batches.retrieve("", deleted)["input_file_id"])
    until(batches, deleted, "failed", "completed")  # whichever came first; never in between
    assert batches.leave()
