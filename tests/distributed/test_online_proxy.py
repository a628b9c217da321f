"""What a client hears where no ingress is left to answer it, and where its own body does not come."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rtr_ray.distributed.online.proxy import middlewares
from rtr_ray.online.problems import RequestError

pytestmark = pytest.mark.ray


async def heard(status: int, kind: str, *bodies: bytes) -> httpx.Response:
    """What comes through to a client of an application that answers so."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [[b"content-type", kind.encode()], [b"x-own", b"1"]],
            }
        )
        for place, body in enumerate(bodies):
            await send({"type": "http.response.body", "body": body, "more_body": place + 1 < len(bodies)})

    app: Any = application
    for one in middlewares():
        app = one.cls(app, *one.args, **one.kwargs)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        return await client.get("/v1/models")


@pytest.mark.parametrize("status", [500, 503])
async def test_a_replica_that_died_is_a_503_that_says_when_to_come_again(status: int) -> None:
    found = await heard(status, "text/plain; charset=utf-8", b"The actor died ", b"unexpectedly.")
    assert found.status_code == 503
    assert found.headers["retry-after"] == "1"
    error = found.json()["error"]
    assert (error["type"], error["code"]) == ("unavailable", "unavailable")
    assert "actor" not in error["message"]


async def test_no_answer_at_all_is_one() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    (one,) = middlewares()
    app: Any = one.cls(application, *one.args, **one.kwargs)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        assert (await client.get("/v1/models")).status_code == 503


@pytest.mark.parametrize("begun", [False, True])
async def test_an_error_of_the_proxy_itself_is_one_as_long_as_nothing_was_said(begun: bool) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ConnectionError

    (one,) = middlewares()
    app: Any = one.cls(application, *one.args, **one.kwargs)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        if begun:
            with pytest.raises(ConnectionError):
                await client.get("/v1/models")
        else:
            found = await client.get("/v1/models")
            assert (found.status_code, found.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, "text/plain"), (404, "text/plain"), (500, "application/json"), (200, "text/event-stream")],
)
async def test_what_the_application_says_goes_through_as_it_is(status: int, kind: str) -> None:
    found = await heard(status, kind, b"{", b"}")
    assert (found.status_code, found.content, found.headers["x-own"]) == (status, b"{}", "1")


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    from rtr_ray.config import ServeFile
    from rtr_ray.distributed.online.ingress import RoutingIngress

    ingress = RoutingIngress.__new__(RoutingIngress)
    ingress._file = ServeFile(pool="embedded", ingress={"body_s": 0.05})  # type: ignore[arg-type]

    async def receive() -> dict[str, Any]:
        if not begun.is_set():
            begun.set()
            return {"type": "http.request", "body": b'{"model"', "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError

    begun = asyncio.Event()
    with pytest.raises(RequestError, match="did not come within") as refused:
        await ingress._body(Request({"type": "http", "method": "POST", "headers": []}, receive))
    assert refused.value.status == 408
    assert json.dumps(refused.value.body)
