"""Raw completions: only plain candidates, the prompt as it came, OpenAI's shapes, the same books."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from decimal import Decimal
from typing import Any

import pytest

from rtr_ray.online.asking import parse_completion
from rtr_ray.online.engines import Piece
from rtr_ray.online.folding import Folded
from rtr_ray.online.problems import RequestError
from rtr_ray.online.reply import Reply
from tests.online.bench import Bench, FakeEngines, pool, read

POOL = pool()


async def complete(bench: Bench, prompt: Any = "6 times 7 is", model: str = "auto", **more: Any) -> Reply:
    return await bench.endpoint.complete(json.dumps({"model": model, "prompt": prompt} | more).encode())


class RawEngines(FakeEngines):
    """Streams as vLLM does where there is a prompt: texts, no deltas."""

    async def generate(
        self, deployment: str, call: str, body: Mapping[str, Any], stream: bool
    ) -> AsyncGenerator[Piece, None]:
        async for piece in super().generate(deployment, call, body, stream):
            for chunk in piece.chunks:
                for choice in chunk["choices"]:
                    choice["text"] = choice.pop("delta")["content"]
            yield piece


async def test_the_router_chooses_among_plain_candidates_and_the_prompt_goes_on_as_it_came():
    bench = Bench.of(lam=1.0)
    reply = await complete(bench)
    assert reply.status == 200, reply.body
    assert (reply.body["object"], reply.body["model"]) == ("text_completion", "strong:vanilla")
    assert reply.body["id"].startswith("cmpl-")
    (choice,) = reply.body["choices"]
    assert choice == {
        "index": 0, "text": "I think it is \\boxed{42}", "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    ((_, body),) = bench.engines.bodies
    assert (body["prompt"], body["max_tokens"]) == ("6 times 7 is", 16)
    assert "messages" not in body
    ((candidate, paid, tokens, unknown),) = bench.settled()
    assert (candidate, tokens, unknown) == ("strong:vanilla", 17, False)
    assert Decimal(reply.body["usage"]["cost_usd"]) == paid > 0


@pytest.mark.parametrize(
    ("model", "answers"),
    [
        ("auto:0", "weak:vanilla"), ("strong", "strong"),
        ("strong:vanilla", "strong:vanilla"), ("strong:cot", None), ("strong:pal", None),
    ],
)  # fmt: skip
async def test_who_can_be_asked_by_name(model: str, answers: str | None):
    reply = await complete(Bench.of(lam=1.0), model=model)
    if answers is None:
        assert (reply.status, reply.body["error"]["param"]) == (400, "prompt")
    else:
        assert reply.body["model"] == answers


async def test_a_stream_has_texts_and_ends_with_its_usage():
    bench = Bench.of(lam=1.0)
    bench.endpoint.engines = bench.engines = RawEngines()
    events = await read(await complete(bench, stream=True, stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    assert {event["object"] for event in events[:-1]} == {"text_completion"}
    assert "".join(e["choices"][0]["text"] for e in events[:-2]).endswith("\\boxed{42} ")
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["total_tokens"] == 17
    assert len(bench.settled()) == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"prompt": None}, "a text"),
        ({"prompt": ""}, "a text"),
        ({"prompt": ["a", "b"]}, "a request for each"),
        ({"prompt": [1, 2, 3]}, "tokens"),
        ({"prompt": [[1], [2]]}, "tokens"),
        ({"messages": [{"role": "user", "content": "x"}]}, "/v1/chat/completions"),
        ({"tools": []}, "/v1/chat/completions"),
        ({"suffix": "x"}, "not known"),
        ({"logprobs": 6}, "from 0 to 5"),
        ({"logprobs": True}, "from 0 to 5"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_not_taken_is_said_in_a_sentence(more: dict[str, Any], says: str):
    with pytest.raises(RequestError, match=says):
        parse_completion(json.dumps({"model": "auto", "prompt": "x"} | more).encode(), POOL)


def test_one_text_in_a_list_is_that_text():
    assert parse_completion(b'{"model": "weak", "prompt": ["x"], "max_tokens": 3}', POOL).prompt == "x"


def test_chunks_are_folded_with_their_logprobs():
    folded = Folded()
    for text, end in (("4", None), ("2", "length")):
        logprobs = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": None}
        folded.add({"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": end}]})
    (choice,) = folded.response_choices()
    assert choice["message"]["content"] == "42"
    assert choice["logprobs"] == {"tokens": ["4", "2"], "token_logprobs": [-0.5, -0.5]}
    assert folded.ended
