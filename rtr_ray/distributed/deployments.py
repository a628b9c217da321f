"""From a pool's deployments to Ray Serve applications: starting them, waiting, taking them down."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.util import placement_group_table

from rtr_ray.distributed.cluster import REPLICA_CPUS, replica_needs
from rtr_ray.distributed.server import ChunkServer
from rtr_ray.errors import ExecutionError, PlacementError
from rtr_ray.pool import Deployment

_UNLIMITED = 1_000_000_000


def llm_config(deployment: Deployment) -> LLMConfig:
    """The deployment as Ray Serve LLM wants it."""
    options: dict[str, Any] = {}
    if deployment.accelerator == "cpu":
        options["accelerator_config"] = {"kind": "cpu"}
        options["placement_group_config"] = {"bundles": [{"CPU": deployment.num_cpus}]}
    elif deployment.accelerator != "gpu":
        options["accelerator_type"] = deployment.accelerator
    return LLMConfig(
        model_loading_config={"model_id": deployment.id, "model_source": deployment.source},
        deployment_config={
            "autoscaling_config": {
                "min_replicas": deployment.min_replicas,
                "max_replicas": deployment.max_replicas,
            },
            "ray_actor_options": {"num_cpus": REPLICA_CPUS},
        },
        runtime_env={"env_vars": dict(deployment.env)},
        log_engine_metrics=False,
        engine_kwargs={"enable_prompt_tokens_details": True, **deployment.engine},
        **options,
    )


def application(deployment: Deployment) -> Application:
    """One application with one deployment, which answers chunks."""
    return build_llm_deployment(llm_config(deployment), deployment_cls=ChunkServer)


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
    build: Any = application  # Deployment -> Application; another one in tests
    _started: dict[str, float] = field(default_factory=dict)

    def app_name(self, deployment: Deployment) -> str:
        """The name of a deployment's application."""
        return f"{self.prefix}-{deployment.id}".replace("/", "-")

    def start(self, deployments: Sequence[Deployment]) -> None:
        """Begin to start them, side by side; endpoints need nothing. Does not wait."""
        mine = [d for d in deployments if d.endpoint is None]
        if self.attached or not mine:
            return
        serve.start(proxy_location="Disabled")  # the handle is enough; no port is opened
        targets = [RunTarget(self.build(d), name=self.app_name(d), route_prefix=None) for d in mine]
        for deployment in mine:
            self._started[deployment.id] = time.monotonic()
        serve.run_many(
            targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
        )

    def ready(self, deployments: Sequence[Deployment]) -> dict[str, bool]:
        """Which of them answer.

        Raises:
            PlacementError: If one has waited too long for resources; it says which.
            ExecutionError: If one failed to start, or takes too long.
        """
        known = serve.status().applications if any(d.endpoint is None for d in deployments) else {}
        return {d.id: d.endpoint is not None or self._is_ready(d, known) for d in deployments}

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
