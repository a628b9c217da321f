"""Real vLLM with a meter: our engine's own server, which writes down what it answers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fault_tools.meter import Meter
from rtr_ray.config import load_pool
from rtr_ray.distributed.server import ChunkServer

_METERS = "RTR_FAULTS_METERS"
_MODEL = "nano"


class MeteredServer(ChunkServer):
    """A ChunkServer with a meter."""

    _own_meter: Meter | None = None

    async def answer_chunk(
        self, requests: Sequence[dict[str, Any]], *more: Any, **named: Any
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Every request is written down as it comes, every answer before it is given."""
        if self._own_meter is None:
            self._own_meter = Meter(Path(os.environ[_METERS]), _MODEL)
        asked = [self._own_meter.begin(body) for body in requests]
        async for replies in super().answer_chunk(requests, *more, **named):
            for reply in replies:
                one = asked[reply["index"]]
                if one is not None and "usage" in reply:
                    self._own_meter.pay(one, reply["usage"])
            yield replies


def start(meters: str, app: str) -> None:
    """Begin to start the smallest embedded model."""
    from ray import serve
    from ray.serve.llm import build_llm_deployment

    from rtr_ray.distributed.engines import llm_config

    deployment = load_pool("embedded").deployments[_MODEL]
    deployment = replace(deployment, env={**deployment.env, _METERS: meters})
    serve.start(proxy_location="Disabled")
    application = build_llm_deployment(llm_config(deployment), deployment_cls=MeteredServer)
    target = serve.RunTarget(application, name=app, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
