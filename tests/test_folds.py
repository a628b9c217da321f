"""Held-out predictions: related queries together, every query once, nothing seen by who predicts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.base import Profiles
from rtr_ray.estimators.knn import KNN
from rtr_ray.folds import predict_held_out
from rtr_ray.router import RouterFolder
from rtr_ray.training import train_router
from rtr_ray.types import Candidate, FloatArray, Outcomes
from tests.fakes import pool_of

NONE = Profiles({}, {})
NEAREST = KNN(k=1, shrinkage=0)


def outcomes_of(tokens: FloatArray, groups: tuple[str, ...] = ()) -> Outcomes:
    rows = len(tokens)
    ones = np.ones((rows, 1))
    return Outcomes(
        tuple(f"q{i}" for i in range(rows)),
        tuple(f"text {i}" for i in range(rows)),
        (Candidate("small", "cot"),),
        ones,
        ones,
        tokens[:, None],
        ones,
        0 * ones,
        99 * ones,
        np.ones((rows, 1), dtype=int),
        groups,
    )


def test_no_query_is_predicted_from_its_own_outcome_nor_from_that_of_a_related_one():
    tokens, rows = np.repeat(np.arange(30.0), 2), np.repeat(np.eye(30), 2, axis=0)
    groups = tuple(f"g{i // 2}" for i in range(60))
    held = predict_held_out(outcomes_of(tokens, groups), rows, NONE, NEAREST)
    assert held is not None
    assert sorted(held.query_ids) == sorted(f"q{i}" for i in range(60))
    # the nearest neighbour would be the twin, which has the same number of tokens
    assert (held.output_tokens[:, 0] != held.seen_output_tokens[:, 0]).all()
    alone = predict_held_out(outcomes_of(tokens), rows, NONE, NEAREST)
    assert alone is not None
    assert (alone.output_tokens[:, 0] == alone.seen_output_tokens[:, 0]).mean() > 0.7


def test_one_fold_holds_out_a_quarter_once():
    held = predict_held_out(outcomes_of(np.arange(40.0)), np.eye(40), NONE, NEAREST, folds=1)
    assert held is not None
    assert len(set(held.query_ids)) == len(held.query_ids) == 10


def test_a_few_queries_are_too_few_to_hold_any_out():
    assert predict_held_out(outcomes_of(np.arange(19.0)), np.eye(19), NONE, NEAREST) is None


def test_a_candidate_with_a_single_outcome_does_not_stop_the_others():
    outcomes = outcomes_of(np.arange(40.0))
    accuracy = np.full((40, 1), np.nan)
    accuracy[7] = 1.0
    held = predict_held_out(replace(outcomes, accuracy=accuracy), np.eye(40), NONE, NEAREST)
    assert held is not None
    assert "q7" not in held.query_ids
    assert len(held.query_ids) == 36


def written(folder: Path) -> str:
    rows = [
        {
            "query_id": f"q{i}",
            "query": f"question {i} about {i % 7} sheep",
            "model": "small",
            "strategy": "cot",
            "correct": float(i % 2),
            "output_tokens": 10 + i % 9,
            "input_tokens": 12,
            "split": "test" if i % 4 == 0 else "train",
            "group_id": f"g{i}" if i % 8 else "shared",
        }
        for i in range(80)
    ]
    rows[1]["group_id"] = "shared"
    pq.write_table(pa.Table.from_pylist(rows), folder / "outcomes.parquet")
    return str(folder / "outcomes.parquet")


def test_a_router_folder_keeps_them_with_the_test_rows_and_is_the_same_router_without(tmp_path: Path):
    uri, pool, encoder = written(tmp_path), pool_of(["small:cot"]), HashEncoder(16)
    trained = train_router(uri, pool, encoder, NEAREST, str(tmp_path / "router"))
    bare = train_router(uri, pool, encoder, NEAREST, str(tmp_path / "bare"), folds=0)
    folder, without = RouterFolder.load(str(tmp_path / "router")), RouterFolder.load(str(tmp_path / "bare"))
    assert without.held_out is None
    assert folder.fingerprint == without.fingerprint == trained.folder.fingerprint == bare.folder.fingerprint
    assert folder.held_out is not None
    # 60 of train; of the 20 of test, ten are related to one of train
    assert len(folder.held_out.query_ids) == 70
    assert len(set(folder.held_out.group.tolist())) == 70
