"""What Serve's own HTTP proxy says where no ingress answers: 503 with Retry-After, in OpenAI's form.

An ingress replica that dies takes its requests with it, and the proxy would answer 500 with a plain
text for each. Nobody's request is wrong then, and in a second another replica takes it.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rtr_ray.online.problems import unavailable

_LOG = logging.getLogger("ray.serve")
IMPORT_PATH = "rtr_ray.distributed.online.proxy:middlewares"
_ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": IMPORT_PATH,
    # Ray's own is 15 for every worker, so that nothing could be nicer than the ingress (see OnlineServer)
    "RAY_worker_niceness": "5",
    # its proxy is given up after 5 s else, which a machine that also starts three engines may need
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


def announce() -> None:
    """Tell a cluster that is started from here of `middlewares`, and how nice its workers are."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def middlewares() -> list[Middleware]:
    """What stands before Serve's proxy."""
    return [Middleware(SaysUnavailable)]


class SaysUnavailable:
    """Turns what the proxy itself says of a missing or dead ingress into a 503 that can be understood.

    What the application says is JSON or a stream, and goes through as it is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = instead = False

        async def sent(message: Message) -> None:
            nonlocal begun, instead
            if message["type"] == "http.response.start" and _is_the_proxys_own(message):
                instead = True
                return
            if not instead:
                begun = True
                await send(message)
            elif not message.get("more_body"):
                begun = True
                for one in _unavailable():
                    await send(one)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            if begun:  # half of an answer is out: the connection breaks, and nothing else can be said
                raise
            _LOG.exception("the proxy failed")
        if not begun:  # nor does it say anything where a replica dies that had the request
            for one in _unavailable():
                await send(one)


def _is_the_proxys_own(message: Message) -> bool:
    headers = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", ())}
    return message["status"] in (500, 502, 503, 504) and headers.get(b"content-type", b"").startswith(
        b"text/plain"
    )


def _unavailable() -> list[dict[str, Any]]:
    problem = unavailable("The replica that had this request is gone. Send it again.", retry_after_s=1.0)
    headers = {"content-type": "application/json"} | problem.headers
    return [
        {
            "type": "http.response.start",
            "status": problem.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        },
        {"type": "http.response.body", "body": json.dumps(problem.body).encode()},
    ]
