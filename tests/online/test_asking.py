"""Bodies of requests: what is read out of them, and that whatever is wrong is a 4xx in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.online.asking import Wish, parse_chat
from rtr_ray.online.problems import RequestError
from rtr_ray.online.remembering import parse_feedback
from rtr_ray.types import Candidate
from tests.online.bench import Bench, pool

POOL = pool()
USER = [{"role": "user", "content": "hi"}]


def body(**more: Any) -> bytes:
    return json.dumps({"model": "auto", "messages": USER} | more).encode()


def refused(raw: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_chat(raw, POOL)
    error = caught.value
    assert 400 <= error.status < 500
    assert set(error.body["error"]) >= {"message", "type", "param", "code"}
    return error


def test_the_field_model_names_the_router_a_lambda_a_model_or_a_candidate():
    assert parse_chat(body(), POOL).routed
    assert parse_chat(body(model="auto:0.25"), POOL).wish == Wish(lam=0.25)
    assert parse_chat(body(model="weak"), POOL).model == "weak"
    assert parse_chat(body(model="strong:cot@3"), POOL).candidate == Candidate("strong", "cot", 3)
    assert refused(body(model="weak:cot")).status == 404, "the pool excludes it"
    assert refused(body(model="gpt-9")).code == "model_not_found"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes):
    refused(raw)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": "auto:2"}, "model"),
        ({"model": "auto:nan"}, "model"),
        ({"model": "auto:"}, "model"),
        ({"model": "weak\r\nx-evil: 1"}, "model"),
        ({"rtr": []}, "rtr"),
        ({"rtr": {"lam": -1}}, "rtr.lam"),
        ({"rtr": {"lam": True}}, "rtr.lam"),
        ({"rtr": {"lamda": 0.5}}, "rtr.lamda"),
        ({"rtr": {"min_accuracy": 1.5}}, "rtr.min_accuracy"),
        ({"rtr": {"latency_weight": -0.1}}, "rtr.latency_weight"),
        ({"rtr": {"latency_weight": "fast"}}, "rtr.latency_weight"),
        ({"rtr": {"latency_weight": 1, "min_accuracy": 0.5}}, "rtr.latency_weight"),
        ({"rtr": {"min_accuracy": 0.5, "lam": 0.5}}, "rtr.min_accuracy"),
        ({"rtr": {"max_cost_usd": "-1"}}, "rtr.max_cost_usd"),
        ({"rtr": {"max_cost_usd": "nan"}}, "rtr.max_cost_usd"),
        ({"rtr": {"candidates": []}}, "rtr.candidates"),
        ({"rtr": {"candidates": ["weak:magic"]}}, "rtr.candidates"),
        ({"model": "weak", "rtr": {"lam": 0.5}}, "rtr"),
        ({"model": "auto:0.5", "rtr": {"lam": 0.5}}, "rtr.lam"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, None),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop": [1]}, "stop"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"prompt_logprobs": 5}, "prompt_logprobs"),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_name(more: dict[str, Any], param: str | None):
    if param is None:  # an empty list stands for nothing here
        assert parse_chat(body(**more), POOL).routed
    else:
        assert refused(body(**more)).param == param


def test_what_openais_clients_send_beside_is_taken_and_nulls_mean_nothing():
    asked = parse_chat(
        body(user="me", metadata={"a": "b"}, store=False, temperature=None, n=None, stop=None), POOL
    )
    assert dict(asked.fields) == {}
    assert asked.n == 1
    assert parse_chat(body(max_completion_tokens=5), POOL).max_tokens == 5


def test_a_prompt_of_a_megabyte_is_read():
    assert len(parse_chat(body(messages=[{"role": "user", "content": "x" * 2**20}]), POOL).messages) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["model", "messages", "rtr", "n", "stop", "tools", "stream", "stream_options", "temperature",
     "logit_bias", "response_format", "tool_choice", "chat_template_kwargs", "top_logprobs", "seed",
     "reasoning_effort"]
)  # fmt: skip


@given(st.dictionaries(NAMES, JSON, max_size=4), st.booleans())
def test_no_body_leads_to_anything_but_a_request_or_a_refusal(changes: dict[str, Any], whole: bool):
    content = ({"model": "auto", "messages": USER} if whole else {}) | changes
    raw = json.dumps(content).encode()
    for error in (caught(lambda: parse_chat(raw, POOL)), caught(lambda: parse_feedback(raw))):
        if error is not None:
            assert 400 <= error.status < 500
            assert json.dumps(error.body)
            assert "\n" not in "".join(error.headers.values())


def caught(parse: Callable[[], Any]) -> RequestError | None:
    """What a parser refuses, None where it takes it."""
    try:
        parse()
    except RequestError as error:
        return error
    return None


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]), JSON | st.just("user"))
    )
)
async def test_no_message_breaks_the_endpoint(messages: list[Any]):
    reply = await BENCH.endpoint.chat(body(messages=messages))
    assert reply.status in (200, 400)


BENCH = Bench.of()


@pytest.mark.parametrize("score", [-0.1, 1.1, "1", True, None])
def test_a_score_lies_between_0_and_1(score: Any):
    with pytest.raises(RequestError, match="score"):
        parse_feedback(json.dumps({"request_id": "x", "score": score}).encode())


def test_a_score_that_is_no_number_of_jsons_is_refused():
    with pytest.raises(RequestError, match="NaN"):
        parse_feedback(b'{"request_id": "x", "score": NaN}')
