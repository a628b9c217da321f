"""`rtr-ray serve` as a user starts it, in front of real vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import yaml

from rtr_ray.config import pool_path
from rtr_ray.keys import KeyStore, Limits
from tests.distributed.conftest import ROOT, free_ports
from tests.distributed.workbench import Workbench

ASK = [{"role": "user", "content": "Add and subtract: 76 + 31 + 88"}]
QUICK = {"max_retries": 0, "timeout": 300.0}


@dataclass(frozen=True)
class Online:
    """A running endpoint, and a key for it."""

    url: str
    folder: Path
    key: str
    pid: int = 0  # of the command

    def client(self, key: str | None = None) -> openai.OpenAI:
        """OpenAI's client, unchanged but for its base_url."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, **QUICK)

    def call(self, path: str, body: Any = None, raw: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a plain HTTP call."""
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        known = {"authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.url}{path}", data, known | headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@contextlib.contextmanager
def online_endpoint(folder: Path) -> Iterator[Online]:
    """The embedded `nano`, served by the command line on a cluster of its own."""
    bench = Workbench(folder, "none")
    whole = yaml.safe_load(pool_path("embedded").read_text())
    engine = whole["deployments"]["nano"]
    engine["source"] = str(pool_path("embedded").parent / engine["source"])
    bench.pool(
        deployments={"nano": engine},
        models={"nano": whole["models"]["nano"]},
        strategies={name: whole["strategies"][name] for name in ("vanilla", "cot", "pal")},
        exclude=[],
    )
    bench.router({"nano": 0.5})
    (port,) = free_ports(1)
    keys = folder / "keys.sqlite"
    token, _ = KeyStore(keys).create("ann", Limits(day_usd=Decimal(1)))
    (folder / "serve.yaml").write_text(
        yaml.safe_dump(
            {
                "pool": str(folder / "pool.yaml"),
                "router": str(folder / "router"),
                "policy": {"kind": "score", "lam": 0.9, "normaliser_usd": 1e-6},
                "port": port,
                "folder": str(folder / "kept"),
                "keys": str(keys),
                "ingress": {"num_cpus": 0.5, "patience_s": 240.0},
            }
        )
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    command = [str(Path(sys.executable).parent / "rtr-ray"), "serve", "--config", str(folder / "serve.yaml")]
    log = folder / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    found = Online(f"http://127.0.0.1:{port}", folder, token, process.pid)
    try:
        deadline = time.monotonic() + 900
        while not _answers(found):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(180) == 0, log.read_text()[-3000:]
        finally:
            process.kill()


def _answers(online: Online) -> bool:
    try:
        return online.call("/healthz")[0] == 200
    except (OSError, ValueError):  # Serve itself answers until the application is there, and not in JSON
        return False
