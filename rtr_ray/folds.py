"""Predictions for queries that the predictor has not seen, from training data alone."""

from __future__ import annotations

import numpy as np

from rtr_ray.estimators.base import Estimator, Profiles, predicted, related
from rtr_ray.held_out import HeldOut, centroids_of, nearest
from rtr_ray.router import InputTokens
from rtr_ray.types import BoolArray, Estimate, FloatArray, IntArray, Outcomes

FOLDS = (10, 5, 3)
REFIT_ROWS = 2_500
"""As many rows as may be trained on once more for cross-validation; the demo's router takes 1 s per 100."""
REFIT_ROWS_FAST = 100_000
HELD_OUT_SHARE = 0.25
"""Of the queries, where cross-validation would take too long."""
LEAST_QUERIES = 20


def predict_held_out(
    outcomes: Outcomes,
    embeddings_MD: FloatArray,
    profiles: Profiles,
    estimator: Estimator,
    folds: int | None = None,
    seed: int = 0,
) -> HeldOut | None:
    """What the same recipe predicts for each query when it has learned from the others alone.

    Related queries (`estimators.base.related`) are left out together. A fold is passed over where
    a candidate would have no outcome left to learn from.

    Args:
        outcomes: M queries and C candidates, as the router was trained on.
        embeddings_MD: Of those queries.
        profiles: As for `Estimator.fit`.
        estimator: The recipe.
        folds: How many times to fit again; 1: once, a quarter of the queries held out. None: 10, 5
            or 3 times, as long as these are at most 2,500 rows in all (100,000 for an estimator
            with `fits_at_once`), else once.
        seed: Of the folds.

    Returns:
        None where there are too few queries to hold any out.
    """
    group_M = related(outcomes)
    if group_M.max(initial=-1) + 1 < LEAST_QUERIES:
        return None
    parts = []
    folds = _affordable(estimator, len(group_M)) if folds is None else folds
    for held_out_M in _folds(group_M, folds, seed):
        part = _predicted(outcomes, embeddings_MD, profiles, estimator, held_out_M)
        if part is not None:
            parts.append(part)
    if not parts:
        return None
    rows_H = np.concatenate([part[0] for part in parts])
    told = [np.concatenate(arrays) for arrays in zip(*(part[1] for part in parts), strict=True)]
    held = outcomes.rows(rows_H)
    centroids_KD = centroids_of(embeddings_MD)
    accuracy_HC, tokens_HC, p95_HC, input_HC, distance_H = told
    return HeldOut(
        candidates=outcomes.candidates,
        query_ids=held.query_ids,
        group=group_M[rows_H],
        accuracy=accuracy_HC,
        output_tokens=tokens_HC,
        output_tokens_p95=p95_HC,
        input_tokens=input_HC,
        seen_accuracy=held.accuracy.astype(np.float32),
        seen_output_tokens=held.output_tokens.astype(np.float32),
        seen_input_tokens=held.input_tokens.astype(np.float32),
        distance=distance_H,
        cluster=nearest(centroids_KD, embeddings_MD[rows_H])[0],
        centroids=centroids_KD,
    )


def with_test_rows(
    held_out: HeldOut,
    known: Outcomes,
    test: Outcomes,
    test_HD: FloatArray,
    estimate: Estimate,
    inputs: InputTokens,
) -> HeldOut:
    """The same, and the queries of a test split behind them, as far as none is related to a known one.

    Args:
        held_out: From `predict_held_out`.
        known: What the router was trained on.
        test: What it was not.
        test_HD: Embeddings of its queries.
        estimate: What the router predicts for them, over the same candidates.
        inputs: The router's.
    """
    groups = set(known.group_ids) - {""}
    texts = set(known.queries)
    group_H = related(test)
    seen_H = np.array([text in texts for text in test.queries], dtype=bool)
    if test.group_ids:
        seen_H |= np.array([group in groups for group in test.group_ids], dtype=bool)
    rows_H = np.flatnonzero(~np.isin(group_H, group_H[seen_H]))
    fresh = test.rows(rows_H)
    size_H = np.array([len(text.encode()) for text in fresh.queries], dtype=np.float64)
    cluster_H, distance_H = nearest(held_out.centroids, test_HD[rows_H])
    more = HeldOut(
        candidates=test.candidates,
        query_ids=fresh.query_ids,
        group=group_H[rows_H] + held_out.group.max(initial=-1) + 1,
        accuracy=estimate.accuracy[rows_H],
        output_tokens=estimate.output_tokens[rows_H],
        output_tokens_p95=estimate.output_tokens_p95[rows_H],
        input_tokens=inputs.predict(test.candidates, size_H),
        seen_accuracy=fresh.accuracy,
        seen_output_tokens=fresh.output_tokens,
        seen_input_tokens=fresh.input_tokens,
        distance=distance_H,
        cluster=cluster_H,
        centroids=held_out.centroids,
    )
    return held_out.joined(more)


def _affordable(estimator: Estimator, rows: int) -> int:
    most = REFIT_ROWS_FAST if getattr(estimator, "fits_at_once", False) else REFIT_ROWS
    return next((folds for folds in FOLDS if (folds - 1) * rows <= most), 1)


def _folds(group_M: IntArray, folds: int, seed: int) -> list[BoolArray]:
    """(M,) true for the rows that are held out, fold by fold."""
    groups = int(group_M.max()) + 1
    place_G = np.random.default_rng(seed).permutation(groups)
    if folds == 1:
        return [place_G[group_M] < round(HELD_OUT_SHARE * groups)]
    return [place_G[group_M] % folds == fold for fold in range(folds)]


def _predicted(
    outcomes: Outcomes,
    embeddings_MD: FloatArray,
    profiles: Profiles,
    estimator: Estimator,
    held_out_M: BoolArray,
) -> tuple[IntArray, tuple[FloatArray, ...]] | None:
    """The rows held out and what is predicted of them; None where a candidate has nothing but these."""
    known = outcomes.rows(~held_out_M)
    if any(np.isnan(getattr(known, name)).all(axis=0).any() for name in ("accuracy", "output_tokens")):
        return None
    rows_H = np.flatnonzero(held_out_M)
    fitted = estimator.fit(known, embeddings_MD[~held_out_M], profiles)
    estimate = predicted(fitted, embeddings_MD[rows_H], outcomes.rows(rows_H).queries)
    size_H = np.array([len(outcomes.queries[row].encode()) for row in rows_H], dtype=np.float64)
    input_HC = InputTokens.fit(known).predict(outcomes.candidates, size_H)
    distance_H = nearest(centroids_of(embeddings_MD[~held_out_M]), embeddings_MD[rows_H])[1]
    told = (estimate.accuracy, estimate.output_tokens, estimate.output_tokens_p95, input_HC, distance_H)
    return rows_H, tuple(array.astype(np.float32) for array in told)
