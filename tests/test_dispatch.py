"""Dispatch: every request ends as one outcome, and the books and the gate are left as they were found."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from rtr_ray.dispatch import Dispatcher, Gate, Settings, Settlement, settlement
from rtr_ray.errors import ConfigError, TransientError
from rtr_ray.executors.base import Limit, Reply
from rtr_ray.ledger import Grant, Ledger
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, Outcome, Request, Sample, Usage
from tests.fakes import (
    DeadlockError,
    LocalBooks,
    ScriptedExecutor,
    answer,
    pool_of,
    requests_of,
    run_virtually,
)

POOL = pool_of()
WORST = POOL.worst_case_usd(requests_of(POOL, 1)[0])  # of each request here
ACTUAL = Decimal("0.00006")  # 20 input and 10 output tokens at $1 and $4


@dataclass
class Bench:
    """One executor, one gate, one ledger, and what came out of them."""

    executor: Any = field(default_factory=ScriptedExecutor)
    gate: Gate = field(default_factory=lambda: Gate(8))
    budget_usd: Decimal | None = None
    delay_s: float = 0.01
    settings: Settings = field(default_factory=lambda: Settings(chunk=4))
    pool: Pool = POOL
    slept: list[float] = field(default_factory=list)
    out: list[Outcome] = field(default_factory=list)
    dispatchers: list[Dispatcher] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.books = LocalBooks(Ledger(self.budget_usd), self.delay_s)

    def dispatcher(self) -> Dispatcher:
        """One more that sends to the executor."""

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            await asyncio.sleep(seconds)

        one = Dispatcher(self.executor, self.books, self.pool, self.gate, self.settings, sleep)
        self.dispatchers.append(one)
        return one

    async def consume(self, requests: Iterable[Request], after_s: float = 0.0) -> list[Outcome]:
        """Run a dispatcher, and settle what it gives, later or at once."""
        mine: list[Outcome] = []
        settling: set[asyncio.Task[None]] = set()
        async with contextlib.aclosing(self.dispatcher().run(requests)) as outcomes:
            async for outcome in outcomes:
                mine.append(outcome)
                self.out.append(outcome)
                if (closing := settlement(self.pool, outcome)) is None:
                    continue
                if after_s:
                    settling.add(asyncio.create_task(self._settle_later(closing, after_s)))
                else:
                    await self.books.settle([closing])
        await asyncio.gather(*settling)
        return mine

    async def _settle_later(self, closing: Settlement, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self.books.settle([closing])

    def run(self, requests: Iterable[Request], after_s: float = 0.0) -> list[Outcome]:
        """Run one dispatcher to its end, and check that nothing is left behind."""

        async def all_of_it() -> list[Outcome]:
            mine = await self.consume(requests, after_s)
            self.check_clean()
            return mine

        found: list[Outcome] = run_virtually(all_of_it())
        return found

    def check_clean(self) -> None:
        """No task, no open reservation, nobody in the gate, nobody listening to it."""
        assert len(asyncio.all_tasks()) == 1
        assert self.books.ledger.balance().in_flight == 0
        assert self.books.ledger.reserved_usd == 0
        assert self.gate.taken == 0
        assert self.gate.listeners == []
        if isinstance(self.executor, ScriptedExecutor):
            assert (self.executor.there, self.executor.open_streams) == (0, 0)
            assert self.executor.most <= self.gate.limit


def test_every_request_comes_back_once_and_is_paid_for():
    bench = Bench()
    found = bench.run(requests_of(POOL, 30))
    assert Counter(o.query_id for o in found) == Counter(f"q{i}" for i in range(30))
    assert {o.status for o in found} == {"answered"}
    assert {o.attempts for o in found} == {1}
    assert bench.books.ledger.spent_usd == 30 * ACTUAL


def test_no_request_at_all_is_an_empty_run():
    assert Bench().run([]) == []


@pytest.mark.parametrize(
    "script", ["no", "again", "paid", "later", "counted", "failed", "raise", "die", "hang"]
)
def test_the_last_request_is_not_forgotten_while_the_ledger_is_told(script: str):
    # once, the run ended while the release of the only request was still on its way
    bench = Bench(ScriptedExecutor({"q0": [script, "ok"]}))
    (found,) = bench.run(requests_of(POOL, 1))
    assert found.status == ("failed" if script in ("no", "counted", "failed") else "answered")


@pytest.mark.parametrize(
    ("script", "status", "attempts", "error"),
    [
        (["ok"], "answered", 1, None),
        (["slow"], "answered", 1, None),
        (["no"], "failed", 1, "too long"),
        (["again", "again", "ok"], "answered", 3, None),
        (["again"], "failed", 8, "busy"),
        (["paid", "ok"], "answered", 2, None),
        (["counted"], "failed", 1, "refused at the end"),
        (["failed"], "failed", 1, "recorded so"),
        (["raise", "ok"], "answered", 2, None),
        (["raise"], "failed", 8, "ConnectionResetError: the replica died"),
        (["die"], "failed", 8, "the executor ended without a reply"),
        (["hang"], "failed", 8, "no reply within 600 s"),
        (["unsent", "unsent", "unsent", "ok"], "answered", 1, None),
    ],
)
def test_what_becomes_of_a_request(script: list[str], status: str, attempts: int, error: str | None):
    bench = Bench(ScriptedExecutor({"q2": script}))
    found = {o.query_id: o for o in bench.run(requests_of(POOL, 6))}
    assert (found["q2"].status, found["q2"].attempts, found["q2"].error) == (status, attempts, error)
    assert [found[f"q{i}"].status for i in (0, 1, 3, 4, 5)] == ["answered"] * 5


def test_a_failure_with_usage_is_paid_and_not_sent_again():
    bench = Bench(ScriptedExecutor({"q0": ["counted", "ok"]}))
    (found,) = bench.run(requests_of(POOL, 1))
    assert found.usage == Usage(20, 5)
    assert bench.books.ledger.spent_usd == Decimal("0.00004")


def test_a_recorded_failure_leaves_no_reservation_behind():
    bench = Bench(ScriptedExecutor({"q0": ["failed"]}))
    bench.run(requests_of(POOL, 1))
    # nobody knows what it cost
    assert (bench.books.ledger.unknown_usd, bench.books.ledger.unknown_calls) == (WORST, 1)


@pytest.mark.parametrize("word", ["twice", "stranger"])
def test_a_reply_that_nobody_waits_for_loses_no_other(word: str):
    bench = Bench(ScriptedExecutor({"q0": [word]}))
    found = bench.run(requests_of(POOL, 8))
    assert Counter(o.query_id for o in found) == Counter(f"q{i}" for i in range(8))
    assert bench.dispatchers[0].sent_again == 3  # the rest of its chunk


def test_one_that_brings_down_its_company_ends_up_alone():
    # q5 kills the replica every time: the 31 others must not fail with it
    bench = Bench(ScriptedExecutor({"q5": ["raise"]}), Gate(64), settings=Settings(chunk=32))
    found = {o.query_id: o for o in bench.run(requests_of(POOL, 32))}
    assert [name for name, o in found.items() if o.status == "failed"] == ["q5"]
    assert bench.executor.chunks[-1] == ["q5"]


def test_with_few_attempts_the_last_one_is_made_alone():
    settings = Settings(chunk=32, attempts=2)
    bench = Bench(ScriptedExecutor({"q5": ["raise"]}), Gate(64), settings=settings)
    found = {o.query_id: o for o in bench.run(requests_of(POOL, 32))}
    assert [name for name, o in found.items() if o.status == "failed"] == ["q5"]


def test_a_slow_request_does_not_hold_up_its_chunk():
    bench = Bench(ScriptedExecutor({"q1": ["slow"]}))
    found = bench.run(requests_of(POOL, 12))
    assert found[-1].query_id == "q1"
    assert len(found) == 12


def test_requests_travel_in_whole_chunks():
    bench = Bench(
        ScriptedExecutor(latency_s=lambda r: 1 + int(r.query_id[1:]) % 7),
        Gate(16 + 8),
        settings=Settings(chunk=8),
    )
    bench.run(requests_of(POOL, 203))
    sizes = [len(chunk) for chunk in bench.executor.chunks]
    assert sizes == [8] * 25 + [3]
    assert bench.executor.most == 24


def test_a_source_is_read_no_faster_than_it_is_sent():
    taken: list[int] = []

    def source() -> Iterator[Request]:
        for number, request in enumerate(requests_of(POOL, 100)):
            taken.append(number)
            yield request

    async def look() -> None:
        stream = Bench(gate=Gate(8)).dispatcher().run(source())
        await anext(stream)
        assert len(taken) == 8
        await stream.aclose()

    run_virtually(look())


def test_a_slow_consumer_slows_the_sending_down():
    bench = Bench(gate=Gate(8))

    async def consume() -> int:
        stream = bench.dispatcher().run(requests_of(POOL, 1000))
        await anext(stream)
        await asyncio.sleep(3600)
        sent = sum(map(len, bench.executor.chunks))
        await stream.aclose()
        return sent

    assert run_virtually(consume()) <= 24


def test_the_pauses_double_up_to_a_limit():
    bench = Bench(ScriptedExecutor({"q0": ["again"]}), settings=Settings(backoff_s=1.0, max_backoff_s=30.0))
    bench.run(requests_of(POOL, 1))
    assert bench.slept == [1, 2, 4, 8, 16, 30, 30]


def test_the_server_says_when_to_come_again():
    bench = Bench(ScriptedExecutor({"q0": ["later", "ok"]}))
    bench.run(requests_of(POOL, 1))
    assert bench.slept == [77.0]


def test_what_never_left_counts_as_no_attempt():
    bench = Bench(ScriptedExecutor({"q0": ["unsent"] * 50 + ["ok"]}))
    (found,) = bench.run(requests_of(POOL, 1))
    assert (found.status, found.attempts) == ("answered", 1)
    assert bench.slept == [60.0] * 50
    assert bench.books.ledger.unknown_usd == 0


def test_calls_that_may_be_paid_twice_are_counted():
    scripts = {"q0": ["paid", "paid", "ok"], "q1": ["again", "ok"], "q2": ["no"], "q3": ["raise", "ok"]}
    bench = Bench(ScriptedExecutor(scripts), settings=Settings(chunk=1))
    bench.run(requests_of(POOL, 4))
    assert bench.dispatchers[0].sent_again == 3  # q0 twice, q3 once
    assert bench.books.ledger.unknown_calls == 3
    assert bench.books.ledger.unknown_usd == 3 * WORST


def test_an_attempt_that_is_the_last_is_not_sent_again():
    bench = Bench(ScriptedExecutor({"q0": ["paid"]}), settings=Settings(attempts=1))
    bench.run(requests_of(POOL, 1))
    assert bench.dispatchers[0].sent_again == 0


class Refusing:
    """An executor that raises before it gives an iterator."""

    kind = "refusing"

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def execute(self, requests: Any) -> Any:
        self.calls += 1
        raise self.error

    async def aclose(self) -> None: ...


def test_an_executor_that_raises_at_once_gives_failures_not_a_hang():
    bench = Bench(Refusing(TimeoutError("nobody there")))
    found = bench.run(requests_of(POOL, 3))
    assert [(o.status, o.error) for o in found] == [("failed", "TimeoutError: nobody there")] * 3


def test_an_error_of_ours_is_final_unless_it_is_transient():
    # rtr-ray raises on purpose what trying again does not mend
    final, transient = Refusing(ConfigError("no key")), Refusing(TransientError("busy"))
    assert [o.attempts for o in Bench(final).run(requests_of(POOL, 1))] == [1]
    assert [o.attempts for o in Bench(transient).run(requests_of(POOL, 1))] == [8]


class Counting(ScriptedExecutor):
    """Replies without usage."""

    async def execute(self, requests: Any) -> Any:
        for request in requests:
            yield Outcome(request.query_id, request.candidate, (Sample("x", "stop", None),))


def test_an_answer_without_usage_is_an_unknown_cost_not_none():
    bench = Bench(Counting())
    bench.run(requests_of(POOL, 2))
    assert bench.books.ledger.spent_usd == 0
    assert bench.books.ledger.unknown_usd == 2 * WORST


# --- the budget -------------------------------------------------------------------------------------------


def test_a_request_waits_until_another_is_settled():
    bench = Bench(budget_usd=WORST + 3 * ACTUAL)  # one at a time fits
    found = bench.run(requests_of(POOL, 4), after_s=5.0)
    assert [o.status for o in found] == ["answered"] * 4
    assert Grant.WAIT in {grant for _, grant in bench.books.asked}
    assert bench.books.ledger.spent_usd == 4 * ACTUAL


def test_what_no_settlement_can_make_room_for_is_skipped():
    bench = Bench(budget_usd=WORST + 3 * ACTUAL)
    found = bench.run(requests_of(POOL, 6))
    assert [o.status for o in found] == ["answered"] * 4 + ["skipped_budget"] * 2
    assert [(o.attempts, o.usage) for o in found[-2:]] == [(0, None)] * 2
    assert {q for chunk in bench.executor.chunks for q in chunk} == {"q0", "q1", "q2", "q3"}


def test_a_request_that_was_tried_and_can_no_longer_be_paid_says_so():
    bench = Bench(ScriptedExecutor({"q0": ["paid"]}), budget_usd=WORST * 2)
    (found,) = bench.run(requests_of(POOL, 1))
    assert (found.status, found.attempts) == ("skipped_budget", 2)


def test_a_budget_of_nothing_skips_everything_and_free_models_answer_all():
    assert [o.status for o in Bench(budget_usd=Decimal(0)).run(requests_of(POOL, 3))] == [
        "skipped_budget"
    ] * 3
    free = pool_of(prices={"small": ("0", "0")})
    bench = Bench(budget_usd=Decimal(0), pool=free)
    assert [o.status for o in bench.run(requests_of(free, 3))] == ["answered"] * 3


def test_waiting_for_the_budget_does_not_hammer_the_ledger():
    # the room that a refused chunk gave back once woke the dispatcher that gave it, thousands of times
    bench = Bench(budget_usd=WORST + 10 * ACTUAL, delay_s=0.001)
    bench.run(requests_of(POOL, 3), after_s=10.0)
    assert bench.books.calls < 4 * 2 * 10 / 0.25


def test_two_that_wait_for_the_budget_do_not_wake_each_other():
    bench = Bench(budget_usd=WORST + 10 * ACTUAL, delay_s=0.001)

    async def both() -> None:
        one, other = requests_of(POOL, 6)[:3], requests_of(POOL, 6)[3:]
        await asyncio.gather(bench.consume(one, 10.0), bench.consume(other, 10.0))

    run_virtually(both())
    assert len(bench.out) == 6
    assert bench.books.calls < 2 * 6 * 10 / 0.25 * 2


# --- less than the worst case -----------------------------------------------------------------------------


class Growing(ScriptedExecutor):
    """Its answers can be extended; keeps what it was told of their limits."""

    limits: list[Limit | None] = []  # noqa: RUF012

    async def execute_limited(self, requests: Any, limits: Any, lender: Any) -> Any:
        self.limits = [*self.limits, *limits]
        assert hasattr(lender, "extend")
        async for reply in self.execute(requests):
            yield reply


def expecting(count: int, tokens: int | None, pool: Pool = POOL) -> list[Request]:
    return [replace(request, expected_tokens=tokens) for request in requests_of(pool, count)]


LEAST = POOL.price(POOL.candidates[0]).worst_case_usd(requests_of(POOL, 1)[0].max_input_tokens, 15)


def test_where_worst_cases_would_leave_others_out_all_are_sent_with_less():
    # six worst cases would fit; with less for each all eight are out
    executor = Growing()
    bench = Bench(executor, budget_usd=LEAST * 10)
    assert {o.status for o in bench.run(expecting(8, 15))} == {"answered"}
    assert executor.most == 8
    assert [limit.tokens for limit in executor.limits if limit] == [15] * 8
    assert {limit.usd_per_token for limit in executor.limits if limit} == {Decimal("0.000004")}
    assert len({limit.call for limit in executor.limits if limit}) == 8
    assert bench.books.ledger.spent_usd == 8 * ACTUAL


def test_while_there_is_plenty_no_answer_is_limited():
    executor = Growing()
    Bench(executor, budget_usd=WORST * 2000).run(expecting(8, 15))
    assert executor.limits == []


@pytest.mark.parametrize("tokens", [None, 100, 5000])
def test_what_is_not_expected_to_be_shorter_is_not_limited(tokens: int | None):
    executor = Growing()
    Bench(executor, budget_usd=WORST * 2).run(expecting(4, tokens))
    assert executor.limits == []


def test_several_samples_are_reserved_at_their_worst_case():
    votes = pool_of(("small:cot@3",))
    executor = Growing()
    worst = votes.worst_case_usd(requests_of(votes, 1)[0])
    bench = Bench(executor, budget_usd=worst * 2, pool=votes)
    bench.run(expecting(4, 15, votes))
    assert executor.limits == []
    assert {r.least_usd for r in bench.books.reservations} == {None}


def test_an_executor_that_cannot_extend_gets_no_more_tokens_than_are_paid_for():
    class Noting(ScriptedExecutor):
        seen: list[int] = []  # noqa: RUF012

        async def execute(self, requests: Any) -> Any:
            for request in requests:
                self.seen = [*self.seen, request.max_tokens]
                sample = Sample("4", "length", request.max_tokens)
                yield replace(answer(request, request.max_tokens), samples=(sample,))

    executor = Noting()
    bench = Bench(executor, budget_usd=WORST - ACTUAL)  # the worst case will never fit
    (found,) = bench.run(expecting(1, 15))
    assert executor.seen == [15]
    assert [s.finish_reason for s in found.samples] == ["budget"]
    assert bench.books.ledger.spent_usd == POOL.cost_usd(found.candidate, Usage(20, 15))
    # at its own limit an answer is cut by that
    (found,) = Bench(Noting()).run(expecting(1, 15))
    assert [s.finish_reason for s in found.samples] == ["length"]


def test_a_lost_reply_to_a_limited_answer_counts_with_what_was_set_aside_for_it():
    bench = Bench(Growing({"q0": ["paid"]}), settings=Settings(attempts=1), budget_usd=WORST)
    bench.run(expecting(1, 15))
    assert bench.books.ledger.unknown_usd == LEAST


def test_what_is_skipped_says_what_it_would_have_cost_and_what_is_left():
    (dear,) = Bench(budget_usd=ACTUAL).run(expecting(1, 15))
    assert dear.status == "skipped_budget"
    assert dear.error == (
        f"the budget does not cover this request: it may cost ${WORST:f}, and ${LEAST:f} with the answer "
        f"that is expected; ${ACTUAL:f} are left"
    )
    (dear,) = Bench(budget_usd=ACTUAL).run(requests_of(POOL, 1))
    assert dear.error == (
        f"the budget does not cover this request: it may cost ${WORST:f}; ${ACTUAL:f} are left"
    )


# --- the gate ---------------------------------------------------------------------------------------------


def test_two_dispatchers_share_a_gate_and_never_exceed_it():
    bench = Bench(gate=Gate(10), settings=Settings(chunk=3))

    async def both() -> None:
        requests = requests_of(POOL, 60)
        await asyncio.gather(bench.consume(requests[::2]), bench.consume(requests[1::2]))
        bench.check_clean()

    run_virtually(both())
    assert len(bench.out) == 60
    assert bench.executor.most <= 10


def test_the_room_of_one_that_drains_goes_to_the_other():
    # a's last answer takes an hour; b must meanwhile fill the rest of the gate
    executor = ScriptedExecutor(latency_s=lambda r: 3600.0 if r.query_id == "q0" else 1.0)
    bench = Bench(executor, Gate(8), settings=Settings(chunk=4))

    async def both() -> float:
        a, b = requests_of(POOL, 101)[:1], requests_of(POOL, 101)[1:]
        draining = asyncio.create_task(bench.consume(a))
        await asyncio.sleep(0.5)
        await bench.consume(b)
        now = asyncio.get_running_loop().time()
        await draining
        bench.check_clean()
        return now

    assert run_virtually(both()) < 30
    assert bench.executor.most == 8 - 3  # one, and a whole chunk beside it


def test_a_gate_without_room_for_one_is_refused():
    with pytest.raises(ConfigError, match="0 requests may be in flight at once; 1 is the least"):
        Gate(0)


@pytest.mark.parametrize(
    ("field_", "value"), [("chunk", 0), ("attempts", 0), ("backoff_s", 0), ("timeout_s", -1.0)]
)
def test_settings_that_make_no_sense_are_refused(field_: str, value: float):
    with pytest.raises(ConfigError, match=rf"dispatch\.{field_} is {value}"):
        Settings(**{field_: value})  # type: ignore[arg-type]


# --- endings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_s", [0.0, 0.001, 0.005, 0.0101, 0.5, 1.0, 1.004, 1.5, 3.0, 10.0])
def test_cancelling_a_run_leaves_nothing_behind(at_s: float):
    scripts = {"q0": ["hang"], "q1": ["no"], "q2": ["again"], "q3": ["paid"], "q4": ["raise"], "q5": ["ok"]}
    bench = Bench(ScriptedExecutor(scripts))

    async def cancelled() -> None:
        task = asyncio.create_task(bench.consume(requests_of(POOL, 30), after_s=0.001))
        await asyncio.sleep(at_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # those that were out are lost, those that were handed out are the consumer's to settle
        await asyncio.sleep(1)
        bench.check_clean()
        assert bench.books.ledger.unknown_calls >= (1 if 0.01 < at_s < 600 else 0)

    run_virtually(cancelled())


def test_what_was_not_yet_sent_is_not_lost_when_a_run_is_cancelled():
    bench = Bench(delay_s=1.0)

    async def cancelled() -> None:
        task = asyncio.create_task(bench.consume(requests_of(POOL, 4)))
        await asyncio.sleep(0.75)  # the ledger has granted, the answer is on its way back
        assert bench.books.ledger.reserved_usd == 4 * WORST
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        bench.check_clean()
        assert bench.books.ledger.unknown_usd == 0
        assert bench.executor.chunks == []

    run_virtually(cancelled())


def test_closing_the_stream_right_after_a_refusal_leaves_nothing_behind():
    # the chunk's task has not taken its first step yet: it can close nothing itself
    bench = Bench(budget_usd=WORST * 2, delay_s=0.0)

    async def closed() -> None:
        stream = bench.dispatcher().run(requests_of(pool_of(max_tokens=100), 2) + dear)
        first = await anext(stream)
        assert first.status == "skipped_budget"
        await stream.aclose()
        bench.check_clean()

    dear = requests_of(pool_of(max_tokens=10_000), 3)[2:]
    run_virtually(closed())


@pytest.mark.parametrize("broken_after", range(6))
def test_a_broken_ledger_ends_the_run_with_its_error(broken_after: int):
    scripts = {"q1": ["no"], "q2": ["again", "ok"], "q3": ["paid", "ok"]}
    bench = Bench(ScriptedExecutor(scripts), settings=Settings(chunk=2))
    bench.books.broken_after = broken_after

    async def broken() -> None:
        with pytest.raises(ConnectionError, match="the ledger is gone"):
            await bench.consume(requests_of(POOL, 30))
        assert len(asyncio.all_tasks()) == 1
        assert (bench.gate.taken, bench.gate.listeners) == (0, [])
        assert bench.executor.open_streams == 0

    run_virtually(broken())


def test_answers_that_are_there_are_given_out_before_the_ledgers_error():
    bench = Bench(ScriptedExecutor({"q7": ["no"]}), delay_s=0.0)
    bench.books.broken_after = 2  # the two chunks are granted, the release of q7 fails

    async def broken() -> None:
        with pytest.raises(ConnectionError, match="the ledger is gone"):
            await bench.consume(requests_of(POOL, 8), after_s=1.0)

    run_virtually(broken())
    assert [o.query_id for o in bench.out] == [f"q{i}" for i in range(7)]


def test_a_source_that_raises_ends_the_run_with_its_error():
    def source() -> Iterator[Request]:
        yield from requests_of(POOL, 5)
        raise OSError("the plan part cannot be read")

    bench = Bench()

    async def broken() -> None:
        with pytest.raises(OSError, match="cannot be read"):
            await bench.consume(source())
        bench.check_clean()

    run_virtually(broken())


def test_a_run_that_is_failed_from_outside_ends_at_once_though_it_waits_for_the_budget():
    # who should settle the first two has failed: the budget is never freed
    bench = Bench(budget_usd=WORST * 2, settings=Settings(chunk=2))

    async def failed() -> float:
        dispatcher = bench.dispatcher()
        stream = dispatcher.run(requests_of(POOL, 8))
        async with contextlib.aclosing(stream):
            got = [await anext(stream), await anext(stream)]
            asyncio.get_running_loop().call_later(5.0, dispatcher.fail, OSError("disk full"))
            with pytest.raises(OSError, match="disk full"):
                await anext(stream)
        assert [o.status for o in got] == ["answered"] * 2
        assert bench.books.ledger.in_flight == 2  # theirs who took them
        assert (bench.gate.taken, bench.gate.listeners) == (0, [])
        return asyncio.get_running_loop().time()

    assert run_virtually(failed()) < 7


def test_a_run_that_is_failed_from_outside_gives_out_what_has_been_answered_and_sends_no_more():
    bench = Bench(gate=Gate(4), delay_s=0.0)

    got: list[Outcome] = []

    async def consume(dispatcher: Dispatcher) -> None:
        async with contextlib.aclosing(dispatcher.run(requests_of(POOL, 100))) as outcomes:
            async for outcome in outcomes:
                if not got:
                    await asyncio.sleep(0.1)  # the other three of its chunk have come
                    dispatcher.fail(OSError("disk full"))
                    dispatcher.fail(OSError("and another"))
                got.append(outcome)

    with pytest.raises(OSError, match="disk full"):
        run_virtually(consume(bench.dispatcher()))
    assert len(got) == 4
    assert sum(map(len, bench.executor.chunks)) == 4


# --- any interleaving -------------------------------------------------------------------------------------

WORDS = (
    ["ok"] * 6
    + ["slow", "again", "later", "paid", "no", "counted", "failed", "raise", "hang", "die"]
    + ["twice", "stranger", "unsent"]
)


def chaos(seed: int) -> Bench:
    """A random executor, ledger, gate and budget."""
    dice = random.Random(seed)
    count = dice.randint(1, 9)
    scripts = {f"q{i}": [dice.choice(WORDS) for _ in range(dice.randint(1, 3))] for i in range(count)}
    for script in scripts.values():
        if script[-1] == "unsent":
            script.append("ok")  # a call gets its turn some day
    latencies = {f"q{i}": dice.choice([0.0, 0.3, 1.0, dice.random() * 5]) for i in range(count)}
    return Bench(
        ScriptedExecutor(scripts, latency_s=lambda r: latencies[r.query_id]),
        Gate(dice.randint(1, 6)),
        budget_usd=dice.choice([None, WORST * dice.randint(0, 3) + ACTUAL * dice.randint(0, 9)]),
        delay_s=dice.choice([0.0, 0.01, 0.7]),
        settings=Settings(chunk=dice.randint(1, 4), attempts=dice.randint(1, 4), timeout_s=20.0),
    )


def test_under_any_interleaving_nothing_is_lost_leaked_or_overspent():
    seen: Counter[str] = Counter()
    for seed in range(1200):
        bench = chaos(seed)
        dice = random.Random(-seed - 1)
        after_s = dice.choice([0.0, 0.5, 3.0])
        requests = requests_of(POOL, len(bench.executor.scripts))
        cut = dice.randint(0, len(requests))

        async def both() -> None:
            await asyncio.gather(
                bench.consume(requests[:cut], after_s),  # noqa: B023
                bench.consume(requests[cut:], after_s),  # noqa: B023
            )
            bench.check_clean()  # noqa: B023

        try:
            run_virtually(both())
        except DeadlockError as error:
            raise AssertionError(f"seed {seed} hangs") from error
        assert Counter(o.query_id for o in bench.out) == Counter(r.query_id for r in requests), seed
        spent = sum(
            (POOL.cost_usd(o.candidate, o.usage) for o in bench.out if o.usage is not None), Decimal(0)
        )
        assert bench.books.ledger.spent_usd == spent, seed
        seen.update(str(o.status) for o in bench.out)
    assert min(seen["answered"], seen["failed"], seen["skipped_budget"]) > 300, "the dice are loaded"


def test_cancelled_at_any_moment_nothing_is_leaked():
    for seed in range(1000):
        bench = chaos(seed)
        dice = random.Random(-seed - 1)
        requests = requests_of(POOL, len(bench.executor.scripts))

        async def cancelled() -> None:
            task = asyncio.create_task(bench.consume(requests, 0.0))  # noqa: B023
            await asyncio.sleep(dice.choice([0.0, 0.005, 0.35, 0.7, dice.random() * 10]))  # noqa: B023
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            assert isinstance(result, list | asyncio.CancelledError)
            # a consumer that was cancelled on its way to the ledger owes it a settlement; nobody else may
            owed = bench.books.ledger.balance().in_flight  # noqa: B023
            assert owed <= (1 if bench.out else 0)  # noqa: B023
            assert len(asyncio.all_tasks()) == 1
            assert (bench.gate.taken, bench.gate.listeners) == (0, [])  # noqa: B023
            assert bench.executor.open_streams == 0  # noqa: B023

        run_virtually(cancelled())


def test_the_harness_notices_a_hang():
    # the check of the checks: a dispatcher that nobody ever gives room
    gate = Gate(4)
    gate.taken = 4
    with pytest.raises(DeadlockError):
        Bench(gate=gate).run(requests_of(POOL, 1))


def test_settlements():
    request = requests_of(POOL, 1)[0]
    small = Candidate("small", "cot")
    assert settlement(POOL, answer(request)) == Settlement("q0|small:cot|0", Usage(20, 10), ACTUAL)
    assert settlement(POOL, Outcome("q0", small)) == Settlement("q0|small:cot|0", lost=True)
    assert settlement(POOL, Outcome("q0", small, status="failed", error="x")) is None
    assert settlement(POOL, Outcome("q0", small, status="skipped_budget")) is None


def test_replies_are_typed():
    # what the fakes give is what the protocol says
    assert Reply.__args__[0] is Outcome  # type: ignore[attr-defined]
