"""Engines that stay up over several jobs, which attach to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from rtr_ray.config import ClusterKeys
from rtr_ray.distributed.cluster import Needs, deployment_needs
from rtr_ray.distributed.deployments import Deployments
from rtr_ray.distributed.guard import Guard
from rtr_ray.pool import Pool
from rtr_ray.screen import Screen


@contextmanager
def standing(
    prefix: str, pool: Pool, keys: ClusterKeys, beside: Needs, screen: Screen
) -> Iterator[str | None]:
    """All engines of a pool, up from here to the end of the block, and taken down at every ending.

    Args:
        prefix: Of the names of their applications.
        pool: Its deployments are started.
        keys: How long to wait, and whether the cluster grows.
        beside: What else must run at the same time.
        screen: Where to show how far it is.

    Yields:
        The prefix to attach to. None where each job has to start its own: not all fit together,
        nothing needs starting, or they run already.
    """
    mine = [d for d in pool.deployments.values() if d.endpoint is None]
    needs = sum(map(deployment_needs, mine), beside)
    if keys.serve_app or not mine or not (keys.grows or needs.fits(ray.cluster_resources())):
        yield None
        return
    deployments = Deployments(prefix, False, keys.placement_timeout_s, keys.startup_timeout_s)
    guard = Guard(f"guard-{prefix}", [deployments.app_name(d) for d in mine])
    try:
        guard.start()
        deployments.start(mine)
        deployments.wait(mine, screen)
        yield prefix
    finally:
        with screen.stage("stop"):
            gone = False
            try:
                gone = deployments.stop(mine)
            finally:
                guard.stop(gone)
