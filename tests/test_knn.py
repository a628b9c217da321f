"""Nearest neighbours: the same ones in whatever batch a query comes, also among equals."""

from __future__ import annotations

import numpy as np
import pytest

from rtr_ray.estimators.base import Profiles
from rtr_ray.estimators.knn import KNN
from rtr_ray.types import Candidate, Outcomes

DIM = 384


def outcomes(accuracy_MC: np.ndarray) -> Outcomes:
    rows, columns = accuracy_MC.shape
    return Outcomes(
        query_ids=tuple(f"m{i}" for i in range(rows)),
        queries=tuple(f"question {i}" for i in range(rows)),
        candidates=tuple(Candidate("small", f"s{c}") for c in range(columns)),
        accuracy=accuracy_MC,
        input_tokens=np.full(accuracy_MC.shape, 20.0),
        output_tokens=np.random.default_rng(1).integers(5, 90, accuracy_MC.shape).astype(float),
        cost_usd=np.zeros(accuracy_MC.shape),
        cut=np.zeros(accuracy_MC.shape),
        max_tokens=np.full(accuracy_MC.shape, 100.0),
        runs=np.ones(accuracy_MC.shape, dtype=int),
    )


def test_of_neighbours_that_are_equally_near_the_first_ones_are_asked():
    same_MD = np.ones((6, DIM), dtype=np.float32)
    right_MC = np.array([[1.0], [1.0], [0.0], [0.0], [0.0], [0.0]])
    fitted = KNN(k=2, shrinkage=0.0).fit(outcomes(right_MC), same_MD, Profiles({}, {}))
    assert fitted.predict(same_MD[:3]).accuracy.tolist() == [[1.0], [1.0], [1.0]]


@pytest.mark.parametrize("copies", [1, 30])
def test_a_query_has_the_same_prediction_to_the_last_bit_in_whatever_batch(copies: int):
    dice = np.random.default_rng(copies)
    kinds_KD = dice.normal(size=(600 // copies, DIM)).astype(np.float32)
    known_MD = np.repeat(kinds_KD, copies, axis=0)  # asked again and again, with luck of their own each time
    right_MC = (dice.random((len(known_MD), 3)) < 0.5).astype(float)
    fitted = KNN(k=40).fit(outcomes(right_MC), known_MD, Profiles({}, {}))
    asked_QD = (kinds_KD[dice.integers(0, len(kinds_KD), 200)] + dice.normal(size=(200, DIM)) / 3).astype(
        np.float32
    )
    whole = fitted.predict(asked_QD)
    for size in (1, 3, 16, 64, 199):
        for start in range(0, 200, size):
            part = fitted.predict(asked_QD[start : start + size])
            for name in ("accuracy", "output_tokens", "output_tokens_p95"):
                there = getattr(whole, name)[start : start + size]
                assert getattr(part, name).tobytes() == there.tobytes(), (name, size, start)
