"""What a router predicted for queries that it had not seen, beside what happened: how far to trust it.

The arrays are written when a router is trained and read when a plan is forecast. A policy is put to
the held-out rows just as to a corpus: choosing the best of several noisy predictions favours those
that are too good, and only the same choice on rows with known outcomes shows by how much.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rtr_ray.errors import DataError
from rtr_ray.pool import Pool, priced_table
from rtr_ray.storage import Store
from rtr_ray.types import Candidate, FloatArray, IntArray, RoutingTable

ARRAYS = "held_out.safetensors"
FACTS = "held_out.json"
CENTROIDS = 32
"""At most; few enough to send to every actor."""
BINS = 128
"""Of a histogram of distances from 0 to 2."""
_ROUNDS = 8
_FAR = 0.1
_CHANCE = 1.3  # related queries come together, so that small corpora differ by more than lone ones would
_ROWS_PER_CENTROID = 8

Sketch = Mapping[str, Any]  # JSON


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Predictions for M held-out queries, and their outcomes; NaN where a cell was not run."""

    candidates: tuple[Candidate, ...]  # C, those that were trained on
    query_ids: tuple[str, ...]  # M
    group: IntArray  # (M,) the same number for related queries, whose errors are alike
    accuracy: FloatArray  # (M, C) predicted
    output_tokens: FloatArray  # (M, C) predicted
    output_tokens_p95: FloatArray  # (M, C) predicted
    input_tokens: FloatArray  # (M, C) predicted
    seen_accuracy: FloatArray  # (M, C) mean over the runs of the cell
    seen_output_tokens: FloatArray  # (M, C)
    seen_input_tokens: FloatArray  # (M, C)
    distance: FloatArray  # (M,) cosine distance to the nearest centroid of the other queries
    cluster: IntArray  # (M,) the nearest of `centroids`
    centroids: FloatArray  # (K, D) of the embeddings of all queries, unit length

    def __post_init__(self) -> None:
        rows, columns = len(self.query_ids), len(self.candidates)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("candidates", "query_ids", "centroids"):
                continue
            wanted = (rows,) if field.name in ("group", "distance", "cluster") else (rows, columns)
            if value.shape != wanted:
                raise DataError(f"HeldOut.{field.name} has shape {value.shape}; {wanted} was expected.")

    def table(self, pool: Pool) -> RoutingTable:
        """The routing table that the router would have made of the held-out queries.

        Its candidates are the pool's; those without predictions are not allowed.
        """
        columns_C = self._columns(pool)
        known_C = columns_C >= 0

        def of(values_MC: FloatArray) -> FloatArray:
            values: FloatArray = np.where(known_C, values_MC[:, columns_C], 0).astype(np.float32)
            return values

        made = priced_table(
            pool,
            self.query_ids,
            of(self.accuracy),
            of(self.output_tokens),
            of(self.output_tokens_p95),
            of(self.input_tokens),
        )
        return RoutingTable(
            made.query_ids,
            made.candidates,
            made.accuracy,
            made.output_tokens,
            made.output_tokens_p95,
            made.cost_usd,
            made.allowed & known_C,
        )

    def seen(self, pool: Pool) -> Mapping[str, FloatArray]:
        """What happened, by name of the table's column: (M, C) arrays over the pool's candidates.

        Where nobody counted the prompt, its prediction stands in for it. NaN: not run.
        """
        columns_C = self._columns(pool)
        known_C = columns_C >= 0

        def of(values_MC: FloatArray) -> FloatArray:
            return np.where(known_C, values_MC[:, columns_C], np.nan)

        tokens_MC = of(self.seen_output_tokens)
        input_MC = of(np.where(np.isnan(self.seen_input_tokens), self.input_tokens, self.seen_input_tokens))
        table = priced_table(pool, self.query_ids, tokens_MC, tokens_MC, tokens_MC, input_MC)
        return {
            "accuracy": of(self.seen_accuracy),
            "output_tokens": tokens_MC,
            "cost_usd": table.cost_usd.astype(np.float64),
        }

    def joined(self, other: HeldOut) -> HeldOut:
        """The rows of both, over the same candidates and centroids."""
        if other.candidates != self.candidates:
            raise DataError("Held-out rows of different candidates cannot be joined.")
        shared = {"candidates": self.candidates, "centroids": self.centroids}
        arrays = {
            field.name: np.concatenate([getattr(self, field.name), getattr(other, field.name)])
            for field in fields(self)
            if field.name not in shared and field.name != "query_ids"
        }
        typed = {name: array.astype(getattr(self, name).dtype) for name, array in arrays.items()}
        return HeldOut(query_ids=self.query_ids + other.query_ids, **shared, **typed)  # type: ignore[arg-type]

    def _columns(self, pool: Pool) -> IntArray:
        """(C,) where the pool's candidates stand here; -1: not trained on."""
        place = {candidate: column for column, candidate in enumerate(self.candidates)}
        return np.array([place.get(candidate, -1) for candidate in pool.candidates], dtype=np.intp)

    def save(self, store: Store) -> None:
        """Two files of a router folder."""
        facts = {
            "candidates": [str(candidate) for candidate in self.candidates],
            "query_ids": list(self.query_ids),
        }
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in facts}
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        store.write(ARRAYS, save_tensors(tensors))
        store.write(FACTS, json.dumps(facts).encode())

    @classmethod
    def load(cls, store: Store) -> HeldOut | None:
        """From a router folder; None where it has none.

        Raises:
            DataError, ValueError, KeyError and whatever else damaged files lead to.
        """
        text, tensors = store.read(FACTS), store.read(ARRAYS)
        if text is None or tensors is None:
            return None
        facts = json.loads(text)
        candidates = tuple(Candidate.parse(name) for name in facts["candidates"])
        return cls(candidates=candidates, query_ids=tuple(facts["query_ids"]), **load_tensors(tensors))


def centroids_of(embeddings_MD: FloatArray, seed: int = 0) -> FloatArray:
    """(K, D) centres of the embeddings by spherical k-means: what the training data looks like."""
    unit_MD = unit_rows(embeddings_MD)
    count = max(1, min(CENTROIDS, len(unit_MD) // _ROWS_PER_CENTROID))
    centres_KD = unit_MD[np.random.default_rng(seed).permutation(len(unit_MD))[:count]]
    for _ in range(_ROUNDS):
        nearest_M = (unit_MD @ centres_KD.T).argmax(axis=1)
        sums_KD = (nearest_M == np.arange(count)[:, None]).astype(np.float32) @ unit_MD
        empty_K = np.linalg.norm(sums_KD, axis=1) == 0
        centres_KD = unit_rows(np.where(empty_K[:, None], centres_KD, sums_KD))
    return centres_KD


def nearest(centroids_KD: FloatArray, embeddings_QD: FloatArray) -> tuple[IntArray, FloatArray]:
    """(Q,) the nearest centroid, and (Q,) the cosine distance to it, from 0 to 2."""
    similarity_QK = unit_rows(embeddings_QD) @ centroids_KD.T
    cluster_Q: IntArray = similarity_QK.argmax(axis=1)
    distance_Q: FloatArray = 1 - similarity_QK[np.arange(len(cluster_Q)), cluster_Q]
    return cluster_Q, distance_Q


def distance_sketch(centroids_KD: FloatArray, embeddings_QD: FloatArray) -> Sketch:
    """What kind of queries a corpus holds: its rows by nearest centroid and by distance to it, as JSON."""
    return sketch_of(len(centroids_KD), *nearest(centroids_KD, embeddings_QD))


def sketch_of(count: int, cluster_Q: IntArray, distance_Q: FloatArray) -> Sketch:
    """Rows by cluster, of which there are `count`, and a histogram of distances from 0 to 2."""
    bin_Q = np.clip((distance_Q * (BINS / 2)).astype(int), 0, BINS - 1)
    return {
        "clusters": np.bincount(cluster_Q, minlength=count).tolist(),
        "distances": np.bincount(bin_Q, minlength=BINS).tolist(),
    }


def merge_sketches(sketches: Sequence[Sketch]) -> Sketch:
    """All rows in one sketch; the order does not matter."""
    return {
        name: [sum(counts) for counts in zip(*(sketch[name] for sketch in sketches), strict=True)]
        for name in ("clusters", "distances")
    }


def unlike(held_out: HeldOut, corpus: Sketch) -> float:
    """How unlike the training data a corpus is: 0, as held-out queries are, to 1.

    The larger of two shares: of rows farther off than held-out queries are (beyond the distance
    that a tenth of those exceed), and of rows that would have to be of another cluster for the
    corpus to have the training data's mix. What small numbers alone would give is taken off both.

    Raises:
        DataError: If the sketch belongs to another router.
    """
    known = sketch_of(len(held_out.centroids), held_out.cluster, held_out.distance)
    if any(len(corpus[name]) != len(known[name]) for name in known):
        raise DataError("This sketch of the corpus was made with another router's centroids. Make it again.")
    rows, ours = sum(corpus["distances"]), len(held_out.distance)
    if not rows or not ours:
        return 0.0
    beyond = 1 - np.cumsum(known["distances"]) / ours
    edge = int((beyond <= _FAR).argmax())
    usual = float(beyond[edge])
    far = float(sum(corpus["distances"][edge + 1 :])) / rows
    luck = (usual * (1 - usual) * (1 / rows + 1 / ours)) ** 0.5
    share_K, known_K = np.array(corpus["clusters"]) / rows, np.array(known["clusters"]) / ours
    moved = float(np.abs(share_K - known_K).sum() / 2)
    # the mean of the absolute difference of two samples from the same mix
    mixed_K = (share_K * rows + known_K * ours) / (rows + ours)
    chance = float(np.sqrt(2 / np.pi * mixed_K * (1 - mixed_K) * (1 / rows + 1 / ours)).sum() / 2)
    return float(max(0.0, (far - usual - 2 * luck) / (1 - usual), (moved - _CHANCE * chance) / (1 - chance)))


def unit_rows(rows_QD: FloatArray) -> FloatArray:
    """The rows, each divided by its length; rows of zeros stay."""
    norm_Q = np.linalg.norm(rows_QD, axis=1, keepdims=True)
    unit_QD: FloatArray = (rows_QD / np.where(norm_Q == 0, 1, norm_Q)).astype(np.float32)
    return unit_QD
