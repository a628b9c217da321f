"""Raw completions, batches, keys and budgets before real vLLM, and that nothing stays set aside."""

from __future__ import annotations

import json
import time
from decimal import Decimal

import openai
import pytest

from rtr_ray.keys import KeyStore, Limits
from tests.distributed.e2e.serving import ASK, Online

pytestmark = [pytest.mark.ray, pytest.mark.vllm]


def test_a_raw_completion_is_one_of_a_plain_candidate_whole_and_streamed(online: Online) -> None:
    client = online.client()
    for name, answers in (("auto", "nano:vanilla"), ("nano", "nano"), ("nano:vanilla", "nano:vanilla")):
        whole = client.completions.create(model=name, prompt="Add: 1 + 2", max_tokens=8)
        assert (whole.object, whole.model) == ("text_completion", answers)
        assert whole.choices[0].text
        assert Decimal(whole.usage.cost_usd) > 0  # type: ignore[union-attr]
        stream = client.completions.create(
            model=name, prompt="Add: 1 + 2", max_tokens=8, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.completions.create(model="nano:cot", prompt="Add: 1 + 2")


def test_a_mixed_file_is_one_batch_for_openais_client(online: Online) -> None:
    store = KeyStore(online.folder / "keys.sqlite")
    token, key = store.create("batcher", Limits(total_usd=Decimal("0.1")))
    client, other = online.client(token), online.client()
    asked = {"a": "auto", "b": "nano", "c": "nano:cot", "d": "nano:pal", "e": "auto"}
    lines = [
        {"custom_id": id, "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": model, "messages": ASK, "max_tokens": 100}}
        for id, model in asked.items()
    ]  # fmt: skip
    sent = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", sent), purpose="batch")
    assert client.files.content(file.id).read() == sent
    assert [one.id for one in client.files.list()] == [file.id]
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
        metadata={"budget_usd": "0.01"},
    )  # fmt: skip
    for strange in (lambda: other.batches.retrieve(batch.id), lambda: other.files.retrieve(file.id)):
        with pytest.raises(openai.NotFoundError):
            strange()
    assert [one.id for one in client.batches.list(limit=1)] == [batch.id]
    deadline = time.monotonic() + 300
    while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.5)
    assert batch.status == "completed", batch
    assert batch.request_counts.completed == 5  # type: ignore[union-attr]
    rows = map(json.loads, client.files.content(batch.output_file_id or "").text.splitlines())
    bodies = {row["custom_id"]: row["response"]["body"] for row in rows}
    models = {id: body["model"] for id, body in bodies.items()}
    assert (models["b"], models["c"], models["d"]) == ("nano:vanilla", "nano:cot", "nano:pal")
    assert bodies["d"]["choices"][0]["message"]["content"] == "195"
    (used,) = [one for one in store.usage(key.id) if one.period == "all"]
    assert used.spent_usd == sum(Decimal(body["rtr"]["cost_usd"]) for body in bodies.values()) > 0
    assert (used.reserved_usd, used.unknown_usd) == (0, 0)
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.batches.cancel(batch.id)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("in.jsonl", sent), purpose="fine-tune")
    assert client.files.delete(file.id).deleted


def test_who_has_no_key_gets_nothing(online: Online) -> None:
    with pytest.raises(openai.AuthenticationError):
        online.client("rtr-nobody").chat.completions.create(model="auto", messages=ASK)  # type: ignore[arg-type]
    for path, body in (
        ("/v1/models", None), ("/v1/files", None), ("/v1/batches", None), ("/v1/batches", {}),
        ("/v1/route", {"model": "auto", "messages": ASK}),
    ):  # fmt: skip
        assert online.call(path, body, authorization="Bearer rtr-nobody")[0] == 401


def test_a_budget_pays_for_what_it_pays_for_and_what_was_spent_is_what_the_answers_say(
    online: Online,
) -> None:
    store = KeyStore(online.folder / "keys.sqlite")
    token, key = store.create("poor", Limits(total_usd=Decimal("0.00001"), candidates=("nano:vanilla",)))
    client, spent = online.client(token), Decimal(0)
    for _ in range(200):
        try:
            answer = client.chat.completions.create(model="auto", messages=ASK)  # type: ignore[arg-type]
        except openai.RateLimitError as error:
            assert error.type == "budget_exceeded"  # noqa: PT017
            break
        assert answer.model == "nano:vanilla"
        spent += Decimal(answer.usage.cost_usd)  # type: ignore[union-attr]
    else:
        pytest.fail("the budget was never used up")
    (used,) = [one for one in store.usage(key.id) if one.period == "all"]
    assert 0 < spent == used.spent_usd <= Decimal("0.00001")
    assert (used.reserved_usd, used.unknown_usd) == (0, 0)
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="nano:cot", messages=ASK)  # type: ignore[arg-type]


def test_nothing_stays_set_aside(online: Online) -> None:
    # after all that the tests above have asked, cancelled and broken off
    store = KeyStore(online.folder / "keys.sqlite")
    ann = next(key for key in store.all_keys() if key.name == "ann")
    deadline = time.monotonic() + 60
    while any(used.reserved_usd for used in store.usage(ann.id)):
        assert time.monotonic() < deadline, "a hold is still there"
        time.sleep(0.2)
    assert not any(used.unknown_usd for used in store.usage(ann.id))
    assert store.usage(ann.id)[-1].spent_usd > 0  # in all: midnight begins a day anew
