"""Prior, nearest neighbours and the oracle against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.errors import DataError, RouterError
from rtr_ray.estimators.base import Profiles, columns_of
from rtr_ray.estimators.knn import KNN
from rtr_ray.estimators.oracle import Oracle
from rtr_ray.estimators.prior import Prior
from rtr_ray.types import Candidate, FloatArray, Outcomes

NAN = math.nan
A, B = Candidate("a", "x"), Candidate("b", "x")
NONE = Profiles({}, {})


def outcomes_of(accuracy: object, output_tokens: object) -> Outcomes:
    """Two candidates; NaN where nothing was recorded."""
    accuracy_MC, tokens_MC = np.array(accuracy, dtype=float), np.array(output_tokens, dtype=float)
    unknown_MC = np.full(accuracy_MC.shape, NAN)
    return Outcomes(
        query_ids=tuple(f"q{i}" for i in range(len(accuracy_MC))),
        queries=tuple(f"question {i}" for i in range(len(accuracy_MC))),
        candidates=(A, B),
        accuracy=accuracy_MC,
        input_tokens=unknown_MC,
        output_tokens=tokens_MC,
        cost_usd=unknown_MC,
        cut=np.zeros(accuracy_MC.shape),
        max_tokens=unknown_MC,
        runs=(~np.isnan(tokens_MC)).astype(int),
    )


SEEN = outcomes_of([[1, 0], [0, NAN], [1, 1], [NAN, 0]], [[10, 100], [20, NAN], [30, 300], [NAN, 200]])
# a right angle between the first two; the third lies near the first, the fourth opposite to it
PLACES = np.array([[1, 0], [0, 1], [3, 1], [-1, 0]], dtype=np.float32)


def test_the_prior_is_the_mean_of_the_recorded_cells_whatever_the_query():
    estimate = Prior().fit(SEEN, PLACES, NONE).predict(np.random.default_rng(0).normal(size=(3, 2)))
    np.testing.assert_allclose(estimate.accuracy, [[2 / 3, 1 / 3]] * 3, rtol=1e-6)
    np.testing.assert_allclose(estimate.output_tokens, [[20, 200]] * 3, rtol=1e-6)
    np.testing.assert_allclose(estimate.output_tokens_p95, [[29, 290]] * 3, rtol=1e-6)


def test_the_nearest_neighbours_by_hand():
    fitted = KNN(k=2, shrinkage=0.0).fit(SEEN, PLACES, NONE)
    estimate = fitted.predict(np.array([[5, 0]], dtype=np.float32))  # nearest: the first and the third
    assert estimate.accuracy.tolist() == [[1.0, 0.5]]
    assert estimate.output_tokens.tolist() == [[20.0, 200.0]]


def test_a_neighbour_whose_cell_was_not_run_is_left_out_and_not_counted_as_wrong():
    fitted = KNN(k=1, shrinkage=0.0).fit(SEEN, PLACES, NONE)
    estimate = fitted.predict(np.array([[0, 1], [-1, 0]], dtype=np.float32))
    # where the only neighbour knows nothing, the candidate's mean is what there is
    np.testing.assert_allclose(estimate.accuracy, [[0, 1 / 3], [2 / 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(estimate.output_tokens, [[20, 200], [20, 200]], rtol=1e-6)


def nearest_by_loops(outcomes: Outcomes, places_MD: FloatArray, at_D: FloatArray, recipe: KNN) -> list[float]:
    """Accuracy of both candidates."""
    cosine = [float(row @ at_D / np.linalg.norm(row) / np.linalg.norm(at_D)) for row in places_MD]
    nearest = sorted(range(len(cosine)), key=lambda m: -cosine[m])[: recipe.k]
    found = []
    for column in range(2):
        column_M = outcomes.accuracy[:, column]
        mean = float(np.mean([value for value in column_M if not math.isnan(value)]))
        values = [column_M[m] for m in nearest if not math.isnan(column_M[m])]
        weight = len(values) + recipe.shrinkage
        found.append((sum(values) + recipe.shrinkage * mean) / weight if weight else mean)
    return found


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 40),
    shrinkage=st.sampled_from([0.0, 0.5, 4.0]),
    queries=st.sampled_from([1, 5]),
)
def test_the_nearest_neighbours_are_what_a_plain_loop_finds(
    seed: int, k: int, shrinkage: float, queries: int
):
    dice = np.random.default_rng(seed)
    accuracy = dice.random((30, 2))
    accuracy[1:][dice.random((29, 2)) < 0.3] = NAN
    outcomes = outcomes_of(accuracy, np.where(np.isnan(accuracy), NAN, 10.0))
    places_MD, at_QD = dice.normal(size=(30, 6)), dice.normal(size=(queries, 6))
    recipe = KNN(k, shrinkage)
    found = recipe.fit(outcomes, places_MD, NONE).predict(at_QD).accuracy
    expected = [nearest_by_loops(outcomes, places_MD, at_D, recipe) for at_D in at_QD]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_more_queries_than_a_block_holds_are_all_answered():
    dice = np.random.default_rng(0)
    at_QD = dice.normal(size=(2500, 2)).astype(np.float32)
    fitted = KNN(k=1, shrinkage=0.0).fit(outcomes_of([[0, 1], [1, 0]], [[1, 2], [3, 4]]), PLACES[:2], NONE)
    np.testing.assert_array_equal(fitted.predict(at_QD).accuracy[:, 0], at_QD[:, 1] > at_QD[:, 0])


def test_only_the_direction_of_an_embedding_counts_for_neighbours():
    fitted = KNN(k=2).fit(SEEN, PLACES, NONE)
    one, other = (fitted.predict(PLACES * scale) for scale in (np.float32(1), np.float32(64)))
    assert one.accuracy.tobytes() == other.accuracy.tobytes()


def test_an_embedding_of_nothing_but_zeros_is_no_division_by_zero():
    estimate = KNN(k=2).fit(SEEN, PLACES, NONE).predict(np.zeros((1, 2), dtype=np.float32))
    assert np.isfinite(estimate.accuracy).all()


def test_the_oracle_gives_back_what_was_recorded():
    estimate = Oracle().fit(SEEN, PLACES, NONE).predict(PLACES[[2, 0]])
    assert estimate.accuracy.tolist() == [[1, 1], [1, 0]]
    assert estimate.output_tokens.tolist() == [[30, 300], [10, 100]]
    assert estimate.output_tokens_p95.tolist() == [[30, 300], [10, 100]]


def test_the_oracle_never_chooses_a_cell_that_was_not_run():
    """Never right, and as long as the longest: nobody prefers it."""
    estimate = Oracle().fit(SEEN, PLACES, NONE).predict(PLACES[[1, 3]])
    assert estimate.accuracy.tolist() == [[0, 0], [0, 0]]
    assert estimate.output_tokens.tolist() == [[20, 300], [30, 200]]


def test_the_oracle_invents_nothing_for_a_query_that_was_not_recorded():
    fitted = Oracle().fit(SEEN, PLACES, NONE)
    with pytest.raises(DataError, match="asked for 1 of 2 queries whose outcomes were not recorded"):
        fitted.predict(np.array([[1, 0], [1, 0.001]], dtype=np.float32))


def test_the_oracle_gives_queries_with_one_embedding_the_mean_of_their_cells():
    twice = np.concatenate([PLACES, PLACES])
    outcomes = outcomes_of(
        np.concatenate([SEEN.accuracy, 1 - SEEN.accuracy]),
        np.concatenate([SEEN.output_tokens, SEEN.output_tokens * 3]),
    )
    estimate = Oracle().fit(outcomes, twice, NONE).predict(PLACES)
    np.testing.assert_allclose(estimate.accuracy, [[0.5, 0.5], [0.5, 0], [0.5, 0.5], [0, 0.5]])
    np.testing.assert_allclose(estimate.output_tokens, [[20, 200], [40, 600], [60, 600], [60, 400]])


def test_the_oracle_beats_every_other_estimator_on_its_own_queries():
    dice = np.random.default_rng(0)
    outcomes = outcomes_of(dice.integers(0, 2, (200, 2)), np.full((200, 2), 10.0))
    places_MD = dice.normal(size=(200, 8)).astype(np.float32)

    def reached(recipe: Prior | KNN | Oracle) -> float:
        accuracy_QC = recipe.fit(outcomes, places_MD, NONE).predict(places_MD).accuracy
        return float(outcomes.accuracy[np.arange(200), accuracy_QC.argmax(axis=1)].mean())

    best = reached(Oracle())
    assert best == outcomes.accuracy.max(axis=1).mean()
    assert max(reached(Prior()), reached(KNN())) < best


def test_a_candidate_that_was_not_trained_is_named():
    assert columns_of((A, B), (B, A, B)).tolist() == [1, 0, 1]
    with pytest.raises(RouterError, match="c:x is not among the trained candidates: a:x, b:x"):
        columns_of((A, B), (Candidate("c", "x"),))
