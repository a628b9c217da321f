"""Forecasts: what held-out rows and pilots make of a plan's own sums."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from rtr_ray.errors import ConfigError, DataError
from rtr_ray.forecast import Interval, Pilot, _t_quantile, forecast
from rtr_ray.held_out import (
    HeldOut,
    centroids_of,
    distance_sketch,
    merge_sketches,
    nearest,
    sketch_of,
    unlike,
)
from rtr_ray.makespan import makespan
from rtr_ray.policies.fixed import FittedFixed
from rtr_ray.policies.score import FittedScore
from rtr_ray.storage import open_store
from rtr_ray.types import Candidate, FloatArray, IntArray, Plan, RoutingTable
from tests.fakes import pool_of

SMALL, LARGE = Candidate("small", "cot"), Candidate("large", "cot")
POOL = pool_of(["small:cot", "large:cot"], {"small": ("0", "1"), "large": ("0", "10")})
ACCURATE = FittedScore(lam=1.0, normaliser_usd=1.0)
CHEAP = FittedScore(lam=0.0, normaliser_usd=1.0)


@dataclass(frozen=True)
class Expected:
    """A plan's sums for one candidate."""

    rows: int
    accuracy: float
    output_tokens: float
    cost_usd: float


@dataclass(frozen=True)
class Told:
    """A policy that was told what to choose, row by row."""

    column: int
    kind: ClassVar[str] = "told"

    def choose(self, table: RoutingTable) -> Plan:
        """Always the same column, where it is allowed."""
        return Plan(table, np.where(table.allowed[:, self.column], self.column, -1))


def held_out_of(
    accuracy: Any, tokens: Any, seen_accuracy: Any, seen_tokens: Any, group: IntArray | None = None
) -> HeldOut:
    """Held-out rows of SMALL and LARGE; free prompts."""
    arrays = [np.asarray(array, dtype=float) for array in (accuracy, tokens, seen_accuracy, seen_tokens)]
    rows = len(arrays[0])
    columns = (SMALL, LARGE)[: arrays[0].shape[1]]
    return HeldOut(
        candidates=columns,
        query_ids=tuple(f"h{i}" for i in range(rows)),
        group=np.arange(rows) if group is None else group,
        accuracy=arrays[0],
        output_tokens=arrays[1],
        output_tokens_p95=2 * arrays[1],
        input_tokens=np.zeros(arrays[0].shape),
        seen_accuracy=arrays[2],
        seen_output_tokens=arrays[3],
        seen_input_tokens=np.zeros(arrays[0].shape),
        distance=np.full(rows, 0.1),
        cluster=np.zeros(rows, dtype=int),
        centroids=np.eye(2, dtype=np.float32)[:1],
    )


def steady(rows: int = 40, told: float = 100, seen: float = 150, right: float = 0.5) -> HeldOut:
    """Every answer of SMALL is half as long again as predicted, and every second one is right."""
    one = np.ones((rows, 1))
    right_M1 = (np.arange(rows) % round(1 / right) == 0).astype(float)[:, None]
    return held_out_of(0.8 * one, told * one, right_M1, seen * one)


def plan_of(rows: int, accuracy: float = 0.8, tokens: float = 100) -> dict[Candidate, Expected]:
    return {SMALL: Expected(rows, rows * accuracy, rows * tokens, rows * tokens * 1e-6)}


def ends(interval: Interval) -> tuple[float, float, float]:
    assert interval.low is not None
    assert interval.expected is not None
    assert interval.high is not None
    return interval.low, interval.expected, interval.high


def width(interval: Interval) -> float:
    low, _, high = ends(interval)
    return high - low


def pilot_of(told: FloatArray, seen: FloatArray, right: FloatArray, candidate: Candidate = SMALL) -> Pilot:
    """Rows of a corpus; a dollar for a million tokens."""
    return Pilot(
        (candidate,) * len(told), np.full(len(told), 0.8), told, told * 1e-6, right, seen, seen * 1e-6
    )


# the point


def test_answers_that_were_half_as_long_again_on_held_out_rows_are_expected_to_be_so_again():
    found = forecast(plan_of(1000), Told(0), steady(), POOL)
    assert found.output_tokens.expected == pytest.approx(150_000, rel=0.001)
    assert found.cost_usd.expected == pytest.approx(0.15, rel=0.001)
    assert found.accuracy.expected == pytest.approx(0.5, rel=0.001)
    assert (found.rows, found.held_out_rows, found.pilot_rows) == (1000, 40, 0)


def test_each_candidate_is_corrected_by_its_own_ratio():
    one = np.ones((400, 2))
    seen_MC = np.tile([50.0, 300.0], (400, 1))
    choice = np.arange(400) % 2  # half of the rows would go to each
    accuracy_MC = np.where(np.arange(2) == choice[:, None], 0.9, 0.2)
    held = held_out_of(accuracy_MC, 100 * one, one, seen_MC)
    for candidate, tokens in ((SMALL, 50), (LARGE, 300)):
        plan = {candidate: Expected(10, 9.0, 1000.0, 0.001)}
        found = forecast(plan, ACCURATE, held, POOL)
        # drawn a little towards what both say together
        assert found.output_tokens.expected == pytest.approx(10 * tokens, rel=0.06)


def test_choosing_the_best_of_noisy_predictions_is_seen_through():
    dice = np.random.default_rng(1)
    truth = dice.uniform(0.3, 0.9, (600, 2))
    told = np.clip(truth + dice.normal(0, 0.3, truth.shape), 0, 1)
    right = (dice.random(truth.shape) < truth).astype(float)
    held = held_out_of(told[:300], np.full((300, 2), 9.0), right[:300], np.full((300, 2), 9.0))
    best = told[300:].argmax(axis=1)
    rows = np.arange(300, 600)
    plan = {
        candidate: Expected(int((best == c).sum()), float(told[300:, c][best == c].sum()), 1.0, 1e-6)
        for c, candidate in enumerate((SMALL, LARGE))
    }
    promised = sum(sums.accuracy for sums in plan.values()) / 300
    _, expected, high = ends(forecast(plan, ACCURATE, held, POOL).accuracy)
    assert promised > high
    assert expected == pytest.approx(truth[rows, best].mean(), abs=0.04)


# the interval


def test_few_held_out_rows_make_a_wide_interval():
    dice = np.random.default_rng(2)
    seen = dice.lognormal(4, 1, (800, 1))
    one = np.ones((800, 1))
    widths = []
    for rows in (20, 80, 800):
        held = held_out_of(one[:rows], 90 * one[:rows], one[:rows], seen[:rows])
        widths.append(width(forecast(plan_of(10_000, tokens=90), Told(0), held, POOL).cost_usd))
    assert widths[0] > 1.5 * widths[1] > 3 * widths[2]


def test_a_common_error_does_not_average_out_over_many_rows():
    dice = np.random.default_rng(3)
    one = np.ones((100, 1))
    held = held_out_of(one, 90 * one, one, dice.lognormal(4, 1, (100, 1)))
    shares = []
    for rows in (100, 10_000, 1_000_000):
        low, expected, high = ends(forecast(plan_of(rows), Told(0), held, POOL).output_tokens)
        shares.append((high - low) / expected)
    assert shares[0] > 1.2 * shares[1]
    assert shares[2] == pytest.approx(shares[1], rel=0.02)
    assert shares[2] > 0.2


def test_related_rows_count_as_one():
    dice = np.random.default_rng(4)
    seen = np.repeat(dice.lognormal(4, 1, 40), 10)[:, None]  # ten rows of each kind, all alike
    one = np.ones((400, 1))
    together = held_out_of(one, 90 * one, one, seen, np.repeat(np.arange(40), 10))
    apart = held_out_of(one, 90 * one, one, seen)
    found = [width(forecast(plan_of(10**6), Told(0), h, POOL).output_tokens) for h in (together, apart)]
    assert found[0] > 2.5 * found[1]


@pytest.mark.parametrize("pilot_rows", [0, 50])
@pytest.mark.parametrize("bias", [1.0, 1.3])
def test_nine_in_ten_intervals_hold_the_truth_though_all_predictions_are_off_alike(
    bias: float, pilot_rows: int
):
    hits = dict.fromkeys(("cost_usd", "accuracy", "output_tokens"), 0)
    for seed in range(200):
        dice = np.random.default_rng(seed)
        told = dice.uniform(50, 150, (450, 1))
        seen = bias * told * dice.lognormal(-0.32, 0.8, told.shape)
        hope = dice.uniform(0.4, 0.9, told.shape)
        right = (dice.random(told.shape) < hope / bias).astype(float)
        held = held_out_of(hope[:150], told[:150], right[:150], seen[:150])
        ours = slice(150, 450)
        plan = {SMALL: Expected(300, hope[ours].sum(), told[ours].sum(), told[ours].sum() * 1e-6)}
        pilot = None
        if pilot_rows:
            rows = slice(150, 150 + pilot_rows)
            pilot = Pilot(
                (SMALL,) * pilot_rows,
                *(values[rows, 0] for values in (hope, told, told * 1e-6, right, seen, seen * 1e-6)),
            )
        corpus = {
            "clusters": [300],
            "distances": sketch_of(1, np.zeros(300, int), held.distance[[0] * 300])["distances"],
        }
        found = forecast(plan, Told(0), held, POOL, pilot=pilot, corpus=corpus)
        truth = {
            "cost_usd": seen[ours].sum() * 1e-6,
            "accuracy": right[ours].mean(),
            "output_tokens": seen[ours].sum(),
        }
        for name, value in truth.items():
            low, _, high = ends(getattr(found, name))
            hits[name] += low <= value <= high
    assert all(168 <= count <= 196 for count in hits.values()), hits


def test_a_higher_level_is_wider():
    widths = [
        width(forecast(plan_of(500), Told(0), steady(), POOL, level=p).accuracy) for p in (0.5, 0.9, 0.99)
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


def test_the_same_question_has_the_same_answer():
    assert forecast(plan_of(500), Told(0), steady(), POOL) == forecast(plan_of(500), Told(0), steady(), POOL)


# what is not known


def test_without_held_out_predictions_nothing_is_invented():
    found = forecast(plan_of(100), Told(0), None, POOL)
    assert found.cost_usd == Interval(pytest.approx(0.01), None, None, 0.9)
    assert found.accuracy == Interval(pytest.approx(0.8), None, None, 0.9)
    assert found.warnings == (
        "no interval: the router has no held-out predictions; train it again to get them",
    )


def test_a_handful_of_held_out_rows_is_no_ground_for_an_interval():
    found = forecast(plan_of(100), Told(0), steady(6), POOL)
    assert found.cost_usd == Interval(pytest.approx(0.01), None, None, 0.9)
    assert "no interval of cost_usd: only 6 cells of held-out rows have an outcome" in found.warnings


def test_ungraded_outcomes_leave_accuracy_open_and_dollars_not():
    held = steady()
    found = forecast(plan_of(100), Told(0), replace(held, seen_accuracy=held.seen_accuracy * np.nan), POOL)
    assert (found.accuracy.low, found.accuracy.high) == (None, None)
    assert found.cost_usd.low is not None


def test_where_the_chosen_cells_were_never_run_those_that_were_stand_in_for_them():
    one = np.ones((60, 2))
    seen = np.tile([150.0, np.nan], (60, 1))
    seen[::3] = [np.nan, 150.0]  # LARGE was run now and then, but not where it is chosen
    accuracy = np.where(np.isnan(seen), 0.9, 0.1)
    held = held_out_of(accuracy, 100 * one, np.where(np.isnan(seen), np.nan, 0.1), seen)
    found = forecast({LARGE: Expected(60, 54.0, 6000.0, 0.06)}, ACCURATE, held, POOL)
    assert found.output_tokens.expected == pytest.approx(9000, rel=0.01)
    assert any(warning.startswith("cost_usd: hardly any held-out row") for warning in found.warnings)


def test_a_candidate_that_was_never_trained_on_is_named_and_widens():
    pool = pool_of(["small:cot", "new:cot"], {"small": ("0", "1"), "new": ("0", "1")})
    new = Candidate("new", "cot")
    half = Expected(50, 40.0, 5000.0, 0.005)
    known = forecast({SMALL: Expected(100, 80.0, 10_000.0, 0.01)}, Told(0), steady(), pool)
    found = forecast({SMALL: half, new: half}, Told(0), steady(), pool)
    assert width(found.cost_usd) > 2 * width(known.cost_usd)
    assert [w for w in found.warnings if "new:cot was never trained on" in w]
    assert not [w for w in known.warnings if "never trained on" in w]


def test_what_is_free_stays_free():
    pool = pool_of(["small:cot"], {"small": ("0", "0")})
    found = forecast({SMALL: Expected(10, 8.0, 1000.0, 0.0)}, Told(0), steady(), pool)
    assert found.cost_usd == Interval(0.0, 0.0, 0.0, 0.9)
    assert found.output_tokens.expected == pytest.approx(1500, rel=0.001)


def test_a_plan_without_rows_costs_nothing_and_has_no_accuracy():
    found = forecast({}, Told(0), steady(), POOL)
    assert found.cost_usd == Interval(0.0, 0.0, 0.0, 0.9)
    assert found.accuracy.expected is None


def test_a_forecast_is_json():
    found = forecast(plan_of(100), Told(0), steady(), POOL)
    assert json.loads(json.dumps(found.to_json()))["cost_usd"]["level"] == 0.9


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, float("nan")])
def test_a_level_that_is_no_probability_is_refused(level: float):
    with pytest.raises(ConfigError, match="lies between 0 and 1"):
        forecast(plan_of(10), Told(0), steady(), POOL, level=level)


def test_rows_of_a_candidate_that_the_pool_lacks_are_refused():
    with pytest.raises(DataError, match="other:cot, which the pool does not have"):
        forecast({Candidate("other", "cot"): Expected(1, 1.0, 1.0, 1.0)}, Told(0), steady(), POOL)


# the pilot


def test_a_pilot_moves_the_forecast_towards_what_it_saw_and_its_dollars_are_in_it():
    told = np.full(50, 100.0)
    pilot = pilot_of(told, 3 * told, np.ones(50))
    before = forecast(plan_of(1000), Told(0), steady(), POOL)
    found = forecast(plan_of(1000), Told(0), steady(), POOL, pilot=pilot)
    assert before.output_tokens.expected == pytest.approx(150_000, rel=0.01)
    assert found.output_tokens.expected == pytest.approx(300_000, rel=0.05)
    assert found.accuracy.expected > 0.9  # type: ignore[operator]
    assert found.pilot_rows == 50


def test_a_pilot_of_the_whole_corpus_leaves_nothing_open():
    told, seen = np.full(50, 100.0), np.linspace(50, 400, 50)
    right = (np.arange(50) % 2).astype(float)
    found = forecast(plan_of(50), Told(0), steady(), POOL, pilot=pilot_of(told, seen, right))
    assert ends(found.output_tokens) == pytest.approx((seen.sum(),) * 3)
    assert ends(found.accuracy) == pytest.approx((0.5,) * 3)


def test_a_pilot_narrows_what_a_corpus_of_another_kind_had_widened():
    held = steady()
    corpus = {"clusters": [1000], "distances": [0] * 100 + [1000] + [0] * 27}
    told = np.full(50, 100.0)
    dice = np.random.default_rng(5)
    pilot = pilot_of(told, 150 * dice.lognormal(0, 0.1, 50), (np.arange(50) % 2).astype(float))
    wide = forecast(plan_of(1000), Told(0), held, POOL, corpus=corpus)
    found = forecast(plan_of(1000), Told(0), held, POOL, corpus=corpus, pilot=pilot)
    assert width(found.cost_usd) < 0.5 * width(wide.cost_usd)
    assert width(found.accuracy) < width(wide.accuracy)


def test_an_ungraded_pilot_says_nothing_of_accuracy():
    told = np.full(50, 100.0)
    pilot = pilot_of(told, 2 * told, np.full(50, np.nan))
    found = forecast(plan_of(1000), Told(0), steady(), POOL, pilot=pilot)
    assert found.accuracy == forecast(plan_of(1000), Told(0), steady(), POOL).accuracy
    assert found.output_tokens.expected > 150_000  # type: ignore[operator]


def test_a_pilot_larger_than_the_corpus_is_refused():
    told = np.full(50, 100.0)
    with pytest.raises(DataError, match="pilot of 50 rows is more than the plan's 10"):
        forecast(plan_of(10), Told(0), steady(), POOL, pilot=pilot_of(told, told, told))


def test_a_pilot_with_a_missing_value_is_refused():
    told = np.full(3, 100.0)
    with pytest.raises(DataError, match="seen_cost_usd"):
        Pilot((SMALL,) * 3, told, told, told, told, told, told[:2])


# how far a corpus is


def cloud(centre: tuple[float, float, float], rows: int, seed: int) -> FloatArray:
    return np.array(centre) + np.random.default_rng(seed).normal(0, 0.1, (rows, 3))


def known_corpus() -> HeldOut:
    embeddings = np.concatenate([cloud((1, 0, 0), 200, 1), cloud((0, 1, 0), 200, 2)])
    centroids = centroids_of(embeddings)
    cluster, distance = nearest(centroids, embeddings)
    one = np.ones((400, 1))
    held = held_out_of(one, one, one, one)
    return replace(held, cluster=cluster, distance=distance, centroids=centroids)


def test_a_corpus_of_the_same_kind_is_not_far():
    held = known_corpus()
    same = np.concatenate([cloud((1, 0, 0), 150, 3), cloud((0, 1, 0), 150, 4)])
    assert unlike(held, distance_sketch(held.centroids, same)) < 0.1


def test_a_corpus_of_another_kind_is_far_and_so_is_one_of_a_single_known_kind():
    held = known_corpus()
    other = unlike(held, distance_sketch(held.centroids, cloud((0, 0, 1), 300, 5)))
    single = unlike(held, distance_sketch(held.centroids, cloud((0, 1, 0), 300, 6)))
    assert other > 0.9
    assert 0.2 < single < 0.7


def test_a_far_corpus_widens_and_is_told_of():
    held = known_corpus()
    plan, near = plan_of(300, tokens=1), np.concatenate([cloud((1, 0, 0), 150, 3), cloud((0, 1, 0), 150, 4)])
    found = [
        forecast(plan, Told(0), held, POOL, corpus=distance_sketch(held.centroids, rows))
        for rows in (near, cloud((0, 0, 1), 300, 5))
    ]
    assert width(found[1].cost_usd) > 2 * width(found[0].cost_usd)
    assert found[0].warnings == ()
    assert "unlike what the router was trained on" in found[1].warnings[0]
    assert "was not measured" in forecast(plan, Told(0), held, POOL).warnings[0]


def test_sketches_of_parts_merge_to_that_of_the_whole():
    held, rows = known_corpus(), cloud((1, 1, 0), 90, 7)
    parts = [distance_sketch(held.centroids, rows[start : start + 30]) for start in (60, 0, 30)]
    whole = distance_sketch(held.centroids, rows)
    assert merge_sketches(parts) == whole
    assert json.loads(json.dumps(whole)) == whole


def test_a_sketch_of_another_router_is_refused():
    with pytest.raises(DataError, match="another router's centroids"):
        unlike(known_corpus(), {"clusters": [1], "distances": [1]})


# what is kept


def test_held_out_rows_come_back_from_a_folder_as_they_were(tmp_path: Any):
    held, store = known_corpus(), open_store(str(tmp_path / "router"))
    assert HeldOut.load(store) is None
    held.save(store)
    back = HeldOut.load(store)
    assert back is not None
    assert (back.candidates, back.query_ids) == (held.candidates, held.query_ids)
    assert np.array_equal(back.accuracy, held.accuracy)
    assert np.array_equal(back.cluster, held.cluster)


def test_the_table_of_held_out_rows_has_the_pools_columns_and_prices():
    table = steady(10).table(POOL)
    assert table.candidates == (SMALL, LARGE)
    assert table.allowed.tolist() == [[True, False]] * 10
    assert table.cost_usd[:, 0] == pytest.approx(100e-6)
    assert FittedFixed("small:cot").choose(table).choice.tolist() == [0] * 10


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"HeldOut.group has shape \(3,\)"):
        replace(steady(10), group=np.zeros(3, dtype=int))


# seconds


def test_the_slowest_deployment_decides_how_long_it_takes():
    plan = {SMALL: Expected(10, 8.0, 6000.0, 0.1), LARGE: Expected(10, 9.0, 1000.0, 0.1)}
    found = makespan(plan, POOL, {"small": 100.0, "large": 5.0}, {"small": 2, "large": 1})
    assert found.deployments_s == {"small": 30.0, "large": 200.0}
    assert found.makespan_s == Interval(200.0)
    more = makespan(plan, POOL, {"small": 100.0, "large": 5.0}, {}, Interval(14_000.0, 7_000.0, 28_000.0))
    assert more.makespan_s == Interval(400.0, 200.0, 800.0)


def test_a_speed_that_nobody_measured_leaves_the_time_open():
    plan = {SMALL: Expected(10, 8.0, 6000.0, 0.1), LARGE: Expected(10, 9.0, 1000.0, 0.1)}
    found = makespan(plan, POOL, {"small": 100.0}, {})
    assert found.deployments_s == {"small": 60.0, "large": None}
    assert found.makespan_s == Interval(None)
    with pytest.raises(ConfigError, match="speed of deployment 'small' is 0"):
        makespan(plan, POOL, {"small": 0.0}, {})


@pytest.mark.parametrize(("freedom", "wanted"), [(4, 2.132), (7, 1.895), (20, 1.725), (1e9, 1.645)])
def test_the_quantile_is_students(freedom: float, wanted: float):
    assert _t_quantile(0.95, freedom) == pytest.approx(wanted, rel=0.003)
