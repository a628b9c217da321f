"""Every policy keeps the same promises. A new kind needs a row in `ROWS`."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from rtr_ray import registry
from rtr_ray.errors import ConfigError
from rtr_ray.policies import FITTED, KNOWN
from rtr_ray.policies.base import FittedPolicy, Policy, fit, merged, with_runner_up
from rtr_ray.types import RoutingTable
from tests.fakes import random_table

ROWS: dict[str, list[dict[str, Any]]] = {
    "budget": [
        {"budget_usd": 0.2},
        {"budget_usd": 1e-9, "when_short": "cheapest"},
        {"budget_usd": 1e9, "max_row_usd": 0.005},
        {"budget_output_tokens": 9000},
        {"min_accuracy": 0.2},
    ],
    "fixed": [{"candidate": "m1:s0"}],
    "limits": [
        {"shares": {"m0": [0, 0.4]}, "budget_usd": 0.2, "when_short": "cheapest"},
        {"shares": {"m1:s0": [0.2, 1]}, "when_short": "cheapest", "max_row_usd": 0.005},
        {"gpu_budget_usd": 5.0, "lanes": {"a": {"candidates": ["m0:s0"], "usd_per_token": 0.001}}},
    ],
    "score": [{"lam": 0.0}, {"lam": 0.4}, {"lam": 1.0}, {"lam": 0.5, "normaliser_usd": 0.01}],
}
REFUSED: dict[str, list[dict[str, Any]]] = {
    "budget": [
        {"budget_usd": 1.0, "budget_output_tokens": 5},
        {"budget_usd": 1.0, "min_accuracy": 0.5},
        *({"budget_usd": amount} for amount in (0.0, -1.0, float("nan"), float("inf"), "much")),
        *({"budget_output_tokens": amount} for amount in (0, -1, float("nan"))),
        *({"min_accuracy": share} for share in (0.0, 1.1, float("nan"))),
        *({"budget_usd": 1.0, "max_row_usd": amount} for amount in (0.0, float("nan"))),
        {"budget_usd": 1.0, "when_short": "guess"},
        {"min_accuracy": 0.5, "when_short": "cheapest"},
    ],
    "limits": [
        {},
        {"budget_usd": 1.0},
        *(
            {"shares": {"m0": bounds}}
            for bounds in ([0.5], [0.6, 0.5], [-0.1, 1], [0, 1.1], [0, float("nan")])
        ),
        *({"deadline_s": amount} for amount in (0.0, -1.0, float("nan"), "soon")),
        {"gpu_budget_usd": float("inf")},
        {"deadline_s": 5.0, "when_short": "guess"},
        {"deadline_s": 5.0, "part": 0.0},
    ],
    "fixed": [{"candidate": "nobody"}, {"candidate": "m0:"}],
    "score": [{"lam": -0.1}, {"lam": 1.1}, {"lam": float("nan")}, {"lam": 0.5, "normaliser_usd": 0.0}],
}
CASES = [(kind, row) for kind, rows in ROWS.items() for row in rows]


def test_every_kind_has_its_rows():
    assert set(ROWS) == set(REFUSED) == set(KNOWN) == set(FITTED)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1].values()))}")
def policy(request: pytest.FixtureRequest) -> Policy:
    kind, row = request.param
    built: Policy = registry.build({"kind": kind} | row, KNOWN, "policy")
    return built


@pytest.fixture
def table() -> RoutingTable:
    return random_table(0, queries=60)


def test_it_is_what_the_protocol_says(policy: Policy, table: RoutingTable):
    assert isinstance(policy, Policy)
    assert isinstance(fit(policy, [table]), FittedPolicy)
    assert policy.kind in KNOWN


def test_it_is_frozen(policy: Policy):
    with pytest.raises(FrozenInstanceError):
        setattr(policy, fields(policy)[0].name, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "row"), [(k, r) for k, rows in REFUSED.items() for r in rows])
def test_impossible_configurations_are_refused(kind: str, row: dict[str, Any]):
    with pytest.raises(ConfigError):
        registry.build({"kind": kind} | row, KNOWN, "policy")


def test_each_query_gets_an_allowed_candidate_or_none_where_none_is_possible(policy: Policy):
    for seed in range(20):
        table = random_table(seed, allowed_share=0.3)
        choice_Q = fit(policy, [table]).choose(table).choice  # a plan refuses what is not allowed
        assert choice_Q.shape == (len(table.query_ids),)
        assert (choice_Q[~table.allowed.any(axis=1)] == -1).all()


def test_the_same_table_gives_the_same_plan(policy: Policy, table: RoutingTable):
    first, second = (fit(policy, [table]).choose(table) for _ in range(2))
    assert first.choice.tobytes() == second.choice.tobytes()


def test_the_table_is_left_as_it_was(policy: Policy, table: RoutingTable):
    before = [getattr(table, name).tobytes() for name in ("accuracy", "cost_usd", "allowed")]
    with_runner_up(fit(policy, [table]), table)
    assert before == [getattr(table, name).tobytes() for name in ("accuracy", "cost_usd", "allowed")]


def test_the_order_of_rows_does_not_matter(policy: Policy):
    for seed in range(10):
        table = random_table(seed, ties=True)
        fitted = fit(policy, [table])
        order = np.random.default_rng(seed).permutation(len(table.query_ids))
        assert (fitted.choose(table).choice[order] == fitted.choose(table.rows(order)).choice).all()


def test_a_row_is_chosen_for_by_itself(policy: Policy):
    table = random_table(3, ties=True)
    fitted = fit(policy, [table])
    together = fitted.choose(table).choice
    assert [int(fitted.choose(table.rows(slice(i, i + 1))).choice[0]) for i in range(len(together))] == list(
        together
    )


def test_no_query_at_all(policy: Policy, table: RoutingTable):
    empty = table.rows(slice(0, 0))
    assert fit(policy, [empty]).choose(empty).choice.shape == (0,)
    assert fit(policy, []).choose(table).choice.shape == (60,)


def test_sketches_merge_in_any_order_and_grouping(policy: Policy):
    sketches = [policy.sketch(random_table(seed, queries=1 + seed)) for seed in range(12)]
    whole = policy.freeze(merged(policy, sketches))
    dice = np.random.default_rng(0)
    for _ in range(50):
        left = [sketches[i] for i in dice.permutation(len(sketches))]
        while len(left) > 1:  # merge any two until one is left
            one, other = left.pop(int(dice.integers(len(left)))), left.pop(int(dice.integers(len(left))))
            left.append(policy.merge(one, other))
        assert policy.freeze(left[0]) == whole


def test_sketches_and_fitted_policies_survive_json(policy: Policy, table: RoutingTable):
    sketch = json.loads(json.dumps(policy.sketch(table)))
    assert policy.freeze(sketch) == policy.freeze(policy.sketch(table))
    fitted = policy.freeze(sketch)
    again = registry.build(json.loads(json.dumps(registry.spec_of(fitted, FITTED))), FITTED, "policy")
    assert again == fitted
    assert (again.choose(table).choice == fitted.choose(table).choice).all()


def test_a_recipe_survives_json(policy: Policy):
    spec = json.loads(json.dumps(registry.spec_of(policy, KNOWN)))
    assert registry.build(spec, KNOWN, "policy") == policy


def test_the_runner_up_is_another_allowed_candidate(policy: Policy):
    table = random_table(5, allowed_share=0.5)
    plan = with_runner_up(fit(policy, [table]), table)
    assert plan.runner_up is not None
    for row, (choice, second) in enumerate(zip(plan.choice, plan.runner_up, strict=True)):
        assert second == -1 or (second != choice and table.allowed[row, second])
        if table.allowed[row].sum() < 2:
            assert second == -1
