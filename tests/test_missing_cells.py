"""Outcomes in which most cells were not run teach what they hold: nobody is better for easier questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtr_ray import registry
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import Profiles, level_means
from rtr_ray.estimators.ridge import common_of
from rtr_ray.types import Candidate, Outcomes

NAN = float("nan")
CANDIDATES = tuple(Candidate(name, "x") for name in "abc")
ROWS = 400


def outcomes(share: float, seed: int = 0) -> tuple[Outcomes, Any, Any]:
    """Each candidate is good where another coordinate of the embedding is high; a query has a level, too."""
    dice = np.random.default_rng(seed)
    embeddings_MD = dice.normal(size=(ROWS, 4)).astype(np.float32)
    own_MC = 0.35 * np.sign(embeddings_MD[:, :3])
    chance_MC = np.clip(0.5 + 0.1 * embeddings_MD[:, 3:] + own_MC, 0, 1)
    ran_MC = dice.random(chance_MC.shape) < share
    shape = chance_MC.shape
    found = Outcomes(
        query_ids=tuple(f"q{i}" for i in range(ROWS)),
        queries=tuple(f"question {i}" for i in range(ROWS)),
        candidates=CANDIDATES,
        accuracy=np.where(ran_MC, dice.random(shape) < chance_MC, np.nan),
        input_tokens=np.where(ran_MC, 9.0, np.nan),
        output_tokens=np.where(ran_MC, 20.0, np.nan),
        cost_usd=np.full(shape, np.nan),
        cut=np.where(ran_MC, 0.0, np.nan),
        max_tokens=np.full(shape, np.nan),
        runs=ran_MC.astype(int),
    )
    rows = np.flatnonzero(ran_MC.any(axis=1))
    return found.rows(rows), embeddings_MD[rows], (embeddings_MD, own_MC - own_MC.mean(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", ["linear", "kernel", "auto", "nlabel", "clustering", "knn"])
def test_with_a_third_of_the_cells_who_is_good_at_what_is_learned(kind: str):
    known, known_MD, (every_MD, own_MC) = outcomes(0.33)
    spec = {"kind": kind} | ({"members": [{"kind": "linear"}, {"kind": "kernel"}]} if kind == "auto" else {})
    fitted = registry.build(spec, KNOWN, "estimator").fit(known, known_MD, Profiles({}, {}))
    told_MC = fitted.predict(every_MD).accuracy
    told_MC = told_MC - told_MC.mean(axis=1, keepdims=True)
    assert np.corrcoef(told_MC.ravel(), own_MC.ravel())[0, 1] > 0.4
    best_M = told_MC.argmax(axis=1)
    won = own_MC[np.arange(ROWS), best_M].mean()
    assert won > 0.4 * own_MC.max(axis=1).mean()


def test_a_candidate_with_the_easier_questions_is_not_the_better_one():
    both, easy, hard = [[1.0, 1.0], [0.0, 0.0]] * 10, [[1.0, NAN]] * 20, [[NAN, 0.0]] * 20
    values_MC = np.array(both + easy + hard)
    naive_C = np.nanmean(values_MC, axis=0)
    level_C = level_means(values_MC)
    assert naive_C.tolist() == [0.75, 0.25]
    assert level_C == pytest.approx([2 / 3, 1 / 3]), "half of what a lone cell says is the row's level"
    whole_MC = np.array(both)
    assert level_means(whole_MC).tolist() == np.nanmean(whole_MC, axis=0).tolist()


def test_the_one_cell_of_a_row_may_be_somebodys_own():
    apart_MC = np.array([[0.6, NAN, NAN], [0.3, 0.3, 0.3], [NAN, NAN, NAN]])
    told_MC = np.zeros((3, 3))
    common_M = common_of(apart_MC, told_MC)
    assert 0 < common_M[0] < 0.4, "some is common, some is its own"
    assert common_M[1] == pytest.approx(0.3)
    assert np.isnan(common_M[2])
