"""The parts of a run: every row of a block is planned once, and what came of it is told beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.corpus import OWN, Columns
from rtr_ray.estimators.base import State
from rtr_ray.parts import (
    Version,
    longest_first,
    plan_key,
    plan_part,
    queries,
    result_rows,
    routing_table,
    table_part,
)
from rtr_ray.policies.fixed import FittedFixed
from rtr_ray.policies.score import FittedScore
from rtr_ray.pool import Pool
from rtr_ray.reading import open_corpus, read_split
from rtr_ray.router import InputTokens, Router
from rtr_ray.schemas import RESULTS
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcome, Sample, Usage
from tests.fakes import LookupEncoder, pool_of

SMALL, LARGE = Candidate("small", "cot"), Candidate("large", "cot")
POOL = pool_of(("small:cot", "large:cot"), context_tokens=1000, prices={"large": ("10", "40")})
# text -> (accuracy of small, of large, tokens of small, of large)
EMBEDDED = {
    "easy": (0.9, 0.9, 10.0, 20.0),
    "hard": (0.1, 0.9, 30.0, 90.0),
    "hard too": (0.1, 0.8, 40.0, 60.0),
    "hopeless": (0.1, 0.1, 50.0, 99.0),
}
BY_ACCURACY = FittedScore(lam=1.0, normaliser_usd=1.0)


@dataclass(frozen=True)
class Told:
    """Predicts what the embedding says: accuracies, then tokens."""

    candidates: tuple[Candidate, ...] = (SMALL, LARGE)
    kind: ClassVar[str] = "told"

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        return Estimate(embeddings_QD[:, :2], embeddings_QD[:, 2:], 2 * embeddings_QD[:, 2:])

    def state(self) -> State:
        return State({}, {})

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> Told:
        return cls(candidates)


def router(pool: Pool = POOL) -> Router:
    inputs = InputTokens({str(c): 10.0 for c in (SMALL, LARGE)}, {str(c): 0.25 for c in (SMALL, LARGE)})
    encoder = LookupEncoder(
        {text: row for text, row in EMBEDDED.items()} | {"x" * 5000: (0.5, 0.5, 5.0, 5.0)}
    )
    return Router(encoder, Told(), inputs, pool, pool.candidates, "f")


def block(folder: Any, *rows: dict[str, Any], **columns: str) -> pa.Table:
    """The rows as a corpus gives them."""
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus, (split,) = open_corpus(str(path), Columns(**columns))
    (table,) = read_split(corpus, split, 1000)
    return table


def asked(*texts: Any) -> list[dict[str, Any]]:
    return [{"query": text, "id": f"q{i}", "mine": i} for i, text in enumerate(texts)]


def through_parquet(table: pa.Table) -> pa.Table:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=2)
    return pq.read_table(sink)


def planned(
    folder: Any, *texts: Any, policy: Any = BY_ACCURACY
) -> tuple[dict[Candidate, pa.Table], pa.Table]:
    part, _ = table_part(block(folder, *asked(*texts), id="id"), router())
    return plan_parts(through_parquet(part), policy)


def plan_parts(part: pa.Table, policy: Any) -> tuple[dict[Candidate, pa.Table], pa.Table]:
    found = plan_part(part, POOL, Version(policy))
    return dict(found.rows), found.nowhere


def ids(table: pa.Table) -> list[str]:
    names: list[str] = table["query_id"].to_pylist()
    return names


# Tables


def test_a_table_part_is_the_block_and_its_routing_table(tmp_path):
    rows = block(tmp_path, *asked("easy", "hard"), id="id")
    part, table = table_part(rows, router())
    assert part.column_names[: len(rows.column_names)] == rows.column_names
    assert part["_accuracy"].to_pylist() == [pytest.approx([0.9, 0.9]), pytest.approx([0.1, 0.9])]
    assert part["_output_tokens"].to_pylist() == [[10, 20], [30, 90]]
    assert part["_output_tokens_p95"].to_pylist() == [[20, 40], [60, 180]]
    assert part["_allowed"].to_pylist() == [[True, True], [True, True]]
    # "easy": 10 + 4 bytes / 4 = 11 input tokens; 11 * $1 + 10 * $4 and 11 * $10 + 20 * $40 per million
    assert part["_cost_usd"].to_pylist()[0] == pytest.approx([51e-6, 910e-6])
    assert table.query_ids == ("q0", "q1")
    assert "_embedding" not in part.column_names


def test_rows_are_answered_longest_first_by_powers_of_four_and_neighbours_of_one_power_stay_together():
    tokens = np.array([100.0, 3.0, 70.0, 255.9, 256.0, 0.0, 4.0, 64.0, 1.9])
    assert longest_first(tokens).tolist() == [4, 0, 2, 3, 7, 6, 1, 5, 8]
    assert longest_first(np.array([])).tolist() == []


def test_an_image_goes_only_where_the_context_window_bounds_what_it_costs(tmp_path):
    def conversation(*content: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "easy"}, *content]}]}

    image = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    rows = block(tmp_path, conversation(), conversation(image), messages="messages")
    unknown = {"small": replace(POOL.deployments["small"], context_tokens=None)}
    part, _ = table_part(rows, router(replace(POOL, deployments=POOL.deployments | unknown)))
    assert part["_allowed"].to_pylist() == [[True, True], [False, True]]
    nobody = {name: replace(it, context_tokens=None) for name, it in POOL.deployments.items()}
    part, _ = table_part(rows, router(replace(POOL, deployments=nobody)))
    assert part["_allowed"].to_pylist() == [[True, True], [False, False]]
    _, nowhere = plan_parts(through_parquet(part), BY_ACCURACY)
    (error,) = nowhere["error"].to_pylist()
    assert "holds more than text" in error


def test_unusable_rows_are_neither_encoded_nor_allowed(tmp_path):
    encoder = router().encoder
    part, table = table_part(block(tmp_path, *asked("easy", None, " ", "hard"), id="id"), router())
    assert table.query_ids == ("q0", "q3")
    assert part["_allowed"].to_pylist() == [[True, True], [False, False], [False, False], [True, True]]
    assert part["_accuracy"].to_pylist()[1] == [0, 0]
    assert encoder.encode([]).shape == (0, 4)


def test_a_block_without_a_usable_row_is_a_table_part(tmp_path):
    part, table = table_part(block(tmp_path, *asked(None, " "), id="id"), router())
    assert (len(part), len(table.query_ids)) == (2, 0)
    groups, unrouted = plan_parts(part, BY_ACCURACY)
    assert (groups, ids(unrouted)) == ({}, ["q0", "q1"])


def test_embeddings_are_kept_where_that_is_asked(tmp_path):
    part, _ = table_part(block(tmp_path, *asked("easy", None), id="id"), router(), keep_embeddings=True)
    assert part["_embedding"].to_pylist() == [pytest.approx(EMBEDDED["easy"]), [0, 0, 0, 0]]
    groups, unrouted = plan_parts(part, BY_ACCURACY)
    assert all("_embedding" not in table.column_names for table in [*groups.values(), unrouted])


def test_the_routing_table_comes_back_from_its_part(tmp_path):
    part, table = table_part(block(tmp_path, *asked("easy", "hard", "hopeless"), id="id"), router())
    for stored in (
        part,
        through_parquet(part),
        pa.concat_tables([part.slice(0, 1), part.slice(1)]),
        part.slice(0),
    ):
        again = routing_table(stored)
        assert (again.query_ids, again.candidates) == (table.query_ids, table.candidates)
        for name in ("accuracy", "output_tokens", "output_tokens_p95", "cost_usd", "allowed"):
            np.testing.assert_array_equal(
                getattr(again, name), getattr(table, name).astype(getattr(again, name).dtype)
            )
    assert routing_table(part.slice(1, 1)).accuracy == pytest.approx(np.array([[0.1, 0.9]]))


# Plans


def test_every_row_goes_to_its_candidate_the_longest_first(tmp_path):
    groups, unrouted = planned(tmp_path, "hard", "easy", "hard too", "hopeless")
    assert {c: ids(t) for c, t in groups.items()} == {SMALL: ["q3", "q1"], LARGE: ["q0", "q2"]}
    assert groups[LARGE]["predicted_output_tokens"].to_pylist() == [90, 60]
    assert len(unrouted) == 0


def test_a_plan_row_says_what_is_expected_and_who_would_be_next(tmp_path):
    groups, _ = planned(tmp_path, "hard")
    (row,) = groups[LARGE].to_pylist()
    assert (row["model"], row["strategy"], row["samples"], row["runner_up"]) == (
        "large",
        "cot",
        1,
        "small:cot",
    )
    assert row["predicted_accuracy"] == pytest.approx(0.9)
    assert (row["predicted_output_tokens"], row["predicted_output_tokens_p95"]) == (90, 180)
    assert row["predicted_cost_usd"] == pytest.approx((11 * 10 + 90 * 40) / 1e6)
    assert (row["mine"], row["query"], row["_text"]) == (0, "hard", "hard")


def test_rows_that_cannot_be_used_are_failed_results_with_the_reason(tmp_path):
    groups, unrouted = planned(tmp_path, "easy", None, " ", "x" * 5000)
    assert {c: ids(t) for c, t in groups.items()} == {SMALL: ["q0"]}
    rows = unrouted.to_pylist()
    assert [(row["query_id"], row["status"], row["error"]) for row in rows] == [
        ("q1", "failed", "the query is null"),
        ("q2", "failed", "the query is empty"),
        (
            "q3",
            "failed",
            "the query is too long for the context window of every candidate, holds more than text (an "
            "image, say) where no candidate's context_tokens are known, or none is allowed",
        ),
    ]
    assert [row["mine"] for row in rows] == [1, 2, 3]
    assert {row[name] for row in rows for name in ("model", "cost_usd", "answer", "attempts", "correct")} == {
        None
    }


def test_a_candidate_that_is_not_allowed_is_not_chosen_and_no_runner_up(tmp_path):
    _, unrouted = planned(tmp_path, "x" * 5000, policy=FittedFixed("small:cot"))
    assert ids(unrouted) == ["q0"]
    groups, _ = planned(tmp_path, "easy", policy=FittedFixed("large:cot"))
    assert groups[LARGE]["runner_up"].to_pylist() == [None]


@given(st.lists(st.sampled_from([*EMBEDDED, None, "", "x" * 5000]), min_size=1, max_size=30))
def test_every_row_is_in_the_plan_exactly_once(tmp_path_factory, texts):
    groups, unrouted = planned(tmp_path_factory.getbasetemp(), *texts)
    found = [name for table in [*groups.values(), unrouted] for name in ids(table)]
    assert sorted(found) == sorted(f"q{i}" for i in range(len(texts)))


@pytest.mark.parametrize(
    ("candidate", "key"),
    [
        (Candidate("small", "cot"), "plan/model=small/strategy=cot/part-1x-000007.parquet"),
        (
            Candidate("Qwen/Qwen2.5", "cot", 5),
            "plan/model=Qwen%2FQwen2.5/strategy=cot/part-5x-000007.parquet",
        ),
    ],
)
def test_a_plan_part_lies_with_its_candidate(candidate, key):
    assert plan_key(candidate, 7) == key


def test_a_plan_part_gives_its_queries_back(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "easy"}]
    part, _ = table_part(block(tmp_path, {"chat": chat}, {"chat": chat[1:]}, messages="chat"), router())
    groups, _ = plan_parts(part, BY_ACCURACY)
    found = list(queries(through_parquet(groups[SMALL])))
    assert {candidate for _, candidate in found} == {SMALL}
    assert {query.text for query, _ in found} == {"easy"}
    assert sorted([len(query.messages or ()) for query, _ in found]) == [1, 2]
    assert all(isinstance(query.messages, tuple) for query, _ in found)
    groups, _ = planned(tmp_path, "easy")
    assert [query.messages for query, _ in queries(groups[SMALL])] == [None]


# Results


def answered(part: pa.Table, row: int, text: str = "4", **fields: Any) -> Outcome:
    name = part["query_id"][row].as_py()
    given_: dict[str, Any] = {"samples": (Sample(text, "stop", 7),), "answer": text, "usage": Usage(11, 7, 3)}
    return Outcome(name, LARGE, **(given_ | {"latency_s": 0.5, "attempts": 2} | fields))


def results(
    part: pa.Table, rows: Sequence[int], outcomes: Sequence[Outcome], costs: Sequence[Any]
) -> pa.Table:
    return result_rows(part, rows, outcomes, costs, [None] * len(rows))


def test_a_result_is_the_users_row_and_what_came_of_it(tmp_path):
    groups, _ = planned(tmp_path, "hard", "hard too")
    part = groups[LARGE]
    cost = Decimal("0.000123456789")
    (row,) = result_rows(part, [1], [answered(part, 1)], [cost], [1.0]).to_pylist()
    assert {name: row[name] for name in ("id", "query", "mine")} == {
        "id": "q1",
        "query": "hard too",
        "mine": 1,
    }
    assert {name: row[name] for name in RESULTS.names} == {
        "query_id": "q1",
        "status": "answered",
        "answer": "4",
        "response": "4",
        "model": "large",
        "strategy": "cot",
        "samples": 1,
        "input_tokens": 11,
        "cached_input_tokens": 3,
        "output_tokens": 7,
        "cost_usd": cost,
        "predicted_accuracy": pytest.approx(0.8),
        "predicted_output_tokens": 60,
        "predicted_cost_usd": pytest.approx((12 * 10 + 60 * 40) / 1e6),
        "runner_up": "small:cot",
        "plan_version": 0,
        "dual_price": None,
        "finish_reason": "stop",
        "latency_s": 0.5,
        "attempts": 2,
        "error": None,
        "correct": 1.0,
        "all_samples": None,
    }
    assert not {*OWN, "predicted_output_tokens_p95"} & set(row)


def test_the_users_columns_come_first_and_then_those_of_a_result(tmp_path):
    groups, _ = planned(tmp_path, "hard")
    table = results(groups[LARGE], [0], [answered(groups[LARGE], 0)], [None])
    assert table.column_names == ["query", "id", "mine", *RESULTS.names]


def test_results_come_in_the_order_in_which_they_finish(tmp_path):
    groups, _ = planned(tmp_path, "hard", "hard too", "hard")
    part = groups[LARGE]
    rows = [2, 0]
    table = results(part, rows, [answered(part, row, text=str(row)) for row in rows], [Decimal(1), None])
    assert ids(table) == [part["query_id"][row].as_py() for row in rows]
    assert table["answer"].to_pylist() == ["2", "0"]
    assert table["cost_usd"].to_pylist() == [Decimal(1), None]


def test_a_failure_keeps_what_it_cost_where_that_is_known(tmp_path):
    groups, _ = planned(tmp_path, "hard", "hard too")
    part = groups[LARGE]
    failed = {"samples": (), "answer": None, "status": "failed", "error": "cut off"}
    outcomes = [answered(part, 0, **failed), answered(part, 1, **failed, usage=None)]
    known, unknown = results(part, [0, 1], outcomes, [Decimal("0.5"), None]).to_pylist()
    assert (known["status"], known["error"], known["input_tokens"]) == ("failed", "cut off", 11)
    assert (known["cost_usd"], unknown["cost_usd"]) == (Decimal("0.5"), None)
    for name in ("input_tokens", "output_tokens", "answer", "response", "finish_reason"):
        assert unknown[name] is None


def test_a_candidate_that_draws_several_keeps_all_its_samples(tmp_path):
    groups, _ = planned(tmp_path, "hard")
    drawn = (Sample("a 4", "stop", 3, "4"), Sample("five", "length", None, None))
    outcome = Outcome("q0", Candidate("large", "cot", 2), drawn, "4", Usage(11, 9))
    (row,) = results(groups[LARGE], [0], [outcome], [None]).to_pylist()
    assert row["response"] == "a 4"
    assert row["all_samples"] == [
        {"response": "a 4", "answer": "4", "finish_reason": "stop", "output_tokens": 3},
        {"response": "five", "answer": None, "finish_reason": "length", "output_tokens": None},
    ]


def test_all_parts_of_all_kinds_have_one_schema(tmp_path):
    groups, unrouted = planned(tmp_path, "hard", "easy", None)
    tables = [unrouted, unrouted.slice(0, 0)]
    for part in groups.values():
        tables.append(results(part, [0], [answered(part, 0)], [Decimal("0.1")]))
        tables.append(results(part, [0], [answered(part, 0, samples=(), usage=None, answer=None)], [None]))
        tables.append(results(part, [], [], []))
    for table in tables:
        assert table.schema.equals(tables[0].schema, check_metadata=True)
        assert table.schema.metadata == {b"schema_version": b"1"}
    assert groups[SMALL].schema.equals(groups[LARGE].schema, check_metadata=True)
    assert len(pa.concat_tables(tables)) == 5


@given(
    st.lists(st.sampled_from([*EMBEDDED, None]), min_size=1, max_size=20), st.randoms(use_true_random=False)
)
def test_from_block_to_results_every_row_is_kept_once_and_its_money_to_the_last_digit(
    tmp_path_factory, texts, generator
):
    groups, unrouted = planned(tmp_path_factory.getbasetemp(), *texts)
    tables, spent = [unrouted], Decimal(0)
    for part in groups.values():
        rows = list(range(len(part)))
        generator.shuffle(rows)
        costs = [Decimal(generator.randrange(10**15)).scaleb(-12) for _ in rows]
        spent += sum(costs, Decimal(0))
        tables.append(results(part, rows, [answered(part, row) for row in rows], costs))
    whole = through_parquet(pa.concat_tables(tables))
    assert sorted(ids(whole)) == sorted(f"q{i}" for i in range(len(texts)))
    assert dict(zip(ids(whole), whole["query"].to_pylist(), strict=True)) == {
        f"q{i}": t for i, t in enumerate(texts)
    }
    assert sum((cost for cost in whole["cost_usd"].to_pylist() if cost is not None), Decimal(0)) == spent
