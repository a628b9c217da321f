"""A run over a cluster of several nodes, one of which is taken away; a script: it starts its own cluster.

    python -m tests.distributed.several_nodes FOLDER

Four raylets on this machine: a head, a node with a GPU (a logical one), and two nodes for replicas. Prints as
JSON what `test_several_nodes.py` looks at.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray import serve
from ray.cluster_utils import Cluster

from rtr_ray.distributed.ledger_actor import NAMESPACE, ledger_name
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.types import FloatArray
from tests.distributed import engine
from tests.distributed.workbench import Workbench, money

ROWS = 400


@dataclass(frozen=True)
class PlaceTelling:
    """A hash encoder that writes down on which node it works."""

    folder: str
    dim: int = 32
    kind: ClassVar[str] = "placed"

    @property
    def identity(self) -> str:
        return "placed"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        if ray.is_initialized():
            (Path(self.folder) / ray.get_runtime_context().get_node_id()).touch()
        return HashEncoder(self.dim).encode(texts)


def where(_: Any) -> str:
    """The node that an actor is on; asked by `__ray_call__`."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def main(folder: Path) -> dict[str, Any]:
    """The run."""
    common = {"object_store_memory": 80_000_000}
    cluster = Cluster(True, False, {"num_cpus": 3, "include_dashboard": False, **common})
    gpu = cluster.add_node(num_cpus=1, num_gpus=1, **common)
    homes = [cluster.add_node(num_cpus=1, resources={"home": 1}, **common) for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    places = folder / "places"
    places.mkdir()
    bench = Workbench(folder, "nodes")
    bench.pool()
    bench.router(encoder=PlaceTelling(str(places)))  # type: ignore[arg-type]
    # every second answer takes twenty times as long: they are on their way whenever the node goes
    slow = {i: f"Number {i}: what is {i} + {i}? SLOW" for i in range(0, ROWS, 2)}
    bench.corpus(ROWS, row_group_size=50, texts=slow)
    serve.start(proxy_location="Disabled")
    for name in ("weak", "strong"):
        deployment = engine.FakeEngine.options(
            num_replicas=2,
            max_replicas_per_node=1,
            ray_actor_options={"num_cpus": 0.1, "resources": {"home": 0.5}},
        )
        app = deployment.bind(name, bench.engines[name]["skill"], meter=str(bench.meter), latency_s=0.4)
        serve.run(app, name=f"nodes-{name}", route_prefix=None)
    for place in places.iterdir():  # of this process, which trained the router
        place.unlink()
    removed: list[float] = []
    ledgers: list[str] = []  # the nodes that it is on

    def remove() -> None:
        engine.wait_for_lines(bench.meter, ROWS // 4)
        ledger: Any = ray.get_actor(ledger_name(str(bench.output)), namespace=NAMESPACE)
        ledgers.append(ray.get(ledger.__ray_call__.remote(where)))
        cluster.remove_node(homes[0], allow_graceful=False)
        removed.append(time.monotonic())

    remover = threading.Thread(target=remove, daemon=True)
    remover.start()
    found = bench.run(
        encoder={"actors": 2, "num_cpus": 0.25, "num_gpus": 0.5, "batch_rows": 32},
        policy={"kind": "fixed", "candidate": "strong:vanilla"},
    )
    remover.join(30)
    results = bench.results()
    paid = sum((price(one) for one in engine.metered(bench.meter)), Decimal(0))
    told = {
        "removed": bool(removed),
        "rows": found["rows"],
        "most_results_of_a_row": max(Counter(results["query_id"].to_pylist()).values()),
        "notes": len(set(results["note"].to_pylist())),
        "spent": found["cost_usd"]["spent"],
        "money": str(money(results)),
        "paid": str(paid),
        "lost": found["calls"]["lost_worst_case_usd"],
        "sent_again": found["calls"]["sent_again"],
        "ledger_beside_driver": ledgers == [ray.get_runtime_context().get_node_id()],
        "encoded_on_gpu_nodes_alone": {one.name for one in places.iterdir()} == {gpu.node_id},
    }
    ray.shutdown()
    cluster.shutdown()
    return told


def price(line: dict[str, Any]) -> Decimal:
    """Dollars of an answer by the meter; cached tokens cost what others do."""
    per_token = {"weak": Decimal("0.1"), "strong": Decimal("1.3")}[line["engine"]]
    return (line["input_tokens"] * Decimal("0.03") + line["output_tokens"] * per_token) / 10**6


if __name__ == "__main__":
    # under its own name, by which the encoder is found again in other processes
    from tests.distributed import several_nodes

    print(json.dumps(several_nodes.main(Path(sys.argv[1]))))
