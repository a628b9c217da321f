"""What a query looks like and says: features by hand, signals that are there and that are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rtr_ray.estimators.auto import Auto
from rtr_ray.estimators.base import Profiles, predicted
from rtr_ray.estimators.evidence import _Column, told_by
from rtr_ray.estimators.kernel import Kernel
from rtr_ray.estimators.ridge import Ridge
from rtr_ray.estimators.vocabulary import Vocabulary
from rtr_ray.estimators.wording import FEATURES, Wording, features_of
from rtr_ray.estimators.words import Words
from rtr_ray.types import FloatArray, Outcomes
from tests.test_baseline_estimators import outcomes_of

NONE = Profiles({}, {})


def worded(queries: int = 240, seed: int = 0, missing: float = 0.0) -> tuple[Outcomes, FloatArray]:
    """Sums, which one candidate is good at, and capitals, which the other knows; embeddings tell nothing."""
    dice = np.random.default_rng(seed)
    kind = dice.integers(0, 2, queries)
    texts = tuple(
        f"What is {dice.integers(10, 99)} + {dice.integers(10, 99)} in total?"
        if one == 0
        else f"Which city is the capital of the country named number{dice.integers(99)}?"
        for one in kind
    )
    right = (dice.random((queries, 2)) < np.where(kind[:, None] == np.arange(2), 0.9, 0.2)).astype(float)
    right[dice.random((queries, 2)) < missing] = np.nan
    tokens = np.where(kind == 0, 20.0, 60.0)[:, None] * [1.0, 2.0]
    return outcomes_of(right, tokens, texts), dice.normal(size=(queries, 8)).astype(np.float32)


def reached(told: FloatArray, outcomes: Outcomes) -> float:
    """How often the candidate that is believed most is right."""
    return float(np.take_along_axis(outcomes.accuracy, told.argmax(axis=1)[:, None], axis=1).mean())


def test_the_features_of_a_text_by_hand() -> None:
    text = "Is 2 + 2 = 4, or not A?\n(A) yes\n(B) no ____"
    found = dict(zip(FEATURES, features_of([text])[0], strict=True))
    assert found["log_characters"] == pytest.approx(math.log(43))
    assert found["log_lines"] == pytest.approx(math.log(4))
    assert found["log_last_line"] == pytest.approx(math.log(12))
    assert found["log_median_line"] == pytest.approx(math.log(12))
    assert found["digits"] == pytest.approx(3 / 43)
    assert found["capitals"] == pytest.approx(4 / 43)
    assert found["signs"] == pytest.approx(1 / 43)
    assert found["choices"] == 2
    assert found["question_marks"] == 1
    assert found["asks_which"] == 0
    assert found["negates"] == 1
    assert found["has_a_blank"] == 1
    assert np.isfinite(features_of(["", "\n", "?"])).all()
    assert features_of([]).shape == (0, len(FEATURES))


def test_a_feature_that_never_varied_says_nothing_of_a_text_in_which_it_does() -> None:
    wording = Wording.fit(["one word", "two words"])
    assert wording.of(["how many? ????"])[0, FEATURES.index("question_marks")] == 0
    assert np.abs(wording.of(["a" * 10_000])).max() <= 1


def test_rare_words_weigh_more_and_rows_have_length_one() -> None:
    words = Words.fit(["red apple", "red pear", "red fig red"], 10)
    assert words.known[0] == "red"
    assert words.rarity_V[0] == pytest.approx(1)
    assert words.rarity_V[1] == pytest.approx(math.log(4 / 2) + 1)
    vector_V = words.vectors(["red apple apple", "plum"]).toarray()
    place = words.known.index("apple")
    assert vector_V[0, place] / vector_V[0, 0] == pytest.approx(2 * (math.log(2) + 1), rel=1e-6)
    assert np.linalg.norm(vector_V[0]) == pytest.approx(1, rel=1e-6)
    assert not vector_V[1].any()


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_noise_is_not_believed_and_a_signal_is(missing: float) -> None:
    dice = np.random.default_rng(0)
    features_MF, noise_MC = dice.normal(size=(200, 5)), dice.normal(size=(200, 3))
    noise_MC[dice.random((200, 3)) < missing] = np.nan
    signal_MC = noise_MC + 2 * features_MF[:, [0]] * [1, 0, -1]
    silent, told = told_by(features_MF, noise_MC), told_by(features_MF, signal_MC)
    assert np.abs(silent.weight_DC).max() < 0.15
    np.testing.assert_allclose(told.weight_DC[0], [2, 0, -2], atol=0.3)
    assert np.abs(told.weight_DC[1:]).max() < 0.3
    seen_MC = ~np.isnan(signal_MC)
    # not for every cell where the rest of the row is missing, and never for one that was not seen
    assert (seen_MC >= ~np.isnan(told.left_out_MC)).all()


def test_leaving_a_query_out_is_leaving_it_out() -> None:
    dice = np.random.default_rng(0)
    features_MF, value_M = dice.normal(size=(40, 3)), dice.normal(size=40)
    column = _Column.of({}, features_MF, value_M)
    penalty = column.spectrum.unit / 0.5
    for row in range(0, 40, 9):
        rest = np.arange(40) != row
        other = Ridge.fit(features_MF[rest], value_M[rest, None], penalty)
        expected = features_MF[row] @ other.weight_DC[:, 0] + other.mean_C[0]
        assert column.left_out(0.5)[row] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    "recipe", [Kernel(), Kernel(embedding=0.0, wording=1.0), Vocabulary(), Auto(folds=3)], ids=str
)
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_what_the_embedding_does_not_tell_the_text_does(recipe, missing: float) -> None:
    known, known_MD = worded(missing=missing)
    asked, asked_QD = worded(seed=1)
    fitted = recipe.fit(known, known_MD, NONE)
    told = predicted(fitted, asked_QD, asked.queries)
    assert reached(told.accuracy, asked) > 0.85
    assert told.output_tokens.sum() == pytest.approx(asked.output_tokens.sum(), rel=0.06)
    assert reached(fitted.predict(asked_QD).accuracy, asked) < 0.65, "it was not told the texts"
