"""Collecting outcomes: the cells that are to be run, and the rows that come of them."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.cells import (
    SAMPLE,
    bounded,
    cell_key,
    cell_rows,
    items,
    judge_ids,
    judge_key,
    judge_rows,
    outcome_rows,
    planned,
    sampled,
    with_earlier,
)
from rtr_ray.corpus import Columns
from rtr_ray.errors import DataError
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.parts import queries, result_rows
from rtr_ray.policies.base import stable_hash
from rtr_ray.pool import Pool
from rtr_ray.reading import open_corpus, read_split
from rtr_ray.schemas import OUTCOMES
from rtr_ray.storage import open_store, write_table
from rtr_ray.types import Candidate, Outcome, Sample, Sampling, Usage
from tests.fakes import pool_of

SMALL = Candidate("small", "cot")
POOL = pool_of(("small:cot", "large:cot"))


def block(folder: Path, *rows: dict[str, Any]) -> pa.Table:
    path = folder / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus, (split,) = open_corpus(str(path), Columns(id="id", reference="gold"))
    (table,) = read_split(corpus, split, 1000)
    return table


def asked(*texts: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"query": text, "id": f"q{i}", "gold": str(i)} | more for i, text in enumerate(texts)]


def ids(table: pa.Table) -> list[str]:
    names: list[str] = table["query_id"].to_pylist()
    return names


# A sample of the queries


@given(st.lists(st.text(max_size=5), unique=True, max_size=40), st.integers(1, 20), st.integers(0, 40))
def test_the_sample_of_parts_merged_is_the_sample_of_the_whole(names, count, cut):
    parts = sampled(names[:cut], count) + sampled(names[cut:], count)
    assert sorted(parts)[:count] == sampled(names, count)


def test_a_sample_does_not_hang_on_the_order():
    names = [f"q{i}" for i in range(100)]
    assert sampled(names, 10) == sampled(reversed(names), 10)
    assert len(sampled(names, 10)) == 10
    assert len(sampled(names[:3], 10)) == 3


# Cells


def test_every_usable_query_is_put_to_the_candidate_the_longest_first(tmp_path):
    rows = cell_rows(block(tmp_path, *asked("ab", None, "abc", " ", "a")), SMALL, 1, None)
    assert ids(rows) == ["q2", "q0", "q4"]
    assert [str(candidate) for _, candidate in queries(rows)] == ["small:cot"] * 3
    assert rows[SAMPLE].to_pylist() == [0, 0, 0]
    assert rows["predicted_accuracy"].to_pylist() == [None] * 3


def test_each_query_is_asked_as_often_as_told(tmp_path):
    rows = cell_rows(block(tmp_path, *asked("a", "bb")), SMALL, 3, None)
    assert list(zip(ids(rows), rows[SAMPLE].to_pylist(), strict=True)) == [
        ("q1", 0),
        ("q0", 0),
        ("q1", 1),
        ("q0", 1),
        ("q1", 2),
        ("q0", 2),
    ]


def test_only_the_queries_of_a_sample_are_asked(tmp_path):
    table = block(tmp_path, *asked(*"abcdefgh"))
    below = sorted(stable_hash(name) for name in ids(table))[2]
    assert sorted(ids(cell_rows(table, SMALL, 1, below))) == sorted(
        name for name in ids(table) if stable_hash(name) <= below
    )
    assert len(cell_rows(table, SMALL, 1, below)) == 3


def test_a_block_without_a_usable_query_has_no_cells(tmp_path):
    assert len(cell_rows(block(tmp_path, *asked(None)), SMALL, 2, None)) == 0


def test_a_column_that_cannot_be_what_outcomes_keep_is_refused_before_anything_is_spent(tmp_path):
    with pytest.raises(DataError, match=r"^The column 'ood' of the queries goes into the outcomes as bool"):
        cell_rows(block(tmp_path, *asked("a", ood="maybe")), SMALL, 1, None)
    rows = cell_rows(block(tmp_path, *asked("a", ood="true", split=1)), SMALL, 1, None)
    assert (rows["ood"].to_pylist(), rows["split"].to_pylist()) == ([True], ["1"])


def test_a_cell_lies_elsewhere_when_its_candidate_begins_to_behave_differently():
    warmer = replace(
        POOL,
        models=POOL.models | {"small": replace(POOL.models["small"], sampling=Sampling(temperature=1.0))},
    )
    assert cell_key(POOL, SMALL, 3) != cell_key(warmer, SMALL, 3)
    assert cell_key(POOL, SMALL, 3).startswith("plan/model=small/strategy=cot/part-1x-000003-")
    assert cell_key(POOL, Candidate("large", "cot"), 3) == cell_key(warmer, Candidate("large", "cot"), 3)


def conversations(folder: Path, *contents: Any) -> pa.Table:
    path = folder / "conversations.jsonl"
    rows = [{"messages": [{"role": "user", "content": content}]} for content in contents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus, (split,) = open_corpus(str(path), Columns(messages="messages"))
    (table,) = read_split(corpus, split, 1000)
    return table


def test_a_query_that_may_cost_anything_is_left_out(tmp_path):
    text = {"type": "text", "text": "what is this?"}
    image = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    rows = cell_rows(conversations(tmp_path, "plain", [text], [text, image]), SMALL, 1, None)
    assert len(rows) == 3

    def kept(context: int | None) -> pa.Table:
        known = {"small": replace(POOL.deployments["small"], context_tokens=context)}
        return bounded(rows, replace(POOL, deployments=POOL.deployments | known), SMALL)

    assert sorted(kept(None)["_text"].to_pylist()) == ["plain", "what is this?"]
    assert len(kept(4096)) == 3
    plain = cell_rows(block(tmp_path, *asked("a", "b")), SMALL, 1, None)
    assert bounded(plain, POOL, SMALL) is plain


# What comes of them


def results(part: pa.Table) -> pa.Table:
    """Every second row failed; the others answered with their place."""
    outcomes = [
        Outcome(name, SMALL, error="cut off", status="failed")
        if row % 2
        else Outcome(name, SMALL, (Sample(f"it is {row}", "stop", 5),), str(row), Usage(10, 5))
        for row, name in enumerate(ids(part))
    ]
    costs = [None if row % 2 else Decimal("0.00003") for row in range(len(part))]
    order = list(reversed(range(len(part))))
    return result_rows(
        part, order, [outcomes[i] for i in order], [costs[i] for i in order], [None] * len(part)
    )


def collected(folder: Path, pool: Pool = POOL, repeats: int = 1, **more: Any) -> pa.Table:
    part = cell_rows(block(folder, *asked("ccc", "bb", "a", **more)), SMALL, repeats, None)
    found = results(part)
    return outcome_rows(pool, SMALL, part, found, [1.0, None, 0.0] * repeats, "pool-1")


def test_a_grader_sees_the_query_the_answer_and_the_reference(tmp_path):
    part = cell_rows(block(tmp_path, *asked("ccc", "bb")), SMALL, 1, None)
    second, first = items(part, results(part))
    assert (first.query, first.answer, first.response, first.gold) == ("ccc", "0", "it is 0", "0")
    assert (second.query, second.answer, second.response, second.gold) == ("bb", None, "", "1")
    assert first.candidate == SMALL


def test_outcomes_are_one_row_per_cell_with_all_that_was_recorded(tmp_path):
    table = collected(tmp_path, dataset="sums", group_id="g", split="test", ood=True)
    assert table.schema.equals(OUTCOMES)
    assert table.schema.metadata == {b"schema_version": b"1"}
    last = {row["query_id"]: row for row in table.to_pylist()}["q2"]
    assert last == {
        "query_id": "q2",
        "query": "a",
        "dataset": "sums",
        "group_id": "g",
        "split": "test",
        "ood": True,
        "model": "small",
        "strategy": "cot",
        "samples": 1,
        "sample": 0,
        "correct": 1.0,
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_usd": Decimal("0.000030000000"),
        "max_tokens": 100,
        "temperature": 0.0,
        "finish_reason": "stop",
        "answer": "2",
        "gold": "2",
        "response": "it is 2",
        "error": None,
        "pool_fingerprint": "pool-1",
    }


def test_what_the_queries_do_not_say_has_a_default(tmp_path):
    row = collected(tmp_path).to_pylist()[0]
    assert (row["dataset"], row["group_id"], row["split"], row["ood"]) == ("", "", "train", False)


def test_a_failed_cell_keeps_its_error_and_no_grade(tmp_path):
    row = {row["query_id"]: row for row in collected(tmp_path).to_pylist()}["q1"]
    assert (row["error"], row["correct"], row["answer"], row["output_tokens"]) == (
        "cut off",
        None,
        None,
        None,
    )


def test_results_of_a_larger_sample_or_more_repeats_are_left_aside(tmp_path):
    table = block(tmp_path, *asked("ccc", "bb", "a"))
    large, small = cell_rows(table, SMALL, 2, None), cell_rows(table.slice(1), SMALL, 1, None)
    found = planned(small, results(large).drop_columns([SAMPLE]).append_column(SAMPLE, large[SAMPLE][::-1]))
    assert sorted(zip(ids(found), found[SAMPLE].to_pylist(), strict=True)) == [("q1", 0), ("q2", 0)]
    assert len(items(small, found)) == 2
    assert len(planned(small, found.slice(0, 0))) == 0


def test_outcomes_of_cells_that_are_not_asked_for_now_stay(tmp_path):
    table = block(tmp_path, *asked("ccc", "bb", "a"))
    large, small = cell_rows(table, SMALL, 1, None), cell_rows(table.slice(2), SMALL, 1, None)
    before = collected(tmp_path)
    now = outcome_rows(POOL, SMALL, small, planned(small, results(large)), [0.5], "pool-2")
    both = with_earlier(now, before, small, results(large))
    assert both.schema.equals(OUTCOMES)
    assert both.schema.metadata == {b"schema_version": b"1"}
    assert ids(both) == ["q2", "q1", "q0"]
    assert both["pool_fingerprint"].to_pylist() == ["pool-2", "pool-1", "pool-1"]
    # what no result speaks of was recorded by a run that has been moved aside
    assert with_earlier(now, before, small, results(small)) is now


def test_outcomes_that_are_written_are_outcomes_that_are_read(tmp_path):
    store = open_store(str(tmp_path / "outcomes"))
    write_table(store, "part-a.parquet", collected(tmp_path, repeats=1))
    store.write("_run/part-x.parquet", b"not for us")
    outcomes = pivot(read_long(store.uri))
    assert outcomes.candidates == (SMALL,)
    assert dict(zip(outcomes.query_ids, outcomes.accuracy[:, 0], strict=True)) == {"q0": 0.0, "q2": 1.0}


def test_a_judge_is_put_prompts_as_queries_of_a_plan():
    judge = Candidate("large", "cot")
    rows = judge_rows(["Right? {answer}", "Right?"], ["q0|small:cot|0", "q1|small:cot|0"], judge)
    found = list(queries(rows))
    assert [query.query_id for query, _ in found] == ["q0|small:cot|0", "q1|small:cot|0"]
    assert [query.messages for query, _ in found] == [
        ({"role": "user", "content": "Right? {answer}"},),
        ({"role": "user", "content": "Right?"},),
    ]
    assert {candidate for _, candidate in found} == {judge}
    assert rows[SAMPLE].to_pylist() == [0, 0], "as a plan part of cells"
    assert len(judge_rows([], [], judge)) == 0


def test_every_answer_of_a_collection_has_a_name_of_its_own_before_the_judge(tmp_path):
    part = cell_rows(block(tmp_path, *asked("a", "bb")), SMALL, 2, None)
    assert judge_ids(part) == ["q1|small:cot|0", "q0|small:cot|0", "q1|small:cot|1", "q0|small:cot|1"]


def test_what_a_judge_is_asked_lies_under_the_name_of_the_part_that_it_judges():
    judge = Candidate("large", "cot")
    key = judge_key(POOL, judge, "0123456789abcdef")
    assert key.startswith("plan/model=large/strategy=cot/part-1x-0123456789abcdef-")
    assert key != judge_key(POOL, judge, "another")
