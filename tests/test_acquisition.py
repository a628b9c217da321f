"""Which cells are labelled next: those that tell most of choices, per dollar."""

from __future__ import annotations

import numpy as np
import pytest

from rtr_ray.acquisition import RULES, Acquisition, Belief, Pool, spread_rows
from rtr_ray.errors import ConfigError
from rtr_ray.types import FloatArray

DICE = np.random.default_rng(0)
ROWS, COST_C = 200, np.array([0.1, 1.0, 1.0])


def embeddings(count: int = ROWS) -> FloatArray:
    rows_MD: FloatArray = np.random.default_rng(1).normal(size=(count, 6))
    return rows_MD


def pool(known: int = 0, count: int = ROWS) -> Pool:
    """The second candidate is hopeless; which of the others is better depends on the first direction."""
    rows_MD = embeddings(count)
    high_M = rows_MD[:, 0] > 0
    chance_MC = np.stack(
        [np.where(high_M, 0.9, 0.5), np.full(count, 0.02), np.where(high_M, 0.5, 0.9)], axis=1
    )
    dice = np.random.default_rng(2)
    accuracy_MC = (dice.random(chance_MC.shape) < chance_MC).astype(float)
    asked_MC = np.zeros(accuracy_MC.shape, dtype=bool)
    asked_MC[:known] = True
    return Pool(
        rows_MD, np.where(asked_MC, accuracy_MC, np.nan), asked_MC, np.broadcast_to(COST_C, accuracy_MC.shape)
    )


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_spends_more_than_the_budget_or_asks_a_cell_twice(rule: str):
    here = pool(known=30)
    for budget in (0.05, 3.0, 40.0, 1e6):
        cells = Acquisition(rule).next(here, budget)
        assert len(cells) == len(set(cells))
        assert sum(here.cost_usd[cell] for cell in cells) <= budget + 1e-9
        assert not any(here.asked[cell] for cell in cells)
        assert cells == Acquisition(rule).next(here, budget), "the same every time"
    assert len(cells) == 3 * (ROWS - 30), "with enough money everything is asked"
    everything = Pool(here.embeddings, here.accuracy, np.ones_like(here.asked), here.cost_usd)
    assert Acquisition(rule).next(everything, 1e6) == []


def test_the_first_rows_are_whole_and_lie_far_from_each_other():
    here = pool()
    cells = Acquisition("decision", first_rows=5).next(here, 10.6)
    rows = [row for row, _ in cells[:15]]
    assert sorted(cells[:15]) == sorted((row, c) for row in set(rows) for c in range(3))
    clouds = np.repeat(np.eye(6), 50, axis=0) + 0.01 * embeddings(300)
    assert len({row // 50 for row in spread_rows(clouds, 6, [], 0)}) == 6
    assert 0 not in {row // 50 for row in spread_rows(clouds, 5, [3], 0)}, "one of these is known"
    assert len(set(spread_rows(np.ones((9, 3)), 9, [], 0))) == 9, "all alike"


def counts(rule: str) -> FloatArray:
    cells = Acquisition(rule).next(pool(known=60), 30.0)
    found: FloatArray = np.bincount([column for _, column in cells], minlength=3)
    return found


def test_a_candidate_that_is_never_chosen_is_asked_less_and_a_cheap_one_more():
    decision, variance, thrifty = (counts(rule) for rule in ("decision", "variance", "thrifty"))
    assert decision[1] < 0.5 * decision[2], "hopeless and as dear"
    assert variance[1] >= variance[2], "only decisions know that"
    assert variance[0] > 2 * variance[2]
    assert thrifty[0] > 1.3 * thrifty[2]


def test_a_contest_is_asked_in_rows_without_those_that_are_never_chosen():
    cells = Acquisition("contest").next(pool(known=60), 30.0)
    rows = {row for row, _ in cells}
    assert sorted(cells) == sorted((row, column) for row in rows for column in (0, 2))


def test_what_is_believed_is_what_was_seen():
    here = pool(known=150)
    believed_MC = Belief.of(here.embeddings, here.accuracy).accuracy
    high_M = here.embeddings[:, 0] > 0.5
    assert believed_MC[high_M, 0].mean() > believed_MC[high_M, 2].mean() + 0.1
    assert believed_MC[:, 1].mean() < 0.15


def test_a_label_that_is_expected_lessens_what_another_would_tell():
    here = pool(known=20)
    belief = Belief.of(here.embeddings, here.accuracy)
    even_MC = np.ones(here.shape)
    before_MC = belief.gain(even_MC)
    after_MC = belief.told([(150, 0)]).gain(even_MC)
    assert after_MC[150, 0] < before_MC[150, 0]
    assert after_MC.mean() < before_MC.mean()
    assert after_MC[150, 0] < after_MC[150, 2], "of another candidate it tells less"


def test_unknown_rules_are_refused():
    with pytest.raises(
        ConfigError, match="Known rules: contest, decision, tempered, variance, thrifty, cells, rows"
    ):
        Acquisition("best")
    with pytest.raises(ConfigError, match="first_rows is 0"):
        Acquisition(first_rows=0)
