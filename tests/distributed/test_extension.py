"""Answers that get longer while they are generated: a real ledger actor, real Serve, a fake engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from rtr_ray.types import Outcome, Request
from tests.distributed import engine
from tests.distributed.conftest import Cluster
from tests.distributed.lent import answered
from tests.fakes import pool_of, requests_of

pytestmark = pytest.mark.ray

POOL = pool_of(prices={"small": ("0", "4")})
REQUESTS = requests_of(POOL, 30)  # of 5 to 44 tokens each


@pytest.fixture(scope="module")
def ask(connected: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Put requests to the engine under a budget; gives the outcomes and the ledger's last balance."""
    folder = tmp_path_factory.mktemp("extension")
    engine.start("extension", {"small": {"skill": 1.0}}, folder / "meter.jsonl")
    runs = iter(range(100))

    def put(requests: list[Request], budget_usd: Decimal | None) -> tuple[dict[str, Outcome], Any]:
        return answered(
            ("FakeEngine", "extension-small"), POOL, requests, budget_usd, folder / str(next(runs))
        )

    try:
        yield put
    finally:
        engine.stop("extension", {"small": {}})


def tokens(found: dict[str, Outcome]) -> int:
    return sum(outcome.usage.output_tokens for outcome in found.values() if outcome.usage)


def test_answers_that_were_extended_are_the_same_as_those_without_a_limit(ask: Callable[..., Any]) -> None:
    whole, _ = ask(REQUESTS, None)
    usd = POOL.price(POOL.candidates[0]).output_usd_per_mtok / 10**6
    budget = usd * 5 * tokens(whole)  # enough for all, not for 30 worst cases
    few, balance = ask([replace(request, expected_tokens=6) for request in REQUESTS], budget)
    assert {name: o.samples for name, o in few.items()} == {name: o.samples for name, o in whole.items()}
    assert {name: o.usage for name, o in few.items()} == {name: o.usage for name, o in whole.items()}
    assert balance.spent_usd == usd * tokens(whole)
    assert not any(o.samples[0].finish_reason == "budget" for o in few.values())
    assert (balance.reserved_usd, balance.unknown_usd, balance.in_flight) == (0, 0, 0)


def test_where_nothing_is_left_answers_are_cut_and_paid_to_the_token(ask: Callable[..., Any]) -> None:
    whole, _ = ask(REQUESTS, None)
    usd = POOL.price(POOL.candidates[0]).output_usd_per_mtok / 10**6
    budget = usd * tokens(whole) / 2
    few, balance = ask([replace(request, expected_tokens=6) for request in REQUESTS], budget)
    assert balance.spent_usd == usd * tokens(few) <= budget
    assert (balance.reserved_usd, balance.unknown_usd) == (0, 0)
    cut = [o for o in few.values() if o.samples and o.samples[0].finish_reason == "budget"]
    assert cut, "the budget is half of what is needed"
    for outcome in cut:
        (sample,), (all_of_it,) = outcome.samples, whole[outcome.query_id].samples
        assert all_of_it.text.startswith(sample.text)
        assert sample.output_tokens == outcome.usage.output_tokens < all_of_it.output_tokens
    assert {o.status for o in few.values()} <= {"answered", "skipped_budget"}
