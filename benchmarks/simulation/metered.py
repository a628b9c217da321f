"""`rtr-ray serve`, whose engines note what vLLM has counted: a meter outside of our ledger.

    python benchmarks/simulation/metered.py serve.yaml meter.jsonl

A line is the deployment, input tokens, output tokens, cached input tokens: of an answer that ended or
of one that was stopped. What a killed replica was at work on is in no line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rtr_ray.config import ServeFile, load_serving
from rtr_ray.distributed.cluster import LAUNCH_CPUS
from rtr_ray.distributed.online.running import serve_file
from rtr_ray.screen import Screen


def launching(meter: str) -> Any:
    """The task that starts the application with metered engines."""

    @ray.remote(num_cpus=LAUNCH_CPUS, max_retries=0)
    def launch(file: ServeFile, name: str, route_prefix: str) -> None:
        import contextlib
        import json

        from ray import serve
        from ray.serve import RunTarget

        from rtr_ray.distributed.online.application import application
        from rtr_ray.distributed.online.gates import gate_of
        from rtr_ray.distributed.online.server import OnlineServer
        from rtr_ray.distributed.server import events_of

        class MeteredServer(OnlineServer):
            async def chat(self, request: Any, *more: Any) -> Any:
                return self._noted(request, await super().chat(request, *more))

            async def _noted(self, request: Any, source: Any) -> Any:
                counts = [0, 0, 0]
                try:
                    async with contextlib.aclosing(source):
                        async for lines in source:
                            for event in events_of(lines):
                                if usage := event.get("usage"):
                                    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
                                    counts = [usage["prompt_tokens"], usage["completion_tokens"], cached or 0]
                            yield lines
                finally:
                    line = json.dumps([request.model, *counts]) + "\n"
                    with open(meter, "a") as file:  # one write: all replicas share the file
                        file.write(line)

        target = RunTarget(
            application(file, gate_of(file), MeteredServer), name=name, route_prefix=route_prefix
        )
        serve.run_many(
            [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
        )

    return launch


if __name__ == "__main__":
    serve_file(load_serving(Path(sys.argv[1])), Screen(), launch=launching(str(Path(sys.argv[2]).absolute())))
