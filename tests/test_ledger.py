"""The ledger: whatever the order of calls, the budget holds and every dollar is somewhere."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from rtr_ray.errors import LedgerError, StorageError
from rtr_ray.ledger import Account, Grant, Ledger, Record
from rtr_ray.pool import USD_QUANTUM, Price
from rtr_ray.types import Candidate, Usage

SMALL, LARGE = Candidate("small", "cot"), Candidate("large", "vanilla")
CANDIDATES = st.sampled_from([SMALL, LARGE])
MONEY = st.integers(0, 10**13).map(lambda pico: pico * USD_QUANTUM)  # up to $10, to the last digit


def ledger(budget: str | None = None) -> Ledger:
    return Ledger(None if budget is None else Decimal(budget))


def test_what_fits_is_granted_what_may_fit_later_waits_what_never_will_is_refused():
    books = ledger("1.00")
    assert books.reserve("a", SMALL, Decimal("0.60")) is Grant.GRANTED
    assert books.reserve("b", SMALL, Decimal("0.40")) is Grant.GRANTED  # to the last cent
    assert books.reserve("c", SMALL, Decimal("0.000000000001")) is Grant.WAIT
    assert books.reserve("d", SMALL, Decimal("1.000000000001")) is Grant.NEVER


def test_a_wait_becomes_a_grant_when_another_is_settled_for_less():
    books = ledger("1.00")
    books.reserve("a", SMALL, Decimal("0.70"))
    assert books.reserve("b", SMALL, Decimal("0.70")) is Grant.WAIT
    books.settle("a", Usage(10, 10), Decimal("0.30"))
    assert books.reserve("b", SMALL, Decimal("0.70")) is Grant.GRANTED


def test_a_wait_becomes_a_never_when_another_is_settled_for_more():
    books = ledger("1.00")
    books.reserve("a", SMALL, Decimal("0.70"))
    books.settle("a", Usage(10, 10), Decimal("0.31"))
    assert books.reserve("b", SMALL, Decimal("0.70")) is Grant.NEVER


def test_what_was_refused_holds_nothing():
    books = ledger("1.00")
    books.reserve("a", SMALL, Decimal("2"))
    assert books.reserved_usd == 0
    with pytest.raises(LedgerError):
        books.release("a")


def test_a_lost_call_counts_at_its_worst_for_good():
    books = ledger("1.00")
    books.reserve("a", SMALL, Decimal("0.70"))
    books.lose("a")
    balance = books.balance()
    assert (balance.spent_usd, balance.reserved_usd) == (0, 0)
    assert (balance.unknown_usd, balance.unknown_calls) == (Decimal("0.70"), 1)
    assert books.reserve("a", SMALL, Decimal("0.40")) is Grant.NEVER
    assert books.reserve("a", SMALL, Decimal("0.30")) is Grant.GRANTED


def test_without_a_budget_everything_is_granted():
    assert ledger().reserve("a", SMALL, Decimal("1e9")) is Grant.GRANTED


@pytest.mark.parametrize("budget", ["0", "1.00"])
def test_what_costs_nothing_is_always_granted(budget: str):
    books = ledger(budget)
    books.reserve("dear", LARGE, Decimal(budget))
    books.lose("dear")
    assert books.reserve("free", SMALL, Decimal(0)) is Grant.GRANTED


@pytest.mark.parametrize("end", ["release", "lose", "settle"])
@pytest.mark.parametrize("again", ["release", "lose", "settle"])
def test_a_reservation_is_closed_once(end: str, again: str):
    def close(how: str) -> None:
        if how == "settle":
            books.settle("q1|small:cot|0", Usage(1, 1), Decimal("0.1"))
        else:
            getattr(books, how)("q1|small:cot|0")

    books = ledger("1.00")
    books.reserve("q1|small:cot|0", SMALL, Decimal("0.5"))
    close(end)
    before = books.balance()
    with pytest.raises(LedgerError, match=r"q1\|small:cot\|0 holds no reservation"):
        close(again)
    assert books.balance() == before


def test_the_same_request_is_not_reserved_twice_nor_for_less_than_nothing():
    books = ledger("1.00")
    books.reserve("a", SMALL, Decimal("0.1"))
    with pytest.raises(LedgerError, match="a is reserved already"):
        books.reserve("a", SMALL, Decimal("0.1"))
    with pytest.raises(LedgerError, match="an amount is not negative"):
        books.reserve("b", SMALL, Decimal("-0.1"))


def test_dollars_are_exact():
    # a third of a million calls at a price with six decimals, to the last digit
    price = Price(Decimal("0.333333"), Decimal("0.777777"))
    books = ledger()
    for number in range(1000):
        books.reserve(str(number), SMALL, price.worst_case_usd(7, 13))
        books.settle(str(number), Usage(7, 13), price.cost_usd(Usage(7, 13)))
    assert books.spent_usd == 1000 * (7 * Decimal("0.333333") + 13 * Decimal("0.777777")) / 10**6
    assert str(books.spent_usd) == "0.012444432000"


def test_each_candidate_has_its_account():
    books = ledger()
    for key, candidate in (("a", SMALL), ("b", LARGE), ("c", SMALL)):
        books.reserve(key, candidate, Decimal(1))
        books.settle(key, Usage(10, 5, cached_input_tokens=4), Decimal("0.25"))
    assert books.accounts == {
        SMALL: Account(2, 20, 8, 10, Decimal("0.50")),
        LARGE: Account(1, 10, 4, 5, Decimal("0.25")),
    }


def test_a_resumed_run_books_what_it_has_spent_before():
    books = ledger("1.00")
    books.book(SMALL, Account(3, 30, 0, 30, Decimal("0.80")))
    books.book(SMALL, Account(1, 10, 0, 10, Decimal("0.10")))
    assert books.spent_usd == Decimal("0.90")
    assert books.accounts[SMALL].rows == 4
    assert books.reserve("a", SMALL, Decimal("0.11")) is Grant.NEVER


def test_a_balance_is_a_picture_not_a_window():
    books = ledger()
    books.reserve("a", SMALL, Decimal(1))
    books.settle("a", Usage(1, 1), Decimal("0.5"))
    before = books.balance()
    books.reserve("b", SMALL, Decimal(1))
    books.settle("b", Usage(1, 1), Decimal("0.5"))
    assert before.accounts[SMALL].rows == 1


# --- less than the worst case, and more later -------------------------------------------------------------


def partly(books: Ledger, key: str, worst: str, least: str, grows: bool = True) -> Grant:
    return books.reserve(key, SMALL, Decimal(worst), Decimal(least), grows, f"call of {key}")


def test_while_there_is_plenty_the_worst_case_is_granted_and_then_the_least():
    books = ledger("10.00")
    # a two-hundredth of what is left may be set aside for worst cases
    assert [partly(books, f"q{i}", "0.025", "0.02") for i in range(4)] == [
        *(Grant.GRANTED, Grant.GRANTED),
        *(Grant.LEAST, Grant.LEAST),
    ]
    assert books.reserved_usd == Decimal("0.09")


def test_a_tenth_of_what_is_left_is_kept_for_those_that_must_be_extended():
    books = ledger("1.00")
    granted = [partly(books, f"q{i}", "1.00", "0.08") for i in range(12)]
    assert granted == [Grant.LEAST] * 11 + [Grant.WAIT]
    assert books.extend("q0", "call of q0", Decimal("0.12")) is Grant.GRANTED  # 0.88 + 0.12
    assert books.reserved_usd == Decimal("1.00")


def test_who_is_alone_need_not_leave_anything():
    books = ledger("1.00")
    assert partly(books, "q0", "2.00", "1.00") is Grant.LEAST
    assert partly(books, "q1", "2.00", "0.01") is Grant.WAIT


def test_where_not_even_the_least_is_left_it_is_never():
    books = ledger("1.00")
    books.book(SMALL, Account(1, 1, 0, 1, Decimal("0.90")))
    assert partly(books, "q0", "0.20", "0.11") is Grant.NEVER
    assert partly(books, "q1", "0.20", "0.10") is Grant.LEAST


def test_what_cannot_grow_waits_for_its_worst_case_rather_than_being_cut():
    books = ledger("1.00")
    books.reserve("other", LARGE, Decimal("0.50"))
    assert partly(books, "q0", "0.60", "0.10", grows=False) is Grant.WAIT
    books.release("other")
    assert partly(books, "q0", "0.60", "0.10", grows=False) is Grant.GRANTED
    # this worst case will never fit any more
    assert partly(books, "q1", "1.10", "0.10", grows=False) is Grant.LEAST
    assert partly(books, "q2", "1.10", "0.40", grows=False) is Grant.WAIT


def test_a_least_that_is_no_less_is_the_worst_case():
    books = ledger("1.00")
    assert partly(books, "q0", "0.90", "0.95") is Grant.GRANTED


def test_without_a_budget_nobody_is_held_to_less():
    books = ledger()
    assert partly(books, "q0", "1000", "1") is Grant.GRANTED
    assert books.extend("q0", "call of q0", Decimal(1)) is Grant.GRANTED


def test_an_extension_is_all_or_the_least_or_later_or_never():
    books = ledger("1.00")
    partly(books, "q0", "2.00", "0.40")
    partly(books, "q1", "2.00", "0.40")
    assert books.extend("q0", "call of q0", Decimal("0.10"), Decimal("0.05")) is Grant.GRANTED
    assert books.extend("q0", "call of q0", Decimal("0.20"), Decimal("0.05")) is Grant.LEAST
    assert books.extend("q0", "call of q0", Decimal("0.20"), Decimal("0.06")) is Grant.WAIT  # for q1
    assert books.extend("q0", "call of q0", Decimal("0.60"), Decimal("0.50")) is Grant.NEVER
    assert books.reserved_usd == Decimal("0.95")
    books.settle("q1", Usage(1, 1), Decimal("0.10"))
    assert books.extend("q0", "call of q0", Decimal("0.35"), Decimal("0.06")) is Grant.GRANTED
    assert books.spent_usd + books.reserved_usd == Decimal("1.00")


def test_a_call_that_was_given_up_gets_no_more_though_its_request_was_sent_again():
    books = ledger("1.00")
    books.reserve("q0", SMALL, Decimal("0.5"), Decimal("0.1"), True, "first")
    books.lose("q0")
    assert books.extend("q0", "first", Decimal("0.1")) is Grant.NEVER
    books.reserve("q0", SMALL, Decimal("0.5"), Decimal("0.1"), True, "second")
    assert books.extend("q0", "first", Decimal("0.1")) is Grant.NEVER
    assert books.extend("q0", "second", Decimal("0.1")) is Grant.GRANTED


def test_a_lost_call_counts_with_all_that_was_added_to_it():
    books = ledger("1.00")
    partly(books, "q0", "2.00", "0.40")
    books.extend("q0", "call of q0", Decimal("0.25"))
    books.lose("q0")
    assert (books.reserved_usd, books.unknown_usd) == (0, Decimal("0.65"))


def test_an_extension_is_not_negative():
    books = ledger("1.00")
    partly(books, "q0", "2.00", "0.40")
    with pytest.raises(LedgerError, match="asks for -1 dollars more; an amount is not negative"):
        books.extend("q0", "call of q0", Decimal(-1))


class AnyInterleaving(RuleBasedStateMachine):
    """Reserve, settle, release and lose in any order, beside a model that keeps every call by hand."""

    open_ = Bundle("open")

    @initialize(budget=st.one_of(st.none(), MONEY))
    def begin(self, budget: Decimal | None) -> None:
        self.ledger = Ledger(budget)
        self.number = 0
        self.held: dict[str, Decimal] = {}
        self.spent: list[Decimal] = []
        self.unknown: list[Decimal] = []

    @rule(target=open_, candidate=CANDIDATES, worst=MONEY)
    def reserve(self, candidate: Candidate, worst: Decimal) -> str:
        key, self.number = f"q{self.number}", self.number + 1
        gone = sum(self.spent) + sum(self.unknown)
        budget = self.ledger.budget_usd
        grant = self.ledger.reserve(key, candidate, worst, call=key)
        if budget is None or worst == 0 or gone + sum(self.held.values()) + worst <= budget:
            assert grant is Grant.GRANTED
            self.held[key] = worst
        else:
            assert grant is (Grant.NEVER if gone + worst > budget else Grant.WAIT)
        return key

    @rule(target=open_, candidate=CANDIDATES, worst=MONEY, least=MONEY, grows=st.booleans())
    def reserve_less(self, candidate: Candidate, worst: Decimal, least: Decimal, grows: bool) -> str:
        key, self.number = f"q{self.number}", self.number + 1
        left = self.ledger.left_usd
        grant = self.ledger.reserve(key, candidate, worst, least, grows, key)
        if grant.given:
            self.held[key] = worst if grant is Grant.GRANTED else min(least, worst)
        else:
            assert left is not None
            assert (grant is Grant.NEVER) == (min(least, worst) > left)
        return key

    @rule(key=open_, more=MONEY, least=MONEY)
    def extend(self, key: str, more: Decimal, least: Decimal) -> None:
        grant = self.ledger.extend(key, key, more, least)
        if key not in self.held:
            assert grant is Grant.NEVER
        elif grant.given:
            self.held[key] += more if grant is Grant.GRANTED else min(least, more)

    @rule(key=consumes(open_), candidate=CANDIDATES, share=st.integers(0, 1000), how=st.integers(0, 2))
    def close(self, key: str, candidate: Candidate, share: int, how: int) -> None:
        if key not in self.held:  # it was not granted
            with pytest.raises(LedgerError):
                self.ledger.release(key)
            return
        worst = self.held.pop(key)
        if how == 0:
            cost = (worst * share / 1000).quantize(USD_QUANTUM)
            self.ledger.settle(key, Usage(share, share), cost)
            self.spent.append(cost)
        elif how == 1:
            self.ledger.release(key)
        else:
            self.ledger.lose(key)
            self.unknown.append(worst)

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "ledger"):
            return
        balance = self.ledger.balance()
        assert balance.spent_usd == sum(self.spent)
        assert balance.reserved_usd == sum(self.held.values())
        assert balance.unknown_usd == sum(self.unknown)
        assert balance.in_flight == len(self.held)
        assert balance.spent_usd == sum(account.cost_usd for account in balance.accounts.values())
        if balance.budget_usd is not None:
            assert balance.spent_usd + balance.reserved_usd + balance.unknown_usd <= balance.budget_usd


AnyInterleaving.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyInterleaving = AnyInterleaving.TestCase


# --- what a later session must know -----------------------------------------------------------------------


def test_what_was_lost_stays_lost_in_the_next_session():
    first = ledger("1.00")
    first.reserve("a", SMALL, Decimal("0.90"))
    first.lose("a")
    saved = Record(first.committed_usd, first.unknown_usd, first.unknown_calls).to_json()
    second = ledger("1.00")
    second.recall(Record.from_json(json.loads(json.dumps(saved))))
    assert (second.unknown_usd, second.unknown_calls) == (Decimal("0.90"), 1)
    assert second.reserve("a", SMALL, Decimal("0.90")) is Grant.NEVER
    assert second.reserve("a", SMALL, Decimal("0.10")) is Grant.GRANTED


def test_what_was_in_flight_at_a_kill_is_unknown_unless_the_results_show_it():
    # spent 0.20, 0.50 set aside, of which 0.10 came to be a result before the kill
    record = Record(committed_usd=Decimal("0.70"), in_flight=2)
    books = ledger("1.00")
    books.book(SMALL, Account(2, 1, 0, 1, Decimal("0.30")))
    books.recall(record)
    assert (books.unknown_usd, books.unknown_calls) == (Decimal("0.40"), 2)
    assert books.reserve("a", SMALL, Decimal("0.31")) is Grant.NEVER


def test_after_a_clean_end_nothing_is_locked_up():
    books = ledger("1.00")
    books.book(SMALL, Account(2, 1, 0, 1, Decimal("0.30")))
    books.recall(Record(committed_usd=Decimal("0.30")))
    assert books.unknown_usd == 0
    assert books.reserve("a", SMALL, Decimal("0.70")) is Grant.GRANTED


@pytest.mark.parametrize(
    "damaged",
    [{}, {"committed_usd": "much", "unknown_usd": "0", "lost": 0, "in_flight": 0, "sent_again": 0}],
)
def test_a_record_that_cannot_be_read_is_not_taken_for_nothing_lost(damaged: dict[str, Any]):
    with pytest.raises(StorageError, match=r"ledger\.json is damaged \(.*\)\. Restore it, or begin anew"):
        Record.from_json(damaged)


def test_what_an_answer_has_cost_is_all_that_stays_set_aside_until_it_is_settled():
    ledger = Ledger(Decimal("1.00"))
    assert ledger.reserve("a", SMALL, Decimal("0.70")) is Grant.GRANTED
    assert ledger.reserve("b", SMALL, Decimal("0.70")) is Grant.WAIT
    ledger.trim("a", Decimal("0.10"))
    assert ledger.reserved_usd == Decimal("0.10")
    assert ledger.reserve("b", SMALL, Decimal("0.70")) is Grant.GRANTED
    ledger.trim("a", Decimal("0.50"))  # never up
    ledger.settle("a", Usage(1, 1), Decimal("0.10"))
    ledger.trim("a", Decimal("0.01"))  # it comes after the settlement: nothing is left to trim
    assert (ledger.spent_usd, ledger.reserved_usd) == (Decimal("0.10"), Decimal("0.70"))
    ledger.trim("b", Decimal("0.20"))
    ledger.lose("b")  # the answer was paid, and its row was never written
    assert ledger.unknown_usd == Decimal("0.20")
