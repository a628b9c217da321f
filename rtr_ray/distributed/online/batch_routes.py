"""The paths /v1/files and /v1/batches of the ingress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, Response, StreamingResponse

from rtr_ray.config import ServeFile
from rtr_ray.distributed.online.batches_actor import RemoteBatches
from rtr_ray.errors import BudgetError, DataError, MissingError, RtrError, StorageError
from rtr_ray.gate import Caller
from rtr_ray.online.batches import BatchOrder, parse_batch
from rtr_ray.online.endpoint import Endpoint
from rtr_ray.online.openapi import described
from rtr_ray.online.problems import RequestError, unavailable

_LOG = logging.getLogger("ray.serve")
_PART_BYTES = 4 << 20  # of a file, on its way between two processes
_LONGEST_ID = 64


class BatchRoutes:
    """Files and batches over HTTP. A mixin: what is asked of the ingress itself stands at its top."""

    _file: ServeFile
    _endpoint: Endpoint | None
    _batches: RemoteBatches | None

    def _check_origin(self, request: Request) -> None:
        raise NotImplementedError

    async def _body(self, request: Request) -> bytes:
        raise NotImplementedError

    def _batch_order(self, caller: Caller) -> BatchOrder:
        raise NotImplementedError

    # --- files ---

    async def upload(self, request: Request) -> Response:
        """Keep a file of requests."""

        async def work(caller: Caller) -> Response:
            if not request.headers.get("content-type", "").startswith("multipart/form-data"):
                raise _wrong("file", "A file is sent as multipart/form-data, with purpose and file.")
            parser = MultiPartParser(request.headers, self._parts(request), max_files=1, max_fields=8)
            try:
                form = await parser.parse()
            except MultiPartException as error:
                raise _wrong("file", f"The form cannot be read: {error.message[:200]}") from None
            async with contextlib.AsyncExitStack() as closing:
                closing.push_async_callback(form.close)
                file, purpose = form.get("file"), form.get("purpose")
                if not isinstance(file, UploadFile):
                    raise _wrong("file", "The form has no file.")
                if purpose != "batch":
                    raise _wrong("purpose", "The purpose of a file must be 'batch'.")
                return JSONResponse(await self._kept(caller, file))

        return await self._served(request, work)

    async def _kept(self, caller: Caller, file: UploadFile) -> dict[str, Any]:
        name = (file.filename or "batch.jsonl").encode(errors="replace").decode()[:255]
        upload = await self._call("append", None, await file.read(_PART_BYTES))
        try:
            while part := await file.read(_PART_BYTES):
                await self._call("append", upload, part)
            made: dict[str, Any] = await self._call("keep", caller.key_id, upload, name, "batch")
            return made
        except BaseException:
            with contextlib.suppress(RtrError):  # what is left behind goes at the next start
                await asyncio.shield(asyncio.ensure_future(self._call("drop", upload)))
            raise

    async def _parts(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body as it comes; refused where it grows too large, or stops coming."""
        most, size, source = int(self._file.batches.max_file_mib * 2**20), 0, request.stream()
        while True:
            try:
                async with asyncio.timeout(self._file.ingress.body_s):
                    part = await anext(source, None)
            except TimeoutError:
                raise RequestError("The file did not come in time.", status=408) from None
            if part is None:
                return
            size += len(part)
            if size > most + 2**16:  # the form's own lines
                raise RequestError(
                    f"The file is larger than {self._file.batches.max_file_mib:g} MiB. Split it.", status=413
                )
            yield part

    async def files(self, request: Request) -> Response:
        """The files of the caller's key."""

        async def work(caller: Caller) -> Response:
            page = _page(request, 10_000)
            for name in ("order", "purpose"):
                if name in request.query_params:
                    page[name] = request.query_params[name][:_LONGEST_ID]
            return JSONResponse(await self._call("files", caller.key_id, **page))

        return await self._served(request, work)

    async def file(self, file_id: str, request: Request) -> Response:
        """One of them."""

        async def work(caller: Caller) -> Response:
            return JSONResponse(await self._call("file", caller.key_id, _id(file_id, "file")))

        return await self._served(request, work)

    async def delete_file(self, file_id: str, request: Request) -> Response:
        """Forget it."""

        async def work(caller: Caller) -> Response:
            return JSONResponse(await self._call("delete_file", caller.key_id, _id(file_id, "file")))

        return await self._served(request, work)

    async def file_content(self, file_id: str, request: Request) -> Response:
        """Its bytes."""

        async def work(caller: Caller) -> Response:
            found = await self._call("file", caller.key_id, _id(file_id, "file"))
            first = await self._call("read", caller.key_id, found["id"], 0, _PART_BYTES)
            return StreamingResponse(
                self._bytes(caller.key_id, found["id"], first),
                media_type="application/octet-stream",
                headers={"content-length": str(found["bytes"])},
            )

        return await self._served(request, work)

    async def _bytes(self, key_id: str, file_id: str, first: bytes) -> AsyncGenerator[bytes, None]:
        part, offset = first, 0
        while part:
            yield part
            offset += len(part)
            part = (
                b""
                if len(part) < _PART_BYTES
                else await self._call("read", key_id, file_id, offset, _PART_BYTES)
            )

    # --- batches ---

    async def create_batch(self, request: Request) -> Response:
        """Have a file answered."""

        async def work(caller: Caller) -> Response:
            asked = parse_batch(await self._body(request))
            order = self._batch_order(caller).to_json()
            return JSONResponse(await self._call("create", caller.key_id, asked, order))

        return await self._served(request, work)

    async def batches(self, request: Request) -> Response:
        """The batches of the caller's key."""

        async def work(caller: Caller) -> Response:
            return JSONResponse(await self._call("page", caller.key_id, **_page(request, 20)))

        return await self._served(request, work)

    async def batch(self, batch_id: str, request: Request) -> Response:
        """One of them."""

        async def work(caller: Caller) -> Response:
            return JSONResponse(await self._call("retrieve", caller.key_id, _id(batch_id, "batch")))

        return await self._served(request, work)

    async def cancel_batch(self, batch_id: str, request: Request) -> Response:
        """End it."""

        async def work(caller: Caller) -> Response:
            return JSONResponse(await self._call("cancel", caller.key_id, _id(batch_id, "batch")))

        return await self._served(request, work)

    async def _call(self, method: str, *args: Any, **more: Any) -> Any:
        if self._batches is None:
            raise unavailable("Files and batches cannot be looked at yet.")
        return await self._batches.call(method, *args, **more)

    async def _served(self, request: Request, work: Callable[[Caller], Awaitable[Response]]) -> Response:
        """What a caller gets who may ask; what goes wrong is said in OpenAI's form."""
        assert self._endpoint is not None
        try:
            self._check_origin(request)
            return await work(await self._endpoint.admitted(bearer(request)))
        except RtrError as error:
            problem = error if isinstance(error, RequestError) else _problem(error)
        except Exception:
            _LOG.exception("a request failed")
            problem = RequestError("Something went wrong here.", status=500, kind="server_error")
        return JSONResponse(problem.body, problem.status, headers=problem.headers)


def bearer(request: Request) -> str | None:
    """The token of the Authorization header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _problem(error: RtrError) -> RequestError:
    if isinstance(error, MissingError):
        return RequestError(error.message, status=404, code="not_found")
    if isinstance(error, StorageError):
        _LOG.error("%s", error.message)
        return unavailable("Files and batches cannot be looked at just now.")
    if isinstance(error, BudgetError):
        return RequestError(error.message, status=429, kind="budget_exceeded", code="budget_exceeded")
    if isinstance(error, DataError):
        return RequestError(error.message, code="invalid_value")
    return RequestError(error.message, status=500, kind="server_error")


def _wrong(param: str, message: str) -> RequestError:
    return RequestError(message, param=param, code="invalid_value")


def _id(name: str, what: str) -> str:
    """An id that may be one of ours."""
    if len(name) > _LONGEST_ID or not name.isascii():
        raise RequestError(f"There is no such {what} of this API key.", status=404, code="not_found")
    return name


def _page(request: Request, usual: int) -> dict[str, Any]:
    asked = request.query_params
    limit = asked.get("limit", str(usual))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
        raise _wrong("limit", "limit is no whole number.")
    page: dict[str, Any] = {"limit": int(limit)}
    if asked.get("after"):
        page["after"] = _id(asked["after"], "entry")
    return page


_FORM = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary"},
    },
}
_BATCH = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": {
        "input_file_id": {"type": "string"},
        "endpoint": {"type": "string", "enum": ["/v1/chat/completions"]},
        "completion_window": {"type": "string", "enum": ["24h"]},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _form() -> dict[str, Any]:
    said = described(None, (400, 401, 403, 408, 413, 503))
    return said | {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


_LOOKS = (400, 401, 403, 404, 503)

BATCH_ENDPOINTS: Mapping[str, Callable[[FastAPI], Any]] = {
    "upload": lambda app: app.post("/v1/files", openapi_extra=_form()),
    "files": lambda app: app.get("/v1/files", openapi_extra=described(None, _LOOKS)),
    "file": lambda app: app.get("/v1/files/{file_id}", openapi_extra=described(None, _LOOKS)),
    "delete_file": lambda app: app.delete("/v1/files/{file_id}", openapi_extra=described(None, _LOOKS)),
    "file_content": lambda app: app.get("/v1/files/{file_id}/content", openapi_extra=described(None, _LOOKS)),
    "create_batch": lambda app: app.post("/v1/batches", openapi_extra=described(_BATCH)),
    "batches": lambda app: app.get("/v1/batches", openapi_extra=described(None, _LOOKS)),
    "batch": lambda app: app.get("/v1/batches/{batch_id}", openapi_extra=described(None, _LOOKS)),
    "cancel_batch": lambda app: app.post(
        "/v1/batches/{batch_id}/cancel", openapi_extra=described(None, _LOOKS)
    ),
}
