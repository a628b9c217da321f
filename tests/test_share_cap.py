"""A key gets no more than its share of the dearest candidates, however its queries are worded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import pytest

from rtr_ray.errors import ConfigError
from rtr_ray.gate import Caller, Hold, Offer, OpenGate
from rtr_ray.share_cap import CappedGate, ShareCap
from rtr_ray.types import Candidate
from tests.fakes import pool_of

CHEAP, MIDDLE, DEAR = (Candidate(name, "x") for name in ("cheap", "middle", "dear"))
ANN, BOB = Caller("1", "ann"), Caller("2", "bob")


def offers(*candidates: Candidate) -> list[Offer]:
    return [Offer(candidate, Decimal("0.01"), 100) for candidate in candidates]


def sent(gate: CappedGate, caller: Caller, wanted: Sequence[Candidate], times: int) -> list[Candidate]:
    async def ask() -> list[Candidate]:
        held = [await gate.reserve(caller, offers(*wanted)) for _ in range(times)]
        return [one.offer.candidate for one in held if isinstance(one, Hold)]

    return asyncio.run(ask())


def test_whoever_always_wants_the_dearest_gets_it_in_its_share_of_any_window():
    gate = CappedGate(OpenGate(), ShareCap(frozenset({DEAR}), 0.2, 10))
    got = sent(gate, ANN, (DEAR, CHEAP), 100)
    dear = [candidate == DEAR for candidate in got]
    assert sum(dear) == 20
    assert max(sum(dear[start : start + 10]) for start in range(91)) == 2
    assert got.count(CHEAP) == 80
    assert DEAR in sent(gate, BOB, (DEAR, CHEAP), 1), "another key has a share of its own"


def test_who_is_rarely_sent_to_it_is_not_held_back():
    gate = CappedGate(OpenGate(), ShareCap(frozenset({DEAR}), 0.2, 10))
    got = [
        one
        for _ in range(10)
        for one in sent(gate, ANN, (CHEAP, DEAR), 9) + sent(gate, ANN, (DEAR, CHEAP), 1)
    ]
    assert got.count(DEAR) == 10


def test_what_is_asked_for_by_name_is_neither_held_back_nor_counted():
    gate = CappedGate(OpenGate(), ShareCap(frozenset({DEAR}), 0.1, 10))
    assert sent(gate, ANN, (DEAR,), 30) == [DEAR] * 30
    assert sent(gate, ANN, (DEAR, CHEAP), 2) == [DEAR, CHEAP]
    assert sent(gate, ANN, (DEAR, DEAR), 1) == [DEAR], "there is nothing else"


def test_no_share_is_none_at_all():
    gate = CappedGate(OpenGate(), ShareCap(frozenset({DEAR}), 0.0))
    assert sent(gate, ANN, (DEAR, MIDDLE, CHEAP), 5) == [MIDDLE] * 5


def test_dear_is_what_may_cost_many_times_the_median():
    pool = pool_of(
        ["cheap:x", "middle:x", "dear:x"], {"cheap": ("1", "1"), "middle": ("1", "2"), "dear": ("1", "50")}
    )
    assert ShareCap.of(pool, 0.1, 100, 4.0).dearest == {DEAR}
    with pytest.raises(ConfigError, match=r"share_cap.times is 100: 0 of 3 candidates"):
        ShareCap.of(pool, 0.1, 100, 100)
    with pytest.raises(ConfigError, match=r"share_cap has share=2, window=100"):
        ShareCap(frozenset(), 2)
