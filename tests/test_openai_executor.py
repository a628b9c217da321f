"""The executor of OpenAI-compatible services, against a real HTTP server that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

import pytest

from rtr_ray.dispatch import Gate
from rtr_ray.errors import ConfigError
from rtr_ray.executors.base import Failure, Reply
from rtr_ray.executors.openai import OpenAIExecutor
from rtr_ray.pool import Endpoint, Pool
from rtr_ray.types import Outcome, Request, Sampling, Usage
from tests.fakes import pool_of, requests_of
from tests.openai_server import (
    INPUT_TOKENS,
    KEY,
    OUTPUT_TOKENS,
    POOL,
    QUICK,
    Answer,
    Bench,
    Clock,
    Say,
    Service,
    completed,
    cut_off,
    executor_of,
    failed,
    most_in_a_minute,
    raw,
    silent,
    usage,
)

VOTES = pool_of(("small:cot@3",))
WORST = POOL.worst_case_usd(requests_of(POOL, 1)[0])  # of each request here
ACTUAL = Decimal("0.00006")  # 20 input and 10 output tokens at $1 and $4


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", KEY)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def ask(service: Service, requests: Sequence[Request], **changes: Any) -> list[Reply]:
    """Put requests to the executor itself."""

    async def all_of_them() -> list[Reply]:
        executor = executor_of(service, **changes)
        try:
            return [reply async for reply in executor.execute(requests)]
        finally:
            await executor.aclose()
            await executor.aclose()  # nothing is left to close

    with service.listening():
        replies = asyncio.run(all_of_them())
    assert Counter(reply.key for reply in replies) == Counter(request.key for request in requests)
    return replies


def ask_one(say: Say, pool: Pool = POOL, **changes: Any) -> Reply:
    """Put one request to a service that says this."""
    (reply,) = ask(Service(usual=say), requests_of(pool, 1), **changes)
    return reply


# --- what is sent ---------------------------------------------------------------------------------------


def test_a_request_is_sent_as_the_service_expects_it():
    (request,) = requests_of(VOTES, 1)
    drawn = replace(
        request,
        sampling=Sampling(temperature=0.7, top_p=0.9, presence_penalty=0.5, seed=7, top_k=20, min_p=0.1),
        stop=("\n\n",),
        chat_template_kwargs={"enable_thinking": False},
    )
    service = Service()
    ask(service, [drawn])
    (arrival,) = service.arrivals
    assert arrival.body == {
        "model": "big",
        "messages": [dict(message) for message in request.messages],
        "max_tokens": 100,
        "temperature": 0.7,
        "top_p": 0.9,
        "presence_penalty": 0.5,
        "seed": 7,
        "n": 3,
        "stop": ["\n\n"],
        "top_k": 20,
        "min_p": 0.1,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert arrival.headers["authorization"] == f"Bearer {KEY}"


def test_no_key_is_sent_where_none_is_named():
    service = Service()
    (reply,) = ask(service, requests_of(POOL, 1), api_key_env=None)
    assert isinstance(reply, Outcome)
    assert "authorization" not in service.arrivals[0].headers


def test_a_key_that_is_not_set_is_told_in_one_sentence(monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("TEST_API_KEY") if value is None else monkeypatch.setenv("TEST_API_KEY", value)
        with pytest.raises(ConfigError) as said:
            OpenAIExecutor(Endpoint("http://127.0.0.1:9/v1", "big", "TEST_API_KEY"))
        assert said.value.message == (
            "The environment variable TEST_API_KEY with the key of http://127.0.0.1:9/v1 is not set."
        )


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY} x", f"{KEY}é"])
def test_a_key_that_no_header_can_hold_is_told_without_the_key(monkeypatch, key):
    # read from a file with its last line's end, say; the service would never see a request
    monkeypatch.setenv("TEST_API_KEY", key)
    with pytest.raises(ConfigError) as said:
        OpenAIExecutor(Endpoint("http://127.0.0.1:9/v1", "big", "TEST_API_KEY"))
    assert said.value.message == (
        "The environment variable TEST_API_KEY with the key of http://127.0.0.1:9/v1 holds a space, a line "
        "end or a character that is not ASCII. Set it to the key alone."
    )


# --- what comes back ------------------------------------------------------------------------------------


def test_an_answer_has_its_text_its_usage_and_how_long_it_took():
    reply = ask_one(completed())
    assert isinstance(reply, Outcome)
    (sample,) = reply.samples
    assert (sample.text, sample.finish_reason, sample.output_tokens) == ("42", "stop", OUTPUT_TOKENS)
    assert reply.usage == Usage(INPUT_TOKENS, OUTPUT_TOKENS)
    assert 0 < reply.latency_s < 20


def test_cached_and_reasoning_tokens_are_kept():
    details = {
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    reply = ask_one(completed(usage=usage(**details)))
    assert isinstance(reply, Outcome)
    assert reply.usage == Usage(INPUT_TOKENS, OUTPUT_TOKENS, cached_input_tokens=16, reasoning_tokens=4)


@pytest.mark.parametrize(
    "details", [None, {}, {"cached_tokens": None}, {"cached_tokens": "some"}, {"cached_tokens": 10_000}]
)
def test_odd_counts_of_cached_tokens_do_not_spoil_an_answer(details: Any):
    reply = ask_one(completed(usage=usage(prompt_tokens_details=details)))
    assert isinstance(reply, Outcome)
    cached = INPUT_TOKENS if details == {"cached_tokens": 10_000} else 0
    assert reply.usage == Usage(INPUT_TOKENS, OUTPUT_TOKENS, cached)


@pytest.mark.parametrize(
    "found",
    [
        None,
        {},
        usage(None),
        usage(output_tokens=None),
        usage("many"),
        usage(-1),
        usage(2.5),
        {"total_tokens": 3},
    ],
)
def test_a_usage_that_is_missing_or_broken_is_unknown_and_the_answer_is_kept(found: Any):
    reply = ask_one(completed(usage=found))
    assert isinstance(reply, Outcome)
    assert (reply.usage, reply.samples[0].text, reply.samples[0].output_tokens) == (None, "42", None)
    bench = Bench(Service(usual=completed(usage=found)))
    outcome = bench.run(1)["q0"]
    assert (outcome.status, outcome.usage, outcome.attempts) == ("answered", None, 1)
    # not 0: at worst it was the dearest
    balance = bench.books.ledger.balance()
    assert (balance.spent_usd, balance.unknown_usd, balance.unknown_calls) == (0, WORST, 1)


def test_an_answer_that_was_cut_says_so():
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "4"}}
    reply = ask_one(completed(choices=[choice]))
    assert isinstance(reply, Outcome)
    assert [(s.text, s.finish_reason) for s in reply.samples] == [("4", "length")]


def test_several_answers_are_counted_together():
    reply = ask_one(completed(), VOTES)
    assert isinstance(reply, Outcome)
    assert [(s.text, s.output_tokens) for s in reply.samples] == [("42", None)] * 3
    assert reply.usage == Usage(INPUT_TOKENS, 3 * OUTPUT_TOKENS)


def test_an_answer_without_text_is_an_empty_answer():
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}
    reply = ask_one(completed(choices=[choice]))
    assert isinstance(reply, Outcome)
    assert reply.samples[0].text == ""


# --- what goes wrong ------------------------------------------------------------------------------------

NO_TEXT = "the reply has a choice that is no text"


@pytest.mark.parametrize(
    ("say", "transient", "maybe_paid", "message"),
    [
        (failed(429), True, False, "RateLimitError 429"),
        (failed(429, "insufficient_quota"), False, False, "RateLimitError 429 insufficient_quota"),
        (failed(400, "context_length_exceeded"), False, False, "BadRequestError 400 context_length_exceeded"),
        (failed(401, "invalid_api_key"), False, False, "AuthenticationError 401 invalid_api_key"),
        (failed(404), False, False, "NotFoundError 404"),
        (failed(408), True, False, "APIStatusError 408"),
        (failed(500), True, True, "InternalServerError 500"),
        (failed(503), True, True, "InternalServerError 503"),
        (failed(400, f"the key {KEY}"), False, False, "BadRequestError 400"),  # no code looks like that
        (cut_off(), True, True, "APIConnectionError"),
        (raw(b"{oops"), True, True, "JSONDecodeError"),
        (raw(b"<html>busy</html>", "text/html"), True, True, "the reply has no choices"),
        (raw(b'{"hello": "world"}'), True, True, "the reply has no choices"),
        (raw(b"[1, 2]"), True, True, "the reply has no choices"),
        (raw(b"null"), True, True, "the reply has no choices"),
        (completed(choices=[]), True, True, "the reply has no choices"),
        (completed(choices=[{}]), True, True, "AttributeError"),
        (completed(choices=[None]), True, True, "AttributeError"),
        (completed(choices="42"), True, True, "AttributeError"),
        (completed(choices=[{"finish_reason": "stop", "message": {"content": [1]}}]), True, True, NO_TEXT),
        (completed(choices=[{"finish_reason": 5, "message": {"content": "42"}}]), True, True, NO_TEXT),
    ],
)
def test_what_goes_wrong_is_told_without_prompt_or_key(
    say: Say, transient: bool, maybe_paid: bool, message: str
):
    reply = ask_one(say)
    assert isinstance(reply, Failure)
    assert (reply.transient, reply.maybe_paid, reply.message) == (transient, maybe_paid, message)
    assert (reply.usage, reply.sent) == (None, True)


def test_a_service_that_is_too_slow_may_have_been_paid():
    reply = ask_one(silent(), timeout_s=3.0)  # it counts for the connection, too, and then nothing was paid
    assert isinstance(reply, Failure)
    assert (reply.transient, reply.maybe_paid, reply.message) == (True, True, "APITimeoutError")


def test_where_nobody_listens_nothing_was_paid():
    async def call() -> list[Reply]:
        executor = executor_of(nobody)
        try:
            return [reply async for reply in executor.execute(requests_of(POOL, 1))]
        finally:
            await executor.aclose()

    with socket.socket() as held:  # nobody else can listen there meanwhile
        held.bind(("127.0.0.1", 0))
        nobody = Service(base_url=f"http://127.0.0.1:{held.getsockname()[1]}/v1")
        (reply,) = asyncio.run(call())
    assert isinstance(reply, Failure)
    assert (reply.transient, reply.maybe_paid, reply.message) == (True, False, "APIConnectionError")


def test_a_slow_request_holds_up_no_other_of_its_chunk():
    together = threading.Barrier(5, timeout=30)  # the others: each is answered when all of them have come

    def met(body: dict[str, Any]) -> Answer:
        together.wait()
        return completed()(body)

    replies = ask(Service({"q1": [silent()]}, usual=met), requests_of(POOL, 6), timeout_s=4)
    assert [reply.key for reply in replies if isinstance(reply, Failure)] == ["q1|small:cot|0"]
    assert replies[-1].key == "q1|small:cot|0"


# --- through dispatch -----------------------------------------------------------------------------------

STORIES: dict[str, tuple[list[Say], str, int, int]] = {
    # what the service says one time after the other; how the request ends; attempts; of those maybe paid
    "busy": ([failed(429), completed()], "answered", 2, 0),
    "overloaded": ([failed(503), failed(500), completed()], "answered", 3, 2),
    "cut off": ([cut_off(), completed()], "answered", 2, 1),
    "garbage": ([raw(b"{oops"), completed()], "answered", 2, 1),
    "no completion": ([raw(b'{"a": 1}'), completed()], "answered", 2, 1),
    "too slow": ([silent(), completed()], "answered", 2, 1),
    "always down": ([failed(500)], "failed", 3, 3),
    "always busy": ([failed(429)], "failed", 3, 0),
    "too long": ([failed(400, "context_length_exceeded")], "failed", 1, 0),
    "out of quota": ([failed(429, "insufficient_quota")], "failed", 1, 0),
}


@pytest.mark.parametrize("story", STORIES)
def test_every_request_ends_once_and_the_books_say_what_it_may_have_cost(story: str):
    script, status, attempts, lost = STORIES[story]
    service = Service({"q2": script})
    bench = Bench(service, budget_usd=WORST * 12)
    found = bench.run(5, timeout_s=4.0 if story == "too slow" else 20.0)
    assert (found["q2"].status, found["q2"].attempts) == (status, attempts)
    assert len(service.came("q2")) == attempts
    assert {o.status for o in found.values() if o.query_id != "q2"} == {"answered"}
    answered = 4 + (status == "answered")
    balance = bench.books.ledger.balance()
    assert balance.spent_usd == answered * ACTUAL
    assert (balance.unknown_calls, balance.unknown_usd) == (lost, lost * WORST)
    assert bench.sent_again == lost - (status == "failed" and lost > 0)  # the last one is not sent again


def test_all_stories_at_once_lose_nothing_under_a_tight_budget():
    stories = {f"q{i}": script for i, (script, *_) in enumerate(STORIES.values())}
    stories.pop("q5")  # it takes its time
    bench = Bench(Service(stories), budget_usd=WORST * 8 + ACTUAL * 2)
    found = bench.run(14)
    balance = bench.books.ledger.balance()
    assert balance.spent_usd + balance.unknown_usd <= bench.budget_usd
    spent = sum(POOL.cost_usd(o.candidate, o.usage) for o in found.values() if o.usage)
    assert balance.spent_usd == spent > 0
    assert {o.status for o in found.values()} <= {"answered", "failed", "skipped_budget"}


def test_a_budget_of_one_request_lets_them_pass_one_by_one():
    service = Service()
    bench = Bench(service, budget_usd=WORST + 5 * ACTUAL)
    assert {o.status for o in bench.run(6).values()} == {"answered"}
    assert service.most == 1
    assert bench.books.ledger.spent_usd == 6 * ACTUAL


def test_an_answer_for_which_no_more_is_left_is_asked_for_with_fewer_tokens_and_marked():
    # an endpoint's answer cannot be extended while it is generated
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "4"}}
    service = Service(usual=completed(choices=[choice], usage=usage(output_tokens=30)))
    bench = Bench(service, budget_usd=WORST - ACTUAL, expected_tokens=30)
    found = bench.run(1)["q0"]
    assert service.arrivals[0].body["max_tokens"] == 30
    assert [(s.text, s.finish_reason) for s in found.samples] == [("4", "budget")]
    assert bench.books.ledger.spent_usd == POOL.cost_usd(found.candidate, Usage(INPUT_TOKENS, 30))


# --- Retry-After ----------------------------------------------------------------------------------------


def test_nobody_calls_again_before_the_seconds_of_retry_after_are_over():
    # the first to come is told to wait; all others must, too
    service = Service({"q0": [failed(429, retry_after="2"), completed()]})
    found = Bench(service, replace(QUICK, chunk=1), gate=Gate(1)).run(4)
    first, *later = service.arrivals
    assert {o.status for o in found.values()} == {"answered"}
    assert first.query_id == "q0"
    assert min(arrival.at_s for arrival in later) >= first.at_s + 2.0
    assert found["q0"].attempts == 2


def test_nobody_calls_again_before_the_date_of_retry_after():
    until = (datetime.now(UTC) + timedelta(seconds=3)).replace(microsecond=0)
    service = Service({"q0": [failed(429, retry_after=format_datetime(until, usegmt=True)), completed()]})
    Bench(service, replace(QUICK, chunk=1), gate=Gate(1)).run(3)
    assert min(arrival.at_unix_s for arrival in service.arrivals[1:]) >= until.timestamp()


def test_a_long_retry_after_is_waited_for_without_calling_and_counts_as_one_attempt():
    clock = Clock()
    service = Service({"q0": [failed(429, retry_after="600"), completed()]}, clock=clock)
    bench = Bench(service, replace(QUICK, chunk=1), clock=clock, gate=Gate(1))
    found = bench.run(3)
    assert min(arrival.at_s for arrival in service.arrivals[1:]) >= 1600.0
    assert (found["q0"].attempts, len(service.arrivals)) == (2, 4)
    assert {o.attempts for o in found.values() if o.query_id != "q0"} == {1}


def test_a_503_is_sent_again_when_the_service_says():
    clock = Clock()
    service = Service({"q0": [failed(503, retry_after="90"), completed()]}, clock=clock)
    Bench(service, clock=clock).run(1)
    first, second = service.came("q0")
    assert second.at_s - first.at_s == pytest.approx(90.0)


# --- limits ---------------------------------------------------------------------------------------------


def sent(service: Service, tokens: int) -> list[tuple[float, int]]:
    return [(arrival.at_s, tokens) for arrival in service.arrivals]


def test_no_minute_sees_more_requests_than_allowed():
    clock = Clock()
    service = Service(clock=clock)
    bench = Bench(service, replace(QUICK, chunk=1), clock=clock, gate=Gate(1))
    found = bench.run(11, requests_per_minute=4)
    assert {o.attempts for o in found.values()} == {1}  # to wait for a turn is no attempt
    assert most_in_a_minute(sent(service, 0))[0] == 4
    assert 120 <= clock.now_s - 1000 < 130


def test_no_minute_sees_more_tokens_than_allowed():
    clock = Clock()
    (request,) = requests_of(POOL, 1)
    tokens = request.max_input_tokens + request.max_tokens  # each at its worst
    service = Service(clock=clock)
    bench = Bench(service, replace(QUICK, chunk=1), clock=clock, gate=Gate(1))
    bench.run(7, tokens_per_minute=3 * tokens + 1)
    assert most_in_a_minute(sent(service, tokens))[1] == 3 * tokens
    assert 120 <= clock.now_s - 1000 < 130


def test_a_failed_call_counts_against_the_limit_too():
    clock = Clock()
    service = Service(usual=failed(500), clock=clock)
    bench = Bench(service, replace(QUICK, chunk=1, attempts=4), clock=clock, gate=Gate(1))
    bench.run(2, requests_per_minute=2)
    assert len(service.arrivals) == 8
    assert most_in_a_minute(sent(service, 0))[0] == 2


# --- closing --------------------------------------------------------------------------------------------


def tasks() -> int:
    return len(asyncio.all_tasks())


def test_a_stream_that_is_closed_early_takes_its_calls_back():
    async def close_early(executor: OpenAIExecutor) -> None:
        async with contextlib.aclosing(executor.execute(requests_of(POOL, 4))) as replies:  # type: ignore[type-var]
            async for reply in replies:
                assert reply.key == "q0|small:cot|0"
                break
        assert tasks() == 1
        await executor.aclose()

    service = Service({f"q{i}": [silent()] for i in range(1, 4)})
    with service.listening():
        asyncio.run(close_early(executor_of(service)))
