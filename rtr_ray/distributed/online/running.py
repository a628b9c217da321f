"""`rtr-ray serve`: a cluster, the application on it, and everything taken down at the end."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve

from rtr_ray.config import ServeFile, load_pool
from rtr_ray.distributed.batch import terminable
from rtr_ray.distributed.cluster import (
    DISPATCH_CPUS,
    LAUNCH_CPUS,
    Needs,
    connected,
    encoder_needs,
    replica_needs,
)
from rtr_ray.distributed.online.batches_actor import end_batches
from rtr_ray.distributed.online.gates import check_gate, gate_of, keys_path
from rtr_ray.distributed.online.keys_actor import end_keys_actor
from rtr_ray.distributed.online.proxy import announce
from rtr_ray.errors import ConfigError, ExecutionError
from rtr_ray.executors.openai import check_key
from rtr_ray.online.served import Served
from rtr_ray.router import RouterFolder
from rtr_ray.screen import Screen
from rtr_ray.storage import open_store

NAME = "rtr"
_POLL_S = 0.5


@ray.remote(num_cpus=LAUNCH_CPUS, max_retries=0)
def _launch(file: ServeFile, name: str, route_prefix: str) -> None:
    """Begin to start the application; a task of its own, since building it imports vllm."""
    from ray.serve import RunTarget

    from rtr_ray.distributed.online.application import application

    target = RunTarget(application(file, gate_of(file)), name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def serve_file(file: ServeFile, screen: Screen, insecure: bool = False, launch: Any = _launch) -> None:
    """Serve until somebody interrupts.

    Args:
        launch: The task that begins to start the application.

    Raises:
        ConfigError: If the file cannot be served as it is.
        ExecutionError: If the application does not come up.
    """
    warning = check_gate(file, insecure)
    _check_port(file)
    if warning is not None:
        screen.say(warning, "yellow")
    file = ready(file, screen).model_copy(update={"folder": str(Path(file.folder).absolute())})
    announce()
    with connected(file.cluster.address, needs_of(file)), terminable():
        started = False
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": file.host, "port": file.port})
            started = True
            start(file, screen, launch=launch)
            screen.say(f"http://{file.host}:{file.port}/v1 answers. Ctrl-C ends it.")
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            screen.say("Ending.")
        finally:
            if started:
                with screen.stage("stop"), contextlib.suppress(Exception):
                    end_batches(file, NAME)
                    serve.delete(NAME)
                    if (path := keys_path(file)) is not None:
                        end_keys_actor(path)


def ready(file: ServeFile, screen: Screen) -> ServeFile:
    """The file with its router, which for the embedded pool is trained here if there is none."""
    if file.router_path is None:
        if file.pool != "embedded":
            raise ConfigError(
                "The serve file has no router. Make one (rtr-ray collect, rtr-ray train), and name its "
                "folder as router."
            )
        from rtr_ray.distributed.demo import trained_router

        file = file.model_copy(update={"router": trained_router(file.folder, screen)})
    file = file.absolute()
    assert file.router_path is not None
    folder, pool = RouterFolder.load(file.router_path), load_pool(file.pool)
    folder.check(pool, file.untrained)
    if file.caution is not None:
        folder.check_caution(pool, file.caution)
    if file.cluster.address is None:  # else the keys are in the environment of the nodes
        for deployment in load_pool(file.pool).deployments.values():
            if deployment.endpoint is not None:
                check_key(deployment.endpoint)
    entry = Served(open_store(file.folder)).configure(file.swap, anew=True)
    if entry.cause == "use":
        screen.say(
            f"{entry.swap.router_path} is served, as rtr-ray router use said at {entry.at}. To go back: "
            "rtr-ray router rollback.",
            "yellow",
        )
    return file


def start(
    file: ServeFile, screen: Screen, name: str = NAME, route_prefix: str = "/", launch: Any = _launch
) -> None:
    """Start the application on the cluster that this process is connected to, and wait until it answers.

    Raises:
        ExecutionError: If it does not.
    """
    launched: Any = launch.remote(file, name, route_prefix)
    deadline = time.monotonic() + file.cluster.startup_timeout_s
    with screen.stage("engines", unit="up") as stage:
        while True:
            if launched is not None and ray.wait([launched], timeout=0)[0]:
                ray.get(launched)
                launched = None
            app = serve.status().applications.get(name)
            if app is not None:
                parts = app.deployments
                up = [one for one, part in parts.items() if part.status == "HEALTHY"]
                stage.total, stage.done = len(parts), len(up)
                stage.note = ", ".join(one for one in parts if one not in up)
                screen.tick(stage)
                if app.status == "RUNNING":
                    return
                if app.status == "DEPLOY_FAILED":
                    raise ExecutionError(f"The application did not start: {_reason(app)}")
            if time.monotonic() > deadline:
                raise ExecutionError(
                    f"The application did not start within {file.cluster.startup_timeout_s:g} s. Raise "
                    "cluster.startup_timeout_s, or see Ray's logs."
                )
            time.sleep(_POLL_S)


def needs_of(file: ServeFile) -> Needs:
    """What runs at the same time."""
    replicas = file.ingress.replicas
    most = replicas if isinstance(replicas, int) else replicas[1]
    needs = encoder_needs(1, 1.0, 0.0)  # of a batch
    needs += Needs(most * file.ingress.num_cpus + LAUNCH_CPUS + 0.2, 0.0, "ingress, memory, launch")
    for deployment in load_pool(file.pool).deployments.values():
        keys = file.models.get(deployment.id)
        most = (keys.max_replicas if keys else None) or deployment.max_replicas
        needs += Needs(DISPATCH_CPUS)
        for _ in range(most):
            needs += replica_needs(deployment)
    return needs


def _reason(app: Any) -> str:
    messages = [app.message, *(part.message for part in app.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("rtr_ray.errors")]
    return str((own or lines or ["no reason was given"])[-1][:400])


def _check_port(file: ServeFile) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((file.host, file.port))
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {file.host}:{file.port} ({error.strerror}). Choose another --port."
            ) from error
