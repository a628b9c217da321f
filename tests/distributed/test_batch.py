"""The batch job over real Ray Data and real Ray Serve, with engines that think nothing."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rtr_ray.errors import BudgetError, DataError
from rtr_ray.pool import Price
from rtr_ray.types import Usage
from tests.distributed.conftest import Cluster
from tests.distributed.engine import metered
from tests.distributed.workbench import Workbench, money

pytestmark = pytest.mark.ray

PRICE = {"weak": Price(Decimal("0.03"), Decimal("0.1")), "strong": Price(Decimal("0.03"), Decimal("1.3"))}


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"fake-{tmp_path.name[:20]}")
    bench.pool()
    bench.router()
    return bench


def metered_usd(bench: Workbench) -> Decimal:
    """What the engines' own meter says that all answers cost."""
    return sum(
        (
            PRICE[line["engine"]].cost_usd(Usage(line["input_tokens"], line["output_tokens"]))
            for line in metered(bench.meter)
        ),
        Decimal(0),
    )


def test_a_run_that_is_complete_needs_no_engine_to_be_shown_again(bench: Workbench) -> None:
    bench.corpus(300)
    with bench.serving():
        found = bench.run()
    again = bench.run()  # nobody serves any more
    assert (again["rows"], again["cost_usd"]["spent"]) == (found["rows"], found["cost_usd"]["spent"])


def test_every_row_comes_back_once_with_the_users_columns_and_every_cent_adds_up(bench: Workbench) -> None:
    bench.corpus(500)
    with bench.serving():
        found = bench.run()
    results = bench.results()
    assert found["rows"] == {"total": 500, "answered": 500, "failed": 0, "skipped_budget": 0}
    assert sorted(results["note"].to_pylist()) == sorted(f"note {i}" for i in range(500))
    assert len(set(results["query_id"].to_pylist())) == 500
    assert set(results["status"].to_pylist()) == {"answered"}
    # the same dollars four times: rows, summary, the ledger behind it, and a meter outside of it
    assert money(results) == Decimal(found["cost_usd"]["spent"]) == metered_usd(bench) > 0
    tokens = [line["output_tokens"] for line in metered(bench.meter)]
    assert sum(results["output_tokens"].to_pylist()) == found["usage"]["output_tokens"] == sum(tokens)
    by_hand = Counter(zip(results["model"].to_pylist(), results["strategy"].to_pylist(), strict=True))
    assert {(row["model"], row["strategy"]): row["rows"] for row in found["by_candidate"]} == by_hand
    right = [value == 1.0 for value in results["correct"].to_pylist()]
    assert found["accuracy"] == pytest.approx(sum(right) / 500)
    assert json.loads((bench.output / "summary.json").read_text()) == found
    assert json.loads((bench.output / "run.json").read_text())["status"] == "completed"


def test_the_second_time_nothing_is_asked_again(bench: Workbench) -> None:
    bench.corpus(120)
    with bench.serving():
        first = bench.run()
        asked = len(metered(bench.meter))
        second = bench.run()
    assert len(metered(bench.meter)) == asked == 120
    assert second["cost_usd"]["spent"] == first["cost_usd"]["spent"]
    assert len(bench.results()) == 120


def test_fresh_moves_the_old_run_aside(bench: Workbench) -> None:
    bench.corpus(30)
    with bench.serving():
        bench.run()
        bench.run(fresh=True)
    aside = [path for path in bench.folder.iterdir() if path.name.startswith("run.")]
    assert len(aside) == 1
    assert len(pq.read_table(aside[0] / "results")) == len(bench.results()) == 30
    assert len(metered(bench.meter)) == 60


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"policy": {"kind": "score", "lam": 0.1}}, "config"),
        ({"grader": "exact"}, "config"),
    ],
)
def test_another_job_in_the_same_folder_is_refused_and_the_difference_named(
    bench: Workbench, change: dict[str, Any], named: str
) -> None:
    bench.corpus(20)
    with bench.serving():
        bench.run()
        with pytest.raises(DataError, match=f"its {named} differs"):
            bench.run(**change)
        bench.corpus(21)
        with pytest.raises(DataError, match="its corpus differs"):
            bench.run()


def test_a_bad_row_becomes_a_row_and_not_the_end_of_the_job(bench: Workbench) -> None:
    bench.corpus(
        60,
        texts={
            3: None,
            4: "   ",
            5: "long " * 20_000,
            6: "POISON, and what is 1 + 1?",
            7: "FLAKY: what is 2 + 2?",
        },
    )
    with bench.serving():
        found = bench.run()
    rows = {row["note"]: row for row in bench.results().to_pylist()}
    assert len(rows) == 60
    assert found["rows"] == {"total": 60, "answered": 56, "failed": 4, "skipped_budget": 0}
    assert rows["note 3"]["error"] == "the query is null"
    assert rows["note 4"]["error"] == "the query is empty"
    assert "too long" in rows["note 5"]["error"]
    assert rows["note 6"]["error"] == "refused: POISON"
    assert rows["note 6"]["cost_usd"] is None
    assert (rows["note 7"]["status"], rows["note 7"]["attempts"]) == ("answered", 2)


def test_a_plan_over_the_budget_is_refused_before_anything_is_asked(bench: Workbench) -> None:
    bench.corpus(200)
    with (
        bench.serving(),
        pytest.raises(BudgetError, match=r"expected to cost .* over budget_usd=\$0\.000100"),
    ):
        bench.run(budget_usd="0.0001")
    assert metered(bench.meter) == []
    assert json.loads((bench.output / "run.json").read_text())["status"] == "failed"


def test_the_budget_holds_also_where_answers_turn_out_longer_than_expected(bench: Workbench) -> None:
    # the router expects 25 tokens an answer; a budget with no slack over that must still hold
    bench.corpus(400)
    with bench.serving():
        bench.run(output=str(bench.folder / "free"))
        plan = json.loads((bench.folder / "free" / "plan.json").read_text())
        budget = Decimal(str(plan["cost_usd"])) + Decimal("0.000001")
        (bench.meter).unlink()
        found = bench.run(budget_usd=str(budget))
    assert metered_usd(bench) == Decimal(found["cost_usd"]["spent"]) <= budget
    assert sum(found["rows"][k] for k in ("answered", "failed", "skipped_budget")) == 400
    results = bench.results()
    assert len(results) == len(set(results["query_id"].to_pylist())) == 400
    if found["rows"]["skipped_budget"]:
        assert found["status"] == "budget_exhausted"
        with bench.serving():
            more = bench.run(budget_usd=str(budget * 2))
        assert more["rows"]["answered"] == 400
        assert len(bench.results()) == 400


def test_several_samples_and_programs_are_answered_by_majority_and_by_the_sandbox(bench: Workbench) -> None:
    bench.corpus(40)
    with bench.serving():
        found = bench.run(
            policy={"kind": "fixed", "candidate": "strong:cot@3"}, output=str(bench.folder / "three")
        )
        three = pq.read_table(bench.folder / "three" / "results").to_pylist()
        programs = bench.run(
            policy={"kind": "fixed", "candidate": "strong:pal"}, output=str(bench.folder / "pal")
        )
    assert all(len(row["all_samples"]) == 3 for row in three)
    for row in three:
        answers = [sample["answer"] for sample in row["all_samples"]]
        assert row["answer"] == Counter(answers).most_common(1)[0][0]
        assert row["output_tokens"] == sum(sample["output_tokens"] for sample in row["all_samples"])
        price = PRICE["strong"]
        assert row["cost_usd"] == price.cost_usd(Usage(row["input_tokens"], row["output_tokens"]))
    assert found["by_candidate"][0]["samples"] == 3
    # three votes of an engine that is right nine times in ten are right more often than one
    assert found["accuracy"] > 0.9
    assert programs["accuracy"] == pytest.approx(0.9, abs=0.12)
    answers = pq.read_table(bench.folder / "pal" / "results")
    assert all(answer.isdigit() for answer in answers["answer"].to_pylist())
    assert all("print(" in response for response in answers["response"].to_pylist())


def test_twice_the_same_id_is_refused_before_anything_is_asked(bench: Workbench) -> None:
    bench.corpus(50)
    columns = {"query": "question", "reference": "sum", "id": "sum"}
    table = pq.read_table(bench.folder / "corpus.parquet")
    twice = table.set_column(1, "sum", [["7"] * 2 + [str(i + 10) for i in range(48)]])
    pq.write_table(twice, bench.folder / "corpus.parquet")
    with bench.serving(), pytest.raises(DataError, match=r"The id '7' .* occurs more than once"):
        bench.run(corpus={"path": str(bench.folder / "corpus.parquet"), "columns": columns})
    assert metered(bench.meter) == []
