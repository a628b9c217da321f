"""A candidate that has no outcomes, put in by its profile text alone, with a real sentence encoder."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from rtr_ray import registry
from rtr_ray.distributed.demo import ENCODER
from rtr_ray.embedded.questions import Question, draw
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import RouterError
from rtr_ray.estimators.rtr import RTR
from rtr_ray.policies import KNOWN as POLICIES
from rtr_ray.policies.base import fit
from rtr_ray.pool import Pool
from rtr_ray.router import RouterFolder, train
from rtr_ray.types import Candidate, FloatArray, Outcomes, Plan
from tests.fakes import pool_of

POLICY = {"kind": "score", "lam": 0.7}  # looks at dollars as well
TRAINED = {
    "weak": "The smallest and cheapest model. Answers at once and is mostly wrong.",
    "stories": "For word problems: adds, subtracts and multiplies the numbers of a story, step by step.",
    "lists": "A model for lists of numbers. Sorts them, and finds the largest and smallest of them.",
}
NEW = {  # the same in other words
    "new-stories": "Good at stories: solves word problems by addition, subtraction and multiplication, "
    "one step after the other.",
    "new-lists": "Sorts number lists, and picks the maximum or the minimum out of a list of numbers.",
}
KINDS = {"word": "stories", "largest": "lists", "rank": "lists"}  # family -> who can do it
STRATEGY = "x"


@cache
def encoder() -> Encoder:
    built: Encoder = registry.build(dict(ENCODER), ENCODERS, "encoder")
    return built


@cache
def questions(split: str, count: int) -> list[Question]:
    return draw(split, count, 1, tuple(KINDS))


def pool_with(*new: str) -> Pool:
    """The trained models and these, which cost a quarter."""
    profiles = TRAINED | NEW | {STRATEGY: "no particular way of answering"}
    models = (*TRAINED, *new)
    return pool_of([f"{m}:{STRATEGY}" for m in models], {m: ("0.25", "1") for m in new}, profiles=profiles)


@cache
def learned() -> RouterFolder:
    """Each trained model is right nine times in ten on its kind of question, and hardly ever else."""
    dice, asked = np.random.default_rng(0), questions("route", 600)
    chance_MC = np.array([[0.9 if KINDS[q.family] == m else 0.08 for m in TRAINED] for q in asked])
    shape = chance_MC.shape
    outcomes = Outcomes(
        query_ids=tuple(str(i) for i in range(len(asked))),
        queries=tuple(q.query for q in asked),
        candidates=tuple(Candidate(m, STRATEGY) for m in TRAINED),
        accuracy=(dice.random(shape) < chance_MC).astype(float),
        input_tokens=np.full(shape, 20.0),
        output_tokens=np.round(np.exp(dice.normal(4, 0.3, shape))),
        cost_usd=np.full(shape, np.nan),
        cut=np.zeros(shape),
        max_tokens=np.full(shape, np.nan),
        runs=np.ones(shape, dtype=int),
    )
    recipe = RTR(hidden=128, learned=16, max_epochs=15, patience=4)
    return train(outcomes, pool_with(), encoder(), recipe)


@cache
def planned(*new: str) -> Plan:
    """What the demo's policy makes of held-out questions."""
    asked = questions("test", 150)
    router = learned().bind(pool_with(*new), encoder(), untrained="by_profile")
    table = router.table(
        [str(i) for i in range(len(asked))],
        encoder().encode([q.query for q in asked]),
        np.array([len(q.query.encode()) for q in asked]),
    )
    return fit(registry.build(POLICY, POLICIES, "policy"), [table]).choose(table)


def of_kind(kind: str) -> FloatArray:
    return np.array([KINDS[q.family] == kind for q in questions("test", 150)])


def share_chosen(plan: Plan, model: str, kind: str) -> float:
    column = plan.table.candidates.index(Candidate(model, STRATEGY))
    return float((plan.choice[of_kind(kind)] == column).mean())


def mean_accuracy(plan: Plan, model: str, kind: str) -> float:
    column = plan.table.candidates.index(Candidate(model, STRATEGY))
    return float(plan.table.accuracy[of_kind(kind), column].mean())


@pytest.mark.parametrize(("kind", "other"), [("stories", "lists"), ("lists", "stories")])
def test_without_it_each_kind_of_question_goes_to_who_can_do_it(kind: str, other: str):
    assert share_chosen(planned(), kind, kind) > 0.95
    assert share_chosen(planned(), kind, other) < 0.05


@pytest.mark.parametrize(("kind", "other"), [("stories", "lists"), ("lists", "stories")])
def test_it_is_predicted_as_the_trained_one_that_its_profile_resembles(kind: str, other: str):
    plan = planned(f"new-{kind}")
    assert mean_accuracy(plan, f"new-{kind}", kind) > 0.55
    assert mean_accuracy(plan, f"new-{kind}", other) < 0.35
    for part in (plan.table.accuracy, plan.table.output_tokens, plan.table.cost_usd):
        assert np.isfinite(part).all()


@pytest.mark.parametrize(("kind", "other"), [("stories", "lists"), ("lists", "stories")])
def test_it_is_chosen_where_the_one_that_it_resembles_is_good_and_only_there(kind: str, other: str):
    plan = planned(f"new-{kind}")
    assert share_chosen(plan, f"new-{kind}", kind) > 0.5
    assert share_chosen(plan, f"new-{kind}", other) < 0.1


def test_two_new_ones_share_out_the_questions():
    plan = planned("new-stories", "new-lists")
    for kind in ("stories", "lists"):
        assert share_chosen(plan, f"new-{kind}", kind) > 0.5


def test_it_leaves_the_predictions_for_the_trained_ones_as_they_were():
    np.testing.assert_allclose(
        planned("new-lists").table.accuracy[:, : len(TRAINED)], planned().table.accuracy, atol=1e-6
    )


def test_it_is_refused_unless_one_asks_for_it():
    with pytest.raises(RouterError, match="has no outcomes of new-lists:x"):
        learned().bind(pool_with("new-lists"), encoder())


def test_a_new_strategy_comes_in_by_its_profile_too():
    pool = pool_of(
        [*(f"{m}:{STRATEGY}" for m in TRAINED), "lists:steps"],
        profiles=TRAINED | {"steps": "Reason step by step.", STRATEGY: "no particular way of answering"},
    )
    router = learned().bind(pool, encoder(), untrained="by_profile")
    embeddings_QD = encoder().encode([q.query for q in questions("test", 150)])
    table = router.table([str(i) for i in range(150)], embeddings_QD, np.full(150, 60))
    column = table.candidates.index(Candidate("lists", "steps"))
    kind_Q = of_kind("lists")
    assert table.accuracy[kind_Q, column].mean() > table.accuracy[~kind_Q, column].mean() + 0.3
