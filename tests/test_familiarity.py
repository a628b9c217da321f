"""Queries unlike those of training are noticed, go where they can do no harm, and their rows say so."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rtr_ray.config import SwapKeys
from rtr_ray.corpus import Columns
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import ConfigError, DataError, RouterError
from rtr_ray.estimators.linear import Linear
from rtr_ray.familiarity import Caution, Familiarity
from rtr_ray.online.asking import Asked
from rtr_ray.online.reply import Named
from rtr_ray.online.routing import Routed
from rtr_ray.online.showing import routing_shown
from rtr_ray.parts import Version, plan_part, table_part
from rtr_ray.policies.base import with_runner_up
from rtr_ray.policies.score import FittedScore
from rtr_ray.reading import open_corpus, read_split
from rtr_ray.router import Router, RouterFolder, train
from rtr_ray.types import Candidate, FloatArray, Outcomes, RoutingTable
from tests.fakes import pool_of

ENCODER = HashEncoder(64)
POOL = pool_of(["small:x", "large:x"], {"small": ("1", "1"), "large": ("10", "10")})
SMALL, LARGE = (Candidate(model, "x") for model in ("small", "large"))
BY_ACCURACY = FittedScore(lam=1.0, normaliser_usd=1.0)


def usual(count: int, seed: int = 0) -> list[str]:
    """Sums, which the small one can do, and products, which the large one can."""
    dice = np.random.default_rng(seed)
    kinds = ("what is the sum of {} and {}", "what is the product of {} and {}")
    return [kinds[dice.integers(2)].format(*dice.integers(0, 9, 2)) for _ in range(count)]


STRANGE = ["der Himmel ist heute sehr blau gewesen", "SELECT name FROM users WHERE id IN (...)"]


@cache
def folder() -> RouterFolder:
    texts = usual(200)
    sums_M = np.array(["sum" in text for text in texts])
    right_MC = np.stack([sums_M, ~sums_M], axis=1) * 0.5 + np.array([0.1, 0.4])
    shape = right_MC.shape
    outcomes = Outcomes(
        query_ids=tuple(f"q{i}" for i in range(len(texts))),
        queries=tuple(texts),
        candidates=(SMALL, LARGE),
        accuracy=right_MC,
        input_tokens=np.full(shape, 9.0),
        output_tokens=np.full(shape, 5.0),
        cost_usd=np.full(shape, np.nan),
        cut=np.zeros(shape),
        max_tokens=np.full(shape, np.nan),
        runs=np.ones(shape, dtype=int),
    )
    return train(outcomes, POOL, ENCODER, Linear())


def table(router: Router, texts: list[str]) -> RoutingTable:
    ids = [str(i) for i in range(len(texts))]
    return router.table(ids, ENCODER.encode(texts), np.array([len(text) for text in texts]), texts)


def clouds(seed: int, centre: float, count: int = 300) -> FloatArray:
    dice = np.random.default_rng(seed)
    rows_MD = dice.normal(size=(count, 8)).astype(np.float32)
    rows_MD[:, 0] += centre
    return rows_MD


def test_as_many_of_the_usual_queries_are_marked_as_the_level_says():
    familiarity = Familiarity.of(clouds(0, 3.0), np.arange(300))
    assert familiarity is not None
    for level in (0.8, 0.95):
        marked = (familiarity.score(clouds(1, 3.0, 2000)) > familiarity.threshold(level)).mean()
        assert marked == pytest.approx(1 - level, abs=0.04)
    assert (familiarity.score(clouds(2, -3.0)) > familiarity.threshold(0.99)).mean() > 0.99


def test_what_is_related_to_a_query_does_not_make_it_familiar():
    rows_MD = np.repeat(clouds(0, 0.0, 100), 11, axis=0)  # each eleven times
    alone = Familiarity.of(rows_MD, np.arange(1100))
    together = Familiarity.of(rows_MD, np.repeat(np.arange(100), 11))
    assert alone is not None
    assert together is not None
    assert alone.threshold(0.5) < 0.01 < together.threshold(0.5)


def test_too_few_queries_say_nothing():
    assert Familiarity.of(clouds(0, 0.0, 19), np.arange(19)) is None
    assert Familiarity.of(clouds(0, 0.0), np.arange(300) % 19) is None


def test_strange_queries_are_marked_and_believed_to_be_as_all_are_on_average():
    bound = folder().bind(POOL, ENCODER, caution=Caution(0.99))
    found = table(bound, [*usual(20, seed=5), *STRANGE])
    assert found.unfamiliar is not None
    assert found.unfamiliar.tolist() == [False] * 20 + [True] * 2
    np.testing.assert_array_equal(found.accuracy[20], found.accuracy[21])
    plain = table(folder().bind(POOL, ENCODER), [*usual(20, seed=5), *STRANGE])
    assert plain.unfamiliar is None
    np.testing.assert_array_equal(found.accuracy[:20], plain.accuracy[:20])
    assert found.accuracy[20] == pytest.approx([0.35, 0.65], abs=0.05)


def test_a_named_candidate_takes_strange_queries_wherever_it_may():
    bound = folder().bind(POOL, ENCODER, caution=Caution(0.99, str(SMALL)))
    found = table(bound, [*usual(20, seed=5), *STRANGE])
    choice_Q = BY_ACCURACY.choose(found).choice
    assert (choice_Q[20:] == 0).all()
    assert found.allowed[:20].all()
    narrow = replace(POOL, deployments={**POOL.deployments, "small": replace(
        POOL.deployments["small"], context_tokens=1
    )})  # fmt: skip
    elsewhere = table(folder().bind(narrow, ENCODER, caution=Caution(0.99, str(SMALL))), STRANGE)
    assert (BY_ACCURACY.choose(elsewhere).choice == 1).all(), "it cannot take them"


def test_the_rows_of_a_run_say_so(tmp_path: Path):
    path = tmp_path / "corpus.jsonl"
    rows = [{"query": text} for text in ("what is the sum of 1 and 2", "", STRANGE[0])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus, (split,) = open_corpus(str(path), Columns())
    (block,) = read_split(corpus, split, 100)
    part, _ = table_part(block, folder().bind(POOL, ENCODER, caution=Caution()))
    assert part["unfamiliar"].to_pylist() == [False, False, True]
    made = plan_part(part, POOL, Version(BY_ACCURACY))
    said = {
        text: far
        for rows in made.rows.values()
        for text, far in zip(rows["_text"].to_pylist(), rows["unfamiliar"].to_pylist(), strict=True)
    }
    assert said == {"what is the sum of 1 and 2": False, STRANGE[0]: True}
    assert made.nowhere["unfamiliar"].to_pylist() == [False]
    part, _ = table_part(block, folder().bind(POOL, ENCODER))
    assert "unfamiliar" not in part.column_names, "nobody looked"


def test_it_is_kept_in_the_router_folder(tmp_path: Path):
    folder().save(str(tmp_path / "r"))
    again = RouterFolder.load(str(tmp_path / "r"))
    assert again.fingerprint == folder().fingerprint
    bound = again.bind(POOL, ENCODER, caution=Caution())
    assert np.array_equal(table(bound, STRANGE).unfamiliar, [True, True])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"ood.level is 1; a share between 0 and 1"):
        Caution(1)
    with pytest.raises(ConfigError, match=r"ood.fallback is huge:x, which is not a candidate"):
        folder().bind(POOL, ENCODER, caution=Caution(0.9, "huge:x"))
    with pytest.raises(RouterError, match="does not know what its training queries were like"):
        replace(folder(), familiarity=None).bind(POOL, ENCODER, caution=Caution())
    found = table(folder().bind(POOL, ENCODER), STRANGE)
    with pytest.raises(DataError, match=r"RoutingTable.unfamiliar has shape \(3,\)"):
        replace(found, unfamiliar=np.zeros(3, dtype=bool))


def test_an_endpoint_says_so_in_words_in_its_table_and_in_a_header():
    bound = folder().bind(POOL, ENCODER, caution=Caution())
    plan = with_runner_up(BY_ACCURACY, table(bound, STRANGE[:1]))
    routed = Routed(plan, BY_ACCURACY, "f")
    shown = routing_shown(routed, "a")
    assert shown["unfamiliar"] is True
    assert shown["why"].startswith("The request is unlike those that the router was trained on.")
    headers = Named("a", 0, Asked(()), LARGE, routed).headers
    assert headers["x-rtr-unfamiliar"] == "true"
    plain = with_runner_up(BY_ACCURACY, table(folder().bind(POOL, ENCODER), STRANGE[:1]))
    assert routing_shown(Routed(plain, BY_ACCURACY, "f"), "a")["unfamiliar"] is None


def test_another_router_is_served_as_cautiously_as_the_one_before():
    keys = SwapKeys.model_validate(
        {"router": {"path": "a", "plainly": True, "ood": {"level": 0.9, "fallback": "small:x"}}}
    )
    other = keys.with_router("b")
    assert other.path == "b"
    assert other.caution == keys.caution == Caution(0.9, "small:x", plainly=True)
    assert SwapKeys.model_validate({"router": "a"}).with_router("b").caution is None
    job = SwapKeys.model_validate({"router": {"path": "a", "plainly": True}})
    assert job.caution == Caution(None, plainly=True)
