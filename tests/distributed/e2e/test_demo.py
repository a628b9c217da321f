"""The main job as `make demo` runs it, on fewer questions: real Ray Data, Ray Serve and vLLM."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rtr_ray.distributed.demo import ORDER, run_demo, show_demo
from rtr_ray.errors import ConfigError
from rtr_ray.schemas import RESULTS
from tests.distributed.workbench import money, screen

pytestmark = [pytest.mark.ray, pytest.mark.vllm]

QUESTIONS = 120


@pytest.fixture(scope="module")
def demo(served: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run folder, and what the demo returned."""
    output = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    return output, run_demo(str(output), QUESTIONS, screen(), attached=True)


def test_every_question_is_answered_once_and_every_cent_adds_up(demo: tuple[Path, dict[str, Any]]) -> None:
    output, found = demo
    results = pq.read_table(output / "results")
    assert found["rows"] == {"total": QUESTIONS, "answered": QUESTIONS, "failed": 0, "skipped_budget": 0}
    assert len(set(results["query_id"].to_pylist())) == results.num_rows == QUESTIONS
    assert {"query", "reference", "family", "level"} <= set(results.column_names)
    assert set(RESULTS.names) <= set(results.column_names)
    assert money(results) == Decimal(found["cost_usd"]["spent"])
    for name in ("input_tokens", "output_tokens"):
        assert sum(results[name].to_pylist()) == found["usage"][name] > 0
        assert sum(row[name] for row in found["by_candidate"]) == found["usage"][name]
    assert sum(Decimal(row["cost_usd"]) for row in found["by_candidate"]) == money(results)
    assert json.loads((output / "summary.json").read_text()) == json.loads(json.dumps(found))


def test_questions_go_to_several_candidates_and_most_are_answered_right(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    _, found = demo
    assert len(found["by_candidate"]) >= 3
    assert found["accuracy"] >= 0.5
    assert set(found["comparison"]) == set(ORDER)
    # by definition: nobody does better than the oracle, and nothing is cheaper than the cheapest
    best, routed = found["comparison"]["oracle"], found["comparison"]["routed"]
    assert best["accuracy"] >= routed["accuracy"] > found["comparison"]["random"]["accuracy"]
    assert Decimal(found["comparison"]["cheapest"]["cost_usd"]) <= Decimal(routed["cost_usd"])


def test_every_candidate_has_answered_every_question_to_compare_with(
    demo: tuple[Path, dict[str, Any]],
) -> None:
    output, _ = demo
    parts = sorted(Path(output, "comparison").glob("part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    counts = Counter((row["model"], row["strategy"]) for row in rows)
    assert len(counts) == 10
    assert set(counts.values()) == {QUESTIONS}
    assert all(row["error"] is None and row["cost_usd"] > 0 for row in rows)


def test_a_second_time_nothing_is_asked_again(demo: tuple[Path, dict[str, Any]]) -> None:
    output, found = demo
    before = {path: path.stat().st_mtime_ns for path in (output / "results").iterdir()}
    looked_at = screen()
    again = run_demo(str(output), QUESTIONS, looked_at, attached=True)
    assert {path: path.stat().st_mtime_ns for path in (output / "results").iterdir()} == before
    for name in ("rows", "usage", "cost_usd", "by_candidate", "comparison", "advantage"):
        assert again[name] == found[name]
    show_demo(again, looked_at, str(output))
    assert "of the best single" in looked_at.console.file.getvalue()  # type: ignore[attr-defined]


def test_another_number_of_questions_is_refused_in_the_same_folder(demo: tuple[Path, dict[str, Any]]) -> None:
    output, _ = demo
    with pytest.raises(ConfigError, match=rf"a demo with {QUESTIONS} questions, not 50\..*--fresh"):
        run_demo(str(output), 50, screen(), attached=True)
