"""Batch and online choose the same: a corpus that Ray Data plans, and the same questions one by one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rtr_ray.answers import Answerer
from rtr_ray.config import load_pool, pool_path
from rtr_ray.embedded.shipped_outcomes import questions
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.auto import Auto
from rtr_ray.estimators.base import Estimator
from rtr_ray.estimators.knn import KNN
from rtr_ray.gate import OpenGate
from rtr_ray.online.endpoint import Endpoint
from rtr_ray.online.loading import load_chooser
from rtr_ray.online.routing import Routing
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.parts import plan_part, queries
from rtr_ray.router import train
from rtr_ray.run_folder import TABLES, RunFolder
from rtr_ray.storage import open_store, read_table
from rtr_ray.versions import saved
from tests.distributed.conftest import Cluster
from tests.distributed.workbench import Workbench, screen
from tests.online.bench import FakeEngines

pytestmark = pytest.mark.ray

POOL = load_pool("embedded")
POLICY = {"kind": "score", "lam": 0.9, "normaliser_usd": 1e-6}
QUESTIONS = 160


@dataclass
class Up(FakeEngines):
    """The embedded pool's deployments, all up."""

    def up(self) -> frozenset[str]:
        return frozenset(POOL.deployments)

    def replicas(self) -> dict[str, int]:
        return dict.fromkeys(POOL.deployments, 1)


def planned(bench: Workbench) -> dict[str, str]:
    """Text -> candidate, as the batch driver has planned it, in blocks of 48 rows."""
    from rtr_ray.distributed.batch import plan_job
    from rtr_ray.job import Job

    corpus = {"path": str(bench.folder / "corpus.parquet"), "columns": {"query": "query"}}
    keys = {"actors": 1, "num_cpus": 0.5, "batch_rows": 48}
    plan_job(Job.check(bench.job(pool="embedded", policy=POLICY, corpus=corpus, encoder=keys)), screen())
    store = open_store(str(bench.output))
    versions = saved(RunFolder(store))
    found = {}
    for key in store.keys(TABLES):  # what a run does with each of them before it answers
        part = plan_part(read_table(store, key), POOL, versions[max(versions)])
        for rows in part.rows.values():
            found |= {query.text: str(candidate) for query, candidate in queries(rows)}
    return found


async def routed(router: Path, texts: list[str], together: int) -> dict[str, str]:
    """Text -> candidate, as the endpoint says when it is asked about so many at the same time."""
    chooser = load_chooser(str(router), POLICY, POOL)
    answerer = Answerer(POOL.strategies, lambda code: asyncio.sleep(0, None), POOL.thinking)
    endpoint = Endpoint(POOL, Up(), OpenGate(), Routing(chooser), answerer)

    async def choice(text: str) -> str:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        shown: Any = (await endpoint.route(json.dumps(body).encode())).body
        name: str = shown["choice"]["candidate"]
        return name

    found: dict[str, str] = {}
    for start in range(0, len(texts), together):
        some = texts[start : start + together]
        found |= dict(zip(some, await asyncio.gather(*map(choice, some)), strict=True))
    return found


@pytest.mark.parametrize("estimator", [Auto(), KNN()], ids=["auto", "knn"])
def test_batch_and_online_choose_the_same_for_the_same_queries_and_policy(
    estimator: Estimator, tmp_path: Path, connected: Cluster
) -> None:
    known = pivot(read_long(str(pool_path("embedded").parent / "outcomes.parquet")), POOL.candidates)
    known = known.rows(np.arange(400))
    train(known, POOL, HashEncoder(64), estimator).save(str(tmp_path / "router"))
    table = questions("test", QUESTIONS, 7)
    pq.write_table(table, tmp_path / "corpus.parquet")
    in_batch = planned(Workbench(tmp_path, "none"))
    texts = list(dict.fromkeys(table["query"].to_pylist()))
    assert set(in_batch) == set(texts)
    assert len(set(in_batch.values())) >= 2, "they would agree on anything"
    for together in (1, 5, 64):
        assert asyncio.run(routed(tmp_path / "router", texts, together)) == in_batch
