"""How an answer asks for more while it grows, and where it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import pytest

from rtr_ray.distributed.lending import Allowance, Extending, limit_of
from rtr_ray.executors.base import Limit
from rtr_ray.ledger import Grant
from tests.fakes import run_virtually

USD = Decimal("0.000004")


@dataclass
class Bank:
    """Says what it was told to say, the last word for ever; remembers what it was asked."""

    says: Sequence[Grant | Exception]
    asked: list[tuple[int, int]] = field(default_factory=list)  # tokens, tokens at least

    async def extend(self, key: str, call: str, usd: Decimal, least_usd: Decimal) -> Grant:
        assert (key, call) == ("q0", "c1")
        self.asked.append((int(usd / USD), int(least_usd / USD)))
        said = self.says[min(len(self.asked), len(self.says)) - 1]
        if isinstance(said, Exception):
            raise said
        return said


def generated(bank: Bank, tokens: int, most: int, length: int) -> int:
    """How long an answer of `length` gets, token by token."""
    body = {"max_tokens": most, "limit": limit_of("q0", Limit(tokens, USD, "c1"))}
    growing = Extending.read(body, bank)
    assert growing is not None
    assert body == {"max_tokens": most}  # the engine must not see it

    async def generate() -> int:
        for count in range(length):
            if count >= await growing.limit(count):
                return count
        return length

    found: int = run_virtually(generate())
    return found


def test_an_answer_that_ends_early_asks_for_nothing():
    bank = Bank([Grant.GRANTED])
    assert generated(bank, 100, 32_000, 60) == 60
    assert bank.asked == []


def test_an_answer_asks_before_its_limit_for_as_much_again():
    bank = Bank([Grant.GRANTED])
    assert generated(bank, 1000, 32_000, 10_000) == 10_000
    assert bank.asked == [(1000, 16), (2000, 16), (4000, 16), (8000, 16)]


def test_no_more_is_asked_for_than_the_request_allows():
    bank = Bank([Grant.GRANTED])
    assert generated(bank, 100, 150, 1000) == 150
    assert bank.asked == [(50, 16)]


def test_an_answer_that_gets_nothing_ends_at_its_limit_and_asks_once():
    bank = Bank([Grant.NEVER])
    assert generated(bank, 100, 32_000, 1000) == 100
    assert len(bank.asked) == 1


def test_while_others_may_still_settle_it_asks_again_until_the_limit():
    bank = Bank([Grant.WAIT])
    assert generated(bank, 100, 32_000, 1000) == 100
    assert 3 <= len(bank.asked) <= 7
    bank = Bank([Grant.WAIT, Grant.WAIT, Grant.GRANTED])
    assert generated(bank, 100, 200, 1000) == 200


def test_a_small_step_is_better_than_none():
    bank = Bank([Grant.LEAST, Grant.NEVER])
    assert generated(bank, 1000, 32_000, 5000) == 1016


@pytest.mark.parametrize("error", [ConnectionError("gone"), TimeoutError()])
def test_a_ledger_that_cannot_be_reached_lends_nothing(error: Exception):
    assert generated(Bank([error]), 100, 32_000, 1000) == 100


def test_what_has_no_limit_asks_nobody():
    assert Extending.read({"max_tokens": 10}, Bank([])) is None


def test_without_anybody_to_ask_the_limit_is_all_there_is():
    body = {"max_tokens": 10, "limit": limit_of("q0", Limit(5, USD, "c1"))}
    assert Extending.read(body, None) is None
    assert body == {"max_tokens": 5}


def test_an_allowance_of_everything_never_asks():
    held = Allowance(100, 100)
    assert not held.cuts
    assert held.ask_at > 100
