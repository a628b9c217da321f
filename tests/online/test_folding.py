"""Chunks of a stream become the response that they are parts of; feedback becomes outcomes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from rtr_ray.online.folding import Counted, Folded
from rtr_ray.online.problems import RequestError
from rtr_ray.online.remembering import Remembered
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.storage import open_store


def chunk(index: int, delta: dict, tokens: int = 0, **more):
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 4}}
    return {"created": 5, "choices": [{"index": index, "delta": delta} | more], "usage": usage}


def test_texts_counts_and_reasons_of_several_choices():
    folded = Folded()
    for one in [
        chunk(0, {"role": "assistant", "content": ""}),
        chunk(0, {"content": "Yes"}, 1, logprobs={"content": [{"token": "Yes"}]}),
        chunk(1, {"content": "No"}, 1),
        chunk(0, {"content": "."}, 2, finish_reason="stop", logprobs={"content": [{"token": "."}]}),
    ]:
        folded.add(one)
    assert folded.counted == Counted(9, 4, 3)
    assert not folded.ended
    folded.add(chunk(1, {"content": "!", "reasoning_content": "hm"}, 5, finish_reason="length"))
    assert folded.counted == Counted(9, 4, 7)
    assert folded.ended
    folded.add({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 8}})
    assert folded.counted == Counted(9, 0, 8), "the last chunk counts all of them"
    first, second = folded.response_choices()
    assert first["message"] == {"role": "assistant", "content": "Yes."}
    assert [one["token"] for one in first["logprobs"]["content"]] == ["Yes", "."]
    assert second["message"]["reasoning_content"] == "hm"
    assert (first["finish_reason"], second["finish_reason"]) == ("stop", "length")


def test_the_parts_of_a_tool_call_are_joined():
    folded = Folded()
    for function in [{"name": "add", "arguments": ""}, {"arguments": '{"a"'}, {"arguments": ": 1}"}]:
        call = {"index": 0, "id": "c1", "function": function}
        folded.add(chunk(0, {"tool_calls": [call]}))
    folded.add(chunk(0, {}, finish_reason="tool_calls"))
    (choice,) = folded.response_choices()
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}, "id": "c1"}
    ]


ROW = {
    "query_id": "chatcmpl-1",
    "query": "6 * 7?",
    "model": "small",
    "strategy": "cot",
    "samples": 1,
    "sample": 0,
    "input_tokens": 9,
    "output_tokens": 30,
    "cost_usd": Decimal("0.000001"),
    "max_tokens": 60,
    "temperature": 0.0,
    "finish_reason": "stop",
}


def test_feedback_becomes_outcomes_that_train_reads(tmp_path: Path):
    remembered = Remembered(open_store(str(tmp_path)))
    remembered.remember(ROW, "req-1")
    remembered.remember(ROW | {"query_id": "chatcmpl-2", "strategy": "pal"})
    assert remembered.score("req-1", 1.0) == "chatcmpl-1"
    assert remembered.score("chatcmpl-2", 0.25) == "chatcmpl-2"
    assert remembered.write() == 2
    assert remembered.write() == 0
    outcomes = pivot(read_long(str(tmp_path)))
    assert sorted(map(str, outcomes.candidates)) == ["small:cot", "small:pal"]
    assert sorted(value for value in outcomes.accuracy.ravel() if value == value) == [0.25, 1.0]
    with pytest.raises(RequestError) as twice:
        remembered.score("chatcmpl-1", 0.0)
    assert twice.value.status == 409


def test_the_oldest_requests_are_forgotten(tmp_path: Path):
    remembered = Remembered(open_store(str(tmp_path)), most=2)
    for number in range(3):
        remembered.remember(ROW | {"query_id": f"c{number}"}, "same id")
    assert remembered.score("same id", 1.0) == "c2", "of requests with one id the last is meant"
    with pytest.raises(RequestError) as forgotten:
        remembered.score("c0", 1.0)
    assert forgotten.value.status == 404
