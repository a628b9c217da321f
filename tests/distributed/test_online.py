"""The ingress without Serve around it: another router in flight, models that die, what it refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from rtr_ray.config import ServeFile
from rtr_ray.errors import RouterError
from tests.distributed.workbench import POOL, Workbench

pytestmark = pytest.mark.ray

WORDS = ["I", "think", "it", "is", "\\boxed{4}"]


class ActorGoneError(Exception):
    """Named as Ray names what happens to calls whose actor dies."""


@dataclass
class FakeHandle:
    """A deployment's handle, and the one replica behind it."""

    deployment_name: str
    dead: bool = False  # calls fail, as those do that a replica takes with it
    gone: bool = False  # calls wait for a replica that does not come
    calls: int = 0
    stopped: list[str] = field(default_factory=list)
    pace: asyncio.Event | None = None
    rows: list[Any] = field(default_factory=list)

    def options(self, **_: Any) -> FakeHandle:
        return self

    @property
    def generate(self) -> FakeHandle:
        return self

    def remote(self, call: str, body: dict[str, Any], stream: bool) -> FakeResponse:
        self.calls += 1
        return FakeResponse(self, stream)

    def broadcast(self, method: str, call: str) -> FakeHandle:
        assert method == "stop"
        self.stopped.append(call)
        return self

    async def results_async(self) -> list[Any]:
        return [None, (9, 0, 1)]


class FakeResponse:
    """What a call gives back."""

    def __init__(self, handle: FakeHandle, stream: bool) -> None:
        self._pieces = self._made(handle, stream)

    def cancel(self) -> None:
        """Ray's is best effort, and so is this."""

    def __aiter__(self) -> FakeResponse:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._pieces)

    async def _made(self, handle: FakeHandle, stream: bool) -> AsyncIterator[dict[str, Any]]:
        if handle.dead:
            raise ActorGoneError
        if handle.gone:
            await asyncio.Event().wait()
        for number, word in enumerate(WORDS):
            if number and handle.pace is not None:
                await handle.pace.wait()
            chunk = {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            yield {"counted": (9, 0, number + 1), "chunks": [chunk] if stream else []}
        message = {"role": "assistant", "content": " ".join(WORDS)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        yield {"counted": (9, 0, 5), "choices": None if stream else choices, "ended": True}


@dataclass
class FakeMemory:
    """Takes rows."""

    rows: list[Any] = field(default_factory=list)

    @property
    def remember(self) -> FakeMemory:
        return self

    @property
    def count(self) -> FakeMemory:
        return self

    async def remote(self, rows: Any) -> None:
        if isinstance(rows, list):
            self.rows += rows


@pytest.fixture
async def ingress(tmp_path: Path) -> Any:
    """An ingress replica with a router that prefers the strong model."""
    from rtr_ray.distributed.online.ingress import RoutingIngress, Setting

    class Alone(RoutingIngress):
        async def _watch(self) -> None:
            self.handles = handles

    bench = Workbench(tmp_path, "none")
    bench.pool()
    bench.router({"weak": 0.3, "strong": 0.9})
    file = ServeFile(
        pool=str(tmp_path / "pool.yaml"), folder=str(tmp_path / "kept"), ingress={"patience_s": 20.0}
    )
    handles = {name: FakeHandle(f"OnlineServer:{name}") for name in ("weak", "strong")}
    setting = Setting(file, {"weak": 8, "strong": 8}, frozenset())
    alone = Alone(handles, dict.fromkeys(handles), setting=setting, memory=FakeMemory())
    await alone.reconfigure(config(tmp_path / "router"))
    return alone


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not seen():
            await asyncio.sleep(0.01)


def config(router: Path, lam: float = 1.0, **more: Any) -> dict[str, Any]:
    policy = {"kind": "score", "lam": lam, "normaliser_usd": 1e-4}
    return {"router": str(router), "policy": policy, **more}


async def ask(ingress: Any, model: str = "auto", headers: dict[str, str] | None = None, **more: Any) -> Any:
    content = {"model": model, "messages": [{"role": "user", "content": "2 + 2?"}], **more}
    return await ingress.chat(request(json.dumps(content).encode(), headers or {}))


def request(body: bytes, headers: dict[str, str]) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": listed}, receive)


def model_of(response: Any) -> str:
    assert response.status_code == 200, response.body
    name: str = json.loads(response.body)["model"]
    return name


async def test_another_router_or_policy_takes_over_in_flight_and_a_bad_one_changes_nothing(
    ingress: Any, tmp_path: Path
) -> None:
    assert model_of(await ask(ingress)).startswith("strong:")
    ingress.handles["strong"].pace = asyncio.Event()
    under_way = [asyncio.create_task(ask(ingress)) for _ in range(8)]
    await until(lambda: ingress.handles["strong"].calls == 1 + 8)
    await ingress.reconfigure(config(tmp_path / "router", lam=0.0))
    assert model_of(await ask(ingress)) == "weak:vanilla"
    ingress.handles["strong"].pace.set()
    assert all(model_of(one).startswith("strong:") for one in await asyncio.gather(*under_way))

    await ingress.reconfigure(config(tmp_path / "vanished"))
    assert model_of(await ask(ingress)) == "weak:vanilla"
    health = json.loads((await ingress.health()).body)
    assert "vanished is not a router folder" in health["refused_change"]
    await ingress.reconfigure(config(tmp_path / "router", lam=1.0))
    assert model_of(await ask(ingress)).startswith("strong:")
    assert json.loads((await ingress.health()).body)["refused_change"] is None


async def test_the_first_router_must_be_there(ingress: Any, tmp_path: Path) -> None:
    ingress._endpoint = ingress._follower.entry = None
    with pytest.raises(RouterError, match="not a router folder"):
        await ingress.reconfigure(config(tmp_path / "vanished"))


async def test_a_shadow_chooses_and_does_not_serve(ingress: Any, tmp_path: Path) -> None:
    chosen = []
    ingress._notes.shadow = chosen.append
    shadow = {"policy": {"kind": "score", "lam": 0.0, "normaliser_usd": 1e-4}}
    await ingress.reconfigure(config(tmp_path / "router", shadow=shadow))
    assert model_of(await ask(ingress)).startswith("strong:")
    await until(lambda: chosen != [])
    assert [str(one.candidate) for one in chosen] == ["weak:vanilla"]


async def test_calls_of_a_replica_that_dies_and_those_that_wait_for_one_go_elsewhere(ingress: Any) -> None:
    strong = ingress.handles["strong"]
    strong.gone = True
    waiting = [asyncio.create_task(ask(ingress)) for _ in range(3)]
    await until(lambda: strong.calls == 3)
    strong.gone, strong.dead = False, True
    first = await ask(ingress)
    assert model_of(first) == "weak:vanilla"
    assert {model_of(one) for one in await asyncio.gather(*waiting)} == {"weak:vanilla"}
    named = await ask(ingress, "strong:cot")
    assert (named.status_code, named.headers["retry-after"]) == (503, "5")
    strong.dead = False
    ingress._replicas._suspected.clear()  # as time does
    assert model_of(await ask(ingress)).startswith("strong:")


async def test_a_stream_that_is_left_is_stopped_at_every_replica(ingress: Any) -> None:
    strong = ingress.handles["strong"]
    strong.pace = asyncio.Event()
    response = await ask(ingress, "strong:cot", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    await response._reply.close()
    assert len(strong.stopped) == 1
    assert ingress._endpoint.here == 0
    assert ingress._replicas._flying == {"strong": 0}


async def test_a_page_of_another_origin_and_a_body_that_is_too_large_are_refused(ingress: Any) -> None:
    assert (await ask(ingress, headers={"host": "here", "origin": "http://here"})).status_code == 200
    assert (await ask(ingress, headers={"host": "here", "origin": "http://evil"})).status_code == 403
    large = await ingress.chat(request(b" " * (5 << 20), {}))
    assert large.status_code == 413


async def test_what_was_answered_goes_to_the_memory_with_both_of_its_names(ingress: Any) -> None:
    answered = await ask(ingress, headers={"x-request-id": "mine"})
    await ingress._flush()
    ((row, name),) = ingress._memory.rows
    assert name == "mine"
    assert row["query_id"] == json.loads(answered.body)["id"]
    assert row["query"] == "2 + 2?"


async def test_a_router_is_used_and_rolled_back_under_way_and_a_folder_that_vanished_does_no_harm(
    ingress: Any, tmp_path: Path
) -> None:
    other = Workbench(tmp_path / "other", "none")
    (tmp_path / "other").mkdir()
    other.pool()
    other.router({"weak": 0.9, "strong": 0.3})
    served, follower = ingress._follower.served, ingress._follower
    assert model_of(await ask(ingress)).startswith("strong:")
    ingress.handles["strong"].pace = asyncio.Event()
    under_way = [asyncio.create_task(ask(ingress)) for _ in range(4)]
    await until(lambda: ingress.handles["strong"].calls == 1 + 4)
    keys = follower.entry.swap.model_copy(update={"router": str(tmp_path / "other" / "router")})
    served.use(keys)
    await follower.look()
    assert model_of(await ask(ingress)) == "weak:vanilla"
    shutil.rmtree(tmp_path / "router")  # of what was served before
    served.roll_back()
    await follower.look()
    ingress.handles["strong"].pace.set()
    assert model_of(await ask(ingress)).startswith("strong:"), "from its copy"
    assert all(model_of(one).startswith("strong:") for one in await asyncio.gather(*under_way))
    health = json.loads((await ingress.health()).body)
    assert health["serving"]["number"] == 0
    assert "is not a router folder" in health["warning"]
    assert health["refused_change"] is None


def test_the_ingress_scales_between_its_bounds_and_a_pool_may_hold_endpoints_of_others(
    tmp_path: Path,
) -> None:
    from ray.serve.config import AutoscalingConfig

    from rtr_ray.config import IngressKeys
    from rtr_ray.distributed.online.application import _replicas, application
    from rtr_ray.gate import OpenGate

    assert _replicas(IngressKeys(replicas=2)) == {"num_replicas": 2}
    found = _replicas(IngressKeys(replicas=[1, 3], target_in_flight=40.0))["autoscaling_config"]
    scaling = AutoscalingConfig(**found)
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 40.0)
    bench = Workbench(tmp_path, "none")
    theirs = POOL["deployments"]["strong"] | {"openai": {"base_url": "http://127.0.0.1:9/v1"}}
    del theirs["source"]
    bench.pool(deployments=dict.fromkeys(POOL["deployments"], theirs))
    file = ServeFile(
        pool=str(tmp_path / "pool.yaml"), router=str(bench.router()), folder=str(tmp_path / "kept")
    )
    assert application(file, OpenGate) is not None
