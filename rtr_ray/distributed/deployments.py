"""From a pool's deployments to Ray Serve applications: starting them, waiting, taking them down."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.util import placement_group_table

from rtr_ray.distributed.cluster import LAUNCH_CPUS, replica_needs
from rtr_ray.errors import ExecutionError, PlacementError, RtrError
from rtr_ray.pool import Deployment
from rtr_ray.screen import Screen

_POLL_S = 0.5
_CANCEL_S = 10.0
_LOOK_EVERY_S = 5.0
_GONE_S = 60.0  # an application that was launched and is not there for so long does not come back


@ray.remote(num_cpus=LAUNCH_CPUS, max_retries=0)
def launch(deployments: Mapping[str, Deployment], chunk: int) -> None:
    """Begin to start applications, by name.

    A task of its own, since building them imports vllm: that takes many seconds and hundreds of
    megabytes, which the driver can do without.
    """
    from rtr_ray.distributed.engines import run_applications

    run_applications(deployments, chunk)


@dataclass(slots=True)
class Deployments:
    """The applications that one job owns, by the id of their deployment.

    Owned: started here, and taken down at every ending. Attached: neither; `prefix` is that of
    running applications, or the name of one whose parts they are, as the online endpoint's is.
    """

    prefix: str
    attached: bool = False
    placement_timeout_s: float = 60.0
    startup_timeout_s: float = 900.0
    chunk: int = 64  # requests of a call
    _launch: Any = None
    _started: set[str] = field(default_factory=set)
    _since: dict[str, float] = field(default_factory=dict)  # when it began to start, or last ran
    _missed: dict[str, float] = field(default_factory=dict)  # since when its application is not there

    def app_name(self, deployment: Deployment) -> str:
        """The name of a deployment's application."""
        return f"{self.prefix}-{deployment.id}".replace("/", "-")

    def start(self, deployments: Sequence[Deployment]) -> None:
        """Begin to start them, side by side; endpoints need nothing. Does not wait."""
        # a second launch of the same application would restart its engines under the first one's calls
        mine = [d for d in deployments if d.endpoint is None and d.id not in self._started]
        if self.attached or not mine:
            return
        for deployment in mine:
            self._started.add(deployment.id)
            self._since[deployment.id] = time.monotonic()
        self._launch = launch.remote({self.app_name(d): d for d in mine}, self.chunk)

    def ready(self, deployments: Sequence[Deployment]) -> dict[str, bool]:
        """Which of them answer.

        Raises:
            PlacementError: If one has waited too long for resources; it says which.
            ExecutionError: If one failed to start, or takes too long.
        """
        self._check_launch()
        known = serve.status().applications if any(d.endpoint is None for d in deployments) else {}
        return {d.id: d.endpoint is not None or self._is_ready(d, known) for d in deployments}

    def _check_launch(self) -> None:
        if self._launch is not None and ray.wait([self._launch], timeout=0)[0]:
            launched, self._launch = self._launch, None
            try:
                ray.get(launched)
            except Exception as error:
                raise ExecutionError(
                    f"The deployments could not be started: {_reason(str(error))}"
                ) from error

    def _is_ready(self, deployment: Deployment, known: Mapping[str, Any]) -> bool:
        name, now = self.app_name(deployment), time.monotonic()
        app = known.get(name)
        if app is None:
            if (part := self._part(deployment, known)) is not None:
                return self._is_part_ready(deployment, known[self.prefix].deployments[part])
            if self.attached:
                raise PlacementError(
                    f"No running application '{name}' to attach to. Running: {', '.join(known) or 'none'}."
                )
            if self._launch is None and now - self._missed.setdefault(deployment.id, now) > _GONE_S:
                raise ExecutionError(
                    f"The application '{name}' is gone: somebody took it down, or this process stood still "
                    "for over a minute. What has been answered is kept; the same command goes on."
                )
            return False
        self._missed.pop(deployment.id, None)
        if app.status == "RUNNING":
            self._since[deployment.id] = now
            return True
        message = " ".join(filter(None, (app.message, *(part.message for part in app.deployments.values()))))
        if app.status in ("DEPLOY_FAILED", "UNHEALTHY") and not self._restarting(app):
            raise ExecutionError(f"The deployment '{deployment.id}' failed to start: {_reason(message)}")
        waited_s = now - self._since.setdefault(deployment.id, now)
        if waited_s > self.placement_timeout_s and "scheduled" in message and _placement_pending():
            needs = replica_needs(deployment)
            raise PlacementError(
                f"The deployment '{deployment.id}' has waited {waited_s:.0f} s for {needs.what} a replica. "
                f"{_reason(message)}"
            )
        if waited_s > self.startup_timeout_s:
            raise ExecutionError(
                f"The deployment '{deployment.id}' did not start within {self.startup_timeout_s:g} s. "
                f"Raise cluster.startup_timeout_s, or see why: {_reason(message)}"
            )
        return False

    def _part(self, deployment: Deployment, known: Mapping[str, Any]) -> str | None:
        """The part of the application `prefix` that a deployment is, as Ray Serve LLM names it."""
        app = known.get(self.prefix)
        if app is None or not self.attached or self.app_name(deployment) in known:
            return None
        name = deployment.id.replace("/", "--").replace(".", "_")
        return next((one for one in app.deployments if one.endswith(f":{name}")), None)

    def _is_part_ready(self, deployment: Deployment, part: Any) -> bool:
        now = time.monotonic()
        if part.status in ("HEALTHY", "UPSCALING", "DOWNSCALING"):
            self._since[deployment.id] = now
            return True
        if now - self._since.setdefault(deployment.id, now) > self.startup_timeout_s:
            raise ExecutionError(
                f"The deployment '{deployment.id}' of the application '{self.prefix}' is not up: "
                f"{_reason(part.message)}"
            )
        return False

    @staticmethod
    def _restarting(app: Any) -> bool:
        return app.status == "UNHEALTHY" and any(
            part.replica_states.get("STARTING") for part in app.deployments.values()
        )

    def replicas(self, deployments: Sequence[Deployment]) -> dict[str, int]:
        """How many replicas of each there are, those that start or stop included."""
        known = serve.status().applications
        found = {}
        for deployment in deployments:
            app = known.get(self.app_name(deployment))
            parts = app.deployments.values() if app is not None else ()
            found[deployment.id] = sum(sum(part.replica_states.values()) for part in parts)
        return found

    def handle(self, deployment: Deployment) -> tuple[str, str]:
        """Deployment and application name, for `serve.get_deployment_handle`."""
        known = serve.status().applications
        if (part := self._part(deployment, known)) is not None:
            return part, self.prefix
        app = known[self.app_name(deployment)]
        (name,) = app.deployments
        return name, self.app_name(deployment)

    def wait(self, deployments: Sequence[Deployment], screen: Screen) -> None:
        """Wait until all of them answer, saying which do not yet.

        Raises:
            PlacementError: As `ready`.
            ExecutionError: As `ready`.
        """
        with screen.stage("engines", len(deployments), "up") as stage:
            while True:
                ready = self.ready(deployments)
                stage.done = sum(ready.values())
                waiting = [name for name, up in ready.items() if not up]
                stage.note = f"starting {', '.join(waiting)}" if waiting else ""
                screen.tick(stage)
                if not waiting:
                    return
                time.sleep(_POLL_S)

    def stop(self, deployments: Sequence[Deployment]) -> bool:
        """Take them down, if they are ours.

        Returns:
            Whether all of ours are gone. What stands in the way is raised only where no other error
            is on its way up, which would be hidden by it.

        Raises:
            ExecutionError: If one could not be taken down.
        """
        if self.attached:
            return True
        self._end_launch()
        failed: list[str] = []
        for deployment in deployments:
            if deployment.id not in self._started:
                continue
            try:
                serve.delete(self.app_name(deployment), _blocking=True)
                self._started.discard(deployment.id)
            except Exception as error:
                if "no Serve instance" in str(error):
                    self._started.discard(deployment.id)
                else:
                    failed.append(f"{deployment.id} ({_reason(str(error))})")
        if failed and sys.exc_info()[0] is None:
            raise ExecutionError(f"Deployments could not be taken down: {', '.join(failed)}.")
        return not failed

    def _end_launch(self) -> None:
        """No application may come up after it was taken down."""
        if self._launch is not None:
            with contextlib.suppress(Exception):
                ray.cancel(self._launch, force=True)
                ray.wait([self._launch], timeout=_CANCEL_S)
            self._launch = None


@dataclass(slots=True)
class Watch:
    """Looks after deployments while they answer: an engine that is gone for good ends the job.

    Else every row that is left would be tried in vain, and end as failed.
    """

    deployments: Deployments
    group: Sequence[Deployment]
    patience_s: float = 60.0  # a replica that died is back before that, or is starting
    _looked: float = 0.0
    _wrong_since: float | None = None

    def look(self) -> None:
        """See whether all are there, now and then.

        Raises:
            ExecutionError: If one has been broken for a while.
            PlacementError: If one has found no room for a while.
            RayError: If Serve has not said anything for a while: while a node goes, a call may fail.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        try:
            self.deployments.ready(self.group)
            self._wrong_since = None
        except (RtrError, RayError):
            if self._wrong_since is None:
                self._wrong_since = now
            if now - self._wrong_since >= self.patience_s:
                raise


def _placement_pending() -> bool:
    # Serve says "scheduled" also while the replica's process starts, which takes long on a busy machine
    return any(group["state"] == "PENDING" for group in placement_group_table().values())


def _reason(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # a traceback says most in its last line
    return (lines[-1] if lines else "no reason was given")[:400]
