"""Training of Route-To-Reason: what it may see, and when it stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.base import validation_split
from rtr_ray.estimators.rtr_table import FittedRTR
from rtr_ray.training import train_router
from rtr_ray.types import FloatArray, Outcomes
from tests.fakes import pool_of
from tests.test_estimators import SMALL, TRIO, outcomes_of, profiles_of

DIM = 12


def noise(seed: int = 0, rows: int = 300) -> tuple[Outcomes, FloatArray]:
    """Outcomes that no query predicts: whoever trains on, learns them by heart."""
    dice = np.random.default_rng(seed)
    pair = TRIO[:2]
    outcomes = outcomes_of(
        pair, dice.integers(0, 2, (rows, 2)).astype(float), np.exp(dice.normal(4, 1, (rows, 2)))
    )
    return outcomes, dice.normal(size=(rows, DIM)).astype(np.float32)


def weights(fitted: FittedRTR) -> bytes:
    return b"".join(array.tobytes() for _, array in sorted(fitted.state().arrays.items()))


def test_training_stops_when_the_held_out_part_gets_no_better():
    outcomes, embeddings_MD = noise()
    recipe = replace(SMALL, hidden=64, batch_size=32, learning_rate=3e-3, patience=3)
    profiles = profiles_of(TRIO, DIM)
    by_epochs = {
        epochs: replace(recipe, max_epochs=epochs).fit(outcomes, embeddings_MD, profiles)
        for epochs in (1, 30, 31, 90)
    }
    assert weights(by_epochs[30]) == weights(by_epochs[31]) == weights(by_epochs[90])
    held_out_M = validation_split(outcomes, recipe.validation_share, recipe.seed)
    # without anything held out (one group: it stays together) the same training learns by heart
    together = replace(outcomes, group_ids=("one",) * len(outcomes.queries))
    by_heart = replace(recipe, max_epochs=90).fit(together, embeddings_MD, profiles)

    def error(fitted: FittedRTR) -> float:
        guess_MC = fitted.predict(embeddings_MD[held_out_M]).accuracy
        return float(((guess_MC - outcomes.accuracy[held_out_M]) ** 2).mean())

    assert error(by_epochs[90]) == pytest.approx(0.25, abs=0.05)  # says that it does not know
    assert error(by_heart) < 0.15


def test_the_held_out_part_of_train_decides_when_to_stop_and_nothing_else():
    outcomes, embeddings_MD = noise()
    recipe = replace(SMALL, max_epochs=1)  # the first epoch is the best of one
    held_out_M = validation_split(outcomes, recipe.validation_share, recipe.seed)
    assert held_out_M.mean() == pytest.approx(recipe.validation_share, abs=0.01)

    def trained_with(turned_M: FloatArray) -> bytes:
        turned = np.where(turned_M[:, None], 1 - outcomes.accuracy, outcomes.accuracy)
        return weights(recipe.fit(replace(outcomes, accuracy=turned), embeddings_MD, profiles_of(TRIO, DIM)))

    as_it_is = trained_with(np.zeros_like(held_out_M))
    assert trained_with(held_out_M) == as_it_is
    assert trained_with(~held_out_M) != as_it_is


def test_training_goes_on_where_nothing_of_the_held_out_part_was_graded():
    outcomes, embeddings_MD = noise()
    lengths = np.exp(4 + embeddings_MD[:, :2])  # there is something to learn, over many epochs
    held_out_M = validation_split(outcomes, SMALL.validation_share, SMALL.seed)
    ungraded = np.where(held_out_M[:, None], np.nan, outcomes.accuracy)
    half = replace(outcomes, accuracy=ungraded, output_tokens=lengths)

    def length_error(max_epochs: int) -> float:
        recipe = replace(SMALL, max_epochs=max_epochs, patience=2)
        fitted = recipe.fit(half, embeddings_MD, profiles_of(TRIO, DIM))
        mean_QC, _ = fitted.log_tokens(fitted.heads(embeddings_MD[held_out_M]))
        return float(np.abs(mean_QC - np.log(lengths[held_out_M])).mean())

    assert length_error(60) < 0.9 * length_error(2)


@given(
    groups=st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=2, max_size=60),
    seed=st.integers(0, 1000),
    share=st.floats(0.05, 0.9),
)
def test_queries_of_one_group_or_with_one_text_stay_on_the_same_side(
    groups: list[str], seed: int, share: float
):
    texts = tuple(f"text {i % 7}" if i % 2 else f"alone {i}" for i in range(len(groups)))
    shape = (len(groups), 1)
    outcomes = outcomes_of(TRIO[:1], np.zeros(shape), np.ones(shape), queries=texts, group_ids=tuple(groups))
    side_M = validation_split(outcomes, share, seed)
    assert side_M.tolist() == validation_split(outcomes, share, seed).tolist()
    for keys in (groups, texts):
        for key in set(keys) - {""}:
            assert len({bool(side) for side, k in zip(side_M, keys, strict=True) if k == key}) == 1


def long_rows(test_correct: float, gold: str | None, test_text: str = "held out") -> list[dict[str, Any]]:
    dice = np.random.default_rng(0)
    rows = []
    for i in range(60):
        test = i % 3 == 0
        for model in ("a", "b"):
            row = {
                "query_id": f"q{i}",
                "query": f"{test_text if test else 'question'} {i} about {i % 7} sheep",
                "model": model,
                "strategy": "x",
                "correct": test_correct if test else float(dice.integers(0, 2)),
                "output_tokens": 500 if test else int(dice.integers(5, 90)),
                "input_tokens": 12,
                "split": "test" if test else "train",
            }
            rows.append(row | ({"gold": f"{gold}{i}"} if gold else {}))
    return rows


def trained_on(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "outcomes.parquet")
    trained = train_router(
        str(folder / "outcomes.parquet"),
        pool_of(["a:x", "b:x"]),
        HashEncoder(16),
        replace(SMALL, max_epochs=4, batch_size=8),
        str(folder / "router"),
    )
    assert trained.queries == 40
    assert trained.held_out["a:x"]["queries"] == 20
    return trained.folder.fingerprint


def test_rows_of_the_split_test_change_nothing_that_is_learned(tmp_path: Path):
    one = trained_on(tmp_path / "one", long_rows(1.0, None))
    assert one == trained_on(tmp_path / "other", long_rows(0.0, None, test_text="something else"))
    rows = long_rows(1.0, None)
    rows[2]["correct"] = 1 - rows[2]["correct"]  # a row of train
    assert one != trained_on(tmp_path / "changed", rows)


def test_a_reference_answer_never_reaches_an_estimator(tmp_path: Path):
    none = trained_on(tmp_path / "none", long_rows(1.0, None))
    assert none == trained_on(tmp_path / "gold", long_rows(1.0, "the answer is "))
    assert not {"gold", "reference", "answer"} & set(Outcomes.__dataclass_fields__)
