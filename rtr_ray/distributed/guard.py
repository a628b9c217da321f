"""A watch over what a job has started: if its driver dies without a word, the deployments go too."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve

_NAMESPACE = "rtr-ray"
_BEAT_S, _DEAD_S = 5.0, 60.0


@ray.remote(num_cpus=0, max_restarts=-1)
class GuardActor:
    """Takes down applications when nobody has said for a minute that they are still wanted."""

    def __init__(self, silent_s: float = _DEAD_S) -> None:
        self._apps: set[str] = set()
        self._silent_s = silent_s
        self._last = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    async def beat(self, apps: Sequence[str]) -> None:
        """The job is alive, and these applications are its."""
        self._apps, self._last = set(apps), time.monotonic()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while time.monotonic() - self._last < self._silent_s:
            await asyncio.sleep(1.0)
        for app in self._apps:
            await asyncio.to_thread(serve.delete, app, False)
        # not `exit_actor`, whose exception nobody would see in a task of its own
        ray.kill(ray.get_runtime_context().current_actor)


@dataclass(slots=True)
class Guard:
    """The driver's side: beats until it is told to stop."""

    name: str
    apps: list[str] = field(default_factory=list)
    _actor: Any = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._actor = GuardActor.options(  # type: ignore[attr-defined]
            name=self.name, namespace=_NAMESPACE, lifetime="detached", get_if_exists=True
        ).remote()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.is_set() and ray.is_initialized():
            # one beat that is late or lost means nothing: the actor waits for several
            with contextlib.suppress(Exception):
                ray.get(self._actor.beat.remote(list(self.apps)), timeout=_BEAT_S)
            self._stop.wait(_BEAT_S)

    def stop(self, gone: bool = True) -> None:
        """Beat no more.

        Args:
            gone: All is taken down, nothing is left to guard; else the actor takes it down later.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=_BEAT_S)
        if self._actor is not None and gone:
            ray.kill(self._actor)
