"""The pool's deployments as the endpoint sees them: Serve handles, and which of them have replicas."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from rtr_ray.online.engines import Failure, Piece
from rtr_ray.online.folding import Counted

_LOOK_S = 2.0
_WAKE_S = 0.25  # between two looks whether a call that waits still can begin
_SUSPECT_S = 5.0  # by then the status says what a failure has meant


@dataclass(slots=True)
class Replicas:
    """Calls the pool's deployments through their handles, and leaves out those without a replica.

    Args:
        handles: By deployment id.
        limits: Requests that may be at each.
        sleeping: Deployments that may have no replica while nobody asks: a request wakes them up.
    """

    handles: Mapping[str, DeploymentHandle[Any]]
    limits: Mapping[str, int]
    sleeping: frozenset[str] = frozenset()
    _flying: dict[str, int] = field(default_factory=dict)
    _replicas: dict[str, int] = field(default_factory=dict)
    _suspected: dict[str, float] = field(default_factory=dict)  # since when
    _peers: int = 1
    _looking: asyncio.Task[None] | None = None

    def up(self) -> frozenset[str]:
        """Those with a running replica, or that start one when they are asked."""
        trusted = time.monotonic() - _SUSPECT_S
        return frozenset(
            name
            for name in self.handles
            if (self._replicas.get(name, 1) > 0 or name in self.sleeping)
            and self._suspected.get(name, -_SUSPECT_S) < trusted
        )

    def replicas(self) -> dict[str, int]:
        """Running replicas of each, as far as is known."""
        return dict(self._replicas)

    def peers(self) -> int:
        """Ingress replicas, as far as is known."""
        return max(self._peers, 1)

    def full(self, deployment: str) -> bool:
        """Whether as many requests are there as may be."""
        return self._flying.get(deployment, 0) >= self.limits[deployment]

    def suspect(self, deployment: str) -> None:
        """Leave it out until Serve's status can be believed again, unless it has other replicas."""
        if self._replicas.get(deployment, 1) <= 1:
            self._suspected[deployment] = time.monotonic()

    async def generate(
        self, deployment: str, call: str, body: Mapping[str, Any], stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """Generate; what goes wrong comes as a piece."""
        self._flying[deployment] = self._flying.get(deployment, 0) + 1
        handle = self.handles[deployment].options(stream=True)
        response: Any = handle.generate.remote(call, dict(body), stream)
        begun = ended = False
        first = asyncio.create_task(_next(response))
        try:
            if not await self._came(first, deployment):
                yield Piece(failure=Failure(f"{deployment} has no replica just now.", 503))
                return
            told = first.result()
            while told is not None:
                begun = True
                piece = _piece(told)
                ended = piece.ended or piece.failure is not None
                yield piece
                told = await _next(response)
        except BackPressureError:
            yield Piece(failure=Failure(f"{deployment} has too many requests.", 503))
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            # a replica that dies takes its requests with it; what they had generated, nobody knows
            yield Piece(failure=Failure(_told(deployment, error), 503, maybe_paid=begun or _began(error)))
        finally:
            self._flying[deployment] -= 1
            first.cancel()
            if not ended:
                with contextlib.suppress(Exception):
                    response.cancel()

    async def _came(self, first: asyncio.Task[Any], deployment: str) -> bool:
        """Wait for a call to begin; False where nobody is left who could begin it."""
        since = time.monotonic()
        while not (await asyncio.wait({first}, timeout=_WAKE_S))[0]:
            if self._replicas.get(deployment, 1) == 0 and deployment not in self.sleeping:
                return False
            died = self._suspected.get(deployment, 0.0)
            # a call that the dead replica had begun hears of it by itself, at once
            if died > since and time.monotonic() - died > _WAKE_S:
                return False
        return True

    async def stop(self, deployment: str, call: str) -> Counted | None:
        """What a call had generated; None where a replica does not say."""
        response = self.handles[deployment].broadcast("stop", call)
        for found in await response.results_async():
            if found is not None:
                return Counted(*found)
        return Counted()

    async def watch(self, application: str, names: Mapping[str, str], own: str) -> None:
        """Look at Serve's status, now and from now on.

        Args:
            application: Its name.
            names: Deployment id -> its name in Serve.
            own: The ingress' name in Serve.
        """
        await self._look(application, names, own)
        self._looking = asyncio.create_task(self._keep_looking(application, names, own))

    async def _keep_looking(self, application: str, names: Mapping[str, str], own: str) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._look(application, names, own)

    async def _look(self, application: str, names: Mapping[str, str], own: str) -> None:
        with contextlib.suppress(Exception):  # the controller may be restarting
            status = await asyncio.to_thread(serve.status)
            known = status.applications[application].deployments
            for name, here in names.items():
                self._replicas[name] = _running(known[here])
            self._peers = _running(known[own])


def _running(deployment: Any) -> int:
    return int(deployment.replica_states.get("RUNNING", 0))


async def _next(response: Any) -> Any:
    """What comes next, None at the end."""
    return await anext(response, None)


def _piece(told: Mapping[str, Any]) -> Piece:
    failure = told.get("failure")
    counted = told.get("counted")
    return Piece(
        counted=None if counted is None else Counted(*counted),
        chunks=told.get("chunks") or (),
        choices=told.get("choices"),
        ended=bool(told.get("ended")),
        took_s=told.get("took_s"),
        failure=None if failure is None else Failure(**failure),
    )


def _began(error: Exception) -> bool:
    return "Actor" in type(error).__name__  # RayActorError and those below it


def _told(deployment: str, error: Exception) -> str:
    return f"{deployment} did not answer ({type(error).__name__})."
