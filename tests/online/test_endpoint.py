"""The endpoint over fake engines: who answers, what it costs, and that every hold is closed in the end."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from rtr_ray.gate import Caller, Refusal
from rtr_ray.online.engines import Failure
from tests.online.bench import Bench, pool, read, said

DIED = Failure("the engine died", 503, maybe_paid=True)
CANNOT = Failure("no room", 503)


def usd(tokens_in: int, tokens_out: int, price: str = "1.3", cached: int = 0) -> Decimal:
    return (tokens_in * Decimal("0.03") + tokens_out * Decimal(price)) / 1_000_000


async def test_auto_goes_where_the_policy_says_and_says_so_in_headers_and_usage():
    bench = Bench.of(lam=0.9)
    reply = await bench.ask()
    assert reply.status == 200
    assert reply.body["model"] == "strong:cot"
    assert reply.headers["x-rtr-model"] == "strong"
    assert reply.headers["x-rtr-strategy"] == "cot"
    assert 0.7 < float(reply.headers["x-rtr-predicted-accuracy"]) < 0.9
    assert float(reply.headers["x-rtr-predicted-cost-usd"]) > 0
    assert reply.headers["x-rtr-router"] == bench.endpoint.routing.chooser.router.fingerprint
    paid = usd(12, 5)
    assert Decimal(reply.headers["x-rtr-cost-usd"]) == paid
    assert Decimal(reply.body["usage"]["cost_usd"]) == paid
    assert reply.body["usage"]["total_tokens"] == 17
    assert bench.settled() == [("strong:cot", paid, 17, False)]


async def test_the_strategys_instruction_stands_behind_the_users_own_system_message():
    bench = Bench.of()
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "6 * 7?"}]
    await bench.ask(model="strong:cot", messages=messages)
    ((_, body),) = bench.engines.bodies
    assert body["messages"] == [
        {"role": "system", "content": "Be kind.\n\nStep by step."},
        {"role": "user", "content": "6 * 7?"},
    ]


async def test_a_request_can_ask_for_a_lambda_a_floor_a_ceiling_or_some_of_the_candidates():
    bench = Bench.of(lam=0.9)
    for asked, answers in [
        ({"model": "auto:0"}, "weak:vanilla"),
        ({"model": "auto:1"}, "strong:cot"),
        ({"rtr": {"lam": 0.0}}, "weak:vanilla"),
        ({"rtr": {"min_accuracy": 0.3}}, "weak:vanilla"),
        ({"rtr": {"min_accuracy": 0.65}}, "strong:cot"),
        ({"rtr": {"candidates": ["strong:vanilla", "weak:vanilla"]}}, "strong:vanilla"),
        ({"rtr": {"max_cost_usd": "0.00002"}}, "weak:vanilla"),
    ]:
        reply = await bench.ask(**asked)
        assert reply.status == 200, reply.body
        assert reply.body["model"] == answers, asked
    worst = bench.gate.offered[-1][0].worst_usd
    assert worst <= Decimal("0.00002")
    bench.settled()


async def test_a_ceiling_shortens_the_answer_and_refuses_what_it_cannot_pay_at_all():
    bench = Bench.of()
    reply = await bench.ask(rtr={"max_cost_usd": 0.00004, "candidates": ["strong:vanilla"]})
    assert reply.status == 200, reply.body
    ((_, body),) = bench.engines.bodies
    assert 0 < body["max_tokens"] < 60
    reply = await bench.ask(rtr={"max_cost_usd": 1e-9})
    assert (reply.status, reply.body["error"]["code"]) == (400, "no_candidate")
    bench.settled()


async def test_a_model_that_is_named_gets_the_messages_as_they_came_and_is_not_routed():
    bench = Bench.of()
    reply = await bench.ask(model="strong", max_tokens=7)
    ((_, body),) = bench.engines.bodies
    assert body["messages"] == [{"role": "user", "content": "What is 6 times 7?"}]
    assert body["max_tokens"] == 7
    assert reply.body["model"] == "strong"
    assert "x-rtr-predicted-accuracy" not in reply.headers
    assert bench.endpoint.routing.encoded == 0


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"n": 2},
    ],
)
async def test_what_a_strategy_would_break_goes_to_plain_candidates_alone(more):
    bench = Bench.of(lam=1.0)
    reply = await bench.ask(**more)
    assert reply.status == 200, reply.body
    assert reply.body["model"] == "strong:vanilla"
    refused = await bench.ask(model="strong:cot", **more)
    assert (refused.status, refused.body["error"]["code"]) == (400, "no_candidate")


async def test_answers_are_greedy_unless_somebody_says_otherwise_or_wants_several():
    bench = Bench.of()
    await bench.ask()
    await bench.ask(n=2)
    await bench.ask(n=2, temperature=0.3)
    assert [body["temperature"] for _, body in bench.engines.bodies] == [0.0, 1.0, 0.3]


async def test_a_stream_ends_with_its_usage_and_is_settled_when_it_was_read():
    bench = Bench.of()
    events = await read(await bench.ask(stream=True, stream_options={"include_usage": True}))
    assert events[-1] == "[DONE]"
    assert "".join(e["choices"][0]["delta"]["content"] for e in events[:-2]).strip().endswith("\\boxed{42}")
    assert events[-2]["choices"] == []
    assert Decimal(events[-2]["usage"]["cost_usd"]) == usd(12, 5)
    assert len({event["id"] for event in events[:-1]}) == 1
    assert bench.settled() == [("strong:cot", usd(12, 5), 17, False)]
    assert bench.endpoint.here == 0


async def test_a_client_that_leaves_a_stream_stops_the_engine_and_pays_what_was_generated():
    bench = Bench.of()
    bench.engines.hold = asyncio.Event()
    reply = await bench.ask(stream=True)
    await anext(reply.events)
    await reply.close()
    assert len(bench.engines.stopped) == 1
    assert bench.settled() == [("strong:cot", usd(12, 1), 13, False)]
    assert bench.endpoint.here == 0


async def test_a_client_that_never_reads_its_stream_pays_what_was_generated():
    bench = Bench.of()
    bench.engines.hold = asyncio.Event()
    reply = await bench.ask(stream=True)
    await reply.close()
    await reply.close()
    assert bench.settled() == [("strong:cot", usd(12, 1), 13, False)]


@pytest.mark.parametrize("turns", range(12))
async def test_wherever_a_request_is_cancelled_its_hold_is_closed(turns: int):
    bench = Bench.of()
    bench.engines.hold = asyncio.Event()
    asked = asyncio.create_task(bench.ask())
    for _ in range(turns):
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    for _ in range(20):
        await asyncio.sleep(0)
    for _, spent, _, unknown in bench.settled():
        assert not unknown
        assert spent in (0, usd(12, 1))
    assert bench.endpoint.here == 0


async def test_where_the_last_count_is_lost_the_worst_case_is_settled_as_unknown():
    bench = Bench.of()
    bench.engines.hold, bench.engines.lost = asyncio.Event(), True
    reply = await bench.ask(stream=True)
    await reply.close()
    ((_, spent, _, unknown),) = bench.settled()
    assert unknown
    assert spent == bench.gate.offered[0][0].worst_usd


async def test_where_one_model_fails_another_one_answers():
    bench = Bench.of()
    bench.engines.failing["strong"] = DIED
    reply = await bench.ask()
    assert reply.status == 200
    assert reply.body["model"] == "weak:vanilla"
    assert bench.engines.suspected == ["strong"]
    first, second = bench.settled()
    assert first[3], "what the dead engine had made, nobody knows"
    assert second == ("weak:vanilla", usd(12, 5, "0.1"), 17, False)


@pytest.mark.parametrize(("times", "answers"), [(1, "strong:cot"), (2, "weak:vanilla")])
async def test_a_model_with_other_replicas_is_asked_once_more(times: int, answers: str):
    bench = Bench.of()
    bench.engines.failing["strong"], bench.engines.failing_times = CANNOT, times
    bench.engines.replicated = True
    assert (await bench.ask()).body["model"] == answers
    assert len(bench.settled()) == times + 1


async def test_where_nothing_was_generated_nothing_is_paid():
    bench = Bench.of()
    bench.engines.failing |= {"strong": CANNOT, "weak": CANNOT}
    reply = await bench.ask()
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert {spent for _, spent, _, _ in bench.settled()} == {0}


async def test_a_stream_that_breaks_says_so_and_pays_the_worst_case():
    bench = Bench.of()
    bench.engines.failing["strong"], bench.engines.failing_after = DIED, 2
    events = await read(await bench.ask(stream=True))
    assert events[-1]["error"]["type"] == "unavailable"
    assert bench.settled()[0][3]


async def test_models_that_are_down_or_busy_are_left_out_and_503_says_when_none_is_left():
    bench = Bench.of()
    bench.engines.down.add("strong")
    assert (await bench.ask()).body["model"] == "weak:vanilla"
    named = await bench.ask(model="strong:cot")
    assert (named.status, named.headers["retry-after"]) == (503, "5")
    bench.engines.busy.add("weak")
    busy = await bench.ask()
    assert (busy.status, busy.body["error"]["code"]) == (503, "overloaded")
    bench.engines.down.add("weak")
    assert (await bench.ask()).body["error"]["code"] == "unavailable"
    bench.engines.down.clear()
    assert (await bench.ask()).body["model"] == "strong:cot"


async def test_beyond_the_most_requests_503_comes_at_once():
    bench = Bench.of(most=2)
    bench.engines.hold = asyncio.Event()
    first = [asyncio.create_task(bench.ask()) for _ in range(2)]
    await asyncio.sleep(0)
    refused = await bench.ask()
    assert (refused.status, refused.body["error"]["code"]) == (503, "overloaded")
    bench.engines.hold.set()
    assert [reply.status for reply in await asyncio.gather(*first)] == [200, 200]
    assert (await bench.ask()).status == 200


async def test_money_that_is_short_steps_down_to_a_cheaper_candidate_before_it_refuses():
    bench = Bench.of()
    bench.gate.can_pay = Decimal("0.00005")
    assert (await bench.ask()).body["model"] == "weak:vanilla"
    bench.gate.can_pay = Decimal(0)
    refused = await bench.ask()
    assert (refused.status, refused.body["error"]["type"]) == (429, "budget_exceeded")
    assert refused.body["error"]["reset_at"] == "2026-12-01T00:00:00Z"
    assert refused.headers["retry-after"] == "3600"
    bench.settled()


async def test_a_key_gets_only_its_candidates_and_its_cap():
    bench = Bench.of()
    bench.gate.caller = Caller("k", "short", ("weak:vanilla",), Decimal("0.00002"))
    assert (await bench.ask()).body["model"] == "weak:vanilla"
    assert (await bench.ask(model="strong:cot")).status == 403
    assert (await bench.ask(rtr={"candidates": ["strong:cot"]})).status == 403
    assert all(offer.worst_usd <= Decimal("0.00002") for offer in bench.gate.offered[0])
    cards = (await bench.endpoint.models()).body["data"]
    assert [card["id"] for card in cards] == ["auto", "weak", "weak:vanilla"]
    bench.gate.refuse = Refusal("rate_limit_exceeded", "Too fast.", 0.2)
    refused = await bench.ask()
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")


async def test_a_key_that_nobody_knows_is_401():
    reply = await Bench.of().endpoint.chat(b"{}", bearer="bad")
    assert (reply.status, reply.body["error"]["type"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("method", ["admit", "reserve", "settle"])
async def test_a_gate_that_is_gone_lets_nobody_in_and_takes_no_answer_back(method: str):
    bench = Bench.of()
    bench.gate.broken = method
    reply = await bench.ask()
    if method == "settle":
        assert reply.status == 200
        assert len(bench.gate.open) == 1, "what was put aside stays so"
    else:
        assert (reply.status, reply.body["error"]["code"]) == (503, "unavailable")
        assert bench.engines.bodies == []
    assert bench.endpoint.here == 0


async def test_a_program_is_run_and_its_output_is_the_answer():
    bench = Bench.of()
    bench.engines.words = ["```python\nprint(42)\n```"]
    reply = await bench.ask(model="strong:pal")
    assert said(reply) == "42"
    assert reply.body["rtr"]["code"] == "print(42)\n"
    events = await read(await bench.ask(model="strong:pal", stream=True))
    assert events[0]["choices"][0]["delta"]["content"] == "42"
    assert events[1]["rtr"]["code"] == "print(42)\n"
    assert events[-1] == "[DONE]"
    bench.engines.words = ["no program"]
    assert said(await bench.ask(model="strong:pal")) == "no program"
    assert bench.endpoint.here == 0
    assert len(bench.settled()) == 3


async def test_of_several_samples_the_selected_one_answers():
    bench = Bench.of()
    reply = await bench.ask(model="strong:cot@3")
    assert bench.engines.bodies[0][1]["n"] == 3
    assert len(reply.body["choices"]) == 1
    assert reply.body["rtr"]["sample_answers"] == ["42"] * 3
    assert reply.body["usage"]["completion_tokens"] == 15


async def test_a_seed_does_not_reach_an_engine_that_would_die_of_it():
    bench = Bench.of()
    assert (await bench.ask(seed=1)).status == 200
    assert "seed" not in bench.engines.bodies[0][1]
    assert (await bench.ask(seed=1, temperature=0.5)).status == 400
    gpu = Bench.of(pool=pool(accelerator="gpu"))
    assert (await gpu.ask(seed=1, temperature=0.5)).status == 200
    assert gpu.engines.bodies[0][1]["seed"] == 1


async def test_a_table_can_be_looked_at_without_an_answer():
    bench = Bench.of()
    raw = b'{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}'
    found = (await bench.endpoint.route(raw)).body
    assert found["choice"]["candidate"] == "strong:cot"
    assert found["runner_up"]["candidate"] in {"strong:pal", "strong:cot@3"}
    assert "Next is" in found["why"]
    costs = [row["predicted_cost_usd"] for row in found["table"]]
    assert costs == sorted(costs)
    assert bench.engines.bodies == []
    assert (await bench.endpoint.route(raw.replace(b"auto", b"weak"))).status == 400


async def test_an_image_is_not_sent_where_nobody_knows_what_it_costs():
    image = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    assert (await Bench.of().ask(image)).status == 200
    unknown = Bench.of(pool=pool(context_tokens=None))
    assert (await unknown.ask(image)).status == 400
    assert (await unknown.ask(image, model="strong")).status == 400
    assert unknown.settled() == []


async def test_many_requests_are_encoded_together_and_the_same_text_once():
    bench = Bench.of()
    replies = await asyncio.gather(*(bench.ask(f"question {i % 5}") for i in range(40)))
    assert {reply.status for reply in replies} == {200}
    assert bench.endpoint.routing.encoded == 5
    assert len(bench.settled()) == 40
