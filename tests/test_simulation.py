"""The world of the user's trial: what is computed of it beforehand is what its engines give."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.simulation.truth import Truth, best_mix
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate
from tests.fakes import pool_of


def test_a_mix_of_two_candidates_lies_between_them() -> None:
    points = [(1.0, 0.4), (3.0, 0.8), (2.0, 0.5)]
    assert best_mix(points, 2.0) == pytest.approx(0.6)
    assert best_mix(points, 1.0) == 0.4
    assert best_mix(points, 9.0) == 0.8
    assert best_mix(points, 0.5) == 0.0


def test_an_answer_is_the_same_each_time_and_tells_whether_it_is_right() -> None:
    truth = Truth("large")
    answers = truth.open()
    texts = [truth.text(row) for row in range(50)]
    found = [answers("cot", text) for text in texts]
    assert found == [truth.open()("cot", text) for text in texts]
    drawn = [truth.drawn(row, Candidate("large", "cot")) for row in range(50)]
    assert [(one.text == "right", one.output_tokens) for one in found] == drawn


def test_the_expected_dollars_and_accuracy_are_those_of_many_answers() -> None:
    pool: Pool = pool_of(prices={"small": ("0.1", "0.4")})
    truth, rows = Truth(), range(4000)
    candidate = Candidate("small", "cot")
    assert candidate in pool.candidates
    usd, accuracy = truth.expected(pool, rows)[candidate]
    drawn = [truth.drawn(row, candidate) for row in rows]
    before = np.mean([truth.input_tokens(row) for row in rows])
    paid = (0.1 * before + 0.4 * np.mean([tokens for _, tokens in drawn])) / 1e6
    assert accuracy == pytest.approx(np.mean([right for right, _ in drawn]), abs=0.03)
    assert usd == pytest.approx(paid, rel=0.05)
