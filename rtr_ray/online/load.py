"""How long an answer will take: what has been seen of each deployment, and how much is there already.

The model behind it: a deployment serves as many requests at once as are aimed at, and one more makes
all of them slower in proportion. So an answer is measured by what it would have taken alone, and
expected to take as much more as there are others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rtr_ray.pool import Pool
from rtr_ray.types import BoolArray, FloatArray, RoutingTable

POINT = 0.01
"""Of accuracy."""
TARGET = 16.0
"""Requests that one replica serves at once, where nobody says."""
_NEWEST = 0.1  # weight of the last answer in the mean
_FORGET_S = 600.0  # a deployment that was slow so long ago, and was left alone since, gets another chance


@dataclass(frozen=True, slots=True)
class Standing:
    """One deployment at one moment."""

    in_flight: int = 0  # requests, as far as this endpoint knows
    capacity: float = TARGET  # requests that its replicas serve at once
    token_s: float | None = None  # seconds of one output token of a request alone; None: not known
    service_s: float | None = None  # mean seconds of a request alone; None: not measured
    warm: bool = True  # a replica is there


Standings = Mapping[str, Standing]
"""By deployment id; one that is left out is warm, and nothing else is known of it."""


def expected_s(table: RoutingTable, pool: Pool, standings_Q: Sequence[Standings]) -> FloatArray:
    """(Q, C) seconds until an answer is whole; NaN where the speed of its deployment is not known.

    expected_s[q, c] = token_s * output_tokens[q, c] / samples + in_flight / capacity * service_s

    A deployment that is not measured yet is taken to serve others as long as this one.
    """
    alone_QC, queue_QC, service_QC = (np.full(table.output_tokens.shape, np.nan) for _ in range(3))
    columns: dict[int, tuple[FloatArray, ...]] = {}
    for row, standings in enumerate(standings_Q):
        if id(standings) not in columns:
            found = [standings.get(pool.deployment(c).id, _UNKNOWN) for c in table.candidates]
            columns[id(standings)] = (
                _known([one.token_s for one in found]),
                np.array([one.in_flight / one.capacity for one in found]),
                _known([one.service_s for one in found]),
            )
        alone_QC[row], queue_QC[row], service_QC[row] = columns[id(standings)]
    samples_C = np.array([candidate.samples for candidate in table.candidates])
    alone_QC = alone_QC * table.output_tokens / samples_C
    seconds_QC: FloatArray = alone_QC + queue_QC * np.where(np.isnan(service_QC), alone_QC, service_QC)
    return seconds_QC


def cold(table: RoutingTable, pool: Pool, standings_Q: Sequence[Standings]) -> BoolArray:
    """(Q, C) whether a candidate's deployment has no replica, and would have to start one."""
    names = [pool.deployment(candidate).id for candidate in table.candidates]
    return np.array(
        [[not standings.get(name, _UNKNOWN).warm for name in names] for standings in standings_Q], dtype=bool
    ).reshape(table.output_tokens.shape)


def joined(standings: Standings, sent: Mapping[str, int]) -> Standings:
    """The deployments, once so many requests more are at some of them."""
    if not sent:
        return standings
    return {
        name: replace(one, in_flight=one.in_flight + sent.get(name, 0)) for name, one in standings.items()
    }


_UNKNOWN = Standing()


def _known(values: Sequence[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


@dataclass(slots=True)
class _Seen:
    """Means over the answers of a deployment, the last ones counting most."""

    tokens: float  # of one sample
    seconds: float  # it would have taken alone
    answers: int
    at: float

    def take(self, tokens: float, seconds: float, now: float) -> None:
        self.answers += 1
        share = max(_NEWEST, 1 / self.answers)
        self.tokens += share * (tokens - self.tokens)
        self.seconds += share * (seconds - self.seconds)
        self.at = now


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that is at a deployment."""

    deployment: str
    stretch: float  # how much slower the others made it, 1 at least


@dataclass(slots=True, eq=False)
class Load:
    """Counts what is at each deployment, and learns how fast each is.

    Args:
        pool: Its `output_tokens_per_s`, of a replica under full load, is believed until an answer has
            been measured.
        targets: By deployment, the requests that one replica serves at once.
        clock: Seconds that only grow.
    """

    pool: Pool
    targets: Mapping[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _here: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def begin(self, deployment: str, replicas: Mapping[str, int], peers: int = 1) -> Begun:
        """Count a request in.

        Args:
            replicas: Running ones, by deployment.
            peers: Endpoints that send to the same deployments, this one included.
        """
        others = self._here.get(deployment, 0)
        self._here[deployment] = others + 1
        return Begun(deployment, 1 + others * peers / self._capacity(deployment, replicas))

    def end(self, begun: Begun, tokens: float = 0.0, took_s: float | None = None) -> None:
        """Count it out, and learn of it if it was answered.

        Args:
            tokens: Of one sample.
            took_s: What the engine took for it; None: not known, and nothing is learned.
        """
        self._here[begun.deployment] -= 1
        if took_s is None or took_s <= 0 or tokens <= 0:
            return
        now, seconds = self.clock(), took_s / begun.stretch
        seen = self._seen.get(begun.deployment)
        if seen is None or now - seen.at > _FORGET_S:
            self._seen[begun.deployment] = _Seen(tokens, seconds, 1, now)
        else:
            seen.take(tokens, seconds, now)

    def standings(self, replicas: Mapping[str, int], peers: int = 1) -> Standings:
        """All deployments as they stand now; the arguments are those of `begin`."""
        return {name: self._standing(name, replicas, peers) for name in self.pool.deployments}

    def _standing(self, name: str, replicas: Mapping[str, int], peers: int) -> Standing:
        seen, written = self._seen.get(name), self.pool.deployments[name].output_tokens_per_s
        token_s = service_s = None
        if seen is not None and self.clock() - seen.at <= _FORGET_S:
            token_s, service_s = seen.seconds / seen.tokens, seen.seconds
        elif written:
            token_s = self._target(name) / written
        return Standing(
            self._here.get(name, 0) * peers,
            self._capacity(name, replicas),
            token_s,
            service_s,
            replicas.get(name, 1) > 0,
        )

    def _target(self, name: str) -> float:
        return self.targets.get(name, TARGET)

    def _capacity(self, name: str, replicas: Mapping[str, int]) -> float:
        return self._target(name) * max(replicas.get(name, 1), 1)
