"""From a pool's deployments to Ray Serve LLM applications. Imports vllm: only where one is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.llm import LLMConfig, build_llm_deployment

from rtr_ray.distributed.cluster import REPLICA_CPUS, calls_at_once
from rtr_ray.distributed.server import ChunkServer
from rtr_ray.pool import Deployment

_ROOM = 4  # times the calls that would fill a replica, if all their rows were as long (benchmarks/fleet.py)


def llm_config(deployment: Deployment, scaling: Mapping[str, Any] | None = None) -> LLMConfig:
    """The deployment as Ray Serve LLM wants it.

    Args:
        scaling: What stands over its own replica counts, as Ray's autoscaling_config has it.
    """
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
                **(scaling or {}),
            },
            "ray_actor_options": {"num_cpus": REPLICA_CPUS},
        },
        runtime_env={"env_vars": dict(deployment.env)},
        log_engine_metrics=False,
        engine_kwargs={"enable_prompt_tokens_details": True, **deployment.engine},
        **options,
    )


def application(deployment: Deployment, chunk: int) -> Application:
    """One application with one deployment, which answers chunks of so many requests."""
    if deployment.max_replicas == 1:
        return build_llm_deployment(llm_config(deployment), deployment_cls=ChunkServer)
    calls = calls_at_once(deployment, chunk)
    return build_llm_deployment(
        llm_config(deployment, {"target_ongoing_requests": calls}),
        deployment_cls=ChunkServer,
        # a call lasts as long as its last row, so that more than `calls` of them fill an engine; but what is
        # too much for one waits for a replica that is still to come
        override_serve_options={"max_ongoing_requests": _ROOM * calls},
    )


def run_applications(deployments: Mapping[str, Deployment], chunk: int) -> None:
    """Begin to start applications, by name; does not wait until they are up."""
    serve.start(proxy_location="Disabled")  # the handle is enough; no port is opened
    targets = [
        RunTarget(application(d, chunk), name=name, route_prefix=None) for name, d in deployments.items()
    ]
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
