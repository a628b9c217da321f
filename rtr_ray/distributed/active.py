"""Collecting actively: the next labels are those from which a router gains most per dollar.

A loop around `collecting.collect`: what is known is read, cells are chosen (`rtr_ray.acquisition`), they
are asked and graded like any others, and so on until the budget is used up. What was asked before is
read from the plan parts, so that the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import ray

from rtr_ray import grading, registry
from rtr_ray.acquisition import Acquisition, Pool
from rtr_ray.cells import FACTS, cell_key
from rtr_ray.collection import Collection
from rtr_ray.corpus import QUERY_ID, ROW_ERROR, TEXT, Corpus, Split
from rtr_ray.distributed.batch import side_by_side
from rtr_ray.distributed.cluster import TASK_CPUS, Needs, connected
from rtr_ray.distributed.collecting import collect, collected_usd
from rtr_ray.distributed.standing import standing
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import ConfigError, DataError
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.policies.base import stable_hash
from rtr_ray.pool import fingerprint
from rtr_ray.reading import read_split
from rtr_ray.router import InputTokens
from rtr_ray.run_folder import RunFolder
from rtr_ray.screen import Screen, money
from rtr_ray.storage import open_store, read_table
from rtr_ray.thrift import thrifty
from rtr_ray.training import encoder_spec
from rtr_ray.types import Candidate, FloatArray, Outcomes

_BLOCK_ROWS = 4096
_MARGIN = 0.98  # of what is left: what is expected is not exact
_GUESSED_SHARE = 0.5  # of the longest answer: its length, before any is known
_MTOK = Decimal(1_000_000)


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """Those that may be labelled."""

    ids: tuple[str, ...]  # M
    texts: tuple[str, ...]
    embeddings: FloatArray  # (M, D)
    sizes: FloatArray  # (M,) UTF-8 bytes


def collect_actively(work: Collection, screen: Screen, fresh: bool = False) -> dict[str, Any]:
    """Label the cells that tell most, in rounds, until the budget is used up.

    Returns:
        The summary of the last round, with `active`: rounds of this command, labels in all, the rule.

    Raises:
        RtrError: In one sentence, whatever stands in the way.
    """
    file, keys = work.file, work.file.active
    assert keys is not None
    if file.budget_usd is None:
        raise ConfigError("--active spends a budget as well as it can. Give --budget-usd.")
    if file.repeats != 1 or isinstance(work.grader, grading.Reference):
        raise ConfigError(
            "--active asks single cells once: repeats is 1, and no grader compares with another candidate's "
            "answer. Leave --active out, or use another grader."
        )
    rule = Acquisition(keys.rule, keys.first_rows)
    encoder: Encoder = registry.build(encoder_spec(keys.encoder), ENCODERS, "active.encoder")
    cluster = connected(file.cluster.address, side_by_side(work.pool, Needs(TASK_CPUS)))
    with cluster:
        queries = _read(work, encoder, keys.queries)
        prefix = f"rtr-{fingerprint(open_store(file.output).uri)[:8]}"
        with standing(prefix, work.pool, file.cluster, Needs(TASK_CPUS), screen) as app:
            attached = file.cluster.model_copy(update={"serve_app": app or file.cluster.serve_app})
            work = replace(work, file=file.model_copy(update={"cluster": attached}))
            return _Rounds(work, queries, rule, screen).run(fresh)


@dataclass(slots=True)
class _Rounds:
    """One active collection on a connected cluster."""

    work: Collection
    queries: _Queries
    rule: Acquisition
    screen: Screen

    def run(self, fresh: bool) -> dict[str, Any]:
        """Rounds, until nothing affordable is left to ask."""
        file = self.work.file
        assert file.budget_usd is not None
        assert file.active is not None
        asked = {} if fresh else self._asked()
        found: dict[str, Any] | None = None
        rounds, last = 0, file.active.rounds
        for number in range(last):
            gone = sum(collected_usd(file.output), Decimal(0)) if asked else Decimal(0)
            left = float(file.budget_usd - gone) * _MARGIN
            pool = self._pool(asked)
            cells = self.rule.next(pool, left / (last - number))
            if not cells:
                continue
            for row, column in cells:
                asked.setdefault(self.work.candidates[column], set()).add(self.queries.ids[row])
            self.screen.say(f"Round {rounds + 1}: {len(cells):,} labels, of {money(Decimal(left))} left.")
            chosen = {candidate: frozenset(ids) for candidate, ids in asked.items()}
            found = collect(replace(self.work, chosen=chosen), self.screen, fresh and not rounds)
            rounds += 1
            if found["status"] == "budget_exhausted":
                break
        if found is None:
            raise DataError(
                f"budget_usd=${file.budget_usd} does not cover one more label: what was collected took "
                f"${sum(collected_usd(file.output), Decimal(0)):f}. Raise it, or all cells are labelled."
            )
        found["active"] = {"rounds": rounds, "cells": found["rows"]["answered"], "rule": self.rule.rule}
        return found

    def _asked(self) -> dict[Candidate, set[str]]:
        """What earlier commands asked, whatever came of it."""
        folder = RunFolder(open_store(f"{self.work.file.output.rstrip('/')}/_run"))
        there = set(folder.plans())
        found: dict[Candidate, set[str]] = {}
        for candidate in self.work.candidates:
            for number in range(len(self.work.splits)):
                key = cell_key(self.work.pool, candidate, number)
                if key in there:
                    ids = read_table(folder.store, key, [QUERY_ID])[QUERY_ID].to_pylist()
                    found.setdefault(candidate, set()).update(ids)
        return found

    def _pool(self, asked: Mapping[Candidate, set[str]]) -> Pool:
        """What is known of each cell, and what it is expected to cost."""
        work, queries = self.work, self.queries
        place = {name: row for row, name in enumerate(queries.ids)}
        shape = len(queries.ids), len(work.candidates)
        accuracy_MC, asked_MC = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        for column, candidate in enumerate(work.candidates):
            rows = [place[name] for name in asked.get(candidate, ()) if name in place]
            asked_MC[rows, column] = True
        outcomes = self._outcomes()
        if outcomes is not None:
            rows_N = np.array([place.get(name, -1) for name in outcomes.query_ids])
            accuracy_MC[rows_N[rows_N >= 0]] = outcomes.accuracy[rows_N >= 0]
        return Pool(queries.embeddings, accuracy_MC, asked_MC, self._costs(outcomes))

    def _outcomes(self) -> Outcomes | None:
        store = open_store(self.work.file.output)
        if not store.keys("part-"):
            return None
        try:
            return pivot(read_long(f"{self.work.file.output.rstrip('/')}/*.parquet"), self.work.candidates)
        except DataError:  # all are errors
            return None

    def _costs(self, outcomes: Outcomes | None) -> FloatArray:
        """(M, C) dollars by the prices, for answers as long as those of the candidate that were seen."""
        work = self.work
        longest_C = np.array([work.pool.max_tokens(c) * c.samples for c in work.candidates], dtype=float)
        tokens_C, inputs = _GUESSED_SHARE * longest_C, InputTokens({}, {})
        if outcomes is not None:
            seen_C = ~np.isnan(outcomes.output_tokens).all(axis=0)
            tokens_C[seen_C] = np.nanmean(outcomes.output_tokens[:, seen_C], axis=0)
            inputs = InputTokens.fit(outcomes)
        prices = [work.pool.price(candidate) for candidate in work.candidates]
        input_C, output_C = (
            np.array([float(getattr(price, name) / _MTOK) for price in prices])
            for name in ("input_usd_per_mtok", "output_usd_per_mtok")
        )
        cost_MC: FloatArray = (
            inputs.predict(work.candidates, self.queries.sizes) * input_C + tokens_C * output_C
        )
        return cost_MC


def _read(work: Collection, encoder: Encoder, most: int) -> _Queries:
    """The queries that may be learned from; a fixed random sample where there are many."""
    corpus = work.corpus.for_tasks
    found = ray.get([texts_of.remote(corpus, split) for split in work.splits])
    rows = sorted((row for part in found for row in part), key=lambda row: stable_hash(row[0]))
    most = min(most, work.file.sample or most)
    rows = rows[:most]
    if not rows:
        raise DataError(f"The queries {work.corpus.uri} have no usable row of split 'train'.")
    ids, texts = (tuple(values) for values in zip(*rows, strict=True))
    sizes = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    return _Queries(ids, texts, encoder.encode(texts), sizes)


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def texts_of(corpus: Corpus, split: Split) -> list[tuple[str, str]]:
    """Ids and texts of rows that may be learned from: usable, of split `train`, not out of distribution."""
    found: list[tuple[str, str]] = []
    for block in read_split(corpus, split, _BLOCK_ROWS):
        columns = [block[name].to_pylist() for name in (QUERY_ID, TEXT, ROW_ERROR)]
        marks = [
            block[name].to_pylist() if name in block.column_names else [None] * len(block)
            for name in ("split", "ood")
        ]
        for name, text, error, part, ood in zip(*columns, *marks, strict=True):
            if error is None and (part or FACTS["split"]) == "train" and not ood:
                found.append((name, text))
    return found
