"""One Serve application: the ingress, a deployment for each engine of the pool, and the memory.

`build` is what a standard Serve config names: `import_path: rtr_ray.distributed.online.application:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.llm import build_llm_deployment
from ray.serve.llm.ingress import make_fastapi_ingress

from rtr_ray.config import IngressKeys, ReplicaKeys, ServeFile, load_pool, load_serving
from rtr_ray.distributed.engines import llm_config
from rtr_ray.distributed.online.gates import gate_of
from rtr_ray.distributed.online.ingress import ENDPOINTS, RoutingIngress, Setting, fastapi_app
from rtr_ray.distributed.online.memory import Memory
from rtr_ray.distributed.online.server import OnlineServer
from rtr_ray.errors import ConfigError
from rtr_ray.gate import Gate
from rtr_ray.pool import Deployment
from rtr_ray.yaml_door import validated

_ROOM = 1_000_000  # the ingress counts its requests itself, and says 503 in OpenAI's form
MEMORY_CPUS = 0.1


def build(args: Mapping[str, Any]) -> Application:
    """The application of a serve file.

    Args:
        args: The keys of a serve file; or `config`, its path.

    Raises:
        ConfigError: Naming the key and what was expected.
    """
    if "config" in args:
        rest = {key: value for key, value in args.items() if key != "config"}
        file = load_serving(Path(str(args["config"])), rest)
    else:
        file = validated(ServeFile, dict(args), "args")
    return application(file, gate_of(file))


def application(
    file: ServeFile, gate: Callable[[], Gate], server: type[OnlineServer] = OnlineServer
) -> Application:
    """The application.

    Args:
        file: What it serves; its router is trained already.
        gate: Makes the gate of an ingress replica.
        server: What runs in a model's replica.
    """
    pool = load_pool(file.pool)
    keys = {name: file.models.get(name, ReplicaKeys()) for name in pool.deployments}
    check_models(file, pool.deployments)
    models = {
        name: _model(deployment, keys[name], server)
        for name, deployment in pool.deployments.items()
        if deployment.endpoint is None
    }
    setting = Setting(
        file,
        {name: _most(deployment, keys[name]) for name, deployment in pool.deployments.items()},
        frozenset(name for name in models if keys[name].min_replicas == 0),
        {name: own.target_in_flight for name, own in keys.items()},
        gate,
    )
    memory: Any = serve.deployment(Memory)
    memory = memory.options(
        num_replicas=1, max_ongoing_requests=_ROOM, ray_actor_options={"num_cpus": MEMORY_CPUS}
    )
    cls = make_fastapi_ingress(RoutingIngress, endpoint_map=dict(ENDPOINTS), app=fastapi_app())
    ingress: Any = serve.deployment(cls)
    bound: Application = ingress.options(
        name="Ingress",
        max_ongoing_requests=_ROOM,
        user_config=file.swap.model_dump(mode="json"),
        ray_actor_options={
            "num_cpus": file.ingress.num_cpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(file.ingress.threads)}},
        },
        **_replicas(file.ingress),
    ).bind(
        llm_deployments=models,
        model_cards=dict.fromkeys(models),
        setting=setting,
        memory=memory.bind(file.feedback_uri),
    )
    return bound


def check_models(file: ServeFile, deployments: Mapping[str, Deployment]) -> None:
    """Refuse what cannot be served.

    Raises:
        ConfigError: If a deployment is not in the pool.
    """
    for name in file.models:
        if name not in deployments:
            raise ConfigError(f"models names the deployment '{name}'. The pool has {', '.join(deployments)}.")


def _model(deployment: Deployment, keys: ReplicaKeys, server: type[OnlineServer]) -> Application:
    least = deployment.min_replicas if keys.min_replicas is None else keys.min_replicas
    most = max(least, 1, deployment.max_replicas if keys.max_replicas is None else keys.max_replicas)
    scaling = {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": keys.target_in_flight,
        "upscale_delay_s": keys.upscale_delay_s,
        "downscale_delay_s": keys.downscale_delay_s,
    }
    return build_llm_deployment(
        llm_config(deployment, scaling),
        deployment_cls=server,
        # how soon a replica that died is replaced, and one that is merely busy is not taken for dead
        override_serve_options={"health_check_period_s": 2, "health_check_timeout_s": 30},
    )


def _most(deployment: Deployment, keys: ReplicaKeys) -> int:
    most = keys.max_replicas or deployment.max_replicas
    return keys.most_in_flight or deployment.max_in_flight * most


def _replicas(keys: IngressKeys) -> dict[str, Any]:
    if isinstance(keys.replicas, int):
        return {"num_replicas": keys.replicas}
    least, most = keys.replicas
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": keys.target_in_flight,
            "upscale_delay_s": keys.upscale_delay_s,
            "downscale_delay_s": keys.downscale_delay_s,
        }
    }
