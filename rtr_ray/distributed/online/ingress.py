"""The HTTP side: an `OpenAiIngress` whose `model` may be the router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rtr_ray.answers import Answerer
from rtr_ray.config import ServeFile, SwapKeys, load_pool
from rtr_ray.distributed.online.batch_routes import BATCH_ENDPOINTS, BatchRoutes, bearer
from rtr_ray.distributed.online.batches_actor import BatchPlace, RemoteBatches
from rtr_ray.distributed.online.metrics import ServeNotes
from rtr_ray.distributed.online.page_routes import PAGE_ENDPOINTS, PageRoutes
from rtr_ray.distributed.online.replicas import Replicas
from rtr_ray.distributed.online.spans import HEADERS as TRACED
from rtr_ray.distributed.programs import runner, sandbox_of
from rtr_ray.errors import RtrError
from rtr_ray.executors.openai_stream import OpenAIStream
from rtr_ray.gate import Caller, Gate, OpenGate
from rtr_ray.online.batches import BatchOrder
from rtr_ray.online.elsewhere import Elsewhere, Mixed
from rtr_ray.online.endpoint import Endpoint
from rtr_ray.online.following import Follower
from rtr_ray.online.live import News
from rtr_ray.online.loading import load_chooser
from rtr_ray.online.openapi import CHAT, COMPLETION, FEEDBACK, described
from rtr_ray.online.problems import RequestError
from rtr_ray.online.remembering import parse_feedback
from rtr_ray.online.reply import Reply
from rtr_ray.online.request_log import RequestLog
from rtr_ray.online.routing import Chooser, Routing
from rtr_ray.online.served import Served
from rtr_ray.pool import Deployment
from rtr_ray.share_cap import CappedGate, ShareCap
from rtr_ray.storage import open_store

_LOG = logging.getLogger("ray.serve")
_SEND_S = 0.5  # between two loads of rows to the memory
_SWITCH_S = 0.0005


@dataclass(frozen=True, slots=True)
class Setting:
    """What an ingress replica is built with."""

    file: ServeFile
    limits: Mapping[str, int]  # deployment id -> requests that may be there
    sleeping: frozenset[str]
    targets: Mapping[str, float] = field(default_factory=dict)  # requests that one replica serves at once
    gate: Callable[[], Gate] = OpenGate


class RoutingIngress(PageRoutes, BatchRoutes, OpenAiIngress):
    """Routes chat completions in this process, and passes on what the models' replicas generate."""

    def __init__(
        self,
        llm_deployments: dict[str, DeploymentHandle[Any]],
        model_cards: dict[str, Any],
        *,
        setting: Setting,
        memory: DeploymentHandle[Any],
    ) -> None:
        super().__init__(llm_deployments, model_cards)
        # the thread that encodes asks for the interpreter between any two steps; the event loop must not make
        # it wait 5 ms each time
        sys.setswitchinterval(_SWITCH_S)
        file = setting.file
        self._file, self._memory = file, memory
        self._pool = load_pool(file.pool)
        self._notes = ServeNotes(
            RequestLog(file.requests_folder, file.log_prompts) if file.request_log else None
        )
        self._replicas = Replicas(llm_deployments, setting.limits, setting.sleeping)
        self._answerer = Answerer(
            self._pool.strategies, runner(sandbox_of(file.sandbox)), self._pool.thinking
        )
        self._gate = setting.gate()
        self._open = isinstance(self._gate, OpenGate)
        if (cap := file.share_cap) is not None:
            self._gate = CappedGate(self._gate, ShareCap.of(self._pool, cap.share, cap.window, cap.times))
        abroad = {one.id: one for one in self._pool.deployments.values() if one.endpoint is not None}
        self._engines = Mixed.of(
            (self._replicas, frozenset(llm_deployments)),
            (
                Elsewhere({name: _stream(one) for name, one in abroad.items()}, setting.limits),
                frozenset(abroad),
            ),
        )
        self._endpoint: Endpoint | None = None
        self._follower = Follower(Served(open_store(file.folder)), self._take)
        self._following: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._targets = setting.targets
        self._names = {name: handle.deployment_name for name, handle in llm_deployments.items()}
        self._batches: RemoteBatches | None = None
        self._swap: tuple[SwapKeys, str] = (file.swap, file.swap.router_path or "")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over a router and a policy; one that cannot be loaded leaves the old one in place.

        Raises:
            RtrError: If it is the first one that cannot be loaded.
        """
        await self._follower.configured(user_config)

    async def _take(self, keys: SwapKeys, router: str) -> None:
        chooser, shadow = await asyncio.to_thread(self._load, keys, router)
        self._swap = (keys, router)
        if self._endpoint is None:
            await self._begin(chooser)
        assert self._endpoint is not None
        self._endpoint.routing.swap(chooser)
        _LOG.info("router=%s policy=%s", chooser.router.fingerprint, chooser.policy)
        if self._endpoint.shadow is not None:
            self._endpoint.shadow.close()
        self._endpoint.shadow = None if shadow is None else Routing(shadow, self._file.ingress.cache_texts)

    async def _begin(self, chooser: Chooser) -> None:
        file = self._file
        self._endpoint = Endpoint(
            self._pool,
            self._engines,
            self._gate,
            Routing(chooser, file.ingress.cache_texts),
            self._answerer,
            self._notes,
            reads=file.reads,
            most=file.ingress.most_in_flight,
            patience_s=file.ingress.patience_s,
            targets=self._targets,
        )
        await self._watch()

    async def _watch(self) -> None:
        """Begin what goes on beside the requests."""
        context = serve.get_replica_context()
        await self._replicas.watch(context.app_name, self._names, context.deployment)
        self._batches = RemoteBatches(BatchPlace.of(self._file, context.app_name))
        self._batches.start()
        self._sending = asyncio.create_task(self._send())
        self._following = asyncio.create_task(self._follower.follow())

    def _load(self, keys: SwapKeys, router: str) -> tuple[Chooser, Chooser | None]:
        ingress = self._file.ingress
        encoder = {"device": ingress.device, "dtype": ingress.dtype}
        known = None if self._endpoint is None else self._endpoint.routing.chooser.router.encoder
        chooser = load_chooser(router, keys.policy, self._pool, encoder, known, keys.untrained, keys.caution)
        chooser = replace(chooser, latency_weight=keys.latency_weight, warm_within=keys.warm_within)
        chooser.router.encoder.encode(["so that the first request finds it loaded"])
        if keys.shadow is None:
            return chooser, None
        shadow = load_chooser(
            keys.shadow.router or router,
            keys.shadow.policy or keys.policy,
            self._pool,
            encoder,
            chooser.router.encoder,
            keys.untrained,
            keys.caution,
        )
        return chooser, replace(shadow, latency_weight=keys.latency_weight, warm_within=keys.warm_within)

    def _batch_order(self, caller: Caller) -> BatchOrder:
        assert self._endpoint is not None
        unit, (keys, router) = self._endpoint.routing.chooser.normaliser_usd, self._swap
        return BatchOrder.of(router, keys.untrained, keys.policy, unit, caller)

    async def _send(self) -> None:
        """Give the memory what was answered, now and then."""
        with contextlib.suppress(Exception):
            await self._memory.count.remote(News())  # so that it looks at the budgets from now on
        while True:
            await asyncio.sleep(_SEND_S)
            with contextlib.suppress(Exception):  # it may be restarting: what is sent then is forgotten
                await self._flush()

    async def _flush(self) -> None:
        if self._notes.log is not None and (lines := self._notes.log.taken()):
            await asyncio.to_thread(self._notes.log.write, lines)
        news, self._notes.news = self._notes.news, News()
        rows, self._notes.waiting = self._notes.waiting, []
        if rows:
            await self._memory.remember.remote(rows)
        if news:
            await self._memory.count.remote(news)

    async def chat(self, request: Request) -> Response:  # type: ignore[override]
        """A chat completion; `model` names the router, a model or a candidate."""
        return await self._answer(request, "chat")

    async def completions(self, request: Request) -> Response:  # type: ignore[override]
        """A raw completion."""
        return await self._answer(request, "completions")

    async def route(self, request: Request) -> Response:
        """What would be chosen for a chat completion, and why."""
        return await self._answer(request, "route")

    async def _answer(self, request: Request, what: str) -> Response:
        assert self._endpoint is not None
        try:
            self._check_origin(request)
            raw = await self._body(request)
            if what == "route":
                return _response(await self._endpoint.route(raw, bearer(request)))
            name = request.headers.get("x-request-id", "")[:200]
            traced = {header: value for header in TRACED if (value := request.headers.get(header))}
            answer = self._endpoint.complete if what == "completions" else self._endpoint.chat
            return _response(await answer(raw, bearer(request), name, traced))
        except RequestError as error:
            return _response(Reply.of(error))
        except Exception as error:
            _LOG.exception("a request failed")
            message = error.message if isinstance(error, RtrError) else "Something went wrong here."
            return _response(Reply.of(RequestError(message, status=500, kind="server_error")))

    async def models(self, request: Request) -> Response:  # type: ignore[override]
        """What `model` may be."""
        assert self._endpoint is not None
        return _response(await self._endpoint.models(bearer(request)))

    async def model_data(self, model: str, request: Request) -> Response:  # type: ignore[override]
        """One of the models."""
        assert self._endpoint is not None
        return _response(await self._endpoint.models(bearer(request), model))

    async def feedback(self, request: Request) -> Response:
        """How right the answer of a request was, from 0 to 1."""
        assert self._endpoint is not None
        try:
            self._check_origin(request)
            await self._endpoint.admitted(bearer(request))
            name, score = parse_feedback(await self._body(request))
            await self._flush()
            status, body = await self._memory.score.remote(name, score)
            return JSONResponse(body, status)
        except RequestError as error:
            return _response(Reply.of(error))

    async def health(self) -> Response:
        """Whether requests are taken, by which router, and which models have replicas."""
        assert self._endpoint is not None
        up, replicas = self._engines.up(), self._engines.replicas()
        body = {
            "status": "ok" if up else "no model is up",
            "router": self._endpoint.routing.chooser.router.fingerprint,
            "policy": repr(self._endpoint.routing.chooser.policy),
            **self._follower.shown(),
            "requests": self._endpoint.here,
            "models": {
                name: {"up": name in up, "replicas": replicas.get(name)} for name in self._pool.deployments
            },
        }
        return JSONResponse(body, 200 if up else 503)

    async def _body(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self._file.ingress.body_s):
                return await self._read(request)
        except TimeoutError:
            raise RequestError(
                f"The body did not come within {self._file.ingress.body_s:g} s.", status=408
            ) from None

    async def _read(self, request: Request) -> bytes:
        most = int(self._file.ingress.max_body_mib * 2**20)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise RequestError(
                    f"The body is larger than {self._file.ingress.max_body_mib:g} MiB.", status=413
                )
            parts.append(part)
        return b"".join(parts)

    def _check_origin(self, request: Request) -> None:
        """Refuse a web page of somebody else's that calls an endpoint without keys on this machine."""
        origin = request.headers.get("origin")
        if self._open and origin and urlsplit(origin).netloc != request.headers.get("host"):
            raise RequestError(
                "A page of another origin may not call an endpoint without keys.",
                status=403,
                kind="permission_denied",
            )


def _stream(deployment: Deployment) -> OpenAIStream:
    assert deployment.endpoint is not None
    return OpenAIStream(deployment.endpoint)


_LOOKS = (401, 403, 404, 503)

ENDPOINTS: Mapping[str, Callable[[FastAPI], Any]] = {
    "models": lambda app: app.get("/v1/models", openapi_extra=described(None, _LOOKS)),
    "model_data": lambda app: app.get("/v1/models/{model:path}", openapi_extra=described(None, _LOOKS)),
    "chat": lambda app: app.post("/v1/chat/completions", openapi_extra=described(CHAT, stream=True)),
    "completions": lambda app: app.post("/v1/completions", openapi_extra=described(COMPLETION, stream=True)),
    "route": lambda app: app.post("/v1/route", openapi_extra=described(CHAT)),
    "feedback": lambda app: app.post(
        "/v1/feedback", openapi_extra=described(FEEDBACK, (400, 401, 403, 404, 408, 409, 413, 503))
    ),
    **PAGE_ENDPOINTS,
    "health": lambda app: app.get("/healthz", openapi_extra=described(None, (503,))),
    **BATCH_ENDPOINTS,
}


def fastapi_app() -> FastAPI:
    """An app of our own: no origin but its own may call it, and what it refuses is said in OpenAI's form."""
    app = FastAPI(title="rtr-ray", docs_url=None, redoc_url=None)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        found = RequestError(str(error.detail), status=error.status_code)
        return JSONResponse(found.body, error.status_code, headers=dict(error.headers or {}))

    return app


class _Events(StreamingResponse):
    """A stream whose money is closed on every way out, even if it was never begun."""

    def __init__(self, reply: Reply) -> None:
        assert reply.events is not None
        super().__init__(reply.events, headers=reply.headers, media_type="text/event-stream")
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._reply.close is not None:
                await self._reply.close()


def _response(reply: Reply) -> Response:
    if reply.events is not None:
        return _Events(reply)
    return JSONResponse(reply.body, reply.status, headers=reply.headers)
