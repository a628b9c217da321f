"""How good is routing: curves and measures against plain definitions, whole evaluations of made-up tables."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rtr_ray.cli import app
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import DataError
from rtr_ray.quality.curves import Curve
from rtr_ray.quality.evaluate import Evaluation, Table, estimators_of, mean_of
from rtr_ray.quality.measures import auroc, calibration_error
from rtr_ray.quality.scoring import PRICES, Costs, choices, chosen
from rtr_ray.quality.trial import Part, Trial
from rtr_ray.types import Candidate, Outcomes

POINTS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=12)
PRICE_USD = {"weak": 1e-6, "strong": 2e-5}


def outcomes_of(queries: int) -> Outcomes:
    """Random outcomes of two candidates at known prices."""
    dice = np.random.default_rng(0)
    shape = (queries, 2)
    inputs, tokens = dice.integers(10, 99, shape).astype(float), dice.integers(10, 99, shape).astype(float)
    return Outcomes(
        query_ids=tuple(f"q{i}" for i in range(queries)),
        queries=tuple(f"question {i}" for i in range(queries)),
        candidates=(Candidate("weak", "cot"), Candidate("strong", "cot")),
        accuracy=dice.integers(0, 2, shape).astype(float),
        input_tokens=inputs,
        output_tokens=tokens,
        cost_usd=inputs * [1e-6, 3e-6] + tokens * [4e-6, 2e-5],
        cut=np.zeros(shape),
        max_tokens=np.full(shape, 100.0),
        runs=np.ones(shape, dtype=np.int64),
    )


@given(POINTS, st.floats(0, 12))
def test_a_curve_is_the_best_mixture_of_two_points(points: list[tuple[float, float]], cost: float) -> None:
    curve = Curve.over(*zip(*points, strict=True))
    best = max((y for x, y in points if x <= cost), default=None)
    for (x0, y0), (x1, y1) in itertools.permutations(points, 2):
        if x0 <= cost < x1:
            best = max(best or 0.0, y0 + (y1 - y0) * (cost - x0) / (x1 - x0))
    if best is not None:
        assert curve.at(cost) == pytest.approx(best, abs=1e-6)
    assert (np.diff(curve.cost) > 0).all()
    assert (np.diff(curve.accuracy) > 0).all()


@given(POINTS, st.floats(0, 5), st.floats(0.5, 5))
def test_the_height_is_the_integral(points: list[tuple[float, float]], low: float, width: float) -> None:
    curve = Curve.over(*zip(*points, strict=True))
    at = np.linspace(low, low + width, 20_001)
    assert curve.height(low, low + width) == pytest.approx(
        np.mean([curve.at((a + b) / 2) for a, b in itertools.pairwise(at[::100])]), abs=0.02
    )


def test_what_an_accuracy_costs() -> None:
    curve = Curve.over([1, 3, 2], [0.5, 0.9, 0.6])
    assert curve.cost_of(0.7) == pytest.approx(2.0)
    assert curve.cost_of(0.4) == 1
    assert curve.cost_of(0.95) is None


def test_choices_are_those_of_the_definition() -> None:
    dice = np.random.default_rng(0)
    accuracy, cost, allowed = dice.random((40, 4)), dice.random((40, 4)), dice.random((40, 4)) < 0.8
    allowed[7] = False
    found = choices(accuracy, cost, allowed)
    unit = cost[allowed].mean()
    for row, (number, price) in itertools.product(range(40), enumerate(PRICES)):
        open_ = [c for c in range(4) if allowed[row, c]]
        if not open_:
            assert found[row, number] == -1
        elif np.isinf(price):
            assert cost[row, found[row, number]] == min(cost[row, c] for c in open_)
        else:
            best = max(accuracy[row, c] - price * cost[row, c] / unit for c in open_)
            mine = found[row, number]
            assert accuracy[row, mine] - price * cost[row, mine] / unit == pytest.approx(best)
    assert np.isnan(chosen(accuracy, found)[7]).all()


def test_prices_are_found_in_recorded_dollars_and_without_any_tokens_count() -> None:
    outcomes = outcomes_of(200)
    costs = Costs.fit(outcomes)
    told = costs.of(outcomes.input_tokens, outcomes.output_tokens)
    assert np.nanmax(np.abs(told / outcomes.cost_usd - 1)) < 1e-6
    assert not costs.in_tokens


def test_the_area_under_the_curve_counts_pairs() -> None:
    dice = np.random.default_rng(1)
    believed, right = dice.integers(0, 5, 60) / 5, dice.integers(0, 2, 60).astype(float)
    pairs = [(a > b) + (a == b) / 2 for a in believed[right == 1] for b in believed[right == 0]]
    assert auroc(believed, right) == pytest.approx(np.mean(pairs))
    assert auroc(believed, np.ones(60)) is None


def test_calibration_is_the_distance_of_belief_and_truth() -> None:
    believed = np.array([0.25, 0.25, 0.75, 0.75])
    assert calibration_error(believed, np.array([0.0, 0.5, 0.5, 1.0])) == pytest.approx(0.0)
    assert calibration_error(believed, np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx(0.25)


def test_means_of_reports() -> None:
    assert mean_of([{"a": 1.0, "b": [1, None], "c": "x"}, {"a": 3.0, "b": [3, None], "c": "x"}]) == {
        "a": 2.0,
        "b": [2.0, None],
        "c": "x",
    }


def written(path: Path, telling: bool, samples: int = 3, **changes: Any) -> str:
    """240 queries of two kinds; the weak model answers one kind as the strong one does, if the text tells."""
    dice = np.random.default_rng(0)
    rows = []
    for number in range(240):
        hard = bool(number % 2)
        lead = ("riddle of owls" if hard else "sum of pebbles") if telling else "question"
        for model, sample in itertools.product(PRICE_USD, range(samples)):
            skill = 0.9 if model == "strong" else (0.15 if hard else 0.9)
            tokens = int(dice.integers(20, 60))
            rows.append(
                {
                    "query_id": f"q{number}", "query": f"{lead} {dice.integers(1_000_000)}" if sample < 0
                    else f"{lead} {number}", "model": model, "strategy": "cot", "sample": sample,
                    "correct": float(dice.random() < skill), "output_tokens": tokens, "input_tokens": 10,
                    "cost_usd": PRICE_USD[model] * tokens, "split": "train" if number < 160 else "test",
                    "group_id": f"g{number // 2}", "ood": number >= 220,
                }
            )  # fmt: skip
    table = pa.Table.from_pylist(rows)
    for name, values in changes.items():
        table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, path)
    return str(path)


def report(uri: str, repeats: int | None = None, names: tuple[str, ...] = ("prior", "knn")) -> dict[str, Any]:
    table = Table.read(uri, HashEncoder())
    return Evaluation(table, estimators_of(names), repeats=repeats, resamples=200).run()


def test_where_texts_tell_who_can_answer_routing_pays(tmp_path: Path) -> None:
    found = report(written(tmp_path / "table.parquet", telling=True))
    prior, knn = (one for one in found["routers"] if one["part"] == "test")
    assert found["verdict"]["route"]
    assert found["verdict"]["estimator"] == "knn"
    assert knn["aiq_over_hull_interval"][0] > 0.05
    assert knn["gap_closed"] > 0.7
    assert knn["cost_saved_within_1pt"] > 0.3
    assert abs(prior["aiq_over_hull"]) < 0.01
    assert (found["n_train"], found["n_test"]) == (160, 60)
    assert found["n_ood"] == 20
    assert found["anchors"]["best_single"]["candidate"] == "strong:cot"
    assert {one["part"] for one in found["routers"]} == {"test", "ood"}
    for name, ratio in knn["tokens"].items():
        assert ratio["tokens_predicted_over_actual"] == pytest.approx(1, abs=0.1), name
    cost, accuracy, lam = np.array(knn["points"]).T
    assert (np.diff(lam) < 0).all()
    assert cost[0] > cost[-1]
    assert accuracy[0] > accuracy[-1]
    assert sum(share[0] for share in knn["shares"].values()) == pytest.approx(1)
    json.dumps(found, allow_nan=False)


def test_where_they_do_not_it_says_so(tmp_path: Path) -> None:
    found = report(written(tmp_path / "table.parquet", telling=False))
    assert not found["verdict"]["route"]
    assert found["verdict"]["reason"].startswith("Do not route here: knn gains")


def test_random_splits_keep_groups_together_and_say_their_seeds(tmp_path: Path) -> None:
    table = Table.read(written(tmp_path / "table.parquet", telling=True), HashEncoder())
    groups = np.array(table.whole.group_ids)
    for _, train_M, test_M in table.splits(5):
        assert not set(groups[train_M]) & set(groups[test_M])
        assert not (test_M & table.ood_M).any()
        assert 0.6 < train_M.sum() / (train_M.sum() + test_M.sum()) < 0.8
    found = Evaluation(table, estimators_of(["knn"]), repeats=3, resamples=50).run()
    assert found["seeds"] == [0, 1, 2]


def test_an_oracle_of_luck_alone_is_seen_through_with_several_samples(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    for samples, close in ((10, True), (1, False)):
        uri = written(tmp_path / f"{samples}.parquet", telling=False, samples=samples)
        luck = pa.array((dice.random(480 * samples) < 0.5).astype(float))
        found = report(written(tmp_path / "luck.parquet", False, samples, correct=luck))
        over = found["anchors"]["oracle"]["aiq"] - found["anchors"]["static_hull"]["aiq"]
        assert found["anchors"]["oracle"]["cross_fitted"] is close
        assert (over < 0.05) is close, (over, uri)


def test_what_a_reader_must_know_is_noted(tmp_path: Path) -> None:
    same = pa.array(["one and the same"] * 480)
    found = report(written(tmp_path / "same.parquet", True, 1, query=same))
    assert "1 texts are in train and in test" in found["notes"][0]
    found = report(written(tmp_path / "free.parquet", True, 1, cost_usd=None))
    assert "costs are output tokens here" in found["notes"][0]


def test_tables_that_say_nothing_are_refused(tmp_path: Path) -> None:
    alone = pa.array(["weak"] * 480)
    with pytest.raises(DataError, match=r"has outcomes of one candidate, weak:cot; where there is no choice"):
        report(written(tmp_path / "one.parquet", True, 1, model=alone))
    train = pa.array(["train"] * 480)
    with pytest.raises(DataError, match=r"has no query of split 'test'.*; --repeats makes random ones"):
        report(written(tmp_path / "train.parquet", True, 1, split=train))
    assert report(str(tmp_path / "train.parquet"), repeats=2)["n_test"] > 50


def test_a_candidate_that_was_never_tried_in_training_is_named() -> None:
    outcomes = outcomes_of(50)
    outcomes.accuracy[:, 1] = np.nan
    part = Part(outcomes, None, np.zeros((50, 3)))
    with pytest.raises(
        DataError, match=f"No training query has a value of accuracy for {outcomes.candidates[1]}"
    ):
        Trial(outcomes, np.zeros((50, 3)), {"test": part})


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    uri = written(tmp_path / "table.parquet", telling=True)
    out = tmp_path / "out.json"
    arguments = ["evaluate", "--outcomes", uri, "--estimator", "knn", "--encoder", "hash", "--json", str(out)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "static hull" in done.output
    assert "Routing pays here: knn gains" in done.output
    assert json.loads(out.read_text())["verdict"]["route"] is True
