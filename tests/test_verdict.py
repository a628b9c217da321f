"""Whether routing pays: held-out labels, scored by hand and by simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rtr_ray.estimators.base import Profiles
from rtr_ray.estimators.knn import KNN
from rtr_ray.policies.base import fit
from rtr_ray.policies.budget import Budget
from rtr_ray.types import Candidate, FloatArray, Outcomes, RoutingTable
from rtr_ray.verdict import Labelled, Verdict, decided, folds, gains, verdict
from tests.fakes import pool_of

CANDIDATES = (Candidate("weak", "cot"), Candidate("strong", "cot"))
UNRELATED = np.arange(100)


def outcomes_of(
    accuracy_MC: FloatArray, cost_MC: FloatArray, tokens_MC: FloatArray | None = None
) -> Outcomes:
    count, shape = len(accuracy_MC), accuracy_MC.shape
    return Outcomes(
        tuple(f"q{i}" for i in range(count)),
        tuple(f"question {i}" for i in range(count)),
        CANDIDATES,
        accuracy_MC.astype(float),
        np.full(shape, 10.0),
        np.full(shape, 100.0) if tokens_MC is None else tokens_MC,
        cost_MC.astype(float),
        np.zeros(shape),
        np.full(shape, 500.0),
        np.ones(shape, dtype=int),
    )


def table_of(accuracy_QC: FloatArray, cost_QC: FloatArray) -> RoutingTable:
    shape = accuracy_QC.shape
    return RoutingTable(
        tuple(f"q{i}" for i in range(shape[0])),
        CANDIDATES,
        accuracy_QC,
        np.full(shape, 100.0),
        np.full(shape, 200.0),
        cost_QC,
        np.ones(shape, dtype=bool),
    )


# Four queries; strong costs 3, weak 1. Weak is right about the first two, strong about all.
RIGHT = np.array([[1, 1], [1, 1], [0, 1], [0, 1]])
COST = np.tile([1.0, 3.0], (4, 1))
KNOWING = table_of(RIGHT.astype(float), COST)
MIX = table_of(np.tile([0.5, 1.0], (4, 1)), COST)


def test_routing_gains_what_the_mix_gets_wrong_for_the_same_dollars():
    policy = Budget(budget_usd=8.0)  # for two upgrades of the four
    routing, mixing = fit(policy, [KNOWING]), fit(policy, [MIX])
    gain_Q = gains(outcomes_of(RIGHT, COST), routing, KNOWING, mixing, MIX)
    bought = mixing.choose(MIX).choice  # by hash
    price = mixing.price  # type: ignore[attr-defined]
    assert price == pytest.approx(0.25, rel=0.02)  # half an answer for two dollars
    wanted = np.array([0, 0, 1, 1])
    by_hand = RIGHT[np.arange(4), wanted] - RIGHT[np.arange(4), bought] - price * 2.0 * (wanted - bought)
    assert gain_Q == pytest.approx(by_hand)
    # about two thirds of the mix's dollars go where they change nothing
    assert gain_Q.mean() > 0.2


def test_dollars_that_routing_takes_beyond_the_mix_count_against_it():
    longer = np.where([[False, True]], COST * 2, COST)  # strong answers cost 6 when routed to, as observed
    everything = Budget(budget_usd=100.0)
    routing = fit(everything, [KNOWING])
    some = Budget(budget_usd=6.0)
    mixing = fit(some, [MIX])
    one = gains(outcomes_of(RIGHT, COST), routing, KNOWING, mixing, MIX)
    other = gains(outcomes_of(RIGHT, longer), routing, KNOWING, mixing, MIX)
    assert other.sum() < one.sum()


def test_what_nobody_observed_is_no_gain():
    nothing = replace(KNOWING, allowed=np.array([[False, False], [True, True], [True, True], [True, True]]))
    policy = Budget(budget_usd=8.0)
    found = gains(outcomes_of(RIGHT, COST), fit(policy, [nothing]), nothing, fit(policy, [MIX]), MIX)
    assert np.isnan(found).tolist() == [True, False, False, False]


def test_related_queries_stay_in_one_fold_and_folds_are_of_about_one_size():
    part_M = np.repeat(np.arange(20), 3)
    fold_M = folds(part_M, 5, seed=1)
    assert all(len(set(fold_M[part_M == part])) == 1 for part in range(20))
    assert np.bincount(fold_M).tolist() == [12] * 5
    assert fold_M.tolist() != folds(part_M, 5, seed=2).tolist()
    assert fold_M.tolist() == folds(part_M, 5, seed=1).tolist()


@pytest.mark.parametrize(
    ("gain_M", "used"),
    [
        ([1.0] * 10 + [0.0] * 90, True),
        ([-1.0] * 10 + [0.0] * 90, False),
        ([0.0] * 100, False),  # an estimator that says what the mix says gains nothing
        ([1.0] * 16 + [-1.0] * 15 + [0.0] * 69, False),  # a gain that may as well be luck
    ],
)
def test_routing_is_used_where_held_out_labels_show_a_gain(gain_M, used):
    found = decided(np.array(gain_M), UNRELATED)
    assert found.used is used
    assert found.points == pytest.approx(100 * np.mean(gain_M))
    assert found.interval_90[0] <= found.points <= found.interval_90[1]
    assert found.queries == 100
    assert f"{found.points:+.1f} points" in found.reason
    assert Verdict.from_json(found.to_json()) == found


def test_ten_answers_to_one_passage_are_one_piece_of_evidence():
    gain_M = np.array([0.4] * 50 + [-0.2] * 50)
    alone = decided(gain_M, UNRELATED)
    grouped = decided(gain_M, np.repeat(np.arange(10), 10))
    assert alone.used
    assert grouped.interval_90[0] < 0 < alone.interval_90[0]


def labelled(revealing: bool, count: int = 200, groups: int = 0, seed: int = 3) -> Labelled:
    """Half of the queries are beyond the weak model; embeddings reveal which, or do not."""
    draw = np.random.default_rng(seed)
    hard_M = draw.random(count) < 0.5
    right = np.stack([draw.random(count) < np.where(hard_M, 0.1, 0.9), draw.random(count) < 0.9], axis=1)
    cost = np.tile([0.0001, 0.002], (count, 1))
    rows_MD = draw.normal(size=(count, 8))
    if revealing:
        rows_MD[:, 0] += np.where(hard_M, 4.0, -4.0)
    pool = pool_of(map(str, CANDIDATES), {"weak": ("0", "1"), "strong": ("0", "20")})
    outcomes = outcomes_of(right, cost)
    if groups:
        outcomes = replace(outcomes, group_ids=tuple(f"g{i % groups}" for i in range(count)))
    return Labelled(outcomes, rows_MD, Profiles({}, {}), None, pool)  # type: ignore[arg-type]


def test_routing_is_used_where_texts_reveal_who_can_answer_and_not_where_they_do_not():
    row_usd = 0.0
    for revealing in (True, False):
        given = labelled(revealing)
        table = given.tables(KNN(), np.arange(200) < 100, "x")
        row_usd = float(table.cost_usd.mean())  # halfway between the two
        found = verdict(given, KNN(), Budget(), row_usd)
        assert found.used is revealing
        assert found.queries == 200
        if revealing:
            assert 10 < found.interval_90[0] < found.points < 40


def test_too_few_unrelated_queries_are_no_evidence():
    found = verdict(labelled(True, groups=6), KNN(), Budget(), 0.001)
    assert (found.used, found.points, found.reason) == (
        False,
        None,
        "6 unrelated queries are too few for a check.",
    )
    lacking = labelled(True)
    accuracy = lacking.outcomes.accuracy.copy()
    accuracy[1:, 0] = np.nan  # graded once: not in the fold that holds it out
    found = verdict(
        replace(lacking, outcomes=replace(lacking.outcomes, accuracy=accuracy)), KNN(), Budget(), 0.001
    )
    assert not found.used
    assert found.reason.startswith("The labels are too few for a check. No outcome has a value of accuracy")
