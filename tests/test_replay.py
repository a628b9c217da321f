"""Answers out of a record: as they were, or not at all."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from decimal import Decimal

from rtr_ray.books import settlement
from rtr_ray.dispatch import Dispatcher, Gate, Settings
from rtr_ray.executors.base import ExtendingExecutor, Failure
from rtr_ray.executors.replay import ReplayExecutor
from rtr_ray.ledger import Grant, Ledger
from rtr_ray.types import Outcome
from tests.fakes import LocalBooks, answer, pool_of, requests_of, run_virtually

POOL = pool_of(prices={"small": ("0", "4")})  # of at most 100 tokens
REQUESTS = requests_of(POOL, 10)
USD = POOL.price(POOL.candidates[0]).output_usd_per_mtok / 10**6
EXECUTOR = ReplayExecutor({r.key: answer(r, 10 + 5 * i) for i, r in enumerate(REQUESTS)})


def replayed(books: LocalBooks, expected: int | None = None, max_tokens: int = 100) -> dict[str, Outcome]:
    requests = [replace(r, expected_tokens=expected, max_tokens=max_tokens) for r in REQUESTS]
    settings = Settings(chunk=4, attempts=3)

    async def run() -> list[Outcome]:
        found = []
        dispatcher = Dispatcher(EXECUTOR, books, POOL, Gate(8), settings)
        async with contextlib.aclosing(dispatcher.run(requests)) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
                if (one := settlement(POOL, outcome)) is not None:
                    await books.settle([one])
        return found

    return {outcome.query_id: outcome for outcome in run_virtually(run())}


def test_what_was_recorded_comes_back():
    found = replayed(LocalBooks(Ledger()))
    assert [found[f"q{i}"].samples[0].output_tokens for i in range(10)] == [10 + 5 * i for i in range(10)]


def test_a_longer_answer_than_now_allowed_is_refused_and_never_cut():
    found = replayed(LocalBooks(Ledger()), max_tokens=30)
    assert [found[f"q{i}"].status for i in range(10)] == ["answered"] * 5 + ["failed"] * 5
    assert (
        found["q9"].error
        == "The recorded answer of q9|small:cot|0 has 55 tokens; max_tokens=30 would have cut it."
    )


def test_what_was_not_recorded_is_not_invented():
    stranger = requests_of(POOL, 11)[10]

    async def ask() -> list[object]:
        return [reply async for reply in EXECUTOR.execute([stranger])]

    (reply,) = run_virtually(ask())
    assert isinstance(reply, Failure)
    assert (reply.transient, reply.maybe_paid) == (False, False)


def test_an_answer_that_is_longer_than_was_set_aside_is_extended_and_exactly_paid():
    assert isinstance(EXECUTOR, ExtendingExecutor)
    books = LocalBooks(Ledger(USD * 400))
    found = replayed(books, expected=20)
    assert {outcome.status for outcome in found.values()} == {"answered"}
    assert Grant.LEAST in {grant for _, grant in books.asked}
    assert Grant.GRANTED in {grant for _, grant in books.extended}
    assert books.ledger.spent_usd == USD * sum(10 + 5 * i for i in range(10))


def test_where_nothing_is_left_to_extend_it_the_answer_costs_nothing():
    books = LocalBooks(Ledger(USD * 21))
    found = replayed(books, expected=20)
    assert books.ledger.spent_usd == USD * sum(
        outcome.usage.output_tokens for outcome in found.values() if outcome.usage
    )
    assert books.ledger.unknown_usd == Decimal(0)
    assert {outcome.status for outcome in found.values()} == {"answered", "skipped_budget"}
