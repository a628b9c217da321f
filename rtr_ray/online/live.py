"""What was asked and spent of late, by candidate and caller: counted by each replica, kept in one place."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rtr_ray.online.problems import RequestError
from rtr_ray.online.trail import Trail

STEP_S = 10
MOST_MINUTES = 60
_MOST_POINTS = 90  # of a curve
_MOST_SERIES = 4096  # of one step: callers times candidates
_WINDOW = 500  # choices of which the most frequent one is watched
_LEAST = 20  # choices before a share says anything


@dataclass(slots=True)
class Sums:
    """What some generations came to."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)

    def add(self, other: Sums) -> None:
        """Take in what others came to."""
        self.requests += other.requests
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cost_usd += other.cost_usd


Series = tuple[str, str]
"""The id of a caller's key, and a candidate or the reason of a refusal."""


@dataclass(slots=True)
class News:
    """What one replica has counted since it last told."""

    sums: dict[Series, Sums] = field(default_factory=dict)
    refused: Counter[Series] = field(default_factory=Counter)
    chosen: list[str] = field(default_factory=list)  # by the router, in order

    def __bool__(self) -> bool:
        return bool(self.sums or self.refused or self.chosen)

    def add(self, trail: Trail) -> None:
        """Count a request."""
        caller = "" if trail.caller is None else trail.caller.key_id
        for attempt in trail.attempts:
            one = attempt.generation
            series = (caller, str(one.order.candidate))
            usd = one.order.offer.worst_usd if one.unknown else one.spent_usd
            tokens = (0, 0) if one.counted is None else (one.counted.input_tokens, one.counted.output_tokens)
            if series not in self.sums:
                self.sums[series] = Sums()
            self.sums[series].add(Sums(1, *tokens, usd or Decimal(0)))
        if trail.choices and len(self.chosen) < _WINDOW:
            self.chosen.append(str(trail.choices[0][0].candidate))
        if trail.end in ("refused", "failed"):
            self.refused[caller, trail.reason] += 1


@dataclass(slots=True)
class _Step:
    number: int  # of seconds, divided by STEP_S
    news: News = field(default_factory=News)


@dataclass(slots=True)
class Traffic:
    """The last hour, in steps of some seconds, and the last choices of the router.

    Times are seconds that never run backwards, given by who calls.
    """

    _steps: deque[_Step] = field(default_factory=lambda: deque(maxlen=MOST_MINUTES * 60 // STEP_S + 1))
    _chosen: deque[str] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def add(self, at_s: float, news: News) -> None:
        """Take in what a replica has counted."""
        number = int(at_s) // STEP_S
        if not self._steps or self._steps[-1].number < number:
            self._steps.append(_Step(number))
        here = self._steps[-1].news
        for series, sums in news.sums.items():
            if series in here.sums:
                here.sums[series].add(sums)
            elif len(here.sums) < _MOST_SERIES:
                here.sums[series] = Sums()
                here.sums[series].add(sums)
        for series, count in news.refused.items():
            if series in here.refused or len(here.refused) < _MOST_SERIES:
                here.refused[series] += count
        self._chosen.extend(news.chosen)

    def most_chosen(self) -> tuple[str, float, int] | None:
        """The candidate that the router chose most often of late, its share, and of how many choices.

        A router that has collapsed chooses one for everything. None while there are too few to say.
        """
        if len(self._chosen) < _LEAST:
            return None
        ((name, count),) = Counter(self._chosen).most_common(1)
        return name, count / len(self._chosen), len(self._chosen)

    def shown(self, at_s: float, minutes: int, key_id: str | None = None) -> dict[str, Any]:
        """The last minutes as curves, one list for each candidate and quantity, the oldest first.

        Args:
            at_s: Now.
            minutes: How many, from 1 to `MOST_MINUTES`.
            key_id: Whose requests; None: everybody's.
        """
        width = -(-minutes * 60 // (STEP_S * _MOST_POINTS))  # steps to a point
        points = -(-minutes * 60 // (STEP_S * width))
        first = int(at_s) // STEP_S - points * width + 1
        sums: dict[str, list[Sums]] = {}
        refused: Counter[str] = Counter()
        for step in self._steps:
            if step.number < first:
                continue
            place = min((step.number - first) // width, points - 1)
            for (caller, candidate), some in step.news.sums.items():
                if key_id is None or caller == key_id:
                    row = sums.setdefault(candidate, [Sums() for _ in range(points)])
                    row[place].add(some)
            for (caller, reason), count in step.news.refused.items():
                if key_id is None or caller == key_id:
                    refused[reason] += count
        most = self.most_chosen() if key_id is None else None
        return {
            "object": "live",
            "minutes": minutes,
            "step_s": STEP_S * width,
            "candidates": [_curves(name, row) for name, row in sorted(sums.items())],
            "refused": dict(refused.most_common()),
            "most_chosen": most and {"candidate": most[0], "share": most[1], "of": most[2]},
        }


def _curves(candidate: str, row: list[Sums]) -> dict[str, Any]:
    return {
        "candidate": candidate,
        "requests": [one.requests for one in row],
        "input_tokens": [one.input_tokens for one in row],
        "output_tokens": [one.output_tokens for one in row],
        "cost_usd": [f"{one.cost_usd:f}" for one in row],
    }


def parse_minutes(query: Mapping[str, str]) -> int:
    """How many minutes are asked for; 15 where nothing is said.

    Raises:
        RequestError: If that is no whole number from 1 to `MOST_MINUTES`.
    """
    given = query.get("minutes", "15")
    if not (given.isascii() and given.isdigit() and len(given) < 4 and 1 <= int(given) <= MOST_MINUTES):
        raise RequestError(
            f"minutes is no whole number from 1 to {MOST_MINUTES}. Leave it out for 15.", param="minutes"
        )
    return int(given)
