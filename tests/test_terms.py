"""The terms of single rows: who may answer, for how much, how."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from rtr_ray.errors import DataError
from rtr_ray.terms import Terms, paid_tokens
from rtr_ray.types import Candidate, Query, Sampling
from tests.online.bench import pool

POOL = pool(context_tokens=None, accelerator="gpu")
QUERY = Query("q", "2 + 2?")
COST_C = np.linspace(1e-6, 4e-6, len(POOL.candidates))
NAMES = [str(one) for one in POOL.candidates]
COT = Candidate("strong", "cot")


def allowed(**terms) -> list[str]:
    allowed_C = Terms(**terms).allow(POOL, POOL.candidates, QUERY, COST_C)
    return [name for name, fine in zip(NAMES, allowed_C, strict=True) if fine]


def test_a_row_without_terms_has_the_pools():
    assert allowed() == NAMES
    request = POOL.request(QUERY, COT)
    assert Terms.read(None).applied(request, POOL) == request


def test_a_row_names_its_candidates_and_greedy_ones_draw_no_samples():
    assert allowed(candidates=("strong:cot@3", "weak:vanilla")) == ["weak:vanilla", "strong:cot@3"]
    assert "strong:cot@3" not in allowed(sampling=Sampling(temperature=0))


def test_a_row_pays_no_more_than_it_wants_to():
    assert allowed(max_predicted_usd=float(COST_C[1])) == NAMES[:2]
    assert allowed(max_usd=Decimal("0.000001")) == []
    bound = POOL.request(QUERY, COT)
    usd = POOL.price(COT).worst_case_usd(bound.max_input_tokens, 7)
    terms = Terms(max_usd=usd)
    request = terms.applied(bound, POOL)
    assert request.max_tokens == 7
    assert POOL.worst_case_usd(request) == usd
    several = terms.applied(POOL.request(QUERY, Candidate("strong", "cot", 3)), POOL)
    assert several.max_tokens == 2


@pytest.mark.parametrize(
    ("terms", "tokens"),
    [
        (Terms(max_tokens=5), 5),
        (Terms(max_tokens=500), 60),
        (Terms(max_tokens=500, own_length=True), 500),
    ],
)
def test_a_length_shortens_an_answer_unless_the_model_was_named(terms: Terms, tokens: int):
    assert terms.applied(POOL.request(QUERY, COT), POOL).max_tokens == tokens


def test_settings_of_a_row_stand_over_the_strategys_and_a_cpu_engine_gets_no_seed():
    terms = Terms(sampling=Sampling(temperature=0.5, seed=7), stop=("x",))
    request = terms.applied(POOL.request(QUERY, COT), POOL)
    assert (request.sampling.temperature, request.sampling.seed, request.stop) == (0.5, 7, ("x",))
    greedy = Terms(sampling=Sampling(temperature=0, seed=7))
    on_cpu = pool()
    assert greedy.applied(on_cpu.request(QUERY, COT), on_cpu).sampling.seed is None


def test_terms_survive_the_way_through_a_file():
    import json

    terms = Terms(("a:b",), 5, True, Decimal("0.10"), 0.2, Sampling(top_p=0.5), ("x", "y"))
    assert Terms.read(json.dumps(terms.to_json())) == terms
    assert Terms.read(json.dumps(Terms().to_json())) == Terms()
    for wrong in ("{", "[]", '{"max_tokens": "x"}', '{"sampling": {"noise": 1}}', '{"max_usd": "x"}'):
        with pytest.raises(DataError, match=r"corpus\.columns\.settings"):
            Terms.read(wrong)


def test_a_free_model_answers_at_any_length():
    assert paid_tokens(POOL.price(COT), 0, Decimal(0)) == 0
    from dataclasses import replace

    assert paid_tokens(replace(POOL.price(COT), output_usd_per_mtok=Decimal(0)), 0, Decimal(0)) > 10**6
