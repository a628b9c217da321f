"""From a pool's deployments to Ray Serve applications: starting them, waiting, taking them down."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve
from ray.util import placement_group_table

from rtr_ray.distributed.cluster import LAUNCH_CPUS, replica_needs
from rtr_ray.errors import ExecutionError, PlacementError
from rtr_ray.pool import Deployment


@ray.remote(num_cpus=LAUNCH_CPUS, max_retries=0)
def launch(deployments: Mapping[str, Deployment]) -> None:
    """Begin to start applications, by name.

    A task of its own, since building them imports vllm: that takes many seconds and hundreds of
    megabytes, which the driver can do without.
    """
    from rtr_ray.distributed.engines import run_applications

    run_applications(deployments)


@dataclass(slots=True)
class Deployments:
    """The applications that one job owns, by the id of their deployment.

    Owned: started here, and taken down at every ending. Attached (`prefix` of running
    applications): neither.
    """

    prefix: str
    attached: bool = False
    placement_timeout_s: float = 60.0
    startup_timeout_s: float = 900.0
    _launch: Any = None
    _started: dict[str, float] = field(default_factory=dict)

    def app_name(self, deployment: Deployment) -> str:
        """The name of a deployment's application."""
        return f"{self.prefix}-{deployment.id}".replace("/", "-")

    def start(self, deployments: Sequence[Deployment]) -> None:
        """Begin to start them, side by side; endpoints need nothing. Does not wait."""
        mine = [d for d in deployments if d.endpoint is None]
        if self.attached or not mine:
            return
        for deployment in mine:
            self._started[deployment.id] = time.monotonic()
        self._launch = launch.remote({self.app_name(d): d for d in mine})

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
        name = self.app_name(deployment)
        app = known.get(name)
        if app is None:
            if self.attached:
                raise PlacementError(
                    f"No running application '{name}' to attach to. Running: {', '.join(known) or 'none'}."
                )
            return False
        if app.status == "RUNNING":
            return True
        message = " ".join(filter(None, (app.message, *(part.message for part in app.deployments.values()))))
        if app.status in ("DEPLOY_FAILED", "UNHEALTHY") and not self._restarting(app):
            raise ExecutionError(f"The deployment '{deployment.id}' failed to start: {_reason(message)}")
        waited_s = time.monotonic() - self._started.get(deployment.id, time.monotonic())
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

    @staticmethod
    def _restarting(app: Any) -> bool:
        return app.status == "UNHEALTHY" and any(
            part.replica_states.get("STARTING") for part in app.deployments.values()
        )

    def handle(self, deployment: Deployment) -> tuple[str, str]:
        """Deployment and application name, for `serve.get_deployment_handle`."""
        app = serve.status().applications[self.app_name(deployment)]
        (name,) = app.deployments
        return name, self.app_name(deployment)

    def stop(self, deployments: Sequence[Deployment]) -> None:
        """Take them down, if they are ours."""
        if self.attached:
            return
        for deployment in deployments:
            if self._started.pop(deployment.id, None) is not None:
                serve.delete(self.app_name(deployment), _blocking=True)


def _placement_pending() -> bool:
    # Serve says "scheduled" also while the replica's process starts, which takes long on a busy machine
    return any(group["state"] == "PENDING" for group in placement_group_table().values())


def _reason(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # a traceback says most in its last line
    return (lines[-1] if lines else "no reason was given")[:400]
