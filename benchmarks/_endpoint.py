"""An endpoint for the time of a benchmark: `rtr-ray serve` as a user starts it, or with metered engines."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import yaml

from rtr_ray.pool import Pool
from rtr_ray.types import Usage

ROOT = Path(__file__).resolve().parents[1]
START_S = 900


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def serve_keys(folder: Path, changes: Mapping[str, Any]) -> Path:
    """A serve file in `folder`: the repository's, with these keys instead."""
    keys = yaml.safe_load((ROOT / "serve.yaml").read_text()) | {"port": free_port()} | dict(changes)
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


@contextlib.contextmanager
def served(file: Path, meter: Path | None = None) -> Iterator[str]:
    """The URL of an endpoint that is started here, and ended afterwards.

    Args:
        file: A serve file.
        meter: Where each engine notes what it has generated, beside the ledger; None: `rtr-ray serve` itself.
    """
    if meter is None:
        command = [str(Path(sys.executable).parent / "rtr-ray"), "serve", "--config", str(file)]
    else:
        command = [sys.executable, str(ROOT / "benchmarks/simulation/metered.py"), str(file), str(meter)]
    process = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{yaml.safe_load(file.read_text())['port']}"
    try:
        deadline = time.monotonic() + START_S
        while not all_up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the endpoint did not start")
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait()


def all_up(url: str) -> bool:
    """Whether every model has a replica, or may wake one up."""
    health = healthz(url)
    return bool(health) and all(one["up"] for one in health["models"].values())


def healthz(url: str) -> dict[str, Any]:
    """What the endpoint says of itself; nothing where it does not answer."""
    try:
        reply = httpx.get(f"{url}/healthz", timeout=30)
        found: dict[str, Any] = reply.json() if reply.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return found


def metered_usd(meter: Path, pool: Pool) -> tuple[Decimal, int]:
    """What the engines' own notes come to, and how many calls they are of."""
    total, calls = Decimal(0), 0
    if meter.exists():
        for line in meter.read_text().splitlines():
            name, *counts = json.loads(line)
            total += pool.deployments[name].price.cost_usd(Usage(*counts))
            calls += 1
    return total, calls
