"""Seconds and cold starts in the choice: what is weighed, how it is learned, and that load leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.online.asking import Wish
from rtr_ray.online.load import Load, Standing, expected_s
from rtr_ray.online.routing import Chooser, Question, Routed
from rtr_ray.online.turns import query_of, text_of
from rtr_ray.policies.score import FittedScore
from rtr_ray.pool import Pool
from rtr_ray.types import RoutingTable
from tests.online.bench import UNIT_USD, Bench, pool, router

POOL = pool()
FAST = {"weak": Standing(token_s=0.01, service_s=0.25), "strong": Standing(token_s=0.01, service_s=0.25)}


def with_speed(tokens_per_s: float) -> Pool:
    """The pool, whose file says how fast `strong` is."""
    written = replace(POOL.deployments["strong"], output_tokens_per_s=tokens_per_s)
    return replace(POOL, deployments={**POOL.deployments, "strong": written})


def question(standings, wish: Wish | None = None, text: str = "What is 6 times 7?") -> Question:
    query = query_of("q", [{"role": "user", "content": text}])
    allowed_C = np.ones(len(POOL.candidates), dtype=bool)
    return Question(query, text_of(query), wish or Wish(), allowed_C, "", standings)


CHOOSER = Chooser(router(POOL), FittedScore(0.9, UNIT_USD), UNIT_USD)


def chosen(chooser: Chooser, *questions: Question) -> list[str]:
    embeddings_QD = HashEncoder(32).encode([one.text for one in questions])
    found = chooser.answer(questions, embeddings_QD)
    assert all(isinstance(one, Routed) for one in found), found
    return [str(one.candidate) for one in found if isinstance(one, Routed)]


def table(tokens: float = 50.0) -> RoutingTable:
    shape = (1, len(POOL.candidates))
    tokens_QC = np.full(shape, tokens)
    return RoutingTable(
        ("q",), POOL.candidates, np.full(shape, 0.5), tokens_QC, tokens_QC, tokens_QC, tokens_QC > 0
    )


def test_seconds_are_tokens_by_speed_and_the_others_in_front():
    standings = {"strong": Standing(8, 16.0, 0.02, 1.5)}
    (found_C,) = expected_s(table(), POOL, [standings])
    by_name = dict(zip(map(str, POOL.candidates), found_C, strict=True))
    assert by_name["strong:vanilla"] == pytest.approx(50 * 0.02 + 8 / 16 * 1.5)
    assert by_name["strong:cot@3"] == pytest.approx(50 / 3 * 0.02 + 8 / 16 * 1.5), "samples grow side by side"
    assert np.isnan(by_name["weak:vanilla"]), "nobody knows"


def test_a_second_costs_so_many_points_of_accuracy_and_none_where_no_speed_is_known():
    slow = FAST | {"strong": Standing(token_s=0.2, service_s=5.0)}
    assert chosen(CHOOSER, question(slow)) == ["strong:cot"], "the weight is 0"
    assert chosen(replace(CHOOSER, latency_weight=2.0), question(slow)) == ["strong:cot"]
    # 0.8 against 0.4, 25 tokens: 5 s against 0.25 s, so that some 8 points a second tip it
    assert chosen(replace(CHOOSER, latency_weight=12.0), question(slow)) == ["weak:vanilla"]
    unknown = {"weak": FAST["weak"], "strong": Standing(in_flight=500)}
    assert chosen(replace(CHOOSER, latency_weight=12.0), question(unknown)) == ["strong:cot"]


def test_a_request_has_its_own_weight_and_a_floor_of_accuracy_knows_none():
    slow = FAST | {"strong": Standing(token_s=0.2, service_s=5.0)}
    hasty = replace(CHOOSER, latency_weight=12.0)
    asked = [
        question(slow),
        question(slow, Wish(latency_weight=0.0)),
        question(slow, Wish(min_accuracy=0.75)),
        question(slow, Wish(lam=1.0, latency_weight=2.0)),
    ]
    assert chosen(hasty, *asked) == ["weak:vanilla", "strong:cot", "strong:cot", "strong:cot"]
    assert chosen(CHOOSER, question(slow, Wish(latency_weight=12.0))) == ["weak:vanilla"]


@given(
    lam=st.floats(0, 1),
    weight=st.floats(0, 50),
    few=st.integers(0, 200),
    more=st.integers(0, 200),
    token_s=st.floats(1e-4, 1),
)
def test_more_requests_at_a_deployment_never_draw_another_one_there(lam, weight, few, more, token_s):
    chooser = replace(CHOOSER, policy=FittedScore(lam, UNIT_USD), latency_weight=weight)
    busy = Standing(few, 16.0, token_s, 25 * token_s)
    questions = [
        question(FAST | {"strong": busy}),
        question(FAST | {"strong": replace(busy, in_flight=few + more)}),
    ]
    (before,), (after,) = (chosen(chooser, one) for one in questions)
    assert not (before.startswith("weak") and after.startswith("strong"))


def test_requests_that_are_routed_together_know_where_those_before_them_went():
    chooser = replace(CHOOSER, latency_weight=80.0)
    found = chosen(chooser, *[question(FAST) for _ in range(64)])
    names = [name.partition(":")[0] for name in found]
    assert names[0] == "strong"
    assert 8 <= names.index("weak") < names.count("strong") < 60


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.9, 1.0])
def test_without_a_weight_nothing_about_the_choice_changes(lam):
    plain = replace(CHOOSER, policy=FittedScore(lam, UNIT_USD))
    jammed = {name: Standing(900, 16.0, 3.0, 60.0, warm=False) for name in POOL.deployments}
    embeddings_QD = HashEncoder(32).encode(["What is 6 times 7?"])
    for one, other in zip(
        plain.answer([question({})], embeddings_QD),
        plain.answer([question(jammed)], embeddings_QD),
        strict=True,
    ):
        assert isinstance(one, Routed)
        assert isinstance(other, Routed)
        assert (one.candidate, one.runner_up) == (other.candidate, other.runner_up)
        for name in ("accuracy", "cost_usd", "output_tokens", "allowed"):
            assert getattr(one.plan.table, name).tobytes() == getattr(other.plan.table, name).tobytes()


def test_a_model_that_would_have_to_start_is_woken_for_more_points_than_configured_and_no_less():
    asleep = FAST | {"strong": Standing(warm=False)}
    believed = router(POOL, {"weak:vanilla": 0.7})
    for within, answers in [(0.0, "strong:cot"), (5.0, "strong:cot"), (15.0, "weak:vanilla")]:
        chooser = Chooser(believed, FittedScore(1.0, UNIT_USD), UNIT_USD, warm_within=within)
        assert chosen(chooser, question(asleep)) == [answers], "0.8 against 0.7"
        assert chosen(chooser, question(FAST)) == ["strong:cot"], "awake it has nothing to make up for"


def test_speed_is_learned_as_if_each_request_had_been_alone():
    load = Load(POOL, {"strong": 4.0}, clock=lambda: 0.0)
    replicas = {"strong": 2}
    begun = [load.begin("strong", replicas) for _ in range(5)]
    assert load.standings(replicas)["strong"].in_flight == 5
    assert load.standings(replicas, peers=3)["strong"].in_flight == 15
    for number, one in enumerate(begun):
        load.end(one, tokens=100, took_s=2.0 * (1 + number / 8))
    standing = load.standings(replicas)["strong"]
    assert (standing.in_flight, standing.capacity) == (0, 8.0)
    assert standing.token_s == pytest.approx(0.02)
    assert standing.service_s == pytest.approx(2.0)


def test_the_pools_speed_is_believed_until_an_answer_is_measured_and_again_when_that_is_old():
    now = [0.0]
    load = Load(with_speed(800.0), {"strong": 16.0}, clock=lambda: now[0])
    assert load.standings({})["strong"].token_s == pytest.approx(16 / 800)
    assert load.standings({})["weak"].token_s is None
    load.end(load.begin("strong", {}), tokens=10, took_s=60.0)
    assert load.standings({})["strong"].token_s == pytest.approx(6.0)
    load.end(load.begin("strong", {}))  # cancelled: nothing is learned
    assert load.standings({})["strong"].token_s == pytest.approx(6.0)
    now[0] = 3600.0
    assert load.standings({})["strong"].token_s == pytest.approx(16 / 800)


async def test_load_leaves_a_model_that_is_full_and_comes_back_when_it_is_not():
    # 0.05 s an answer: each four requests at `strong` are worth 10 points, of which it is some 36 ahead
    bench = Bench.of(lam=0.9, latency_weight=200.0, targets={"weak": 4.0, "strong": 4.0})
    bench.engines.took_s = {"weak": 0.05, "strong": 0.05}
    for model in ("weak:vanilla", "strong:cot"):
        await bench.ask(model=model)
    assert (await bench.ask()).body["model"].startswith("strong:")
    bench.engines.hold = asyncio.Event()
    answers = []
    for number in range(24):  # one after the other, all under way together
        answers.append(asyncio.create_task(bench.ask(f"question {number}")))
        while len(bench.engines.bodies) < number + 4:
            await asyncio.sleep(0.001)
    asked = [name for name, _ in bench.engines.bodies[3:]]
    assert asked[0] == "strong"
    assert 8 <= asked.index("weak") <= asked.count("strong") < 24, "beyond what the wait is worth, elsewhere"
    bench.engines.hold.set()
    assert {reply.status for reply in await asyncio.gather(*answers)} == {200}
    assert (await bench.ask("later")).body["model"].startswith("strong:")
    bench.settled()


async def test_the_table_shows_seconds_and_the_reason_says_what_they_did():
    import json

    bench = Bench.of(lam=1.0, warm_within=45.0)
    bench.engines.took_s = {"weak": 0.2}
    await bench.ask(model="weak:vanilla")
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "6 * 7?"}]}).encode()
    bench.engines.sleeping = {"strong"}
    shown = (await bench.endpoint.route(body)).body
    assert shown["choice"]["candidate"] == "weak:vanilla"
    assert "It is not strong:cot, for which one would wait longer." in shown["why"]
    rows = {row["candidate"]: row for row in shown["table"]}
    assert rows["strong:cot"]["expected_s"] is None
    assert rows["weak:vanilla"]["expected_s"] > 0
    assert rows["strong:cot"]["predicted_accuracy"] == pytest.approx(0.8), (
        "as predicted, whatever was weighed"
    )
