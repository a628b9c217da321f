"""The paths of files and batches, without Serve around them and with nobody who carries batches out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from rtr_ray.config import ServeFile
from tests.distributed.workbench import Workbench

pytestmark = pytest.mark.ray

LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
GOOD = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


@pytest.fixture
async def routes(tmp_path: Path) -> Any:
    """The routes of an endpoint without keys, for files of 1 MiB."""
    from rtr_ray.distributed.online.batch_routes import BatchRoutes
    from rtr_ray.distributed.online.batches_actor import BatchPlace, SharedBatches
    from rtr_ray.distributed.online.ingress import RoutingIngress
    from rtr_ray.gate import Caller
    from rtr_ray.online.batches import BatchOrder
    from tests.online.bench import Bench

    bench = Workbench(tmp_path, "none")
    file = ServeFile(
        pool=str(bench.pool()), folder=str(tmp_path / "kept"), batches={"max_file_mib": 1},
        ingress={"body_s": 0.5},
    )  # fmt: skip

    class Idle(SharedBatches):
        def _carry_out_all(self) -> None:
            pass

    class Here:
        """The actor, in this process."""

        def __init__(self) -> None:
            self.shared = Idle(BatchPlace.of(file, "rtr"))

        async def call(self, method: str, *args: Any, **more: Any) -> Any:
            return getattr(self.shared, method)(*args, **more)

    class Alone(BatchRoutes):
        _file, _endpoint, _batches, _open = file, Bench.of().endpoint, Here(), True
        _body, _read, _check_origin = (
            RoutingIngress._body,
            RoutingIngress._read,
            RoutingIngress._check_origin,
        )

        def _batch_order(self, caller: Caller) -> BatchOrder:
            return BatchOrder.of("router", "refuse", {"kind": "score", "lam": 1.0}, 1e-4, caller)

    return Alone()


def request(body: bytes = b"", query: str = "", stops: bool = False, **headers: str) -> Request:
    parts = [body[i : i + 50_000] for i in range(0, len(body), 50_000)] or [b""]

    async def receive() -> dict[str, Any]:
        if not parts or (stops and len(parts) == 1):
            await asyncio.Event().wait()
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": query.encode(), "headers": named}
    return Request(scope, receive)


def form(content: bytes = LINE, purpose: str = "batch", field: str = "file") -> tuple[bytes, str]:
    head = f'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
    head += f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="in.jsonl"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


async def uploaded(routes: Any, content: bytes = LINE, **options: Any) -> Any:
    body, kind = form(content, **options)
    return await routes.upload(request(body, content_type=kind))


async def posted(routes: Any, **body: Any) -> Any:
    return await routes.create_batch(request(json.dumps(body).encode()))


def told(response: Any) -> Any:
    return json.loads(response.body)


async def content(routes: Any, id: str) -> bytes:
    response = await routes.file_content(id, request())
    return b"".join([part async for part in response.body_iterator])


async def test_a_file_comes_back_as_it_was_sent_and_goes_when_it_is_deleted(routes: Any) -> None:
    sent = LINE * 9000
    file = told(await uploaded(routes, sent))
    assert (file["object"], file["bytes"], file["filename"]) == ("file", len(sent), "in.jsonl")
    assert await content(routes, file["id"]) == sent
    assert told(await routes.file(file["id"], request())) == file
    assert told(await routes.files(request(query="limit=5&purpose=batch")))["data"] == [file]
    assert told(await routes.delete_file(file["id"], request()))["deleted"]
    for gone in (routes.file, routes.file_content, routes.delete_file):
        response = await gone(file["id"], request())
        assert (response.status_code, told(response)["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"content": b"x" * (3 << 20)}, 413),
        ({"purpose": "fine-tune"}, 400),
        ({"field": "other"}, 400),
    ],
)
async def test_what_is_no_batch_file_is_not_kept(routes: Any, options: dict[str, Any], status: int) -> None:
    response = await uploaded(routes, **options)
    assert response.status_code == status, response.body
    assert told(response)["error"]["message"]
    assert told(await routes.files(request()))["data"] == []
    assert list((Path(routes._batches.shared._place.folder) / "uploads").glob("*")) == []


async def test_a_form_that_is_none_or_stops_coming_is_refused(routes: Any) -> None:
    body, kind = form(LINE * 5000)
    assert (await routes.upload(request(body))).status_code == 400
    assert (await routes.upload(request(body, content_type="multipart/form-data"))).status_code == 400
    slow = await routes.upload(request(body, stops=True, content_type=kind))
    assert slow.status_code == 408


async def test_a_batch_is_made_listed_and_cancelled(routes: Any) -> None:
    file = told(await uploaded(routes))
    asked = GOOD | {"input_file_id": file["id"], "metadata": {"budget_usd": "0.5"}}
    first, second = told(await posted(routes, **asked)), told(await posted(routes, **asked))
    assert (first["object"], first["status"]) == ("batch", "validating")
    page = told(await routes.batches(request(query="limit=1")))
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([second["id"]], True)
    rest = told(await routes.batches(request(query=f"after={second['id']}")))
    assert [one["id"] for one in rest["data"]] == [first["id"]]
    assert told(await routes.cancel_batch(first["id"], request()))["status"] == "cancelling"
    assert told(await routes.batch(first["id"], request()))["status"] == "cancelling"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"input_file_id": "file-nobody"}, 404),
        ({"endpoint": "/v1/embeddings"}, 400),
        ({"completion_window": "1h"}, 400),
        ({"metadata": {"budget_usd": "much"}}, 400),
        ({"metadata": {"a": 3}}, 400),
        ({"model": "auto"}, 400),
    ],
)
async def test_what_is_no_batch_is_refused(routes: Any, body: dict[str, Any], status: int) -> None:
    file = told(await uploaded(routes))
    whole = GOOD | {"input_file_id": file["id"]} | body if body else {}
    response = await posted(routes, **whole)
    assert response.status_code == status, response.body
    assert told(response)["error"]["message"]
    assert told(await routes.batches(request()))["data"] == []


@pytest.mark.parametrize("name", ["", "x" * 5000, "batch_\0", "../keys.sqlite", "ä", "\ud800", "' OR 1=1 --"])
async def test_strange_ids_are_not_there(routes: Any, name: str) -> None:
    for method in (routes.file, routes.file_content, routes.batch, routes.cancel_batch, routes.delete_file):
        assert (await method(name, request())).status_code == 404


@pytest.mark.parametrize("query", ["limit=x", "limit=0", "limit=-1", "limit=1000000", "after=nobody"])
async def test_strange_pages_are_refused(routes: Any, query: str) -> None:
    for method in (routes.files, routes.batches):
        assert (await method(request(query=query))).status_code in (400, 404)


async def test_a_page_of_another_origin_and_a_key_that_nobody_knows_get_nothing(routes: Any) -> None:
    for method in (routes.files, routes.batches, routes.upload, routes.create_batch):
        foreign = await method(request(host="here", origin="http://evil"))
        assert foreign.status_code == 403
        assert (await method(request(authorization="Bearer bad"))).status_code == 401


async def test_an_owner_that_cannot_answer_is_503(routes: Any) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        from rtr_ray.errors import StorageError

        raise StorageError("The keys cannot be used: locked.")

    routes._batches.call = broken
    response = await routes.batches(request())
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    routes._batches = None
    assert (await routes.files(request())).status_code == 503
