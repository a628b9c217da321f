"""The two policies that there are: no routing, and the paper's weighted score."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtr_ray.errors import ConfigError
from rtr_ray.policies.base import fit, stable_hash, with_runner_up
from rtr_ray.policies.fixed import Fixed
from rtr_ray.policies.score import FittedScore, Score
from rtr_ray.types import Candidate, Plan, RoutingTable
from tests.fakes import random_table


def table_of(accuracy: list[list[float]], cost_usd: list[list[float]], **other: object) -> RoutingTable:
    accuracy_QC, cost_QC = np.array(accuracy, np.float32), np.array(cost_usd, np.float32)
    queries, candidates = accuracy_QC.shape
    fields: dict[str, object] = {
        "query_ids": tuple(f"q{i}" for i in range(queries)),
        "candidates": tuple(Candidate(f"m{c}", "cot") for c in range(candidates)),
        "accuracy": accuracy_QC,
        "output_tokens": cost_QC,
        "output_tokens_p95": cost_QC,
        "cost_usd": cost_QC,
        "allowed": np.ones_like(accuracy_QC, dtype=bool),
    }
    return RoutingTable(**(fields | other))  # type: ignore[arg-type]


def chosen(policy: Score | Fixed, table: RoutingTable) -> list[int]:
    return [int(c) for c in fit(policy, [table]).choose(table).choice]


def test_the_score_by_hand():
    # mean cost 2: scores at lam 0.5 are 0.4-0.25, 0.45-0.5, 0.5-0.75 and 0.1-0.25, 0.45-0.5, 0.5-0.75
    table = table_of([[0.8, 0.9, 1.0], [0.2, 0.9, 1.0]], [[1, 2, 3], [1, 2, 3]])
    assert fit(Score(0.5), [table]) == FittedScore(0.5, 2.0)
    assert chosen(Score(0.5), table) == [0, 1]
    assert chosen(Score(1.0), table) == [2, 2]
    assert chosen(Score(0.0), table) == [0, 0]


def test_the_normaliser_is_the_mean_over_what_is_allowed():
    allowed = np.array([[True, True, False], [True, False, False]])
    table = table_of([[0.5] * 3] * 2, [[1, 2, 1000], [3, 1000, 1000]], allowed=allowed)
    assert fit(Score(0.5), [table]).normaliser_usd == 2.0  # type: ignore[attr-defined]
    assert fit(Score(0.5), [table, table]).normaliser_usd == 2.0  # type: ignore[attr-defined]


def test_a_given_normaliser_stays():
    assert fit(Score(0.5, 7.0), [random_table(0)]) == FittedScore(0.5, 7.0)


def test_a_tie_goes_to_the_cheaper_candidate():
    assert chosen(Score(1.0), table_of([[0.9, 0.9, 0.9]], [[3, 1, 2]])) == [1]


def test_a_tie_of_cheap_ones_goes_to_the_more_accurate():
    assert chosen(Score(0.0), table_of([[0.2, 0.9, 1.0]], [[1, 1, 2]])) == [1]


def test_a_full_tie_goes_by_the_hash_of_the_query_id():
    ids = tuple(f"question {i}" for i in range(300))
    table = table_of([[0.5] * 3] * 300, [[1] * 3] * 300, query_ids=ids)
    choice = chosen(Score(0.5), table)
    assert choice == [stable_hash(name) % 3 for name in ids]
    assert min(choice.count(c) for c in range(3)) > 70  # and shares the load


def test_the_hash_is_the_same_in_every_process():
    code = "from rtr_ray.policies.base import stable_hash; print(stable_hash('qé'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == stable_hash("qé") < 2**64


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_where_everything_is_free_accuracy_alone_decides(lam: float):
    table = table_of([[0.2, 0.9, 0.5], [0.8, 0.1, 0.3]], [[0.0] * 3] * 2)
    assert chosen(Score(lam), table) == [1, 0]


def test_what_is_not_allowed_is_not_chosen_however_good():
    allowed = np.array([[False, True], [False, False]])
    table = table_of([[0.9, 0.1]] * 2, [[1, 9]] * 2, allowed=allowed)
    assert chosen(Score(0.9), table) == [1, -1]
    assert chosen(Fixed("m0:cot"), table) == [-1, -1]
    assert chosen(Fixed("m1:cot"), table) == [1, -1]


def test_fixed_names_what_the_pool_has_instead():
    with pytest.raises(
        ConfigError, match=r"fixed to m9:cot, which is not in the pool\. Known: m0:cot, m1:cot"
    ):
        chosen(Fixed("m9:cot"), table_of([[0.5, 0.5]], [[1, 1]]))


def test_the_runner_up_is_the_choice_without_the_choice():
    table = table_of([[0.9, 0.8, 0.1]], [[1, 1, 1]])
    plan = with_runner_up(fit(Score(1.0), [table]), table)
    assert (int(plan.choice[0]), int(plan.runner_up[0])) == (0, 1)  # type: ignore[index]


tables = st.builds(
    random_table,
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 8),
    candidates=st.integers(1, 7),
    allowed_share=st.sampled_from([0.3, 0.9, 1.0]),
    ties=st.booleans(),
)
weights = st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=2, max_size=6, unique=True)


def plans(table: RoutingTable, lams: list[float]) -> list[Plan]:
    return [fit(Score(lam), [table]).choose(table) for lam in sorted(lams, reverse=True)]


@settings(max_examples=150, deadline=None)
@given(table=tables, lams=weights)
def test_cost_and_accuracy_never_rise_as_lam_falls(table: RoutingTable, lams: list[float]):
    rows = np.arange(len(table.query_ids))
    for high, low in zip(plans(table, lams), plans(table, lams)[1:], strict=False):
        routed = high.routed
        for values_QC in (table.cost_usd, table.accuracy):
            before, after = values_QC[rows, high.choice][routed], values_QC[rows, low.choice][routed]
            assert (after <= before + 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(table=tables)
def test_at_the_ends_one_side_alone_decides(table: RoutingTable):
    dear_QC = np.where(table.allowed, table.cost_usd, np.inf)
    right_QC = np.where(table.allowed, table.accuracy, -np.inf)
    best, cheapest = plans(table, [1.0, 0.0])
    for row in np.flatnonzero(best.routed):
        most = np.flatnonzero(right_QC[row] == right_QC[row].max())
        assert right_QC[row, best.choice[row]] == right_QC[row].max()
        assert table.cost_usd[row, best.choice[row]] == table.cost_usd[row, most].min()  # cheaper on ties
        assert table.cost_usd[row, cheapest.choice[row]] == dear_QC[row].min()


@settings(max_examples=100, deadline=None)
@given(table=tables, lam=st.floats(0, 1))
def test_no_choice_is_dominated(table: RoutingTable, lam: float):
    plan = fit(Score(lam), [table]).choose(table)
    for row in np.flatnonzero(plan.routed):
        mine = plan.choice[row]
        cost, right = table.cost_usd[row], table.accuracy[row]
        better = table.allowed[row] & (cost <= cost[mine]) & (right >= right[mine])
        strictly = better & ((cost < cost[mine]) | (right > right[mine]))
        # a float has 53 bits: a gain below that is none
        assert (np.abs(right[strictly] - right[mine]) * lam < 1e-12).all() or not strictly.any()


def test_no_plan_beats_the_oracle():
    for seed in range(20):
        truth = random_table(seed, allowed_share=1.0)
        correct_QC = np.round(truth.accuracy)
        real = replace(truth, accuracy=correct_QC)
        oracle = fit(Score(1.0), [real]).choose(real)
        for lam in (0.0, 0.5, 1.0):
            plan = fit(Score(lam), [truth]).choose(truth)
            assert plan.chosen(correct_QC).mean() <= oracle.chosen(correct_QC).mean()
