"""How often forecasts hold on recorded outcomes: what benchmarks/forecast.py prints, shortened."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.knn import KNN

ROOT = Path(__file__).parents[1]
RECORDED = ROOT.parent / "shared/data/renze_dense_2x4.parquet"
SPLITS = 80


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    if not RECORDED.exists():
        pytest.skip("the recorded outcomes of real models (../shared/data) are not part of the repository")
    spec = importlib.util.spec_from_file_location("benchmarks_forecast", ROOT / "benchmarks/forecast.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(bench: ModuleType) -> Any:
    return bench.recorded(RECORDED, HashEncoder())


def test_on_queries_like_those_of_training_the_interval_holds_in_nine_of_ten_splits(
    bench: ModuleType, data: Any
):
    found = []
    for seed in range(SPLITS):
        known_M = bench.group_split(data, 0.6, seed)
        found += [row[2:] for row in bench.trials(data, KNN(), known_M, ~known_M, [0.3], [0], seed)]
    rows = bench.figures(found)
    for name in ("cost_usd", "accuracy"):
        assert 0.85 <= rows[name]["coverage"] <= 0.97, rows
        assert rows[name]["width_over_spread"] <= 1.5, rows


def test_on_other_exams_a_pilot_of_fifty_rows_makes_it_hold(bench: ModuleType, data: Any):
    found: dict[int, list[Any]] = {0: [], 50: []}
    for seed in range(SPLITS):
        known_M = bench.group_split(data, 0.8, seed) & ~data.other
        for _, size, *row in bench.trials(data, KNN(), known_M, data.other, [0.3], [0, 50], seed):
            found[size].append(row)
    without, with_pilot = bench.figures(found[0]), bench.figures(found[50])
    for name in ("cost_usd", "accuracy"):
        assert with_pilot[name]["coverage"] >= 0.85, with_pilot
        assert with_pilot[name]["width"] < 0.5 * without[name]["width"]
    assert all(made.far > 0.3 and made.warnings for made, *_ in found[0])
