"""From one replica to several while a run answers, by the number of calls that Serve sees."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from ray import serve

from rtr_ray.config import load_pool
from rtr_ray.distributed.cluster import calls_at_once
from rtr_ray.pool import Deployment, Price
from tests.distributed.conftest import Cluster
from tests.distributed.engine import FakeEngine, metered
from tests.distributed.workbench import POOL, Workbench

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(("in_flight", "chunk", "calls"), [(256, 64, 4), (100, 64, 2), (16, 64, 1)])
def test_so_many_calls_fill_a_replica(in_flight: int, chunk: int, calls: int) -> None:
    one = Deployment("one", Price(Decimal(1), Decimal(1)), source="hub/one")
    assert calls_at_once(replace(one, max_in_flight=in_flight), chunk) == calls


def test_a_deployment_grows_while_calls_pile_up_and_all_its_replicas_answer(
    tmp_path: Path, connected: Cluster
) -> None:
    bench = Workbench(tmp_path, f"grow-{tmp_path.name[:20]}")
    deployments = deepcopy(POOL["deployments"])
    deployments["strong"] |= {"max_in_flight": 16, "autoscaling": {"max_replicas": 3}}
    bench.pool(deployments=deployments)
    bench.router()
    bench.corpus(600)
    deployment = load_pool(str(tmp_path / "pool.yaml")).deployments["strong"]
    calls = calls_at_once(deployment, 16)
    scaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": calls,
        "upscale_delay_s": 0.5,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1.0,
    }
    with bench.serving():
        grown = FakeEngine.options(autoscaling_config=scaling, max_ongoing_requests=4 * calls).bind(
            "strong", 0.9, meter=str(bench.meter), latency_s=0.2, together=4
        )
        serve.run(grown, name=f"{bench.prefix}-strong", route_prefix=None)
        found = bench.run(policy={"kind": "fixed", "candidate": "strong:vanilla"})
    assert found["rows"] == {"total": 600, "answered": 600, "failed": 0, "skipped_budget": 0}
    assert len(metered(bench.meter)) == 600
    # one of the first deployment, and three of this one, of which none answers before all have come
    assert len({line["process"] for line in metered(bench.meter)}) > 1
