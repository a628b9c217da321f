"""Output and error files: what OpenAI's own client reads of our rows."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from rtr_ray.openai_batch import reply_of, request_id


def row(**changes: Any) -> dict[str, Any]:
    return {
        "query_id": "a", "status": "answered", "answer": "4", "response": "2 + 2 = 4.", "model": "small",
        "strategy": "cot", "samples": 1, "input_tokens": 12, "cached_input_tokens": 2, "output_tokens": 7,
        "cost_usd": Decimal("0.000000001300"), "predicted_accuracy": 0.9, "predicted_cost_usd": float("nan"),
        "runner_up": "large:cot", "finish_reason": "stop", "error": None,
    } | changes  # fmt: skip


def test_an_answered_row_is_a_chat_completion():
    reply = reply_of(row(), "batch_1", 1_700_000_000)
    assert not reply.failed
    line = json.loads(reply.line())
    assert line["custom_id"] == "a"
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    body = line["response"]["body"]
    assert body["model"] == "small:cot"
    assert body["choices"][0]["message"]["content"] == "2 + 2 = 4."
    assert body["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 7,
        "total_tokens": 19,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert body["rtr"]["cost_usd"] == "0.000000001300"
    assert body["rtr"]["predicted_cost_usd"] is None
    types = pytest.importorskip("openai.types.chat")
    completion = types.ChatCompletion.model_validate(body, strict=True)
    assert completion.choices[0].finish_reason == "stop"


def test_what_is_not_known_is_null():
    body = json.loads(reply_of(row(output_tokens=None, cost_usd=None), "b", 1).line())["response"]["body"]
    assert body["usage"] is None
    assert body["rtr"]["cost_usd"] is None


@pytest.mark.parametrize(
    ("status", "code"), [("failed", "request_failed"), ("skipped_budget", "budget_exceeded")]
)
def test_a_row_without_an_answer_goes_into_the_error_file(status, code):
    reply = reply_of(row(status=status, error="The engine is gone.", response=None), "batch_1", 1)
    assert reply.failed
    line = json.loads(reply.line())
    assert line["response"] is None
    assert line["error"] == {"code": code, "message": "The engine is gone."}


def test_an_answer_that_the_budget_cut_ended_at_its_length():
    body = json.loads(reply_of(row(finish_reason="budget", samples=5), "b", 1).line())["response"]["body"]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["model"] == "small:cot@5"


def test_a_file_that_is_written_again_is_the_same():
    assert reply_of(row(), "batch_1", 1).line() == reply_of(row(), "batch_1", 1).line()
    assert request_id("batch_1", "a") != request_id("batch_1", "b") != request_id("batch_2", "b")
