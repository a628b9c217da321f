"""A pool of two fake engines, a router for it, corpora and jobs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import yaml
from rich.console import Console

from rtr_ray.config import JobFile, load_pool
from rtr_ray.distributed.ledger_actor import NAMESPACE
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.prior import Prior
from rtr_ray.job import Job
from rtr_ray.pool import Pool
from rtr_ray.router import train
from rtr_ray.screen import Screen
from rtr_ray.types import Outcomes
from tests.distributed import engine
from tests.distributed.conftest import ROOT, Cluster

POOL: dict[str, Any] = {
    "deployments": {
        name: {
            "source": "nowhere",
            "accelerator": "cpu",
            "num_cpus": 0.1,
            "context_tokens": 2000,
            "prices": {"input_usd_per_mtok": 0.03, "output_usd_per_mtok": price, "source": "made up"},
        }
        for name, price in (("weak", 0.1), ("strong", 1.3))
    },
    "models": {
        "weak": {"deployment": "weak", "profile": "A weak and cheap model."},
        "strong": {"deployment": "strong", "profile": "A strong and dear model."},
    },
    "strategies": {
        "vanilla": {"builtin": "vanilla", "max_tokens": 60},
        "cot": {"builtin": "cot", "max_tokens": 60, "samples": [1, 3], "select": "majority"},
        "pal": {"builtin": "pal", "max_tokens": 60},
    },
    "exclude": [{"model": "weak", "strategy": ["pal", "cot"]}],
}


@dataclass
class Workbench:
    """Everything of one test, in one folder."""

    folder: Path
    prefix: str
    engines: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"weak": {"skill": 0.3}, "strong": {"skill": 0.9}}
    )

    @property
    def meter(self) -> Path:
        """What the engines write down."""
        return self.folder / "meter.jsonl"

    @property
    def output(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    def pool(self, **changes: Any) -> Path:
        """The pool file."""
        path = self.folder / "pool.yaml"
        path.write_text(yaml.safe_dump(POOL | changes, sort_keys=False))
        return path

    def router(
        self,
        accuracy: dict[str, float] | None = None,
        encoder: HashEncoder | None = None,
        tokens: float = 25.0,
    ) -> Path:
        """A router that believes each model as good as told, whatever the query."""
        pool = load_pool(
            str(self.pool() if not (self.folder / "pool.yaml").exists() else self.folder / "pool.yaml")
        )
        believed = accuracy or {"weak": 0.4, "strong": 0.8}
        train(_outcomes(pool, believed, tokens), pool, encoder or HashEncoder(32), Prior()).save(
            str(self.folder / "router")
        )
        return self.folder / "router"

    def corpus(self, count: int, **more: Any) -> Path:
        """Questions with their sums, and a column of the user's."""
        draw = random.Random(count)
        pairs = [(draw.randint(1, 999), draw.randint(1, 999)) for _ in range(count)]
        lead = more.get("lead", lambda number: "Number")
        texts = [f"{lead(i)} {i}: what is {a} + {b}?" for i, (a, b) in enumerate(pairs)]
        texts = [more.get("texts", {}).get(i, text) for i, text in enumerate(texts)]
        table = pa.table(
            {
                "question": pa.array(texts, pa.string()),
                "sum": [str(a + b) for a, b in pairs],
                "note": [f"note {i}" for i in range(count)],
            }
        )
        path = self.folder / "corpus.parquet"
        pq.write_table(table, path, row_group_size=more.get("row_group_size", 100))
        return path

    def job(self, **changes: Any) -> JobFile:
        """A job over the corpus, attached to the fake engines."""
        content = {
            "pool": str(self.folder / "pool.yaml"),
            "router": str(self.folder / "router"),
            "corpus": {
                "path": str(self.folder / "corpus.parquet"),
                "columns": {"query": "question", "reference": "sum"},
            },
            "output": str(self.output),
            "policy": {"kind": "score", "lam": 0.5, "normaliser_usd": 1e-4},
            "grader": "numeric",
            "encoder": {"actors": 1, "num_cpus": 0.5},
            "dispatch": {"chunk": 16, "backoff_s": 0.1, "commit_s": 0.2, "commit_rows": 100},
            "cluster": {"serve_app": self.prefix},
        }
        return JobFile.model_validate(content | changes)

    def run(self, fresh: bool = False, **changes: Any) -> dict[str, Any]:
        """Run the job in this process, which must be a driver."""
        from rtr_ray.distributed.batch import run_job

        return run_job(Job.check(self.job(**changes)), screen(), fresh)

    def command(self, cluster: Cluster, job: JobFile | None = None) -> list[str]:
        """The command line that runs the job on a cluster; `run` below, in a process of its own."""
        content = json.loads((job or self.job()).model_dump_json(exclude_none=True))
        content["cluster"]["address"] = cluster.address
        config = self.folder / "job.yaml"
        config.write_text(yaml.safe_dump(content))
        return [str(Path(sys.executable).parent / "rtr-ray"), "run", "--config", str(config)]

    def results(self) -> pa.Table:
        """All results."""
        return pq.read_table(self.output / "results")

    @contextmanager
    def serving(self, **options: dict[str, Any]) -> Iterator[None]:
        """With the fake engines up."""
        engines = {name: {**self.engines[name], **options.get(name, {})} for name in self.engines}
        engine.start(self.prefix, {name: dict(value) for name, value in engines.items()}, self.meter)
        try:
            yield
        finally:
            engine.stop(self.prefix, engines)


def called(command: list[str], cluster: Cluster) -> subprocess.CompletedProcess[str]:
    """A command of `Workbench.command`, to its end; nobody sits at its terminal."""
    return subprocess.run(
        command,
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


def wait_for_its_actors_to_go() -> None:
    """Until the cluster has noticed that a driver was killed, and ended what it had started."""
    deadline = time.monotonic() + 120
    while any(one["namespace"] == NAMESPACE for one in ray.util.list_named_actors(all_namespaces=True)):
        assert time.monotonic() < deadline, "a ledger outlives its driver"
        time.sleep(0.1)


def screen() -> Screen:
    """A screen that nobody looks at; `screen.console.file` holds what it showed."""
    return Screen(Console(file=StringIO(), width=200))


def _outcomes(pool: Pool, accuracy: dict[str, float], each: float) -> Outcomes:
    candidates, count = pool.candidates, 40
    shape = (count, len(candidates))
    believed = np.tile([accuracy[c.model] for c in candidates], (count, 1))
    tokens = np.tile([each * c.samples for c in candidates], (count, 1))
    return Outcomes(
        query_ids=tuple(f"t{i}" for i in range(count)),
        queries=tuple(f"what is {i} + {i}?" for i in range(count)),
        candidates=candidates,
        accuracy=believed,
        input_tokens=np.full(shape, 20.0),
        output_tokens=tokens,
        cost_usd=np.zeros(shape),
        cut=np.zeros(shape),
        max_tokens=np.full(shape, 60.0),
        runs=np.ones(shape, dtype=int),
    )


def money(results: pa.Table) -> Decimal:
    """Exact dollars of all rows."""
    return sum((cost for cost in results["cost_usd"].to_pylist() if cost is not None), Decimal(0))
