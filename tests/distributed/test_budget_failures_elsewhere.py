"""How budgets of a well-known proxy have failed its users, each as a test of ledger and dispatch.

Numbers are those of issues of BerriAI/litellm. Where another test shows the same thing already, it
is named here and not written again:

- #27639, reservations that leak: tests/test_dispatch.py, `test_cancelling_a_run_leaves_nothing_behind`,
  `test_cancelled_at_any_moment_nothing_is_leaked`, `test_what_becomes_of_a_request`.
- #30460, counters that drift: tests/test_dispatch.py,
  `test_under_any_interleaving_nothing_is_lost_leaked_or_overspent`; tests/test_interleavings.py.
- #36926, a budget that one process alone keeps: tests/distributed/test_extension.py asks an actor, and
  tests/distributed/test_batch.py several.
- #33923, "fail closed" that fails open: tests/test_dispatch.py,
  `test_a_broken_ledger_ends_the_run_with_its_error`; tests/distributed/test_shared_ledger.py,
  `test_what_is_not_durable_is_not_granted`, `test_a_damaged_record_ends_the_run_instead_of_forgetting`.
- #34733, a restart that overwrites what was spent: tests/test_ledger.py,
  `test_a_resumed_run_books_what_it_has_spent_before`.
- #12084, spend that is added again at every look: tests/distributed/test_shared_ledger.py,
  `test_what_was_settled_before_its_worker_died_is_counted_once`.
- #37923, streams priced at zero, with real vLLM: tests/distributed/e2e/test_extension.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rtr_ray.books import Reservation, settlement
from rtr_ray.dispatch import Dispatcher, Gate, Settings
from rtr_ray.distributed.ledger_actor import SharedLedger
from rtr_ray.distributed.lending import Extending, limit_of
from rtr_ray.ledger import Grant, Ledger
from rtr_ray.pool import Deployment, ModelSpec, Pool, Price
from rtr_ray.strategies import Strategy
from rtr_ray.types import Candidate, Outcome, Request, Sample, Usage
from tests.fakes import LocalBooks, ScriptedExecutor, answer, pool_of, requests_of, run_virtually

POOL = pool_of()
(SMALL,) = POOL.candidates
WORST = POOL.worst_case_usd(requests_of(POOL, 1)[0])
ACTUAL = Decimal("0.00006")  # of each answer


async def answered(
    books: LocalBooks, requests: Sequence[Request], executor: Any, pool: Pool = POOL, after_s: float = 0.0
) -> list[Outcome]:
    """Dispatch, and settle what comes."""
    dispatcher = Dispatcher(executor, books, pool, Gate(64), Settings(chunk=16, attempts=2, timeout_s=60.0))
    found = []
    async with contextlib.aclosing(dispatcher.run(requests)) as outcomes:
        async for outcome in outcomes:
            found.append(outcome)
            await asyncio.sleep(after_s)
            if (one := settlement(pool, outcome)) is not None:
                await books.settle([one])
    return found


def test_many_at_once_do_not_overspend_by_their_number():  # 34732, 26672
    # a check before each call, and the spending after it, would let all 320 through
    books = LocalBooks(Ledger(WORST * 3), delay_s=0.5)  # checks the budget after every step
    requests = requests_of(POOL, 320)

    async def at_once() -> list[list[Outcome]]:
        parts = [requests[i::20] for i in range(20)]
        return await asyncio.gather(*(answered(books, part, ScriptedExecutor()) for part in parts))

    found = [outcome for part in run_virtually(at_once()) for outcome in part]
    assert len(found) == 320
    paid = sum(outcome.status == "answered" for outcome in found)
    assert books.ledger.spent_usd == paid * ACTUAL <= WORST * 3


@pytest.mark.parametrize(
    "script", ["ok", "no", "again", "later", "counted", "hang", "raise", "die", "paid", "twice", "stranger"]
)
def test_after_every_way_out_all_that_was_not_paid_can_be_reserved_again(script: str):  # 27639
    books = LocalBooks(Ledger(WORST * 40))
    run_virtually(answered(books, requests_of(POOL, 5), ScriptedExecutor({"q2": [script]})))
    left = books.ledger.left_usd
    assert left is not None
    assert books.ledger.reserve("all that is left", SMALL, left) is Grant.GRANTED


def test_after_a_cancellation_all_that_was_not_sent_can_be_reserved_again():  # 27639
    books = LocalBooks(Ledger(WORST * 40))

    async def cancelled() -> None:
        hanging = ScriptedExecutor(usual=["hang"])
        task = asyncio.create_task(answered(books, requests_of(POOL, 5), hanging))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtually(cancelled())
    assert books.ledger.unknown_usd == 5 * WORST  # they were out: nobody knows
    assert books.ledger.reserve("all that is left", SMALL, WORST * 35) is Grant.GRANTED


def test_what_is_enforced_is_what_was_paid_and_not_what_was_reserved():  # 40050
    # reserved in total: 300 worst cases; paid: a fraction. The budget is what was paid
    requests = requests_of(POOL, 300)
    worst = max(map(POOL.worst_case_usd, requests))
    books = LocalBooks(Ledger(worst + 299 * ACTUAL))
    found = run_virtually(answered(books, requests, ScriptedExecutor()))
    assert {outcome.status for outcome in found} == {"answered"}
    assert books.ledger.spent_usd == 300 * ACTUAL
    assert books.ledger.left_usd == worst - ACTUAL


def test_a_ledger_that_cannot_be_reached_stops_the_sending():  # 33923
    books, executor = LocalBooks(Ledger(WORST * 40), broken_after=0), ScriptedExecutor()
    with pytest.raises(ConnectionError, match="the ledger is gone"):
        run_virtually(answered(books, requests_of(POOL, 5), executor))
    assert executor.chunks == []


def test_a_ledger_that_cannot_be_reached_extends_no_answer():  # 33923
    class Gone:
        async def extend(self, *_: Any) -> Grant:
            raise ConnectionError("the ledger is gone")

    limit = {"key": "q0", "call": "1", "tokens": 10, "usd_per_token": "0.000004"}
    growing = Extending.read({"max_tokens": 100, "limit": limit}, Gone())
    assert growing is not None
    assert run_virtually(growing.limit(9)) == 10


def test_a_streamed_answer_costs_what_one_costs_that_came_at_once():  # 37923, 42161
    class Streaming(ScriptedExecutor):
        async def execute_limited(self, requests: Any, limits: Any, lender: Any) -> Any:
            for request, limit in zip(requests, limits, strict=True):
                if limit is not None:
                    body = {"max_tokens": request.max_tokens, "limit": limit_of(request.key, limit)}
                    growing = Extending.read(body, lender)
                    assert growing is not None
                    for count in range(10):
                        assert count < await growing.limit(count)
                yield answer(request)

    books = LocalBooks(Ledger(WORST * 5))
    requests = [replace(request, expected_tokens=5) for request in requests_of(POOL, 6)]
    run_virtually(answered(books, requests, Streaming(), after_s=0.01))
    assert books.extended, "nothing was streamed"
    assert books.ledger.spent_usd == 6 * ACTUAL


def test_what_a_model_costs_hangs_on_where_it_runs_and_not_on_what_it_is_called():  # 42161, 40100
    dear = Deployment("engine", Price(Decimal(3), Decimal(15)), source="hub/some-model")
    models = {name: ModelSpec(name, "engine", "one model by two names") for name in ("alias", "another")}
    pool = Pool({"engine": dear}, models, {"cot": Strategy("cot", "in steps", 100)})
    costs = {pool.cost_usd(candidate, Usage(1000, 1000)) for candidate in pool.candidates}
    assert costs == {Decimal("0.018")}


def test_reasoning_tokens_are_part_of_the_output_and_cached_ones_of_the_input():  # 18599, 14837
    price = Price(Decimal(2), Decimal(8), Decimal("0.5"))
    plain = price.cost_usd(Usage(1000, 500))
    assert plain == Decimal("0.006")
    assert price.cost_usd(Usage(1000, 500, reasoning_tokens=400)) == plain  # neither alone nor on top
    assert price.cost_usd(Usage(1000, 500, cached_input_tokens=600)) == plain - 600 * Decimal("1.5") / 10**6


def test_a_budget_that_is_used_up_holds_up_no_model_that_costs_nothing():  # 10973
    both = pool_of(("small:cot", "own:cot"), {"own": ("0", "0")})
    dear, free = (requests_of(both, 6, candidate) for candidate in both.candidates)
    mixed = [request for pair in zip(dear[:3], free[3:], strict=True) for request in pair]
    for budget in (Decimal(0), ACTUAL / 2):
        books = LocalBooks(Ledger(budget))
        found = run_virtually(answered(books, mixed, ScriptedExecutor(), both))
        ends = {outcome.query_id: outcome.status for outcome in found}
        assert ends == {f"q{i}": "skipped_budget" if i < 3 else "answered" for i in range(6)}


def test_a_self_hosted_model_is_not_free_unless_its_price_is_zero():  # 41780
    assert POOL.deployment(SMALL).source is not None
    books = LocalBooks(Ledger(WORST * 9))
    run_virtually(answered(books, requests_of(POOL, 2), ScriptedExecutor()))
    assert books.ledger.spent_usd == 2 * ACTUAL


def test_every_line_of_a_batch_is_checked_against_the_budget():  # 12794
    books, executor = LocalBooks(Ledger(WORST * 3), delay_s=0.01), ScriptedExecutor(usual=["slow"])

    async def look() -> None:
        task = asyncio.create_task(answered(books, requests_of(POOL, 16), executor))
        await asyncio.sleep(10)
        assert [len(chunk) for chunk in executor.chunks] == [3]  # of the 16 that travel together
        await task

    run_virtually(look())


def test_looking_at_a_ledger_does_not_change_what_was_spent(tmp_path: Path):  # 12084
    shared = SharedLedger(str(tmp_path), Decimal(1))
    shared.resume({}, {})
    shared.begin("part", {})
    shared.reserve("part", [Reservation("q0", SMALL, Decimal("0.5"))])
    one = settlement(POOL, Outcome("q0", SMALL, (Sample("x", "stop", 10),), usage=Usage(20, 10)))
    assert one is not None
    shared.settle("part", [replace(one, key="q0")], {"answered": 1}, 0)
    for _ in range(50):
        found = shared.snapshot()
    assert (found.balance.spent_usd, found.rows) == (ACTUAL, {"answered": 1})
    assert Candidate("small", "cot") in found.balance.accounts
