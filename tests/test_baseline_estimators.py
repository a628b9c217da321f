"""The routers of other papers as estimators: numbers checked by hand, gradients against differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rtr_ray.estimators.base import Profiles, ReadsTexts, predicted
from rtr_ray.estimators.binary import Binary
from rtr_ray.estimators.bradley_terry import BradleyTerry, strengths
from rtr_ray.estimators.clustering import Clustering
from rtr_ray.estimators.irt import IRT, _Response
from rtr_ray.estimators.kmeans import kmeans
from rtr_ray.estimators.logits import Form, LinearForm, choice_entropy, cross_entropy
from rtr_ray.estimators.matrix_factorization import MatrixFactorization, _Product
from rtr_ray.estimators.nclass import NClass, best_of
from rtr_ray.estimators.nlabel import NLabel
from rtr_ray.estimators.tfidf_clustering import TfidfClustering
from rtr_ray.types import Candidate, FloatArray, Outcomes

NAN = math.nan
NONE = Profiles({}, {})
A, B = Candidate("a", "x"), Candidate("b", "x")


def outcomes_of(accuracy: object, tokens: object = 10.0, texts: tuple[str, ...] = ()) -> Outcomes:
    """Two candidates; NaN where nothing was recorded; a token costs a dollar."""
    accuracy_MC = np.array(accuracy, dtype=float)
    tokens_MC = np.broadcast_to(np.array(tokens, dtype=float), accuracy_MC.shape)
    count = len(accuracy_MC)
    return Outcomes(
        query_ids=tuple(f"q{i}" for i in range(count)),
        queries=texts or tuple(f"question {i}" for i in range(count)),
        candidates=(A, B),
        accuracy=accuracy_MC,
        input_tokens=np.full(accuracy_MC.shape, 5.0),
        output_tokens=tokens_MC,
        cost_usd=tokens_MC,
        cut=np.zeros(accuracy_MC.shape),
        max_tokens=np.full(accuracy_MC.shape, NAN),
        runs=np.ones(accuracy_MC.shape, dtype=int),
    )


def two_kinds(queries: int = 200, seed: int = 0) -> tuple[Outcomes, FloatArray]:
    """Half of the queries are for one candidate, half for the other, and the embedding tells which."""
    dice = np.random.default_rng(seed)
    kind = dice.integers(0, 2, queries)
    place_MD = dice.normal(0, 0.3, (queries, 6))
    place_MD[:, 0] += 2.0 * kind - 1
    right = dice.random((queries, 2)) < np.where(kind[:, None] == np.arange(2), 0.9, 0.2)
    return outcomes_of(right), place_MD.astype(np.float32)


def test_directions_that_lie_together_are_one_cluster():
    place_MD = np.array([[1, 0], [0.99, 0.14], [0, 1], [0.14, 0.99]])
    centre_KD = kmeans(place_MD, 2, seed=0)
    nearest = (place_MD @ centre_KD.T).argmax(axis=1)
    assert nearest[0] == nearest[1] != nearest[2] == nearest[3]
    np.testing.assert_allclose(np.linalg.norm(centre_KD, axis=1), 1, rtol=1e-6)
    assert len(kmeans(place_MD[[0, 0, 0]], 3, seed=0)) == 1  # nothing but repetitions


def test_a_cluster_shows_its_mean_drawn_to_the_candidates_own():
    outcomes = outcomes_of([[1, NAN], [1, 0], [0, 1], [0, 1]], [[10, 10], [20, 20], [60, 60], [30, 90]])
    place_MD = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)
    estimate = Clustering(clusters=2, shrinkage=1.0).fit(outcomes, place_MD, NONE).predict(place_MD[[0, 2]])
    # means 1/2 and 2/3: (2 + 1/2) / 3 and (0 + 2/3) / 2; (0 + 1/2) / 3 and (2 + 2/3) / 3
    np.testing.assert_allclose(estimate.accuracy, [[5 / 6, 1 / 3], [1 / 6, 8 / 9]], rtol=1e-6)
    np.testing.assert_allclose(estimate.output_tokens, [[20, 25], [40, 65]], rtol=1e-6)


def test_the_number_of_clusters_is_one_that_tells_something():
    outcomes, place_MD = two_kinds()
    told = Clustering().fit(outcomes, place_MD, NONE).predict(place_MD).accuracy
    kind = (place_MD[:, 0] > 0).astype(int)
    assert (told.argmax(axis=1) == kind).mean() > 0.95


SUMS = ("the sum of two numbers", "the sum of three numbers", "the sum of numbers")
PLACES = ("the capital of a country", "the capital of another country", "capital and country")


def test_words_make_clusters_and_a_text_without_a_known_word_gets_the_mean():
    outcomes = outcomes_of([[1, 0]] * 3 + [[0, 1]] * 3, texts=SUMS + PLACES)
    nothing_MD = np.zeros((6, 2), dtype=np.float32)
    fitted = TfidfClustering(clusters=2, shrinkage=0.0).fit(outcomes, nothing_MD, NONE)
    assert isinstance(fitted, ReadsTexts)
    texts = ["a sum of some numbers", "which country has this capital", "zzz"]
    told = predicted(fitted, nothing_MD[:3], texts)
    assert told.accuracy.tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    assert fitted.predict(nothing_MD[:1]).accuracy.tolist() == [[0.5, 0.5]]


def test_strengths_are_those_of_bradley_and_terry():
    # half a win is added each way: 3.5 to 1.5
    strength_C = strengths(np.array([[[0.0, 3.0], [1.0, 0.0]]]))[0]
    assert strength_C[0] - strength_C[1] == pytest.approx(math.log(3.5 / 1.5), abs=1e-6)
    assert strength_C.sum() == pytest.approx(0, abs=1e-9)


def test_where_all_queries_weigh_alike_bradley_terry_knows_the_means_alone():
    outcomes, place_MD = two_kinds()
    told = BradleyTerry(base=1.0).fit(outcomes, place_MD, NONE).predict(place_MD).accuracy
    assert np.ptp(told, axis=0).max() < 1e-6
    assert told[0].mean() == pytest.approx(outcomes.accuracy.mean(), abs=1e-4)
    near = BradleyTerry().fit(outcomes, place_MD, NONE).predict(place_MD).accuracy
    assert ((near[:, 1] > near[:, 0]) == (place_MD[:, 0] > 0)).mean() > 0.95


def test_the_best_is_who_was_right_most_often_and_of_equals_the_cheapest():
    outcomes = outcomes_of([[1, 1], [0, 1], [0, 0], [NAN, 0.5], [NAN, NAN]], [[30, 20]] * 5)
    np.testing.assert_array_equal(best_of(outcomes), [[0, 1], [0, 1], [0, 1], [0, 1], [NAN, NAN]])
    dearer = replace(outcomes, cost_usd=outcomes.cost_usd[:, ::-1])
    np.testing.assert_array_equal(best_of(dearer)[:3], [[1, 0], [0, 1], [1, 0]])


def test_a_candidate_is_capable_where_most_of_its_runs_were_right():
    """0.6 and 1.0 are the same label, and so are 0.0 and 0.4; half is neither."""
    dice = np.random.default_rng(0)
    place_MD = dice.normal(size=(60, 4)).astype(np.float32)
    right = np.stack([place_MD[:, 0] > 0, place_MD[:, 1] > 0], axis=1)
    clear, unclear = outcomes_of(np.where(right, 1.0, 0.0)), outcomes_of(np.where(right, 0.6, 0.4))
    one, other = (NLabel(penalty=0.1).fit(o, place_MD, NONE).predict(place_MD) for o in (clear, unclear))
    assert one.accuracy.tobytes() == other.accuracy.tobytes()


@pytest.mark.parametrize(
    "recipe",
    [Binary(), NClass(), NLabel(), IRT(), MatrixFactorization(), BradleyTerry(), Clustering()],
    ids=lambda recipe: recipe.kind,
)
def test_every_one_of_them_finds_out_who_is_good_at_what(recipe):
    outcomes, place_MD = two_kinds(300)
    asked, asked_QD = two_kinds(300, seed=1)
    told = recipe.fit(outcomes, place_MD, NONE).predict(asked_QD)
    reached = np.take_along_axis(asked.accuracy, told.accuracy.argmax(axis=1)[:, None], axis=1).mean()
    assert reached > 0.8, "the better one of two alone reaches 0.55"
    assert abs(told.accuracy.mean() - outcomes.accuracy.mean()) < 0.08


def test_the_strong_candidate_is_given_its_mean_everywhere():
    outcomes, place_MD = two_kinds()
    strong = int(outcomes.accuracy.mean(axis=0).argmax())
    told = Binary().fit(outcomes, place_MD, NONE).predict(place_MD).accuracy
    assert np.ptp(told[:, strong]) == 0
    assert told[0, strong] == pytest.approx(outcomes.accuracy[:, strong].mean(), abs=1e-6)


def test_more_ability_never_hurts():
    dice = np.random.default_rng(0)
    place_MD = dice.normal(size=(200, 5)).astype(np.float32)
    outcomes = outcomes_of(dice.random((200, 2)) < [0.3, 0.8])
    told = IRT(dimensions=1).fit(outcomes, place_MD, NONE).predict(place_MD).accuracy
    assert (told[:, 1] > told[:, 0]).all()


WEIGHTS = {
    "linear": (LinearForm(), {"weight_DN": (4, 3), "bias_N": (3,)}),
    "product": (_Product(), {"query_DK": (4, 2), "candidate_CK": (3, 2), "bias_C": (3,)}),
    "response": (
        _Response(),
        {"discrimination_DK": (4, 2), "base_K": (2,), "ability_CK": (3, 2), "difficulty_D": (4,)},
    ),
}


@pytest.mark.parametrize("loss", [cross_entropy, choice_entropy], ids=["right", "best"])
@pytest.mark.parametrize(("form", "shapes"), WEIGHTS.values(), ids=WEIGHTS)
def test_gradients_are_what_a_small_step_says(form: Form, shapes: dict[str, tuple[int, ...]], loss):
    dice = np.random.default_rng(0)
    weights = {name: dice.normal(size=shape) for name, shape in shapes.items()}
    features_MD, target_MN = dice.normal(size=(7, 4)), dice.dirichlet(np.ones(3), 7)
    target_MN[2] = NAN
    _, slope_MN = loss(form.scores(weights, features_MD), target_MN)
    gradient = form.gradient(weights, features_MD, slope_MN)
    for name, value in weights.items():
        for index in np.ndindex(value.shape):
            moved = []
            for step in (1e-6, -1e-6):
                other = value.copy()
                other[index] += step
                moved.append(loss(form.scores(weights | {name: other}, features_MD), target_MN)[0])
            assert gradient[name][index] == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-5)
