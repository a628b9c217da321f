"""Choosing a candidate for each request: the line of batch, for a few rows at a time.

A `Chooser` is frozen: a router and the policy that reads its tables. `Routing` holds one, with the
embeddings of the texts that were seen last, and takes another one in its place while requests run.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from rtr_ray.corrections import Corrections
from rtr_ray.online.asking import Wish
from rtr_ray.online.load import POINT, Standings, cold, expected_s, joined
from rtr_ray.online.problems import RequestError
from rtr_ray.online.together import Together
from rtr_ray.online.turns import size_in_bytes
from rtr_ray.policies.base import FittedPolicy, best_column, with_runner_up
from rtr_ray.policies.score import FittedScore
from rtr_ray.pool import only_text
from rtr_ray.router import Router
from rtr_ray.types import BoolArray, Candidate, FloatArray, Plan, Query, RoutingTable


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One request to be routed."""

    query: Query
    text: str  # what is encoded
    wish: Wish
    allowed: BoolArray  # (C,) of the router's candidates, what else may stand against them
    why_not: str = ""  # in words, where nothing is
    standings: Standings = field(default_factory=dict)  # of the deployments, when it came


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """What was chosen for one request, and what was believed of every candidate."""

    plan: Plan  # of one row, with its runner-up
    policy: FittedPolicy
    router: str  # the fingerprint of what was learned
    expected_s: FloatArray | None = None  # (C,) until an answer is whole; NaN: not known
    unhurried: Candidate | None = None  # what would be chosen if neither seconds nor cold starts counted

    @property
    def column(self) -> int:
        """The chosen column of the table."""
        return int(self.plan.choice[0])

    @property
    def candidate(self) -> Candidate:
        """What was chosen."""
        return self.plan.table.candidates[self.column]

    @property
    def runner_up(self) -> Candidate | None:
        """What would be chosen if that were not allowed."""
        second = -1 if self.plan.runner_up is None else int(self.plan.runner_up[0])
        return None if second < 0 else self.plan.table.candidates[second]

    @property
    def unfamiliar(self) -> bool | None:
        """Whether the request is unlike those of training; None: nobody looked."""
        marks = self.plan.table.unfamiliar
        return None if marks is None else bool(marks[0])

    def predicted(self, name: str, candidate: Candidate | None = None) -> float:
        """A prediction by its name in the table, of the chosen candidate or another one."""
        table = self.plan.table
        column = self.column if candidate is None else table.candidates.index(candidate)
        return float(getattr(table, name)[0, column])

    @property
    def preferred(self) -> list[Candidate]:
        """The choice, then what stands in for it where money is short: cheaper ones, the best first."""
        table, here = self.plan.table, self.column
        cheaper = [
            column
            for column in np.flatnonzero(table.allowed[0])
            if column != here and table.cost_usd[0, column] < table.cost_usd[0, here]
        ]
        cheaper.sort(key=lambda column: (-table.accuracy[0, column], table.cost_usd[0, column]))
        return [table.candidates[column] for column in (here, *cheaper)]


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The cheapest candidate that is predicted to reach an accuracy; the most accurate where none does."""

    min_accuracy: float
    kind: ClassVar[str] = "cheapest"

    def choose(self, table: RoutingTable) -> Plan:
        """One choice per row."""
        reached_QC: BoolArray = table.allowed & np.greater_equal(table.accuracy, self.min_accuracy)
        cost_QC = np.where(reached_QC, -table.cost_usd.astype(np.float64), -np.inf)
        none_Q = np.logical_not(reached_QC.any(axis=1))
        score_QC = np.where(none_Q.reshape(-1, 1), table.accuracy.astype(np.float64), cost_QC)
        return Plan(table, best_column(score_QC, table))


@dataclass(frozen=True, slots=True, eq=False)
class Chooser:
    """A router and a policy, frozen: choosing is a pure function of the questions.

    Seconds and cold starts are weighed in points of accuracy, whatever the policy is: it chooses from
    a table in which each candidate is as many points worse as its wait is worth. A request for a least
    accuracy wants the cheapest candidate that has it, and neither counts.
    """

    router: Router
    policy: FittedPolicy
    normaliser_usd: float | None  # the unit of a request's own lambda; None: no such requests
    corrections: Corrections | None = None  # what a run has learned of its predictions
    latency_weight: float = 0.0  # points of accuracy that a second is worth
    warm_within: float = 0.0  # points of accuracy that a start is worth of what has no replica

    def answer(self, questions: Sequence[Question], embeddings_QD: FloatArray) -> list[Routed | Exception]:
        """What is chosen for each question.

        Returns:
            One each; a RequestError where no candidate is allowed.
        """
        table = self._table(questions, embeddings_QD)
        found: list[Routed | Exception] = [RequestError("not chosen")] * len(questions)
        sent: Counter[str] = Counter()  # by this batch, to each deployment
        for wish, rows in self._by_wish(questions):
            try:
                policy = self.policy_for(wish)
            except RequestError as problem:
                for row in rows:
                    found[row] = problem
                continue
            # where a queue counts, each must know where those before it went
            for some in [[row] for row in rows] if self._weight(wish) else [rows]:
                standings = [joined(questions[row].standings, sent) for row in some]
                chosen = self._choices(policy, wish, table.rows(np.array(some)), standings)
                for row, one in zip(some, chosen, strict=True):
                    found[row] = _nobody(questions[row]) if one is None else one
                    if one is not None:
                        sent[self.router.pool.deployment(one.candidate).id] += 1
        return found

    def _choices(
        self, policy: FittedPolicy, wish: Wish, raw: RoutingTable, standings: Sequence[Standings]
    ) -> list[Routed | None]:
        seconds_QC = expected_s(raw, self.router.pool, standings)
        hurried = self._hurried(wish, raw, seconds_QC, standings)
        plan = with_runner_up(policy, raw if hurried is None else hurried)
        calm_Q = plan.choice if hurried is None else policy.choose(raw).choice
        second_Q = plan.runner_up
        assert second_Q is not None
        found: list[Routed | None] = []
        for row, column in enumerate(plan.choice):
            one = slice(row, row + 1)
            if column < 0:
                found.append(None)
                continue
            own = Plan(raw.rows(one), plan.choice[one], second_Q[one])
            calm = raw.candidates[calm_Q[row]]
            found.append(Routed(own, policy, self.router.fingerprint, seconds_QC[row], calm))
        return found

    def _weight(self, wish: Wish) -> float:
        """Points of accuracy that a second is worth to a request."""
        if wish.min_accuracy is not None:
            return 0.0
        return self.latency_weight if wish.latency_weight is None else wish.latency_weight

    def _hurried(
        self, wish: Wish, table: RoutingTable, seconds_QC: FloatArray, standings: Sequence[Standings]
    ) -> RoutingTable | None:
        """The table with what a wait is worth taken off the accuracy; None where nothing is.

        accuracy[q, c] - (latency_weight * expected_s[q, c] + warm_within * cold[q, c]) / 100
        """
        if wish.min_accuracy is not None:
            return None
        points_QC = self._weight(wish) * np.nan_to_num(seconds_QC) + self.warm_within * cold(
            table, self.router.pool, standings
        )
        if not points_QC.any():
            return None
        return replace(table, accuracy=table.accuracy - POINT * points_QC)

    def _table(self, questions: Sequence[Question], embeddings_QD: FloatArray) -> RoutingTable:
        size_Q = np.array([size_in_bytes(question.query) for question in questions], dtype=np.float64)
        ids = [question.query.query_id for question in questions]
        table = self.router.table(ids, embeddings_QD, size_Q, [question.text for question in questions])
        if self.corrections is not None:
            table = self.corrections.apply(table, self.router.pool)
        allowed_QC = table.allowed & np.stack([question.allowed for question in questions])
        known_C = np.array(
            [self.router.pool.deployment(c).context_tokens is not None for c in table.candidates]
        )
        for row, question in enumerate(questions):
            if question.query.messages is not None and not only_text(question.query.messages):
                allowed_QC[row] &= known_C  # else nobody knows what an image costs at most
            if question.wish.max_cost_usd is not None:
                allowed_QC[row] &= table.cost_usd[row] <= float(question.wish.max_cost_usd)
        return replace(table, allowed=allowed_QC)

    def _by_wish(self, questions: Sequence[Question]) -> list[tuple[Wish, list[int]]]:
        """The rows that are chosen by one policy, and a wish that asks for it."""
        rows: dict[Wish, list[int]] = {}
        for row, question in enumerate(questions):
            asked = question.wish
            wish = Wish(asked.lam, min_accuracy=asked.min_accuracy, latency_weight=asked.latency_weight)
            rows.setdefault(wish, []).append(row)
        return list(rows.items())

    def policy_for(self, wish: Wish) -> FittedPolicy:
        """The configured policy, or the one that a request asks for.

        Raises:
            RequestError: If lambda has no unit here.
        """
        if wish.min_accuracy is not None:
            return Cheapest(wish.min_accuracy)
        if wish.lam is None:
            return self.policy
        if self.normaliser_usd is None:
            raise RequestError(
                "This router was trained without held-out predictions, so that a lambda has no unit. "
                "Give policy.normaliser_usd in the configuration.",
                param="rtr.lam",
            )
        return FittedScore(wish.lam, self.normaliser_usd)


def _nobody(question: Question) -> RequestError:
    wish = question.wish
    limits = [question.why_not] if question.why_not else []
    if wish.max_cost_usd is not None:
        limits.append(f"max_cost_usd {wish.max_cost_usd:f}")
    if wish.candidates is not None:
        limits.append(f"candidates {', '.join(map(str, wish.candidates))}"[:200])
    asked = f" within {' and '.join(limits)}" if limits else ""
    return RequestError(
        f"No candidate can take this request{asked}. Shorten it, or ask for less.",
        code="no_candidate",
        param="messages",
    )


class Routing:
    """Chooses for requests as they come; many at once are encoded together.

    Args:
        chooser: To begin with.
        cache_texts: Embeddings that are kept, of the texts that were asked for last.
        most: Requests that are routed together.
    """

    def __init__(self, chooser: Chooser, cache_texts: int = 4096, most: int = 64) -> None:
        self._chooser, self._most_texts = chooser, cache_texts
        self._cache: OrderedDict[str, FloatArray] = OrderedDict()  # of the thread alone
        self._cached_by = chooser.router.encoder.identity
        self._together: Together[Question, Routed] = Together(self._work, most)
        self.encoded = 0  # texts that went through the encoder

    @property
    def chooser(self) -> Chooser:
        """The one that chooses now."""
        return self._chooser

    def swap(self, chooser: Chooser) -> None:
        """Let another one choose from the next batch on; those under way are not disturbed."""
        self._chooser = chooser

    async def route(self, question: Question) -> Routed:
        """What is chosen for a request.

        Raises:
            RequestError: If no candidate is allowed.
        """
        return await self._together(question)

    def close(self) -> None:
        """Let go of the thread."""
        self._together.close()

    def _work(self, questions: Sequence[Question]) -> Sequence[Routed | Exception]:
        chooser = self._chooser
        fitting = [q if len(q.allowed) == len(chooser.router.candidates) else None for q in questions]
        assert all(fitting), "the pool does not change in flight"
        return chooser.answer(questions, self._embeddings(chooser, [q.text for q in questions]))

    def _embeddings(self, chooser: Chooser, texts: Sequence[str]) -> FloatArray:
        encoder = chooser.router.encoder
        if encoder.identity != self._cached_by:
            self._cache.clear()
            self._cached_by = encoder.identity
        missing = list(dict.fromkeys(text for text in texts if text not in self._cache))
        fresh: Mapping[str, FloatArray] = {}
        if missing:
            fresh = dict(zip(missing, encoder.encode(missing), strict=True))
            self.encoded += len(missing)
        rows = []
        for text in texts:
            row = fresh.get(text)
            if row is None:
                row = self._cache[text]
            rows.append(row)
        for text in texts:
            self._cache[text] = fresh[text] if text in fresh else self._cache[text]
            self._cache.move_to_end(text)
        while len(self._cache) > self._most_texts:
            self._cache.popitem(last=False)
        return np.stack(rows)
