"""What a batch may ask, line by line, and by what policy it is planned."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from rtr_ray.errors import ConfigError
from rtr_ray.gate import Caller
from rtr_ray.online.batches import BatchOrder, checking, most_usd, parse_batch
from rtr_ray.online.problems import RequestError
from rtr_ray.openai_batch import BatchRequest, Problem
from rtr_ray.terms import Terms
from rtr_ray.types import Candidate, Query, Sampling
from tests.online.bench import pool

POOL = pool()
ORDER = BatchOrder.of("router", "refuse", {"kind": "score", "lam": 0.9}, 1e-4, Caller("k", "ann"))


def request(model: str = "auto", **settings: Any) -> BatchRequest:
    return BatchRequest(3, "a", model, ({"role": "user", "content": "2 + 2?"},), settings)


def terms(model: str = "auto", caller: Caller | None = None, **settings: Any) -> Terms:
    found = checking(POOL, ordered(caller))(request(model, **settings))
    assert isinstance(found, BatchRequest), found
    return Terms.read(json.dumps(found.settings))


def ordered(caller: Caller | None = None, **policy: Any) -> BatchOrder:
    return BatchOrder.of(
        "router", "refuse", policy or {"kind": "score", "lam": 0.9}, 1e-4, caller or Caller("k", "ann")
    )


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (terms(), Terms()),
        (terms("strong:cot", max_tokens=5), Terms(("strong:cot",), 5)),
        (terms("strong", max_tokens=500), Terms(("strong:vanilla",), 500, True)),
        (terms("strong"), Terms(("strong:vanilla",))),
        (
            terms(temperature=0.5, top_p=0.5, stop="x"),
            Terms(sampling=Sampling(temperature=0.5, top_p=0.5), stop=("x",)),
        ),
        (
            terms(rtr={"candidates": ["weak:vanilla"], "max_cost_usd": "0.1"}),
            Terms(("weak:vanilla",), max_usd=Decimal("0.1"), max_predicted_usd=0.1),
        ),
    ],
)
def test_a_request_becomes_terms(found: Terms, wanted: Terms):
    assert found == wanted


def test_a_key_binds_every_request():
    caller = Caller("k", "ann", ("weak:vanilla", "strong:cot"), Decimal("0.01"))
    assert terms(caller=caller) == Terms(("weak:vanilla", "strong:cot"), max_usd=Decimal("0.01"))
    assert terms("strong:cot", caller, rtr=None).candidates == ("strong:cot",)
    dearer = terms(caller=caller, rtr={"max_cost_usd": 1})
    assert (dearer.max_usd, dearer.max_predicted_usd) == (Decimal("0.01"), 1.0)
    for model in ("strong:pal", "strong"):
        problem = checking(POOL, ordered(caller))(request(model))
        assert isinstance(problem, Problem)
        assert (problem.code, problem.line, problem.param) == ("permission_denied", 3, "body.model")


@pytest.mark.parametrize(
    ("one", "code"),
    [
        (request("nobody"), "model_not_found"),
        (request("auto:7"), "invalid_value"),
        (request(rtr={"lam": 0.5}), "unsupported_field"),
        (request(rtr={"min_accuracy": 0.5}), "unsupported_field"),
        (request(seed=7), "unsupported_field"),
        (request(rtr={"candidates": ["x"]}), "invalid_value"),
    ],
)
def test_what_a_batch_cannot_do_is_a_problem_of_its_line(one: BatchRequest, code: str):
    problem = checking(POOL, ORDER)(one)
    assert isinstance(problem, Problem)
    assert problem.code == code
    assert problem.message.startswith("Line 3: ")


def test_what_a_request_costs_at_most_is_that_of_the_dearest_who_may_answer_with_lost_calls_beside():
    def most(**settings: Any) -> Decimal:
        found = checking(POOL, ORDER)(request(**settings))
        assert isinstance(found, BatchRequest)
        return most_usd(POOL, found)

    query = Query("a", "2 + 2?", ({"role": "user", "content": "2 + 2?"},))
    dearest = max(POOL.worst_case_usd(POOL.request(query, one)) for one in POOL.candidates)
    assert most() == 3 * dearest
    weak = POOL.worst_case_usd(POOL.request(query, Candidate("weak", "vanilla")))
    assert most(model="weak:vanilla") == 3 * weak
    assert most(model="weak:vanilla", max_tokens=1) < 3 * weak


def test_an_order_survives_the_way_through_a_file_and_has_the_endpoints_unit():
    caller = Caller("k", "ann", ("a:b",), Decimal("0.10"))
    order = ordered(caller)
    assert BatchOrder.from_json(json.loads(json.dumps(order.to_json()))) == order
    assert order.policy == {"kind": "score", "lam": 0.9, "normaliser_usd": 1e-4}
    assert ordered(kind="fixed", candidate="a:b").policy == {"kind": "fixed", "candidate": "a:b"}


def test_the_money_decides_where_it_is_too_little_for_the_policy():
    score = {"kind": "score", "lam": 0.9, "normaliser_usd": 1e-4}
    assert ORDER.policies("auto", POOL, bounded=False) == [score]
    assert ORDER.policies("auto", POOL, bounded=True) == [score, {"kind": "budget"}]
    assert ORDER.policies("auto:0.2", POOL, bounded=True)[0] == score | {"lam": 0.2}
    assert ORDER.policies("strong", POOL, bounded=True) == [{"kind": "fixed", "candidate": "strong:vanilla"}]
    assert ORDER.policies("strong:cot@3", POOL, bounded=False)[0]["candidate"] == "strong:cot@3"
    taken_over = ordered(run="runs/q3")
    assert taken_over.policies("auto", POOL, bounded=True) == [{"kind": "budget"}]
    with pytest.raises(ConfigError, match="another corpus"):
        taken_over.policies("auto", POOL, bounded=False)


@pytest.mark.parametrize(
    "body",
    [
        "[]", "{}", '{"input_file_id": 3, "endpoint": "/v1/chat/completions", "completion_window": "24h"}',
        '{"input_file_id": "f", "endpoint": "/v1/chat/completions"}',
        '{"input_file_id": "f", "endpoint": "e", "completion_window": "24h", "model": "auto"}',
    ],
)  # fmt: skip
def test_a_body_that_names_no_batch_is_refused(body: str):
    with pytest.raises(RequestError):
        parse_batch(body.encode())
