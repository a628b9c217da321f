"""Serving the metered engines, once for many runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray import serve

from benchmarks.fault_tools.engine import MeteredFake


def serve_fake(meters: Path, prefix: str = "fake") -> None:
    """Start the two fake engines."""
    serve.start(proxy_location="Disabled")
    fake: Any = MeteredFake  # what the decorator makes of it is not in its type
    for model in ("weak", "strong"):
        serve.run(fake.bind(model, str(meters)), name=f"{prefix}-{model}", route_prefix=None)


def stop_fake(prefix: str = "fake") -> None:
    """Take them down."""
    for model in ("weak", "strong"):
        serve.delete(f"{prefix}-{model}")


def serve_vllm(meters: Path, prefix: str = "vllm") -> None:
    """Start the smallest embedded model on vLLM; it takes a minute or two to be up."""
    ray.get(_start_vllm.remote(str(meters), f"{prefix}-nano"))


@ray.remote(num_cpus=0.1, max_retries=0)
def _start_vllm(meters: str, app: str) -> None:
    from benchmarks.fault_tools.vllm_engine import start  # imports vllm: much, so in a process of its own

    start(meters, app)


def wait(prefix: str, timeout_s: float) -> None:
    """Until all engines of a prefix run, after whatever has happened to them."""
    deadline = time.monotonic() + timeout_s
    while True:
        states = {name: app.status for name, app in serve.status().applications.items()}
        mine = {name: state for name, state in states.items() if name.startswith(f"{prefix}-")}
        if mine and all(state == "RUNNING" for state in mine.values()):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"The engines are not up after {timeout_s:g} s: {states}")
        time.sleep(0.5)
