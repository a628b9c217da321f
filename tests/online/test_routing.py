"""Routing for single requests: as in batch, together, with a bounded memory, and swapped in flight."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rtr_ray.corpus import GOLD, MESSAGES, QUERY_ID, ROW_ERROR, TEXT
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import ConfigError
from rtr_ray.estimators.linear import Linear
from rtr_ray.online.asking import Wish
from rtr_ray.online.loading import load_chooser
from rtr_ray.online.routing import Chooser, Question, Routing
from rtr_ray.online.together import Together
from rtr_ray.online.turns import query_of, text_of
from rtr_ray.parts import table_part
from rtr_ray.policies.score import FittedScore
from rtr_ray.router import train
from rtr_ray.types import Outcomes
from tests.online.bench import UNIT_USD, pool, router

POOL = pool()
QUESTIONS = [f"{'sum' if i % 3 else 'proof'} number {i}: " + "what is it? " * (i % 7) for i in range(60)]


def knowing_router():
    """One that predicts differently for different questions."""
    shape = (len(QUESTIONS), len(POOL.candidates))
    draw = np.random.default_rng(5)
    accuracy = (draw.random(shape) < 0.5).astype(float)
    outcomes = Outcomes(
        query_ids=tuple(f"m{i}" for i in range(len(QUESTIONS))),
        queries=tuple(QUESTIONS),
        candidates=POOL.candidates,
        accuracy=accuracy,
        input_tokens=np.full(shape, 20.0),
        output_tokens=draw.integers(5, 60, shape).astype(float),
        cost_usd=np.full(shape, 1e-5),
        cut=np.zeros(shape),
        max_tokens=np.full(shape, 60.0),
        runs=np.ones(shape, dtype=int),
    )
    encoder = HashEncoder(32)
    return train(outcomes, POOL, encoder, Linear(penalty=0.1))


def question(text: str, number: int = 0, wish: Wish = Wish()) -> Question:  # noqa: B008
    query = query_of(f"q{number}", [{"role": "user", "content": text}])
    return Question(query, text_of(query), wish, np.ones(len(POOL.candidates), dtype=bool))


async def test_batch_and_online_choose_the_same_for_the_same_queries_and_policy():
    bound = knowing_router().bind(POOL)
    policy = FittedScore(0.6, UNIT_USD)
    ids = [f"q{i}" for i in range(len(QUESTIONS))]
    none = pa.nulls(len(ids), pa.string())
    block = pa.table({QUERY_ID: ids, TEXT: QUESTIONS, MESSAGES: none, GOLD: none, ROW_ERROR: none})
    _, table = table_part(block, bound)
    in_batch = [table.candidates[column] for column in policy.choose(table).choice]
    assert len(set(in_batch)) >= 3, "they would agree on anything"
    routing = Routing(Chooser(bound, policy, UNIT_USD), most=7)
    found = await asyncio.gather(*(routing.route(question(t, i)) for i, t in enumerate(QUESTIONS)))
    assert [one.candidate for one in found] == in_batch
    for row, one in enumerate(found):
        assert one.predicted("cost_usd") == pytest.approx(float(table.cost_usd[row, one.column]))


async def test_embeddings_are_kept_for_the_texts_that_were_asked_for_last():
    routing = Routing(Chooser(router(POOL), FittedScore(0.9, UNIT_USD), UNIT_USD), cache_texts=3)
    for text in ["a", "b", "c", "a", "d", "a", "b"]:
        await routing.route(question(text))
    assert routing.encoded == 5, "b was forgotten when d came; a was not"


async def test_another_router_takes_over_without_disturbing_what_is_under_way():
    chooser = Chooser(router(POOL), FittedScore(0.9, UNIT_USD), UNIT_USD)
    routing = Routing(chooser)
    under_way = [asyncio.create_task(routing.route(question(f"t{i}"))) for i in range(50)]
    await asyncio.sleep(0)
    other = Chooser(router(POOL, {"weak:vanilla": 0.99}, HashEncoder(16)), chooser.policy, UNIT_USD)
    routing.swap(other)
    done = await asyncio.gather(*under_way)
    assert len(done) == 50
    assert (await routing.route(question("later"))).router == other.router.fingerprint
    assert str((await routing.route(question("later"))).candidate) == "weak:vanilla"


async def test_a_batch_is_what_came_while_the_one_before_was_under_way():
    seen = []

    def work(items):
        seen.append(list(items))
        return [ValueError("three") if item == 3 else item * 2 for item in items]

    together = Together(work, most=4)
    done = await asyncio.gather(*(together(i) for i in range(9)), return_exceptions=True)
    assert [one for one in done if isinstance(one, int)] == [0, 2, 4, 8, 10, 12, 14, 16]
    assert isinstance(done[3], ValueError), "and nobody else's"
    assert max(map(len, seen)) == 4
    together.close()


def test_a_chooser_is_loaded_from_a_folder_and_a_policy(tmp_path: Path):
    folder = str(tmp_path / "router")
    knowing_router().save(folder)
    chooser = load_chooser(folder, {"kind": "score", "lam": 0.5, "normaliser_usd": 2e-4}, POOL)
    assert chooser.policy == FittedScore(0.5, 2e-4)
    assert chooser.normaliser_usd == 2e-4
    again = load_chooser(
        folder, {"kind": "fixed", "candidate": "strong:cot"}, POOL, known=chooser.router.encoder
    )
    assert again.router.encoder is chooser.router.encoder
    for policy, complaint in [
        ({"lam": 0.5}, "normaliser_usd"),
        ({"kind": "fixed", "candidate": "strong:magic"}, "The pool has"),
        ({"kind": "budget", "budget_usd": 1.0}, "policy.run"),
        ({"run": str(tmp_path / "none")}, "holds no plan"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            load_chooser(folder, policy, POOL)


def test_the_router_reads_the_last_turn_or_the_end_of_the_conversation():
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {
            "role": "user",
            "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}],
        },
    ]
    query = query_of("q", messages)
    assert text_of(query) == "look"
    assert text_of(query, "conversation") == "system: Be kind.\nuser: first\nuser: look"
    assert text_of(query, "conversation", longest=10) == "user: look"
    plain = query_of("q", [{"role": "user", "content": "hi"}])
    assert plain.messages is None
    assert json.dumps(query_of("q", messages[:2]).messages)
