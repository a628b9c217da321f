"""The values that flow: names, shapes, and what is refused when they are built."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.errors import ConfigError, DataError
from rtr_ray.types import (
    Candidate,
    Outcome,
    Outcomes,
    Plan,
    Query,
    Request,
    RoutingTable,
    Sampling,
    Usage,
)

A, B = Candidate("a", "cot"), Candidate("b", "cot", 5)


def table(**other: Any) -> RoutingTable:
    fields: dict[str, Any] = {
        "query_ids": ("q0", "q1", "q2"),
        "candidates": (A, B),
        "accuracy": np.array([[0.5, 0.9], [0.2, 0.3], [0.7, 0.1]]),
        "output_tokens": np.array([[10, 20], [30, 40], [50, 60.0]]),
        "output_tokens_p95": np.array([[11, 21], [31, 41], [51, 61.0]]),
        "cost_usd": np.array([[1, 2], [3, 4], [5, 6.0]]),
        "allowed": np.array([[True, True], [True, False], [False, False]]),
    }
    return RoutingTable(**(fields | other))


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,9}", fullmatch=True)


@given(model=names, strategy=names, samples=st.integers(1, 99))
def test_a_candidate_reads_what_it_wrote(model: str, strategy: str, samples: int):
    candidate = Candidate(model, strategy, samples)
    assert Candidate.parse(str(candidate)) == candidate


@given(text=st.text(alphabet="ab:@/1٣² \n", max_size=8))
def test_any_text_is_a_candidate_or_an_error_of_ours(text: str):
    with contextlib.suppress(ConfigError):
        assert Candidate.parse(Candidate.parse(text).__str__()) == Candidate.parse(text)


@pytest.mark.parametrize(
    "text", ["small", "small:cot@", "small:cot@x", "small:cot@²", "small:cot@-1", ":cot", "a:b c", "a:b:c"]
)
def test_what_names_no_candidate_is_refused(text: str):
    with pytest.raises(ConfigError, match="name"):
        Candidate.parse(text)


def test_a_candidate_draws_at_least_once():
    with pytest.raises(ConfigError, match="a:cot has samples=0; 1 is the least"):
        Candidate("a", "cot", 0)


@pytest.mark.parametrize("name", ["accuracy", "output_tokens", "output_tokens_p95", "cost_usd", "allowed"])
def test_a_table_checks_its_shapes(name: str):
    with pytest.raises(
        DataError, match=rf"RoutingTable.{name} has shape \(3, 1\); 3 queries and 2 candidates need \(3, 2\)"
    ):
        table(**{name: np.zeros((3, 1))})


def test_a_table_names_each_candidate_once():
    with pytest.raises(DataError, match="same candidate twice"):
        table(candidates=(A, A))


def test_rows_of_a_table():
    for index in (np.array([2, 0]), np.array([True, False, True]), slice(0, 3, 2)):
        some = table().rows(index)
        assert set(some.query_ids) == {"q0", "q2"}
        assert some.cost_usd.sum() == 14
    assert table().rows(np.array([], dtype=int)).query_ids == ()


def test_a_plan_adds_up_what_it_chose():
    plan = Plan(table(), np.array([1, 0, -1]))
    assert plan.cost_usd == 2 + 3
    assert plan.accuracy == pytest.approx((0.9 + 0.2) / 2)
    assert {str(c): list(rows) for c, rows in plan.groups().items()} == {"a:cot": [1], "b:cot@5": [0]}


def test_a_plan_of_nothing_has_no_accuracy_and_no_cost():
    nowhere = Plan(table(), np.array([-1, -1, -1]))
    assert np.isnan(nowhere.accuracy)
    assert (nowhere.cost_usd, nowhere.groups()) == (0.0, {})
    assert Plan(table().rows(slice(0, 0)), np.array([], dtype=int)).cost_usd == 0.0


@pytest.mark.parametrize(
    ("choice", "said"),
    [([0, 0], "shape"), ([0, 0, 2], "outside"), ([0, 0, -2], "outside"), ([0, 1, -1], "does not allow")],
)
def test_a_plan_checks_its_choices(choice: list[int], said: str):
    with pytest.raises(DataError, match=said):
        Plan(table(), np.array(choice))


def test_settings_fill_the_gaps_of_one_another():
    strategy, model = Sampling(temperature=0.0), Sampling(temperature=0.6, top_p=0.95)
    assert strategy.over(model) == Sampling(temperature=0.0, top_p=0.95)
    assert strategy.over(model).given() == {"temperature": 0.0, "top_p": 0.95}


def test_an_outcome_answers_the_request_with_its_key():
    request = Request("q1", B, (), 10, 10, sample=3)
    assert request.key == Outcome("q1", B, sample=3).key == "q1|b:cot@5|3"


@pytest.mark.parametrize("tokens", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (5, 0, 6)])
def test_a_usage_is_possible(tokens: tuple[int, int, int]):
    with pytest.raises(DataError, match="A usage with"):
        Usage(*tokens)


def outcomes(**other: Any) -> Outcomes:
    grid = {
        name: np.ones((3, 2))
        for name in ("accuracy", "input_tokens", "output_tokens", "cost_usd", "cut", "max_tokens")
    }
    fields: dict[str, Any] = {
        "query_ids": ("q0", "q1", "q2"),
        "queries": ("x", "y", "z"),
        "candidates": (A, B),
        "runs": np.ones((3, 2), dtype=int),
        **grid,
    }
    return Outcomes(**(fields | other))


@pytest.mark.parametrize("name", ["accuracy", "cut", "runs"])
def test_outcomes_check_their_shapes(name: str):
    with pytest.raises(DataError, match=rf"Outcomes.{name} has shape"):
        outcomes(**{name: np.ones((2, 2))})


@pytest.mark.parametrize("name", ["queries", "group_ids", "datasets", "splits"])
def test_outcomes_count_their_texts(name: str):
    with pytest.raises(DataError, match=rf"Outcomes.{name} has 1 entries for 3 queries"):
        outcomes(**{name: ("x",)})


def test_rows_of_outcomes_keep_what_belongs_together():
    some = outcomes(group_ids=("g0", "g1", "g2")).rows(np.array([2, 0]))
    assert (some.query_ids, some.queries, some.group_ids) == (("q2", "q0"), ("z", "x"), ("g2", "g0"))
    assert some.datasets == ()


@pytest.mark.parametrize("kind", [Query, Request, Outcome, Outcomes, RoutingTable, Plan])
def test_no_value_that_a_router_sees_has_a_place_for_the_reference_answer(kind: type):
    assert not {"gold", "reference", "label", "metadata"} & set(kind.__dataclass_fields__)
