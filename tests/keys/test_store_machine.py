"""Any order of operations, deaths, restarts and clocks, beside a model that keeps everything by hand."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from rtr_ray.gate import Hold, Offer
from rtr_ray.keys import GLOBAL, Ask, Close, Limits
from rtr_ray.types import Candidate
from tests.keys.bench import Clock, opened

MONEY = st.integers(0, 30).map(lambda n: Decimal(n) / 10)
BUDGET = st.one_of(st.none(), st.integers(0, 60).map(lambda n: Decimal(n) / 10))
LIMITS = st.builds(Limits, day_usd=BUDGET, month_usd=BUDGET, total_usd=BUDGET)
NAMES = ("ann", "bob")
OWNERS = ("r1", "r2", "r3")
LEASE_S = 60.0


@dataclass
class Held:
    """What the model remembers of a hold."""

    account: str
    owner: str
    day: str
    month: str
    worst: Decimal
    state: str = "reserved"
    usd: Decimal = Decimal(0)  # what it came to


class AnyOrder(RuleBasedStateMachine):
    holds_ = Bundle("holds")

    @initialize(ann=LIMITS, bob=LIMITS, together=LIMITS)
    def begin(self, ann: Limits, bob: Limits, together: Limits) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.store = opened(self.folder, self.clock, lease_s=LEASE_S)
        self.ids = {n: self.store.create(n, each)[1].id for n, each in zip(NAMES, (ann, bob), strict=True)}
        self.store.change(GLOBAL, together)
        self.limits = {"ann": ann, "bob": bob, GLOBAL: together}
        self.held: dict[str, Held] = {}
        self.until: dict[str, float] = {}
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.shut()
            shutil.rmtree(self.folder)

    # --- the model ---

    def heard(self, owner: str) -> None:
        """An owner calls: it is alive, and those that were silent for too long are dead."""
        self.until[owner] = max(self.until.get(owner, 0.0), self.renewed(owner))
        for name, until in list(self.until.items()):
            if until < self.clock.machine:
                del self.until[name]
                for one in self.held.values():
                    if one.owner == name and one.state == "reserved":
                        one.state, one.usd = "unknown", one.worst

    def renewed(self, owner: str) -> float:
        at, until = self.clock.machine, self.until.get(owner)
        return at + LEASE_S if until is None or until < at + LEASE_S * 2 / 3 else until

    def total(self, account: str, kind: str, state: str | None = None) -> Decimal:
        now = {"day": f"{self.clock.wall:%Y-%m-%d}", "month": f"{self.clock.wall:%Y-%m}", "all": "all"}
        chosen = [
            one
            for one in self.held.values()
            if account in (one.account, GLOBAL)
            and {"day": one.day, "month": one.month, "all": "all"}[kind] == now[kind]
            and state in (None, one.state)
        ]
        return sum((one.worst if one.state == "reserved" else one.usd for one in chosen), Decimal(0))

    def fits(self, name: str, worst: Decimal) -> bool:
        return worst == 0 or all(
            budget is None or self.total(account, kind) + worst <= budget
            for account in (name, GLOBAL)
            for kind, budget in self.limits[account].by_period().items()
        )

    # --- what may happen ---

    @rule(
        target=holds_,
        name=st.sampled_from(NAMES),
        owner=st.sampled_from(OWNERS),
        worst=st.lists(MONEY, min_size=1, max_size=3),
    )
    def reserve(self, name: str, owner: str, worst: list[Decimal]) -> str:
        self.heard(owner)
        offers = tuple(Offer(Candidate("m", f"s{n}"), each, 10) for n, each in enumerate(worst))
        id, self.number = f"hold-{self.number}", self.number + 1
        (found,) = self.store.apply(owner, [Ask(id, self.ids[name], offers)])
        expected = next((one for one in offers if self.fits(name, one.worst_usd)), None)
        if expected is None:
            assert not isinstance(found, Hold)
            return ""
        assert isinstance(found, Hold)
        assert found.offer == expected
        day, month = f"{self.clock.wall:%Y-%m-%d}", f"{self.clock.wall:%Y-%m}"
        self.held[id] = Held(name, owner, day, month, expected.worst_usd)
        return id

    @rule(id=consumes(holds_), share=st.integers(0, 100), how=st.sampled_from(["spent", "unknown", "free"]))
    def close(self, id: str, share: int, how: str) -> None:
        owner = self.held[id].owner if id else "r1"
        self.heard(owner)
        worst = self.held[id].worst if id else Decimal(0)
        usd = None if how == "free" else worst * share / 100
        for _ in range(2):  # the second time changes nothing
            self.store.apply(owner, [Close(id, usd, share, how == "unknown")])
        if id and self.held[id].state == "reserved":
            self.held[id].state = "spent" if how == "free" else how
            self.held[id].usd = worst if how == "unknown" else usd or Decimal(0)

    @rule(id=holds_)
    def the_wrong_replica_renews(self, id: str) -> None:
        self.heard("r3")
        self.store.apply("r3", [])

    @rule(seconds=st.sampled_from([1, 25, 45, 61, 3600, 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.clock.pass_by(seconds)

    @rule(days=st.sampled_from([-40, -1, 1, 5]))
    def somebody_sets_the_clock(self, days: int) -> None:
        self.clock.wall += timedelta(days=days)

    @rule()
    def the_process_is_started_anew(self) -> None:
        self.store = opened(self.folder, self.clock, lease_s=LEASE_S)

    @precondition(lambda self: len(self.held) > 3)
    @rule(name=st.sampled_from([*NAMES, GLOBAL]), more=MONEY)
    def a_budget_is_raised(self, name: str, more: Decimal) -> None:
        old = self.limits[name]
        raised = [None if usd is None else usd + more for usd in old.by_period().values()]
        self.limits[name] = Limits(*raised)
        self.store.change(name, self.limits[name])

    # --- what holds at every moment ---

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "store"):
            return
        self.heard("looker")
        self.store.apply("looker", [])
        for account in (*NAMES, GLOBAL):
            found = self.store.usage(self.ids.get(account, GLOBAL))
            for one, kind in zip(found, ("day", "month", "all"), strict=True):
                sums = [self.total(account, kind, state) for state in ("spent", "unknown", "reserved")]
                assert [one.spent_usd, one.unknown_usd, one.reserved_usd] == sums
                if one.budget_usd is not None:
                    assert one.spent_usd + one.unknown_usd + one.reserved_usd <= one.budget_usd


AnyOrder.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase
