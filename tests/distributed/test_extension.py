"""Answers that get longer while they are generated: a real ledger actor, real Serve, a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from rtr_ray.dispatch import Dispatcher, Gate, Settings, settlement
from rtr_ray.distributed.executor import ServeExecutor
from rtr_ray.distributed.ledger_actor import RemoteBooks, claim, release
from rtr_ray.types import Outcome, Request
from tests.distributed import engine
from tests.distributed.conftest import Cluster
from tests.fakes import pool_of, requests_of

pytestmark = pytest.mark.ray

POOL = pool_of(prices={"small": ("0", "4")})
REQUESTS = requests_of(POOL, 30)  # of 5 to 44 tokens each


@pytest.fixture(scope="module")
def ask(connected: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Put requests to the engine under a budget; gives the outcomes and the ledger's last balance."""
    import ray

    folder = tmp_path_factory.mktemp("extension")
    engine.start("extension", {"small": {"skill": 1.0}}, folder / "meter.jsonl")
    runs = iter(range(100))

    def put(requests: list[Request], budget_usd: Decimal | None) -> tuple[dict[str, Outcome], Any]:
        return _put(requests, budget_usd, folder / str(next(runs)), ray)

    try:
        yield put
    finally:
        engine.stop("extension", {"small": {}})


def _put(requests: list[Request], budget_usd: Decimal | None, folder: Path, ray: Any) -> Any:
    async def run() -> list[Outcome]:
        books = RemoteBooks(actor, "part")
        await books.begin({})
        executor = ServeExecutor(serve.get_deployment_handle("FakeEngine", "extension-small"))
        dispatcher = Dispatcher(executor, books, POOL, Gate(64), Settings(chunk=16))
        found = []
        async with contextlib.aclosing(dispatcher.run(requests)) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
                if (one := settlement(POOL, outcome)) is not None:
                    await books.settle([one])
        await books.finish()
        return found

    actor = claim(str(folder), budget_usd)
    try:
        ray.get(actor.resume.remote({}, {}))
        found = asyncio.run(run())
        return {outcome.query_id: outcome for outcome in found}, ray.get(actor.close.remote()).balance
    finally:
        release(actor)


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
