"""Candidates come to a trained router or leave it, and what else it says stays the same to the last bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rtr_ray import registry
from rtr_ray.cli import app
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import ConfigError, DataError, RouterError
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import predicted
from rtr_ray.estimators.few import Around, around
from rtr_ray.estimators.relatives import blend
from rtr_ray.extension import Extension, Newcomers, extend
from rtr_ray.router import RouterFolder, embed_profiles, train
from rtr_ray.types import Candidate, Estimate, FloatArray, Outcomes
from tests.fakes import pool_of

ENCODER = HashEncoder(64)
PROFILES = {
    "tiny": "a small cheap model that is mostly wrong",
    "big": "a large dear model that is mostly right",
    "giant": "a large dear model that is mostly right indeed",  # comes later
    "plain": "answers at once",
    "steps": "thinks step by step and writes much",
}
KNOWN_HERE = ("tiny:plain", "tiny:steps", "big:plain", "big:steps")
NEW = Candidate("giant", "plain")
RECIPES: dict[str, dict[str, Any]] = {
    "auto": {"kind": "auto", "members": [{"kind": "linear"}, {"kind": "vocabulary"}], "folds": 3},
    "prior": {"kind": "prior"},
    "knn": {"kind": "knn"},
    "rtr": {"kind": "rtr", "hidden": 8, "learned": 2, "max_epochs": 2},
}
TOPICS = ("sum of numbers", "capital of a country")


def questions(count: int, seed: int = 0) -> list[str]:
    dice = np.random.default_rng(seed)
    return [f"{TOPICS[dice.integers(2)]} {dice.integers(10_000)} {seed}" for _ in range(count)]


def outcomes_of(candidates: tuple[str, ...], texts: list[str], seed: int = 0) -> Outcomes:
    """The giant is right in sums and wrong in capitals; the others do not care."""
    dice = np.random.default_rng(seed)
    chance = {"tiny": 0.3, "big": 0.7}
    length = {"plain": 20.0, "steps": 200.0}
    sums_M = np.array([text.startswith("sum") for text in texts])
    right, tokens = [], []
    for name in candidates:
        one = Candidate.parse(name)
        chance_M = np.where(sums_M, 0.95, 0.05) if one.model == "giant" else chance[one.model]
        right.append((dice.random(len(texts)) < chance_M).astype(float))
        scale = 3.0 if one.model == "giant" else 1.0
        tokens.append(np.round(scale * length[one.strategy] * np.exp(dice.normal(0, 0.2, len(texts)))))
    shape = (len(texts), len(candidates))
    return Outcomes(
        query_ids=tuple(f"q{seed}-{i}" for i in range(len(texts))),
        queries=tuple(texts),
        candidates=tuple(map(Candidate.parse, candidates)),
        accuracy=np.stack(right, axis=1),
        input_tokens=np.full(shape, 12.0),
        output_tokens=np.stack(tokens, axis=1),
        cost_usd=np.full(shape, np.nan),
        cut=np.zeros(shape),
        max_tokens=np.full(shape, np.nan),
        runs=np.ones(shape, dtype=int),
    )


@cache
def router(recipe: str = "auto") -> RouterFolder:
    pool = pool_of(KNOWN_HERE, profiles=PROFILES)
    estimator = registry.build(RECIPES[recipe], KNOWN, "estimator")
    return train(outcomes_of(KNOWN_HERE, questions(120)), pool, ENCODER, estimator)


def written(outcomes: Outcomes, path: Path) -> str:
    """As a long table."""
    rows = [
        {
            "query_id": name,
            "query": text,
            "model": candidate.model,
            "strategy": candidate.strategy,
            "correct": float(outcomes.accuracy[row, column]),
            "input_tokens": 40,
            "output_tokens": float(outcomes.output_tokens[row, column]),
        }
        for row, (name, text) in enumerate(zip(outcomes.query_ids, outcomes.queries, strict=True))
        for column, candidate in enumerate(outcomes.candidates)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


GIANT = Newcomers(models={"giant": PROFILES["giant"]}, candidates=(NEW,))
ASKED = questions(80, seed=9)


def said_by(folder: RouterFolder) -> Estimate:
    return predicted(folder.estimator, ENCODER.encode(ASKED), ASKED)


def few(tmp_path: Path, count: int) -> str:
    return written(outcomes_of((str(NEW),), questions(count, seed=3), seed=3), tmp_path / f"{count}.parquet")


def same_bits(one: RouterFolder, other: RouterFolder) -> None:
    """Whatever both know they predict alike, and what one has learned is in the other."""
    first, second = said_by(one), said_by(other)
    columns = [
        (one.estimator.candidates.index(c), other.estimator.candidates.index(c))
        for c in one.estimator.candidates
        if c in other.estimator.candidates
    ]
    assert columns
    for name in ("accuracy", "output_tokens", "output_tokens_p95"):
        for here, there in columns:
            assert getattr(first, name)[:, here].tobytes() == getattr(second, name)[:, there].tobytes()
    arrays = other.estimator.state().arrays
    for name, array in one.estimator.state().arrays.items():
        assert array.tobytes() == arrays[f"base_{name}"].tobytes()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("labels", [0, 40])
def test_the_others_stay_bit_for_bit_whatever_the_estimator(recipe: str, labels: int, tmp_path: Path):
    before = router(recipe)
    made = extend(before, GIANT, outcomes_uri=few(tmp_path, labels) if labels else None)
    assert made.added == {NEW: labels}
    same_bits(before, made.folder)
    made.folder.save(str(tmp_path / "router"))
    again = RouterFolder.load(str(tmp_path / "router"))
    for name in ("accuracy", "output_tokens", "output_tokens_p95"):
        values = getattr(said_by(again), name)
        assert values.tobytes() == getattr(said_by(made.folder), name).tobytes()
        assert np.isfinite(values).all()
    assert again.fingerprint == made.folder.fingerprint != before.fingerprint


def column(made: Extension, name: str = "accuracy") -> FloatArray:
    found: FloatArray = getattr(said_by(made.folder), name)[:, -1]
    return found


def test_by_profile_alone_it_is_like_the_one_that_it_resembles():
    accuracy_Q = column(extend(router(), GIANT))
    assert 0.55 < accuracy_Q.mean() < 0.8, "like big, not like tiny"
    assert 12 < column(extend(router(), GIANT), "output_tokens").mean() < 40, "like plain, not like steps"


def test_with_labels_it_is_what_they_show(tmp_path: Path):
    sums_Q = np.array([text.startswith("sum") for text in ASKED])
    errors = []
    for labels in (0, 10, 150):
        made = extend(router(), GIANT, outcomes_uri=few(tmp_path, labels) if labels else None)
        accuracy_Q = column(made)
        errors.append(float(np.abs(accuracy_Q - np.where(sums_Q, 0.95, 0.05)).mean()))
    assert errors[0] > errors[2] + 0.1
    assert errors[2] < 0.2
    assert accuracy_Q[sums_Q].mean() > accuracy_Q[~sums_Q].mean() + 0.5
    assert column(made, "output_tokens").mean() == pytest.approx(60, rel=0.2), "three times as long"
    actual_Q = outcomes_of((str(NEW),), ASKED, seed=9).output_tokens[:, 0]
    assert 0.85 < (actual_Q <= column(made, "output_tokens_p95")).mean() <= 1.0


def test_ten_labels_that_are_all_right_do_not_make_it_perfect(tmp_path: Path):
    outcomes = outcomes_of((str(NEW),), questions(10, seed=3), seed=3)
    lucky = Outcomes(**{n: getattr(outcomes, n) for n in outcomes.__dataclass_fields__} | {
        "accuracy": np.ones((10, 1))
    })  # fmt: skip
    accuracy_Q = column(extend(router(), GIANT, outcomes_uri=written(lucky, tmp_path / "lucky.parquet")))
    assert 0.75 < accuracy_Q.mean() < 0.98


def test_what_a_prompt_costs_is_learned_of_the_new_one_too(tmp_path: Path):
    made = extend(router(), GIANT, outcomes_uri=few(tmp_path, 40))
    tokens = made.folder.inputs.predict((NEW, Candidate("big", "plain")), np.array([20.0]))
    assert tokens[0, 0] == pytest.approx(40, abs=5)
    assert tokens[0, 1] == pytest.approx(12, abs=5)


def test_a_removed_candidate_is_gone_and_the_others_stay_bit_for_bit(tmp_path: Path):
    gone = Candidate("tiny", "steps")
    made = extend(router(), Newcomers(), removed=[gone])
    assert gone not in made.folder.estimator.candidates
    assert len(made.folder.estimator.candidates) == 3
    same_bits(router(), made.folder)
    made.folder.save(str(tmp_path / "router"))
    pool = pool_of([c for c in KNOWN_HERE if c != str(gone)], profiles=PROFILES)
    bound = RouterFolder.load(str(tmp_path / "router")).bind(pool, ENCODER)
    table = bound.table([str(i) for i in range(80)], ENCODER.encode(ASKED), np.full(80, 30), ASKED)
    assert gone not in table.candidates


def test_one_comes_after_another_and_the_first_may_leave(tmp_path: Path):
    first = extend(router(), GIANT, outcomes_uri=few(tmp_path, 40)).folder
    second = extend(first, Newcomers(strategies={"short": "answers in one word"})).folder
    new = {c for c in second.estimator.candidates if c.strategy == "short"}
    assert {c.model for c in new} == {"tiny", "big", "giant"}
    same_bits(first, second)
    third = extend(second, Newcomers(), removed=[NEW]).folder
    same_bits(second, third)
    assert [len(note["added"]) for note in third.metrics["extensions"]] == [1, 3, 0]


def test_a_pool_takes_in_what_the_router_does_not_know_with_any_estimator():
    grown = pool_of([*KNOWN_HERE, str(NEW)], profiles=PROFILES)
    bound = router("knn").bind(grown, ENCODER, untrained="by_profile")
    table = bound.table(["a"], ENCODER.encode(["sum of numbers 1"]), np.array([20]))
    assert np.isfinite(table.accuracy).all()
    extended = extend(router("knn"), Newcomers(), grown).folder
    assert extended.behaviours[str(NEW)] == grown.behaviour(NEW)
    again = extended.bind(grown, ENCODER).table(["a"], ENCODER.encode(["sum of numbers 1"]), np.array([20]))
    assert np.array_equal(again.accuracy, table.accuracy)


def test_a_pair_is_told_by_its_parts():
    candidates = [Candidate.parse(text) for text in ("a:x", "a:y", "b:x")]
    pool = pool_of(["a:x", "a:y", "b:x", "b:y"], profiles={"a": "one", "b": "two", "x": "three", "y": "four"})
    profiles = embed_profiles(pool, HashEncoder(64), pool.candidates)
    weight_C = blend(candidates, [Candidate("b", "y")], profiles)[0]
    assert weight_C.sum() == pytest.approx(1)
    assert weight_C[0] < 0.1 < min(weight_C[1:]), "b:x and a:y, hardly a:x"


def test_few_rows_are_believed_little_and_many_much():
    dice = np.random.default_rng(0)
    features_MF = np.concatenate([np.ones((400, 1)), dice.normal(size=(400, 5))], axis=1)
    value_M = 0.3 * features_MF[:, 1] + dice.normal(0, 0.3, 400)
    prior = Around(0.09, (slice(0, 1), slice(1, None)))
    many, little = around(prior, features_MF, value_M), around(prior, features_MF[:4], value_M[:4])
    assert many[1] == pytest.approx(0.3, abs=0.05)
    assert np.abs(little).max() < 0.5
    assert np.array_equal(around(prior, features_MF[:4], np.full(4, np.nan)), np.zeros(6))


@pytest.mark.parametrize(
    ("newcomers", "removed", "error", "message"),
    [
        (Newcomers(), [], ConfigError, "Nothing is to be added"),
        (Newcomers(models={"big": "again"}), [], ConfigError, "knows the model big already"),
        (Newcomers(candidates=(NEW,)), [], ConfigError, "giant:plain is to be added, and its model"),
        (Newcomers(), [NEW], RouterError, "giant:plain is not among the trained candidates"),
        (Newcomers(), [Candidate.parse(c) for c in KNOWN_HERE], RouterError, "All candidates would"),
    ],
)
def test_what_cannot_be_done_is_said(
    newcomers: Newcomers, removed: list[Candidate], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        extend(router("prior"), newcomers, removed=removed)


def test_outcomes_of_others_are_refused(tmp_path: Path):
    other = written(outcomes_of(("big:plain",), questions(10)), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="and none of giant:plain"):
        extend(router("prior"), GIANT, outcomes_uri=other)


def test_the_command_adds_and_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    router("knn").save("r")
    Path("new.yaml").write_text(f"models: {{giant: {{profile: {PROFILES['giant']}}}}}\n")
    labels = few(tmp_path, 20)

    def rtr_ray(*arguments: str) -> str:
        found = CliRunner().invoke(app, ["extend", *arguments], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    assert "its profile alone" in rtr_ray("--router", "r", "--profile", "new.yaml", "--output", "r2")
    said = rtr_ray("--router", "r", "--profile", "new.yaml", "--outcomes", labels, "--output", "r3")
    assert "giant:plain, by 20 labelled queries" in said
    assert "Removed: tiny:plain" in rtr_ray("--router", "r3", "--remove", "tiny:plain", "--output", "r4")
    found = RouterFolder.load("r4").estimator.candidates
    assert NEW in found
    assert Candidate("tiny", "plain") not in found
    refused = CliRunner().invoke(app, ["extend", "--router", "r", "--output", "r/"])
    assert refused.exit_code == 1
    assert "Name another one" in refused.stderr
