"""The outcomes that ship inside: whole, of this pool, on questions that no model has seen; what they say."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from rtr_ray.config import load_pool
from rtr_ray.embedded.held_out import asked
from rtr_ray.embedded.problems import FAMILIES, LEVELS
from rtr_ray.embedded.questions import split_of_numbers
from rtr_ray.embedded.shipped_outcomes import COUNT, SEED, questions
from rtr_ray.outcomes import pivot, read_long

PATH = Path(__file__).parents[2] / "rtr_ray" / "embedded" / "outcomes.parquet"


@pytest.fixture(scope="module")
def rows():
    return read_long(str(PATH))


@pytest.fixture(scope="module")
def cells():
    """(family, level) of each question, by its text."""
    drawn = questions("route", COUNT, SEED).to_pylist()
    return {row["query"]: (row["family"], row["level"]) for row in drawn}


def test_every_candidate_of_the_pool_has_answered_every_question(rows):
    assert PATH.stat().st_size < 3_000_000
    pool = load_pool("embedded")
    counts = Counter(zip(rows["model"].to_pylist(), rows["strategy"].to_pylist(), strict=True))
    assert set(counts) == {(c.model, c.strategy) for c in pool.candidates}
    assert set(counts.values()) == {COUNT}
    assert rows["correct"].null_count == rows["cost_usd"].null_count == 0


def test_they_are_of_the_pool_as_it_ships(rows):
    assert set(rows["pool_fingerprint"].unique().to_pylist()) == {load_pool("embedded").fingerprint}


def test_no_model_was_trained_on_their_questions(rows, cells):
    queries = set(rows["query"].unique().to_pylist())
    assert queries == set(cells)
    assert {split_of_numbers(asked(query)) for query in queries} == {"route"}


def test_there_is_something_to_route(rows):
    outcomes = pivot(rows)
    best = outcomes.accuracy.mean(axis=0).max()
    assert best < 0.88
    assert outcomes.accuracy.max(axis=1).mean() >= best + 0.08


def test_the_thinking_model_thinks_longer_about_some_questions_than_about_others(rows):
    outcomes = pivot(rows)
    (column,) = [i for i, c in enumerate(outcomes.candidates) if c.model == "dual-think"]
    tokens = outcomes.output_tokens[:, column]
    assert np.percentile(tokens, 99) >= 5 * np.percentile(tokens, 50)


def test_each_strategy_is_the_best_choice_for_some_kind_of_question(rows, cells):
    outcomes = pivot(rows)
    members = defaultdict(list)
    for row, query in enumerate(outcomes.queries):
        members[cells[query]].append(row)
    assert set(members) == {(family, level) for family in FAMILIES for level in LEVELS}
    winners = set()
    for mine in members.values():
        assert len(mine) >= 20
        accuracy, cost = outcomes.accuracy[mine].mean(axis=0), outcomes.cost_usd[mine].mean(axis=0)
        near = accuracy >= accuracy.max() - 0.01
        winners.add(outcomes.candidates[int(np.where(near, cost, np.inf).argmin())].strategy)
    assert winners == {"vanilla", "cot", "cod", "pal"}
