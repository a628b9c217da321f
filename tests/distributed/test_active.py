"""Collecting actively: the budget goes to labels that tell most, and the same command goes on."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtr_ray.collection import Collection
from rtr_ray.config import CollectFile
from rtr_ray.distributed.active import collect_actively
from rtr_ray.distributed.collecting import collected_usd
from rtr_ray.errors import ConfigError
from rtr_ray.outcomes import pivot, read_long
from tests.distributed.conftest import Cluster
from tests.distributed.engine import metered
from tests.distributed.workbench import Workbench, screen

pytestmark = pytest.mark.ray


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"active-{tmp_path.name[:20]}")
    bench.pool()
    bench.corpus(120)
    return bench


def work(bench: Workbench, **changes: Any) -> Collection:
    content = {
        "pool": str(bench.folder / "pool.yaml"),
        "queries": {
            "path": str(bench.folder / "corpus.parquet"),
            "columns": {"query": "question", "reference": "sum"},
        },
        "output": str(bench.folder / "outcomes"),
        "grader": "numeric",
        "budget_usd": "0.005",
        "active": {"encoder": {"kind": "hash", "dim": 32}, "rounds": 3, "first_rows": 4, "rule": "decision"},
        "dispatch": {"chunk": 16, "commit_s": 0.2},
        "cluster": {"serve_app": bench.prefix},
    }
    return Collection.check(CollectFile.model_validate(content | changes))


def test_a_budget_is_spent_on_single_cells_and_more_money_buys_more(bench: Workbench) -> None:
    with bench.serving():
        found = collect_actively(work(bench), screen())
        calls = len(metered(bench.meter))
        spent, unknown = collected_usd(str(bench.folder / "outcomes"))
        assert unknown == 0
        assert Decimal("0.003") < spent <= Decimal("0.005")
        outcomes = pivot(read_long(str(bench.folder / "outcomes" / "*.parquet")))
        counts_C = (~np.isnan(outcomes.accuracy)).sum(axis=0)
        assert (counts_C >= 4).all(), "the first rows are whole"
        dearest = int(np.nanmean(outcomes.cost_usd, axis=0).argmax())
        assert counts_C.max() > 1.5 * counts_C[dearest], "the dear ones are asked less often"
        assert found["active"]["rule"] == "decision"
        assert found["active"]["cells"] == counts_C.sum() == calls
        more = collect_actively(work(bench, budget_usd="0.007"), screen())
        assert more["active"]["cells"] > calls
        outcomes = pivot(read_long(str(bench.folder / "outcomes" / "*.parquet")))
        assert len(metered(bench.meter)) == outcomes.runs.sum() == more["active"]["cells"]
        assert outcomes.runs.max() == 1, "nothing was asked twice"
        assert collected_usd(str(bench.folder / "outcomes"))[0] <= Decimal("0.007")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_usd": None}, "Give --budget-usd"),
        ({"repeats": 2}, "asks single cells once"),
        ({"active": {"rule": "best"}}, "Unknown rule 'best'"),
    ],
)
def test_what_it_cannot_do_is_said_at_once(bench: Workbench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        collect_actively(work(bench, **changes), screen())
    assert not (bench.folder / "outcomes").exists()
