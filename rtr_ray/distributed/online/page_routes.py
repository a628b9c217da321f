"""The ingress's paths for people: the page, and what it shows of the last minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from ray.serve.handle import DeploymentHandle
from starlette.responses import HTMLResponse, JSONResponse, Response

from rtr_ray.online.endpoint import Endpoint
from rtr_ray.online.live import parse_minutes
from rtr_ray.online.openapi import described
from rtr_ray.online.page import page
from rtr_ray.online.problems import RequestError, unavailable

_LOG = logging.getLogger("ray.serve")


class PageRoutes:
    """Beside the paths of the ingress, which has the rest of what they need."""

    _endpoint: Endpoint | None
    _memory: DeploymentHandle[Any]
    _open: bool  # whether there are no keys

    def _check_origin(self, request: Request) -> None:
        raise NotImplementedError

    async def _flush(self) -> None:
        raise NotImplementedError

    async def page(self) -> Response:
        """The page for people; it holds no data of its own."""
        text, headers = page()
        return HTMLResponse(text, headers=dict(headers))

    async def live(self, request: Request) -> Response:
        """What was asked and spent of late: by the caller's key, or by everybody where there are no keys."""
        assert self._endpoint is not None
        try:
            self._check_origin(request)
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            caller = await self._endpoint.admitted(
                token.strip() or None if scheme.lower() == "bearer" else None
            )
            minutes = parse_minutes(request.query_params)
            await self._flush()
            shown = await self._memory.live.remote(None if self._open else caller.key_id, minutes)
            return JSONResponse(shown | {"key": None if self._open else caller.name})
        except RequestError as error:
            return _said(error)
        except Exception as error:
            _LOG.warning("the memory does not say: %s", type(error).__name__)
            return _said(unavailable("What was counted cannot be looked at just now."))


def _said(problem: RequestError) -> Response:
    return JSONResponse(problem.body, problem.status, headers=problem.headers)


PAGE_ENDPOINTS: Mapping[str, Callable[[FastAPI], Any]] = {
    "live": lambda app: app.get("/v1/live", openapi_extra=described(None, (400, 401, 403, 503))),
    "page": lambda app: app.get("/", include_in_schema=False),
}
