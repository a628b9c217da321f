"""From recorded outcomes to a router folder, and how well it predicts what it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import DataError
from rtr_ray.estimators.base import Estimator, columns_of, predicted
from rtr_ray.folds import predict_held_out, with_test_rows
from rtr_ray.outcomes import pivot, read_long, split_rows
from rtr_ray.pool import Pool
from rtr_ray.router import RouterFolder, embed_profiles, train
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes


@dataclass(frozen=True, slots=True)
class Trained:
    """A router folder that was written, and what was noticed on the way."""

    folder: RouterFolder
    queries: int
    left_out: tuple[Candidate, ...]  # of the pool, without outcomes
    foreign: tuple[Candidate, ...]  # with outcomes, but not of the pool
    other_pool: bool  # the outcomes say that they were collected with another pool
    held_out: Mapping[str, Any]  # figures on the test part; empty where there is none


def train_router(
    outcomes_uri: str,
    pool: Pool,
    encoder: Encoder,
    estimator: Estimator,
    output: str,
    folds: int | None = None,
) -> Trained:
    """Train on the rows of split `train`, check on those of `test`, write the router folder.

    Rows marked as out of distribution are left out of both.

    Args:
        outcomes_uri: The recorded outcomes.
        pool: Its candidates, as far as they have outcomes, are learned.
        encoder: For the queries and the profiles.
        estimator: The recipe.
        output: The router folder.
        folds: How often the recipe is fitted again for the held-out predictions that forecasts
            stand on; None: see `folds.predict_held_out`. 0: never, and forecasts have no interval.

    Raises:
        DataError: If there is nothing to train on.
        StorageError: If the folder cannot be written.
    """
    long = read_long(outcomes_uri)
    seen = pivot(split_rows(long, None, None)).candidates
    candidates = [c for c in pool.candidates if c in seen]
    if not candidates:
        raise DataError(
            f"{outcomes_uri} has outcomes of {', '.join(map(str, seen))}, none of which is in the pool "
            f"({', '.join(map(str, pool.candidates))})."
        )
    known = pivot(split_rows(long, "train"), candidates)
    known_MD = encoder.encode(known.queries)
    folder = train_and_hold_out(known, pool, encoder, estimator, known_MD, folds)
    kept = folder.held_out
    held_out: Mapping[str, Any] = {}
    test_rows = split_rows(long, "test")
    if len(test_rows):
        test = pivot(test_rows, candidates)
        test_HD = encoder.encode(test.queries)
        estimate = predicted(folder.estimator, test_HD, test.queries)
        held_out = _checked(folder, test, estimate)
        if kept is not None:
            kept = with_test_rows(kept, known, test, test_HD, estimate, folder.inputs)
    folder = replace(folder, metrics={**folder.metrics, "held_out": held_out}, held_out=kept)
    folder.save(output)
    return Trained(
        folder,
        folder.metrics["queries"],
        tuple(c for c in pool.candidates if c not in seen),
        tuple(c for c in seen if c not in candidates),
        _other_pool(long, pool),
        held_out,
    )


def train_and_hold_out(
    outcomes: Outcomes,
    pool: Pool,
    encoder: Encoder,
    estimator: Estimator,
    embeddings_MD: FloatArray,
    folds: int | None = None,
) -> RouterFolder:
    """Train, with the held-out predictions that forecasts stand on.

    Args:
        outcomes: M queries.
        pool: Its candidates, as far as they have outcomes, are learned.
        encoder: For the profiles.
        estimator: The recipe.
        embeddings_MD: Of those queries.
        folds: As for `train_router`.
    """
    folder = train(outcomes, pool, encoder, estimator, embeddings_MD)
    if folds == 0:
        return folder
    profiles = embed_profiles(pool, encoder, outcomes.candidates)
    kept = predict_held_out(outcomes, embeddings_MD, profiles, estimator, folds)
    return replace(folder, held_out=kept)


def encoder_spec(name: str | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an encoder that may be named by its model alone."""
    if not isinstance(name, str):
        return dict(name)
    return {"kind": name} if name == "hash" else {"kind": "sentence", "model": name}


def _other_pool(long: pa.Table, pool: Pool) -> bool:
    if "pool_fingerprint" not in long.column_names:
        return False
    found = set(long["pool_fingerprint"].unique().to_pylist()) - {None}
    return bool(found) and found != {pool.fingerprint}


def _checked(folder: RouterFolder, outcomes: Outcomes, estimate: Estimate) -> dict[str, Any]:
    """How the predictions for held-out queries compare with what happened."""
    columns_C = columns_of(folder.estimator.candidates, outcomes.candidates)
    rows = {}
    for column, candidate in enumerate(outcomes.candidates):
        seen_M = ~np.isnan(outcomes.output_tokens[:, column])
        graded_M = ~np.isnan(outcomes.accuracy[:, column])
        predicted_M = estimate.output_tokens[seen_M, columns_C[column]]
        actual_M = outcomes.output_tokens[seen_M, column]
        upper_M = estimate.output_tokens_p95[seen_M, columns_C[column]]
        right_M = outcomes.accuracy[graded_M, column]
        believed_M = estimate.accuracy[graded_M, columns_C[column]]
        rows[str(candidate)] = {
            "queries": int(seen_M.sum()),
            "accuracy": _mean(right_M),
            "predicted_accuracy": _mean(believed_M),
            "brier": _mean((believed_M - right_M) ** 2),
            "output_tokens": _mean(actual_M),
            "tokens_predicted_over_actual": float(predicted_M.sum() / actual_M.sum())
            if actual_M.sum()
            else None,
            "tokens_within_p95": _mean((actual_M <= upper_M).astype(float)),
        }
    return rows


def _mean(values_M: Any) -> float | None:
    return float(np.mean(values_M)) if len(values_M) else None
