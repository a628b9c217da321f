"""The books within one transaction: read when needed, changed in memory, written back at its end.

Two accounts pay for every request, the key's and the global one, each in three periods: day,
month, all. In each of the six, `spent + unknown + reserved <= budget`. A hold stays with the periods
in which it was made, also when it is closed in a later one.

Limits per minute are leaky buckets of a minute's worth: one number says when the bucket will be
empty. They follow the machine's monotonic clock, which nobody sets.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from rtr_ray.gate import Hold, Offer, Refusal
from rtr_ray.keys.limits import ALL, GLOBAL, next_period, period_names, to_pusd, to_usd
from rtr_ray.keys.operations import Ask, Close
from rtr_ray.types import Candidate

_MINUTE_S = 60.0
_SLACK_S = 1e-6  # of floats, so that three of three a minute get through
_SOON_S = 1.0  # when to come again if only what is in flight is in the way
BATCHES = "batches"  # the owner of their holds, who never dies
_BATCH = Candidate("batch", "all")
_SPANS = {"day": "a day", "month": "a month", ALL: "in all"}
_NOW = {"day": "today", "month": "this month", ALL: "in all"}


@dataclass(slots=True)
class Account:
    """One row of `keys`: a key, or the global account."""

    id: str
    name: str
    revoked: bool
    budgets: dict[str, int | None]
    max_request: int | None
    rpm: int | None
    tpm: int | None
    candidates: tuple[str, ...] | None
    requests_tat: float  # when the bucket of requests will be empty, by the monotonic clock
    tokens_tat: float


@dataclass(slots=True)
class Counter:
    """What an account has used in one period, in trillionths of a dollar."""

    spent: int = 0
    unknown: int = 0
    reserved: int = 0
    calls: int = 0
    tokens: int = 0
    lost: int = 0

    @property
    def committed(self) -> int:
        """Spent, perhaps spent, and set aside."""
        return self.spent + self.unknown + self.reserved


@dataclass(frozen=True, slots=True)
class _Block:
    """Why an offer cannot be paid, and until when."""

    wait_s: float  # inf: for good
    reason: str
    reset_at: str | None = None
    kind: str = "budget_exceeded"


class Books:
    """The books as one transaction sees them."""

    def __init__(self, connection: sqlite3.Connection, now: datetime, monotonic: float) -> None:
        self._db = connection
        self._now = now
        self._monotonic = monotonic
        self._periods = period_names(now)
        self._accounts: dict[str, Account | None] = {}
        self._counters: dict[tuple[str, str], Counter] = {}

    # --- the two operations ---

    def ask(self, owner: str, ask: Ask) -> Hold | Refusal:
        """Put aside for the first of the offers that can be paid."""
        payer, everybody = self._account(ask.key_id), self._account(GLOBAL)
        if payer is None or payer.revoked or payer.id == GLOBAL or everybody is None:
            return Refusal("invalid_api_key", "The API key is not valid, or was revoked.")
        if (found := self._found(ask)) is not None:
            return found  # asked again, since the first answer was lost
        permitted = [
            offer
            for offer in ask.offers
            if payer.candidates is None or str(offer.candidate) in payer.candidates
        ]
        if not permitted:
            return Refusal(
                "permission_denied",
                f"The API key '{payer.name}' may not use {_listed(ask.offers)}; it may use "
                f"{', '.join(payer.candidates or ()) or 'nothing'}.",
            )
        accounts = (payer, everybody)
        if (block := self._too_many(accounts)) is not None:
            return _refusal(block)
        blocks = []
        for offer in permitted:
            found_block = self._block(accounts, offer)
            if found_block is None:
                return self._hold(owner, ask, accounts, offer)
            blocks.append(found_block)
        # of several reasons the one that ends first; of those that last, the cheapest offer's
        return _refusal(min(reversed(blocks), key=lambda block: block.wait_s))

    def allot(
        self, hold_id: str, key_id: str, wanted_usd: Decimal | None, most_usd: Decimal | None = None
    ) -> Decimal | Refusal | None:
        """Put aside for a whole batch; gives how much that is, None where nothing bounds it.

        The hold belongs to the batch and not to a process: no lease ends it, but the batch's end does.
        Limits of single requests are not looked at.

        Args:
            hold_id: Of the batch; asked again, it has what it had.
            key_id: Who pays.
            wanted_usd: What it may spend; None: all that is left.
            most_usd: What it can come to at most: no more than that is taken of all that is left. None:
                nobody knows.
        """
        payer, everybody = self._account(key_id), self._account(GLOBAL)
        if payer is None or payer.revoked or payer.id == GLOBAL or everybody is None:
            return Refusal("invalid_api_key", "The API key is not valid, or was revoked.")
        accounts = tuple(replace(one, max_request=None, rpm=None, tpm=None) for one in (payer, everybody))
        lefts = [
            budget - self._counter(account.id, self._periods[kind]).committed
            for account in accounts
            for kind, budget in account.budgets.items()
            if budget is not None
        ]
        bounded = wanted_usd is not None or bool(lefts)
        left_usd = to_usd(max(min(lefts, default=0), 0))
        usd = wanted_usd
        if usd is None:
            usd = left_usd if most_usd is None else min(left_usd, most_usd)
        ask = Ask(hold_id, key_id, (Offer(_BATCH, usd, 0),))
        if (found := self._found(ask)) is None:
            if blocks := [*self._money(accounts, ask.offers[0])]:
                return _refusal(max(blocks, key=lambda block: block.wait_s))
            found = self._hold(BATCHES, ask, accounts, ask.offers[0])
        return found.offer.worst_usd if bounded else None

    def close(self, close: Close) -> None:
        """End a hold, once."""
        row = self._db.execute(
            "DELETE FROM holds WHERE id = ? RETURNING key_id, worst, tokens, day, month", (close.hold_id,)
        ).fetchone()
        if row is None:
            return
        key_id, worst, held_tokens, *dated = row
        tokens = held_tokens if close.unknown else close.tokens
        spent = 0 if close.spent_usd is None else to_pusd(close.spent_usd)
        for account in (key_id, GLOBAL):
            for period in (*dated, ALL):
                counter = self._counter(account, period)
                counter.reserved -= worst
                if close.unknown:
                    counter.unknown += worst
                    counter.lost += 1
                else:
                    counter.spent += spent
                counter.calls += close.unknown or close.spent_usd is not None
                counter.tokens += tokens if close.unknown or close.spent_usd is not None else 0
            known = self._account(account)
            if known is not None and known.tpm:
                known.tokens_tat -= (held_tokens - tokens) * _MINUTE_S / known.tpm

    def flush(self) -> None:
        """Write what has changed."""
        self._db.executemany(
            "INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (account, period, c.spent, c.unknown, c.reserved, c.calls, c.tokens, c.lost)
                for (account, period), c in self._counters.items()
            ],
        )
        self._db.executemany(
            "UPDATE keys SET requests_tat = ?, tokens_tat = ? WHERE id = ?",
            [(a.requests_tat, a.tokens_tat, a.id) for a in self._accounts.values() if a and (a.rpm or a.tpm)],
        )

    # --- what is in the way ---

    def _too_many(self, accounts: tuple[Account, ...]) -> _Block | None:
        """The limit of requests per minute, which no cheaper candidate gets around."""
        for account in accounts:
            if account.rpm:
                late = account.requests_tat + _MINUTE_S / account.rpm - self._monotonic - _MINUTE_S
                if late > _SLACK_S:
                    reason = f"{_whose(account)} has used up its {account.rpm:,} requests a minute"
                    return _Block(late, reason, kind="rate_limit_exceeded")
        return None

    def _block(self, accounts: tuple[Account, ...], offer: Offer) -> _Block | None:
        """What keeps an offer from being taken the longest; None: nothing."""
        blocks = [*self._money(accounts, offer), *self._tokens(accounts, offer)]
        return max(blocks, key=lambda block: block.wait_s, default=None)

    def _money(self, accounts: tuple[Account, ...], offer: Offer) -> Iterator[_Block]:
        worst = to_pusd(offer.worst_usd)
        if not worst:
            return
        costs = f"{offer.candidate} may cost ${_dollars(worst)}"
        for account in accounts:
            who = _whose(account)
            if account.max_request is not None and worst > account.max_request:
                most = _dollars(account.max_request)
                yield _Block(math.inf, f"{who} may spend ${most} on one request, and {costs}")
            for kind, budget in account.budgets.items():
                if budget is None:
                    continue
                counter = self._counter(account.id, self._periods[kind])
                left = budget - counter.committed
                if worst <= left:
                    continue
                rest = f"${_dollars(max(left, 0))} left of ${_dollars(budget)} {_SPANS[kind]}"
                if account.id == GLOBAL:  # how much there is in all is no key's business
                    rest = f"too little left {_NOW[kind]}"
                short = f"{who} has {rest}, and {costs}"
                begins = next_period(kind, self._now)
                if worst <= left + counter.reserved:
                    reason = f"{short}; the rest is set aside for requests that are on their way"
                    yield _Block(_SOON_S, reason)
                elif worst > budget or begins is None:
                    yield _Block(math.inf, short)
                else:
                    at = f"{begins:%Y-%m-%dT%H:%M:%SZ}"
                    wait_s = max((begins - self._now).total_seconds(), 0.0)
                    yield _Block(wait_s, f"{short}; the budget begins anew at {at}", at)

    def _tokens(self, accounts: tuple[Account, ...], offer: Offer) -> Iterator[_Block]:
        for account in accounts:
            if not account.tpm:
                continue
            level = max(account.tokens_tat - self._monotonic, 0.0)
            late = level + offer.worst_tokens * _MINUTE_S / account.tpm - _MINUTE_S
            if late > _SLACK_S:
                reason = (
                    f"{_whose(account)} may use {account.tpm:,} tokens a minute, of which too few are left: "
                    f"{offer.candidate} may take {offer.worst_tokens:,}"
                )
                never = offer.worst_tokens > account.tpm
                yield _Block(math.inf if never else late, reason, kind="rate_limit_exceeded")

    def _hold(self, owner: str, ask: Ask, accounts: tuple[Account, ...], offer: Offer) -> Hold:
        worst, day, month = to_pusd(offer.worst_usd), self._periods["day"], self._periods["month"]
        self._db.execute(
            "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (ask.hold_id, ask.key_id, owner, str(offer.candidate), worst, offer.worst_tokens, day, month),
        )
        for account in accounts:
            for period in self._periods.values():
                self._counter(account.id, period).reserved += worst
            if account.rpm:
                account.requests_tat = max(account.requests_tat, self._monotonic) + _MINUTE_S / account.rpm
            if account.tpm:
                account.tokens_tat = (
                    max(account.tokens_tat, self._monotonic) + offer.worst_tokens * _MINUTE_S / account.tpm
                )
        return Hold(ask.hold_id, ask.key_id, offer)

    # --- reading ---

    def _found(self, ask: Ask) -> Hold | None:
        row = self._db.execute(
            "SELECT candidate, worst, tokens FROM holds WHERE id = ? AND key_id = ?",
            (ask.hold_id, ask.key_id),
        ).fetchone()
        if row is None:
            return None
        return Hold(ask.hold_id, ask.key_id, Offer(Candidate.parse(row[0]), to_usd(row[1]), row[2]))

    def _account(self, id: str) -> Account | None:
        if id not in self._accounts:
            self._accounts[id] = read_account(self._db, id, self._monotonic)
        return self._accounts[id]

    def _counter(self, account: str, period: str) -> Counter:
        found = self._counters.get((account, period))
        if found is None:
            found = self._counters[account, period] = read_counter(self._db, account, period)
        return found


def read_account(db: sqlite3.Connection, id: str, monotonic: float) -> Account | None:
    """A row of `keys`; None where there is none."""
    row = db.execute(
        "SELECT name, revoked_at, day, month, total, max_request, rpm, tpm, candidates, requests_tat, "
        "tokens_tat FROM keys WHERE id = ?",
        (id,),
    ).fetchone()
    if row is None:
        return None
    name, revoked, day, month, total, max_request, rpm, tpm, candidates, requests_tat, tokens_tat = row
    full = monotonic + _MINUTE_S  # later: the machine was started anew, and with it its clock
    return Account(
        id,
        name,
        revoked is not None,
        {"day": day, "month": month, ALL: total},
        max_request,
        rpm,
        tpm,
        None if candidates is None else tuple(json.loads(candidates)),
        min(max(requests_tat, monotonic), full),
        min(tokens_tat, full),
    )


def read_counter(db: sqlite3.Connection, account: str, period: str) -> Counter:
    """A row of `counters`; zeros where there is none."""
    row = db.execute(
        "SELECT spent, unknown, reserved, calls, tokens, lost FROM counters WHERE account = ? AND period = ?",
        (account, period),
    ).fetchone()
    return Counter(*row) if row else Counter()


def _refusal(block: _Block) -> Refusal:
    message = f"{block.reason[0].upper()}{block.reason[1:]}."
    wait_s = None if math.isinf(block.wait_s) else block.wait_s
    return Refusal(block.kind, message, wait_s, block.reset_at)


def _whose(account: Account) -> str:
    return "the endpoint" if account.id == GLOBAL else f"the API key '{account.name}'"


def _dollars(pusd: int) -> str:
    """At least two decimals, and as many as there are."""
    whole, _, part = f"{to_usd(pusd):f}".partition(".")
    return f"{int(whole):,}.{part.rstrip('0'):0<2}"


def _listed(offers: tuple[Offer, ...]) -> str:
    names = [str(offer.candidate) for offer in offers]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
