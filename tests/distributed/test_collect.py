"""Collecting outcomes: every candidate on every query, graded, recorded, and only once."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rtr_ray.collection import Collection
from rtr_ray.config import CollectFile
from rtr_ray.distributed.collecting import collect
from rtr_ray.errors import ConfigError, DataError
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.schemas import OUTCOMES
from rtr_ray.types import Candidate
from tests.distributed.conftest import Cluster
from tests.distributed.engine import metered
from tests.distributed.workbench import POOL, Workbench, screen

pytestmark = pytest.mark.ray


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"collect-{tmp_path.name[:20]}")
    bench.pool()
    return bench


def file(bench: Workbench, **changes: Any) -> CollectFile:
    content = {
        "pool": str(bench.folder / "pool.yaml"),
        "queries": {
            "path": str(bench.folder / "corpus.parquet"),
            "columns": {"query": "question", "reference": "sum"},
        },
        "output": str(bench.folder / "outcomes"),
        "grader": "numeric",
        "dispatch": {"chunk": 16, "commit_s": 0.2},
        "cluster": {"serve_app": bench.prefix},
    }
    return CollectFile.model_validate(content | changes)


def run(bench: Workbench, **changes: Any) -> dict[str, Any]:
    return collect(Collection.check(file(bench, **changes)), screen())


def outcomes(bench: Workbench) -> Any:
    return pivot(read_long(str(bench.folder / "outcomes" / "*.parquet")))


def test_every_cell_is_run_graded_and_recorded_with_its_exact_price(bench: Workbench) -> None:
    bench.corpus(80)
    with bench.serving():
        found = run(bench)
    table = pq.read_table(bench.folder / "outcomes", schema=OUTCOMES)
    assert len(table) == 80 * 5
    assert len(metered(bench.meter)) == 80 * 5
    assert sum(table["cost_usd"].to_pylist()) == Decimal(found["cost_usd"]["spent"])
    assert all(table[name].null_count == 0 for name in ("query", "gold", "max_tokens", "pool_fingerprint"))
    part = pq.ParquetFile(next((bench.folder / "outcomes").glob("part-*.parquet")))
    assert part.schema_arrow.metadata[b"schema_version"] == b"1"
    seen = outcomes(bench)
    skill = dict(zip(map(str, seen.candidates), np.nanmean(seen.accuracy, axis=0), strict=True))
    # the engines are right three and nine times in ten; three votes of the better one are better yet
    assert skill["weak:vanilla"] == pytest.approx(0.3, abs=0.17)
    assert skill["strong:vanilla"] == pytest.approx(0.9, abs=0.12)
    assert skill["strong:cot@3"] >= skill["strong:cot"] - 0.05
    assert skill["strong:pal"] == pytest.approx(0.9, abs=0.12)


def test_a_grown_pool_and_a_larger_sample_run_only_what_is_missing(bench: Workbench) -> None:
    bench.corpus(100)
    with bench.serving():
        run(bench, candidates=["weak:vanilla"], sample=20)
        assert len(metered(bench.meter)) == 20
        run(bench, candidates=["weak:vanilla"], sample=50)
        assert len(metered(bench.meter)) == 50
        run(bench, candidates=["weak:vanilla", "strong:vanilla"], sample=50)
        assert len(metered(bench.meter)) == 100
        # a candidate that behaves differently now is run again; the other one is not
        strategies = {**POOL["strategies"], "vanilla": {"builtin": "vanilla", "max_tokens": 50}}
        bench.pool(strategies=strategies)
        run(bench, candidates=["strong:vanilla"], sample=50)
        assert len(metered(bench.meter)) == 150
    assert len(outcomes(bench).query_ids) == 50
    assert metered(bench.meter)[-1]["max_tokens"] == 50


def recorded(bench: Workbench) -> list[tuple[str, str, int]]:
    table = pq.read_table(bench.folder / "outcomes", columns=["query_id", "model", "sample"])
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def test_fewer_queries_or_repeats_lose_nothing_and_do_not_pass_for_others(bench: Workbench) -> None:
    bench.corpus(60)
    with bench.serving():
        run(bench, candidates=["weak:vanilla"], sample=40)
        fewer = run(bench, candidates=["weak:vanilla"], sample=10)
        assert len(metered(bench.meter)) == 40
        assert (fewer["rows"]["total"], fewer["rows"]["answered"]) == (10, 10)
        assert len(recorded(bench)) == 40, "what was recorded before stays"
        everything = Decimal(fewer["cost_usd"]["spent"]) + Decimal(fewer["cost_usd"]["earlier"])
        twice = run(bench, candidates=["weak:vanilla"], sample=10, repeats=2)
        assert len(metered(bench.meter)) == 50
        assert (twice["rows"]["total"], twice["rows"]["answered"]) == (20, 20)
        # 50 cells are answered and 50 planned, and 10 of these are others
        more = run(bench, candidates=["weak:vanilla"], sample=50)
        assert len(metered(bench.meter)) == 60
        assert (more["rows"]["total"], more["rows"]["answered"]) == (50, 50)
        assert Decimal(more["cost_usd"]["earlier"]) > 0
        # the outcomes of a candidate that is not asked for now stay too
        other = run(bench, candidates=["strong:vanilla"], sample=10, grader="builtins:bool")
        assert len(metered(bench.meter)) == 70
    assert other["accuracy"] == 1.0, "an own function grades where the answers are"
    assert Decimal(other["cost_usd"]["earlier"]) > everything
    rows = recorded(bench)
    assert len(rows) == len(set(rows)) == 70
    assert sum(sample for _, _, sample in rows) == 10
    spent = Decimal(other["cost_usd"]["spent"]) + Decimal(other["cost_usd"]["earlier"])
    table = pq.read_table(bench.folder / "outcomes", columns=["cost_usd"])
    assert sum(table["cost_usd"].to_pylist()) == spent


def test_an_id_that_occurs_twice_is_refused_before_anything_is_asked(bench: Workbench) -> None:
    table = pq.read_table(bench.corpus(30, row_group_size=10))
    notes = [*table["note"].to_pylist()[:-1], "note 3"]
    table = table.set_column(table.column_names.index("note"), "note", [notes])
    pq.write_table(table, bench.folder / "corpus.parquet", row_group_size=10)
    queries = {
        "path": str(bench.folder / "corpus.parquet"),
        "columns": {"query": "question", "reference": "sum", "id": "note"},
    }
    with pytest.raises(DataError, match=r"^The id 'note 3' \(column 'note'\) occurs more than once in "):
        run(bench, queries=queries, sample=5)
    assert not list((bench.folder / "outcomes").glob("_run/plan/*"))
    assert metered(bench.meter) == []


def test_a_budget_bounds_what_is_collected(bench: Workbench) -> None:
    bench.corpus(200)
    with bench.serving():
        found = run(bench, budget_usd="0.002", candidates=["strong:vanilla"])
    assert found["status"] == "budget_exhausted"
    assert Decimal(found["cost_usd"]["spent"]) <= Decimal("0.002")
    assert 0 < found["rows"]["answered"] < 200
    assert len(pq.read_table(bench.folder / "outcomes", columns=["query_id"])) == found["rows"]["answered"]


def test_without_reference_answers_a_candidate_or_a_judge_decides(bench: Workbench) -> None:
    bench.corpus(60)
    with bench.serving():
        run(
            bench,
            grader={"kind": "reference", "candidate": "strong:cot"},
            candidates=["weak:vanilla", "strong:cot"],
        )
        agreed = outcomes(bench)
        judged = run(
            bench,
            grader={"kind": "judge", "candidate": "strong:vanilla"},
            candidates=["weak:vanilla"],
            output=str(bench.folder / "judged"),
        )
    own = agreed.candidates.index(Candidate("strong", "cot"))
    other = 1 - own
    assert np.all(agreed.accuracy[:, own] == 1.0), "the reference candidate agrees with itself"
    assert 0.05 < np.mean(agreed.accuracy[:, other]) < 0.6
    # our engine answers a sum to whatever it is asked, so its verdicts are cut to 1: they were asked and paid
    assert judged["judge"]["calls"] == 60
    assert Decimal(judged["judge"]["cost_usd"]) > 0
    assert len(metered(bench.meter)) == 120 + 60 + 60
    scores = pq.read_table(bench.folder / "judged", columns=["correct"])["correct"].to_pylist()
    assert set(scores) <= {0.0, 1.0}
    assert len(scores) == 60


def test_a_judge_is_asked_of_each_answer_once_whatever_candidates_come_to_it(bench: Workbench) -> None:
    bench.corpus(20)
    judge = {"kind": "judge", "candidate": "strong:vanilla"}
    with bench.serving():
        run(bench, grader=judge, candidates=["strong:vanilla"])
        assert len(metered(bench.meter)) == 40
        found = run(bench, grader=judge, candidates=["weak:vanilla", "strong:vanilla"])
        assert len(metered(bench.meter)) == 80
        assert found["judge"]["calls"] == 40
        # as if killed when half was judged: as many as the judge has queries of its own
        results = sorted((bench.folder / "outcomes" / "_run" / "judge" / "results").iterdir())
        lost = {path.name.split("-")[1] for path in results}.pop()
        for path in results:
            if path.name.split("-")[1] == lost:
                path.unlink()
        found = run(bench, grader=judge, candidates=["weak:vanilla", "strong:vanilla"])
        assert len(metered(bench.meter)) == 100
    assert found["judge"]["calls"] == 40
    scores = pq.read_table(bench.folder / "outcomes", columns=["correct"])["correct"]
    assert (len(scores), scores.null_count) == (40, 0)


def test_what_the_judge_has_spent_is_gone_when_the_sample_grows(bench: Workbench) -> None:
    bench.corpus(60)
    judge = {"kind": "judge", "candidate": "strong:vanilla"}
    with bench.serving():
        found = run(bench, grader=judge, candidates=["weak:vanilla"], sample=20)
        gone = Decimal(found["cost_usd"]["spent"]) + Decimal(found["judge"]["cost_usd"])
        budget = gone + Decimal("0.000001")  # less than one more call
        found = run(bench, grader=judge, candidates=["weak:vanilla"], sample=60, budget_usd=str(budget))
        assert len(metered(bench.meter)) == 40
    assert found["status"] == "budget_exhausted"
    assert found["rows"] == {"total": 60, "answered": 20, "failed": 0, "skipped_budget": 40}
    assert Decimal(found["cost_usd"]["spent"]) + Decimal(found["judge"]["cost_usd"]) == gone


def test_repeats_ask_the_same_cell_several_times(bench: Workbench) -> None:
    bench.corpus(15)
    with bench.serving():
        run(bench, candidates=["weak:vanilla"], repeats=3)
    table = pq.read_table(bench.folder / "outcomes", columns=["query_id", "sample"])
    assert sorted(table["sample"].to_pylist()) == sorted([0, 1, 2] * 15)
    assert np.all(outcomes(bench).runs == 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": ["weak:pal"]}, "weak:pal is not a candidate of the pool"),
        ({"grader": {"kind": "judge", "candidate": "strong:nope"}}, "names strong:nope"),
        ({"grader": "code", "queries": {"path": "corpus.parquet"}}, "compares with a reference answer"),
        ({"grader": "no.such.module:function"}, "cannot be imported"),
        ({"grader": "similarity"}, "Unknown grader kind 'similarity'"),
    ],
)
def test_what_cannot_be_collected_is_said_at_once(
    bench: Workbench, changes: dict[str, Any], message: str
) -> None:
    bench.corpus(5)
    with pytest.raises(ConfigError, match=message):
        Collection.check(file(bench, **changes))
    assert not (bench.folder / "outcomes").exists()


def test_the_folder_of_other_queries_is_refused(bench: Workbench) -> None:
    bench.corpus(5)
    with bench.serving():
        run(bench, candidates=["weak:vanilla"])
        bench.corpus(6)
        with pytest.raises(DataError, match="its queries differs"):
            run(bench, candidates=["weak:vanilla"])
    head = json.loads((bench.folder / "outcomes" / "_run" / "run.json").read_text())
    assert head["status"] == "completed"
