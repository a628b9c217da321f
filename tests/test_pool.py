"""The pool: exact money, requests with bounds that hold, fingerprints that change when behaviour does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.errors import ConfigError, DataError
from rtr_ray.pool import (
    TEMPLATE_TOKENS,
    Deployment,
    Endpoint,
    ModelSpec,
    Pool,
    Price,
    fingerprint,
    only_text,
    size_of,
)
from rtr_ray.strategies import Strategy
from rtr_ray.types import Candidate, Query, Sampling, Usage

PRICE = Price(Decimal("0.10"), Decimal("0.40"))
SMALL_COT = Candidate("small", "cot")


def pool(
    deployment: Callable[[Deployment], Deployment] = lambda it: it,
    model: Callable[[ModelSpec], ModelSpec] = lambda it: it,
    strategy: Callable[[Strategy], Strategy] = lambda it: it,
) -> Pool:
    """One model, one strategy; each as the function makes it."""
    return Pool(
        {"engine": deployment(Deployment("engine", PRICE, source="hub/small", written_source="hub/small"))},
        {"small": model(ModelSpec("small", "engine", "small and quick"))},
        {"cot": strategy(Strategy("cot", "step by step", 100, system="Think."))},
    )


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        (Usage(0, 0), "0"),
        (Usage(1, 0), "0.0000001"),
        (Usage(0, 1), "0.0000004"),
        (Usage(1_000_000, 1_000_000), "0.5"),
        (Usage(123, 45), "0.0000303"),  # 123 * 0.1 + 45 * 0.4 = 30.3 per million
        (Usage(123, 45, cached_input_tokens=100), "0.0000303"),  # cached costs the same, unless said
    ],
)
def test_a_call_costs_its_tokens_times_their_price(usage, dollars):
    assert PRICE.cost_usd(usage) == Decimal(dollars)


def test_cached_input_has_a_price_of_its_own():
    price = Price(Decimal("1"), Decimal("4"), cached_input_usd_per_mtok=Decimal("0.25"))
    assert price.cost_usd(Usage(100, 10, cached_input_tokens=60)) == Decimal("0.000095")  # 40 + 15 + 40


def test_cached_input_may_be_free():
    price = Price(Decimal("1"), Decimal("4"), cached_input_usd_per_mtok=Decimal(0))
    assert price.cost_usd(Usage(100, 0, cached_input_tokens=100)) == 0


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=5))
def test_dollars_add_up_to_the_last_digit(calls):
    price = Price(Decimal("0.123457"), Decimal("999999.999999"))
    whole = Usage(sum(call[0] for call in calls), sum(call[1] for call in calls))
    assert sum(price.cost_usd(Usage(*call)) for call in calls) == price.cost_usd(whole)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_call_costs_more_than_its_worst_case(input_tokens, cached, output_tokens, more):
    for cached_price in (None, Decimal(0), Decimal("2.5")):
        price = Price(Decimal("1.25"), Decimal("3.75"), cached_price)
        usage = Usage(input_tokens, output_tokens, min(cached, input_tokens))
        assert price.cost_usd(usage) <= price.worst_case_usd(input_tokens + more, output_tokens)


@pytest.mark.parametrize("amount", ["-0.1", "NaN", "Infinity", "1000001", "0.0000001"])
def test_an_amount_that_is_no_price_is_refused(amount):
    with pytest.raises(ConfigError, match=r"^output_usd_per_mtok is .*per million tokens\.$"):
        Price(Decimal(1), Decimal(amount))


@pytest.mark.parametrize("amount", ["0", "0.000001", "1000000", "0.1000000", "1E+2"])
def test_an_amount_with_at_most_six_decimals_is_a_price(amount):
    assert Price(Decimal(1), Decimal(amount)).output_usd_per_mtok == Decimal(amount)


def test_several_samples_pay_their_input_once_and_all_their_outputs():
    several = pool(strategy=lambda it: replace(it, samples=(5,), select="majority"))
    (candidate,) = several.candidates
    request = several.request(Query("q", "2+2?"), candidate)
    assert several.worst_case_usd(request) == several.price(candidate).worst_case_usd(
        request.max_input_tokens, 5 * 100
    )


def test_a_request_carries_all_that_the_pool_says_of_its_candidate():
    made = pool(
        model=lambda it: replace(
            it,
            sampling=Sampling(temperature=0.6, top_p=0.9),
            chat_template_kwargs={"enable_thinking": True},
            thinking_tokens=50,
        ),
        strategy=lambda it: replace(it, sampling=Sampling(top_p=0.5), stop=("###",)),
    ).request(Query("q", "2+2?"), SMALL_COT, sample=3)
    assert made.query_id == "q"
    assert made.sample == 3
    assert made.max_tokens == 150
    assert made.sampling == Sampling(temperature=0.6, top_p=0.5)  # the strategy's word before the model's
    assert made.stop == ("###",)
    assert made.chat_template_kwargs == {"enable_thinking": True}
    assert [dict(m) for m in made.messages] == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "2+2?"},
    ]


def test_an_answer_is_greedy_where_nobody_says_otherwise():
    assert pool().sampling(SMALL_COT) == Sampling(temperature=0.0)


def test_a_prompt_has_at_most_a_token_per_byte_and_those_of_the_template():
    request = pool().request(Query("q", "é" * 100), SMALL_COT)
    assert request.max_input_tokens == size_of(request.messages) + TEMPLATE_TOKENS
    assert request.max_input_tokens >= 200 + len("Think.")


def test_no_prompt_is_longer_than_the_context_window():
    short = pool(deployment=lambda it: replace(it, context_tokens=300))
    assert short.request(Query("q", "x" * 100_000), SMALL_COT).max_input_tokens == 300


@pytest.mark.parametrize(
    ("content", "size"), [("abc", 3), ("é", 2), ([{"type": "text", "text": "abc"}], 33), (None, 4)]
)
def test_the_size_of_a_conversation_counts_bytes_and_a_frame_per_message(content, size):
    assert size_of([{"role": "user", "content": content}]) == size + 16


IMAGE = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}


@pytest.mark.parametrize(
    ("content", "fine"),
    [
        ("abc", True),
        (None, True),
        ([], True),
        ([{"type": "text", "text": "abc"}, {"type": "refusal", "refusal": "no"}], True),
        ([{"type": "text", "text": "abc"}, IMAGE], False),
        ([{"type": "text", "text": ["abc"]}], False),
        ([{"type": "input_audio", "input_audio": {"data": "AAAA"}}], False),
        ([{"type": ["text"], "text": "abc"}], False),
        (["abc"], False),
        ({"url": "https://a/b.png"}, False),
    ],
)
def test_only_texts_are_bounded_by_their_length(content, fine):
    assert only_text([{"role": "system", "content": "x"}, {"role": "user", "content": content}]) is fine


def test_an_image_may_be_as_many_tokens_as_the_context_window_has():
    known = pool(deployment=lambda it: replace(it, context_tokens=32_000))
    query = Query("q", "look", ({"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE]},))
    request = known.request(query, SMALL_COT)
    assert request.max_input_tokens == 32_000
    assert known.worst_case_usd(request) == PRICE.worst_case_usd(32_000, 100)


def test_an_image_is_not_sent_where_nobody_can_say_what_it_costs_at_most():
    query = Query("q7", "look", ({"role": "user", "content": [IMAGE]},))
    assert pool().input_bound(query.messages, SMALL_COT) is None
    with pytest.raises(DataError, match=r"^The query 'q7' holds more than text .* small:cot, whose context"):
        pool().request(query, SMALL_COT)


def test_calls_of_tools_are_part_of_a_conversation_too():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "x" * 1000}}
    plain = size_of([{"role": "assistant", "content": None}])
    assert size_of([{"role": "assistant", "content": None, "tool_calls": [call]}]) > plain + 1000


def test_a_seed_on_the_cpu_is_refused_where_answers_are_drawn():
    def seeded(temperature: float, accelerator: str) -> Pool:
        return pool(
            deployment=lambda it: replace(it, accelerator=accelerator),
            model=lambda it: replace(it, sampling=Sampling(temperature=temperature, seed=1)),
        )

    assert seeded(0.0, "cpu").candidates
    assert seeded(0.6, "gpu").candidates
    with pytest.raises(ConfigError, match=r"^small:cot draws with a seed on the CPU"):
        seeded(0.6, "cpu")


def test_a_pool_without_a_model_is_refused():
    with pytest.raises(ConfigError, match=r"^The pool has no models; one at least is needed\.$"):
        replace(pool(), models={})


# Fingerprints

SAME = {
    "the price": pool(deployment=lambda it: replace(it, price=Price(Decimal(9), Decimal(9)))),
    "the place of the weights": pool(deployment=lambda it: replace(it, source="/elsewhere/small")),
    "the number of replicas": pool(deployment=lambda it: replace(it, max_replicas=4)),
    "the accelerator": pool(deployment=lambda it: replace(it, accelerator="H100", num_gpus=2.0)),
    "how much memory the engine takes": pool(
        deployment=lambda it: replace(it, engine={"gpu_memory_utilization": 0.5, "max_model_len": 512})
    ),
    "the profile of the model": pool(model=lambda it: replace(it, profile="described otherwise")),
    "the profile of the strategy": pool(strategy=lambda it: replace(it, profile="described otherwise")),
}
OTHER = {
    "the weights": pool(deployment=lambda it: replace(it, written_source="hub/other")),
    "the type of number": pool(deployment=lambda it: replace(it, engine={"dtype": "float16"})),
    "the revision": pool(deployment=lambda it: replace(it, engine={"revision": "abc"})),
    "the mode": pool(model=lambda it: replace(it, chat_template_kwargs={"enable_thinking": True})),
    "the sampling": pool(model=lambda it: replace(it, sampling=Sampling(temperature=0.6))),
    "the tokens for thinking": pool(model=lambda it: replace(it, thinking_tokens=10)),
    "the longest answer": pool(strategy=lambda it: replace(it, max_tokens=101)),
    "the system message": pool(strategy=lambda it: replace(it, system="Think hard.")),
    "the template": pool(strategy=lambda it: replace(it, template="Q: {query}")),
    "the stop texts": pool(strategy=lambda it: replace(it, stop=("###",))),
    "how the answer is read": pool(strategy=lambda it: replace(it, answer="text")),
    "which sample is kept": pool(strategy=lambda it: replace(it, select="majority")),
}


@pytest.mark.parametrize("what", SAME)
def test_a_candidate_behaves_the_same_whatever(what):
    assert SAME[what].behaviour(SMALL_COT) == pool().behaviour(SMALL_COT)


@pytest.mark.parametrize("what", OTHER)
def test_a_candidate_behaves_differently_with_another(what):
    assert OTHER[what].behaviour(SMALL_COT) != pool().behaviour(SMALL_COT)
    assert OTHER[what].fingerprint != pool().fingerprint


def test_every_other_behaviour_has_another_fingerprint():
    assert len({made.behaviour(SMALL_COT) for made in OTHER.values()}) == len(OTHER)


def test_the_fingerprint_of_a_pool_changes_with_a_price():
    assert SAME["the price"].fingerprint != pool().fingerprint


def test_an_endpoint_behaves_as_the_model_that_it_names():
    def endpoint(url: str, model: str) -> str:
        made = pool(
            deployment=lambda it: replace(it, source=None, written_source="", endpoint=Endpoint(url, model))
        )
        return made.behaviour(SMALL_COT)

    assert (
        endpoint("https://a/v1", "gpt")
        == endpoint("https://b/v1", "gpt")
        != endpoint("https://a/v1", "other")
    )


def test_a_fingerprint_does_not_hang_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
    assert len(fingerprint("x")) == 16
