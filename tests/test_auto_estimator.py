"""The mean of several estimators: believed where it helps, and the prior where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from rtr_ray.estimators.auto import Auto, FittedAuto
from rtr_ray.estimators.base import Profiles
from rtr_ray.estimators.linear import Linear
from rtr_ray.estimators.ridge import PENALTIES, Ridge, unit
from rtr_ray.types import Candidate, FloatArray, Outcomes

NOTHING = Profiles({}, {})


def outcomes_of(telling: bool, queries: int = 300, seed: int = 0) -> tuple[Outcomes, FloatArray]:
    """Two kinds of queries, seen in the embedding or not; each candidate is good at one of them."""
    dice = np.random.default_rng(seed)
    kind = dice.integers(0, 2, queries)
    skill = np.where(kind[:, None] == np.arange(2), 0.9, 0.3)
    place = dice.normal(0, 1, (queries, 8))
    if telling:
        place[:, 0] = 3.0 * (2 * kind - 1)
    tokens = dice.integers(50, 150, (queries, 2)) * np.where(kind == 0, 1.0, 3.0)[:, None]
    shape = (queries, 2)
    return Outcomes(
        query_ids=tuple(f"q{i}" for i in range(queries)),
        queries=tuple(f"question {i}" for i in range(queries)),
        candidates=(Candidate("a", "cot"), Candidate("b", "cot")),
        accuracy=(dice.random(shape) < skill).astype(float),
        input_tokens=np.full(shape, 10.0),
        output_tokens=tokens,
        cost_usd=tokens * 1e-6,
        cut=np.zeros(shape),
        max_tokens=np.full(shape, 1000.0),
        runs=np.ones(shape, dtype=np.int64),
    ), place


def test_where_the_members_know_something_they_are_believed() -> None:
    known, known_MD = outcomes_of(True)
    asked, asked_MD = outcomes_of(True, seed=1)
    fitted = Auto().fit(known, known_MD, NOTHING)
    assert fitted.factors[1] > 0.6
    estimate = fitted.predict(asked_MD)
    right = np.take_along_axis(asked.accuracy, estimate.accuracy.argmax(axis=1)[:, None], axis=1).mean()
    assert right > 0.85
    assert estimate.output_tokens.sum() == pytest.approx(asked.output_tokens.sum(), rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_where_they_know_nothing_it_is_the_prior(seed: int) -> None:
    known, known_MD = outcomes_of(False, seed=seed)
    fitted = Auto().fit(known, known_MD, NOTHING)
    estimate = fitted.predict(outcomes_of(False, seed=100 + seed)[1])
    assert fitted.factors[1] == 0
    # whoever is better in the mean is better on every query, by the same margin
    assert np.ptp(estimate.accuracy[:, 0] - estimate.accuracy[:, 1]) < 1e-6


def test_a_candidate_with_three_rows_does_not_stop_it() -> None:
    known, known_MD = outcomes_of(True)
    known.accuracy[3:, 1] = np.nan
    known.output_tokens[3:, 1] = np.nan
    fitted = Auto().fit(known, known_MD, NOTHING)
    assert isinstance(fitted, FittedAuto)
    assert np.isfinite(fitted.predict(known_MD).accuracy).all()


def test_leaving_one_out_in_closed_form_is_leaving_one_out() -> None:
    known, known_MD = outcomes_of(True, queries=40)
    penalty = 2.0
    made = Ridge.fit(unit(known_MD), known.accuracy, penalty)
    for row in range(0, 40, 7):
        rest = np.arange(40) != row
        other = Ridge.fit(unit(known_MD)[rest], known.accuracy[rest], penalty)
        assert made.left_out_MC[row] == pytest.approx(
            unit(known_MD)[row] @ other.weight_DC + other.mean_C, abs=1e-6
        )


def test_the_penalty_grows_where_there_is_nothing_to_learn() -> None:
    (noise, noise_MD), (known, known_MD) = outcomes_of(False), outcomes_of(True)
    learned = np.abs(Linear().fit(known, known_MD, NOTHING).accuracy_DC).max()
    assert np.abs(Linear().fit(noise, noise_MD, NOTHING).accuracy_DC).max() < 0.4 * learned
    assert max(PENALTIES) > 1e4
