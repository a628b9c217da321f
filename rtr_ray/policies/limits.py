"""The most expected accuracy within a budget and other limits: shares of rows, a deadline, GPU dollars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from rtr_ray.errors import BudgetError, ConfigError
from rtr_ray.policies.base import Sketch
from rtr_ray.policies.duals import Prices, solve
from rtr_ray.policies.hull import id_hash, mix
from rtr_ray.policies.row_sample import RowSample
from rtr_ray.policies.upgrades import allowed
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, FloatArray, Plan, RoutingTable

TEMPERATURE = 0.001  # of accuracy: what may be lost so that like queries can be divided; see `duals`
_MISSED = 0.01  # of a limit: what the sample's noise alone does not explain
_LEAST_USD = 1e-12
_NOISE = 2.0**-53


@dataclass(frozen=True, slots=True)
class Limits:
    """One candidate per query, with several limits on all rows together.

    maximise sum_q accuracy[q, choice_q] subject to the dollars of all rows <= the job's budget_usd
    and, as given, shares of rows, seconds of each deployment, and dollars of GPU time.

    Solved on a random sample of at most 8,192 rows: a limit holds for all rows up to the sampling
    error, about one in a hundred of what is limited. A run under a budget solves for the rows that
    are left again and again, so that what one solution missed the next ones make up for.

    Source:
        `rtr_ray.policies.duals`.
    """

    shares: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Model or candidate -> the least and the most of all rows that it gets, in [0, 1]."""
    deadline_s: float | None = None  # for the slowest deployment, at the pool's output_tokens_per_s
    gpu_budget_usd: float | None = None  # predicted tokens / output_tokens_per_s at gpu_usd_per_hour
    max_row_usd: float | None = None  # a candidate that is predicted above it is not allowed for the query
    when_short: Literal["refuse", "cheapest"] = "refuse"  # where not all limits can be kept
    budget_usd: float | None = None  # the job's; see `within`
    part: float = 1.0  # of all rows, those that it is solved for; see `within`
    lanes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Deployment -> its candidates, tokens_per_s and usd_per_token; see `on`."""
    kind: ClassVar[str] = "limits"

    def __post_init__(self) -> None:
        for name in ("deadline_s", "gpu_budget_usd", "max_row_usd", "budget_usd"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"policy.{name} is {value}; a finite amount above 0 is needed.")
        if not (self.shares or self.deadline_s or self.gpu_budget_usd):
            raise ConfigError(
                "policy 'limits' limits nothing. Give it shares, deadline_s or gpu_budget_usd; for a budget "
                "alone there is the policy 'budget'."
            )
        if self.when_short not in ("refuse", "cheapest"):
            raise ConfigError(f"policy.when_short is '{self.when_short}'; it is 'refuse' or 'cheapest'.")
        for name, bounds in self.shares.items():
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
                raise ConfigError(
                    f"policy.shares.{name} is {list(bounds)}; it is the least and the most of all rows, "
                    "[0, 0.2] for at most a fifth."
                )
        if not self.part > 0:
            raise ConfigError(f"policy.part is {self.part}; a share of the rows above 0 is needed.")
        object.__setattr__(self, "shares", {name: tuple(bounds) for name, bounds in self.shares.items()})

    @property
    def divides_usd(self) -> bool:
        """Dollars are among the limits, where the job has a budget."""
        return True

    @property
    def needs_usd(self) -> bool:
        """Other limits may be all there is."""
        return False

    def on(self, pool: Pool) -> Limits:
        """The same, for the candidates, speeds and prices of a pool.

        Raises:
            ConfigError: If it names what the pool does not have, or needs a speed or a price that
                the pool does not tell.
        """
        names = {str(candidate) for candidate in pool.candidates}
        models = {candidate.model for candidate in pool.candidates}
        for name in self.shares:
            if name not in names | models:
                raise ConfigError(
                    f"policy.shares names '{name}', which is no model and no candidate of the pool. It has "
                    f"{', '.join(sorted(models))}; a candidate is written model:strategy."
                )
        lanes: dict[str, dict[str, Any]] = {}
        for candidate in pool.candidates:
            deployment = pool.deployment(candidate)
            speed, price = deployment.output_tokens_per_s, deployment.gpu_usd_per_hour
            if self.deadline_s is not None and speed is None:
                raise ConfigError(
                    f"policy.deadline_s needs to know how fast deployment '{deployment.id}' is. Give it "
                    "output_tokens_per_s (of one replica) in the pool."
                )
            if self.gpu_budget_usd is not None and price is not None and speed is None:
                raise ConfigError(
                    f"policy.gpu_budget_usd needs to know how fast deployment '{deployment.id}' is. Give it "
                    "output_tokens_per_s (of one replica) in the pool."
                )
            lane = lanes.setdefault(
                deployment.id,
                {
                    "candidates": [],
                    "tokens_per_s": None if speed is None else speed * deployment.max_replicas,
                    "usd_per_token": 0.0 if price is None or not speed else float(price) / 3600 / speed,
                },
            )
            lane["candidates"].append(str(candidate))
        if self.gpu_budget_usd is not None and not any(one["usd_per_token"] for one in lanes.values()):
            raise ConfigError(
                "policy.gpu_budget_usd limits nothing: no deployment of the pool has a gpu_usd_per_hour."
            )
        return replace(self, lanes=lanes)

    def within(self, budget_usd: float, refuse: bool = False, part: float = 1.0) -> Limits:
        """The same recipe for an amount of dollars and a part of the rows; see `base.Budgeted`."""
        short: Literal["refuse", "cheapest"] = "refuse" if refuse else "cheapest"
        return replace(self, budget_usd=max(budget_usd, _LEAST_USD), when_short=short, part=part)

    def sketch(self, table: RoutingTable) -> Sketch:
        """Some of its rows."""
        return RowSample.of(table, allowed(table, self.max_row_usd)).to_json()

    def merge(self, one: Sketch, other: Sketch) -> Sketch:
        """Some rows of both."""
        return (RowSample.from_json(one) + RowSample.from_json(other)).to_json()

    def freeze(self, sketch: Sketch | None) -> FittedLimits:
        """Find the price of each limit.

        Raises:
            BudgetError: If no plan keeps to all limits; it says which one is missed, and by what.
        """
        if sketch is None or not sketch["routed"]:  # whatever comes, nothing is known to be affordable
            return FittedLimits(price=1 / _LEAST_USD)
        sample = RowSample.from_json(sketch)
        limits = list(self._limits(sample))
        found = _solved(sample, sample.accuracy, limits)
        missed = _missed(limits, found)
        if missed is not None and self.when_short == "refuse":
            raise self._impossible(sample, limits)
        return self._fitted(sample, limits, found)

    def _limits(self, sample: RowSample) -> Iterator[_Limit]:
        """All limits, as bounds on means over the rows that have a candidate."""
        column = {name: n for n, name in enumerate(sample.candidates)}
        if self.budget_usd is not None:
            one = _Limit("budget_usd", sample.cost_usd, self.budget_usd / sample.routed, usd=True)
            yield one
        for name, (least, most) in self.shares.items():
            mine_C = np.array([_is_of(candidate, name) for candidate in sample.candidates], dtype=np.float64)
            mine_QC = np.broadcast_to(mine_C, sample.cost_usd.shape)
            if most < 1:
                yield _Limit(f"the share of {name}", mine_QC, most, per_row=mine_C)
            if least > 0:
                yield _Limit(f"the share of {name}", -mine_QC, -least, per_row=-mine_C)
        if not self.lanes and (self.deadline_s is not None or self.gpu_budget_usd is not None):
            raise ConfigError("policy 'limits' does not know the pool yet, whose speeds it needs.")
        gpu_C = np.zeros(len(column))
        for name, lane in self.lanes.items():
            columns = [column[candidate] for candidate in lane["candidates"] if candidate in column]
            gpu_C[columns] = lane["usd_per_token"]
            if self.deadline_s is not None:
                second_C = np.zeros(len(column))
                second_C[columns] = 1 / lane["tokens_per_s"]
                bound = self.deadline_s * self.part / sample.routed
                weight_QC = sample.output_tokens * second_C
                yield _Limit(f"deadline_s of {name}", weight_QC, bound, per_token=second_C)
        if self.gpu_budget_usd is not None:
            bound = self.gpu_budget_usd * self.part / sample.routed
            yield _Limit("gpu_budget_usd", sample.output_tokens * gpu_C, bound, per_token=gpu_C)

    def _impossible(self, sample: RowSample, limits: Sequence[_Limit]) -> BudgetError:
        """What to do about limits that cannot all be kept."""
        others = [one for one in limits if not one.usd]
        # the cheapest plan within all other limits, in units of what a row costs in the mean
        mean_usd = float(sample.cost_usd.mean(where=sample.allowed)) or 1.0
        cheapest = _solved(sample, -sample.cost_usd / mean_usd, others)
        short = _missed(others, cheapest)
        if short is not None:
            one, used = others[short], float(cheapest.used[short])
            # per row, or over all rows of all parts
            whole = 1.0 if one.per_row is not None else sample.routed / self.part
            asked, reached = one.bound * whole, used * whole
            kind = "at least" if asked < 0 else "at most"
            return BudgetError(
                f"No plan for {sample.rows} queries keeps to all limits: {one.name} is to be {kind} "
                f"{abs(asked):.4g}, and {abs(reached):.4g} is what comes nearest. Loosen that limit, or "
                "allow other candidates more."
            )
        least_usd = -cheapest.value * mean_usd * sample.routed
        return BudgetError(
            f"The cheapest plan for {sample.rows} queries within the other limits costs about "
            f"${least_usd:,.4g}, over budget_usd=${self.budget_usd:,.4g}. Raise budget_usd to at least that, "
            "or loosen the other limits."
        )

    def _fitted(self, sample: RowSample, limits: Sequence[_Limit], found: Prices) -> FittedLimits:
        row_C, token_C = np.zeros((2, len(sample.candidates)))
        price = 0.0
        for one, cost in zip(limits, found.price, strict=True):
            if one.usd:
                price = float(cost)
            if one.per_row is not None:
                row_C += cost * one.per_row
            if one.per_token is not None:
                token_C += cost * one.per_token
        used_usd = next((float(u) for one, u in zip(limits, found.used, strict=True) if one.usd), None)
        binding = [one.name for one, cost in zip(limits, found.price, strict=True) if cost > 0]
        return FittedLimits(
            price=price,
            per_row={name: float(v) for name, v in zip(sample.candidates, row_C, strict=True) if v},
            per_token={name: float(v) for name, v in zip(sample.candidates, token_C, strict=True) if v},
            max_row_usd=self.max_row_usd,
            binding=tuple(dict.fromkeys(binding)),
            budget=self.budget_usd,
            rows=sample.rows,
            routed=sample.routed,
            cost=None if used_usd is None else used_usd * sample.routed,
            accuracy=found.value,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Limit:
    """A bound on the mean weight of what is chosen."""

    name: str
    weight: FloatArray  # (N, C)
    bound: float
    usd: bool = False
    per_row: FloatArray | None = None  # (C,) how the weight comes about, where it is that of a row
    per_token: FloatArray | None = None  # (C,)


def _solved(sample: RowSample, value: FloatArray, limits: Sequence[_Limit]) -> Prices:
    weight_KQC = np.zeros((len(limits), *value.shape))
    for k, one in enumerate(limits):
        weight_KQC[k] = np.where(sample.allowed, one.weight, 0.0)
    bound_K = np.array([one.bound for one in limits])
    return solve(np.where(sample.allowed, value, 0.0), sample.allowed, weight_KQC, bound_K, TEMPERATURE)


def _missed(limits: Sequence[_Limit], found: Prices) -> int | None:
    """The limit that is missed most, if one is."""
    over_K = [
        (used - one.bound) / (abs(one.bound) or 1.0) for one, used in zip(limits, found.used, strict=True)
    ]
    worst = int(np.argmax(over_K)) if over_K else 0
    return worst if over_K and over_K[worst] > _MISSED else None


def _is_of(candidate: str, name: str) -> bool:
    return candidate == name or Candidate.parse(candidate).model == name


@dataclass(frozen=True, slots=True)
class FittedLimits:
    """The frozen policy: a price per dollar, per row and per token of each candidate, and a little noise.

    score[q, c] = accuracy - price * cost_usd - per_row[c] - per_token[c] * output_tokens + noise[q, c]

    The noise depends on query and candidate alone. The rest is what was known when it was frozen.
    """

    price: float  # accuracy per dollar that the last dollar buys; 0: dollars are not what binds
    per_row: Mapping[str, float] = field(default_factory=dict)
    per_token: Mapping[str, float] = field(default_factory=dict)
    max_row_usd: float | None = None
    binding: Sequence[str] = ()  # limits that cost something
    budget: float | None = None
    rows: int = 0
    routed: int = 0
    cost: float | None = None  # expected, of all rows
    accuracy: float | None = None  # expected share of correct answers among the routed
    temperature: float = TEMPERATURE
    kind: ClassVar[str] = "limits"

    def __post_init__(self) -> None:
        object.__setattr__(self, "binding", tuple(self.binding))

    def choose(self, table: RoutingTable) -> Plan:
        """Choose, for each query, the candidate with the highest score.

        Args:
            table: Predictions for Q queries and C candidates.

        Returns:
            A plan over the same table; -1 where nothing is allowed or all is above `max_row_usd`.
        """
        names = [str(candidate) for candidate in table.candidates]
        # as tables are stored: what was solved for and what is chosen from are the same numbers
        accuracy_QC, cost_QC, tokens_QC = (
            np.asarray(one, np.float32).astype(np.float64)
            for one in (table.accuracy, table.cost_usd, table.output_tokens)
        )
        row_C = np.array([self.per_row.get(name, 0.0) for name in names])
        token_C = np.array([self.per_token.get(name, 0.0) for name in names])
        score_QC = accuracy_QC - self.price * cost_QC - row_C - token_C * tokens_QC
        score_QC += self.temperature * _noise(table.query_ids, names)
        allowed_QC = allowed(table, self.max_row_usd) & np.isfinite(score_QC)
        if not len(names):
            return Plan(table, np.full(len(score_QC), -1))
        choice_Q = np.where(allowed_QC, score_QC, -np.inf).argmax(axis=1)
        return Plan(table, np.where(allowed_QC.any(axis=1), choice_Q, -1))


def _noise(query_ids: Sequence[str], candidates: Sequence[str]) -> FloatArray:
    """(Q, C) draws from the standard Gumbel distribution, the same wherever they are made."""
    own_C = id_hash(candidates) if candidates else np.zeros(0, np.uint64)
    own_Q = id_hash(query_ids) if len(query_ids) else np.zeros(0, np.uint64)
    bits_QC = mix((own_Q[:, None] ^ mix(own_C)[None, :]).reshape(-1)).reshape(len(own_Q), len(own_C))
    uniform_QC = ((bits_QC >> np.uint64(11)).astype(np.float64) + 0.5) * _NOISE
    noise_QC: FloatArray = -np.log(-np.log(uniform_QC))
    return noise_QC
