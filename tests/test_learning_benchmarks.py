"""The benchmarks of late candidates, bought labels, strange queries and attacks, so that they do not rot."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import active, attack, new_candidates, ood

HASH = '{"kind": "hash", "dim": 24}'
CANDIDATES = (("cheap", "vanilla", 0.001), ("cheap", "cot", 0.004), ("dear", "vanilla", 0.02))
TOPICS = ("add the numbers", "name the capital", "sort the list")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Outcomes of three candidates, each good at a topic of its own; some questions are of another kind."""
    dice, rows = np.random.default_rng(0), []
    for number in range(150):
        strange = number % 10 == 0
        topic = int(dice.integers(3))
        text = f"wie geht es dir {number}" if strange else f"{TOPICS[topic]} {number}?"
        for column, (model, strategy, usd) in enumerate(CANDIDATES):
            right = dice.random() < (0.8 if column == topic else 0.3)
            rows.append(
                {"query_id": f"q{number}", "query": text, "model": model, "strategy": strategy, "sample": 0}
                | {
                    "correct": float(right),
                    "input_tokens": 10,
                    "output_tokens": 20 + 40 * (strategy == "cot"),
                }
                | {"cost_usd": usd, "ood": strange}
            )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "here.parquet")
    return tmp_path


def run(module: ModuleType, folder: Path, *more: str) -> list[dict[str, Any]]:
    """The rows that were written of the one table."""
    out = folder / "found.json"
    common = ["--data", str(folder), "--tables", "here", "--encoder", HASH, "--out", str(out)]
    module.main([*common, "--embeddings", str(folder / "kept"), *more])
    found: list[dict[str, Any]] = json.loads(out.read_text())["tables"]["here"]
    return found


def test_late_candidates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--estimator", "linear", "--seeds", "1", "--labels", "0", "20"]
    rows = run(new_candidates, folder, *more)
    assert [row["labels"] for row in rows[:5]] == ["none", 0, 20, "mean of 20", "all"]
    assert {row["candidate"] for row in rows} == {f"{model}:{strategy}" for model, strategy, _ in CANDIDATES}
    assert "| 20 |" in capsys.readouterr().out
    assert list((folder / "kept").glob("*.npy")), "embeddings are kept"


def test_bought_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(active, folder, "--estimator", "linear", "--seeds", "1", "--shares", "0.4", "1", "--dims", "8")
    assert {row["rule"] for row in rows} == set(active.RULES)
    assert all(row["spent"] <= row["share"] + 1e-9 for row in rows)
    assert all(row["cells"] > 250 for row in rows if row["share"] == 1), "everything is bought in the end"
    assert "| 40% |" in capsys.readouterr().out


def test_strange_queries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(ood, folder, "--estimator", "linear", "--seeds", "1")
    assert row["auroc_nearest"] > 0.9
    assert "| marked |" in capsys.readouterr().out


def test_attacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--words", "4", "--positions", "2", "--queries", "6", "--asked", "20"]
    rows = run(attack, folder, "--estimator", "linear", *few)
    assert [row["guard"] for row in rows] == ["none", "plainly", "ood", "plainly, ood"]
    assert all(0 <= row["adaptive_share"] <= 1 for row in rows)
    assert "| plainly, ood |" in capsys.readouterr().out
