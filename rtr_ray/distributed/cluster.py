"""The Ray cluster: connecting to one or starting one here, and whether what a job needs fits on it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from rtr_ray.errors import PlacementError, RtrError
from rtr_ray.pool import Deployment

_REACHABLE_S = 5.0
REPLICA_CPUS = 0.1  # what the actor of a replica takes beside its engine
DISPATCH_CPUS = 0.1  # a dispatch actor mostly waits
LAUNCH_CPUS = 0.1  # the task that starts the engines
TASK_CPUS = 1.0  # one task of Ray Data that reads, chooses or sums up
_TOLD_CHARS = 300  # of what Ray says of a process that has died
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Needs:
    """Logical resources that must be free at the same time."""

    cpus: float = 0.0
    gpus: float = 0.0
    what: str = ""

    def __add__(self, other: Needs) -> Needs:
        return Needs(
            self.cpus + other.cpus, self.gpus + other.gpus, ", ".join(filter(None, (self.what, other.what)))
        )

    def fits(self, resources: Mapping[str, float]) -> bool:
        """Whether a cluster with these resources could hold it."""
        return self.cpus <= resources.get("CPU", 0) + 1e-6 and self.gpus <= resources.get("GPU", 0) + 1e-6


def replica_needs(deployment: Deployment) -> Needs:
    """One replica of a deployment; nothing for an endpoint."""
    if deployment.endpoint is not None:
        return Needs()
    return Needs(
        deployment.num_cpus + REPLICA_CPUS,
        deployment.num_gpus,
        f"{deployment.id} {deployment.num_cpus + REPLICA_CPUS:g} CPU"
        + (f" {deployment.num_gpus:g} GPU" if deployment.num_gpus else ""),
    )


def calls_at_once(deployment: Deployment, chunk: int) -> int:
    """Calls that keep a replica full, by which Serve decides how many replicas there are to be.

    A call carries a chunk of requests, and Serve counts calls.
    """
    return max(1, math.ceil(deployment.max_in_flight / chunk))


def deployment_needs(deployment: Deployment) -> Needs:
    """All replicas that a deployment must have, and the actor that dispatches to them."""
    needs = Needs(DISPATCH_CPUS, 0.0, f"dispatch to {deployment.id} {DISPATCH_CPUS:g} CPU")
    for _ in range(deployment.min_replicas):
        needs += replica_needs(deployment)
    return needs


def encoder_needs(actors: int, num_cpus: float, num_gpus: float) -> Needs:
    """The encoder actors, and a task beside them."""
    each = f"{num_cpus:g} CPU" + (f" {num_gpus:g} GPU" if num_gpus else "")
    return Needs(
        actors * num_cpus + TASK_CPUS,
        actors * num_gpus,
        f"{actors} encoder actor(s) of {each}, one task of 1 CPU",
    )


def residencies(deployments: Sequence[Deployment], resources: Mapping[str, float]) -> list[list[Deployment]]:
    """Which deployments run at the same time: all of them where they fit, else one group after the other.

    First fit, the largest first, so that as few groups as possible have to wait for each other.

    Raises:
        PlacementError: If one deployment does not fit even alone.
    """
    groups: list[tuple[Needs, list[Deployment]]] = []
    spare = Needs(TASK_CPUS)
    for deployment in sorted(deployments, key=_size, reverse=True):
        needs = deployment_needs(deployment)
        if not (needs + spare).fits(resources):
            raise PlacementError(
                f"The deployment '{deployment.id}' needs {_plain(needs + spare)} "
                f"({needs.what}, one task of 1 CPU), and the cluster has {_have(resources)} in all. "
                "Give it more, or ask for less in the pool."
            )
        for number, (taken, members) in enumerate(groups):
            if (taken + needs + spare).fits(resources):
                groups[number] = (taken + needs, [*members, deployment])
                break
        else:
            groups.append((needs, [deployment]))
    return [members for _, members in groups]


def check_encoders(needs: Needs, resources: Mapping[str, float]) -> None:
    """Refuse encoder actors that the cluster has no room for.

    Raises:
        PlacementError: With both sides of the sum.
    """
    if not needs.fits(resources):
        raise PlacementError(
            f"The routing stage needs {_plain(needs)} ({needs.what}), and the cluster has "
            f"{_have(resources)} in all. Give it more, or ask for fewer or smaller encoder actors "
            "(encoder.actors, num_cpus, num_gpus)."
        )


def _size(deployment: Deployment) -> tuple[float, float]:
    needs = deployment_needs(deployment)
    return needs.gpus, needs.cpus


def _plain(needs: Needs) -> str:
    return f"{needs.cpus:g} CPU" + (f" and {needs.gpus:g} GPU" if needs.gpus else "")


def _have(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU and {resources.get('GPU', 0):g} GPU"


@contextlib.contextmanager
def connected(address: str | None, needs: Needs) -> Iterator[None]:
    """A Ray cluster for the time of a job: the one at `address`, or one that is started here.

    A cluster that is started here gets as many logical CPUs as the job needs: they are slots, not
    cores, and a laptop with two cores runs three small engines well.

    Args:
        address: Of a running cluster; None: that of RAY_ADDRESS, else one is started.
        needs: What should run at the same time.
    """
    if ray.is_initialized():
        _quiet()
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    try:
        with _silent():
            if address:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            else:
                ray.init(
                    "local",  # else one of somebody else's, that was started here, is taken for ours
                    num_cpus=max(os.cpu_count() or 1, math.ceil(needs.cpus)),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"Cannot reach the Ray cluster at {address}" if address else "Cannot start Ray on this machine"
        raise PlacementError(f"{what}: {str(error).splitlines()[0][:300]}") from error
    _quiet()
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse at once what Ray would try for minutes."""
    if address.startswith("ray://"):
        raise PlacementError(
            f"{address} is a Ray Client address, through which a job would send all it does. Submit the job "
            "instead: ray job submit --address http://HEAD:8265 -- rtr-ray run --config job.yaml."
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto" and "local" are Ray's affair
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACHABLE_S).close()
    except OSError as error:
        raise PlacementError(
            f"No Ray cluster answers at {address} ({error.strerror or error}). Start one with "
            "ray start --head, or leave the address (and RAY_ADDRESS) out to start one here."
        ) from error


def root(error: BaseException) -> BaseException:
    """The error of ours that Ray has wrapped; where there is none, the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(
            seen, "cause", None
        )  # Ray's wrapping is an instance of what it wraps, and no good copy
        if not isinstance(cause, BaseException):
            if isinstance(seen, RtrError):
                return seen
            cause = seen.__cause__ or seen.__context__
        seen = cause
    return error


def death(error: RayError) -> str:
    """Which process has died and why, in one line, as far as Ray says so."""
    told = " ".join(_COLOUR.sub("", str(error)).split())
    if len(told) > _TOLD_CHARS:  # a traceback: where and what stand at its ends
        told = f"{told[: _TOLD_CHARS // 2]} ... {told[-_TOLD_CHARS // 2 :]}"
    return f"{type(error).__name__}: {told.rstrip('.')}" if told else type(error).__name__


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What Ray's C++ side says while it starts goes nowhere; its exceptions still come."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quiet() -> None:
    """Ray's own progress bars, chatter and wrappings would tear our display apart."""
    from ray.data import DataContext  # with pandas and more: tasks need none of it

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else an error of ours comes back as text alone: see `root`
    for name in ("ray.data", "ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
