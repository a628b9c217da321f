"""The values that flow through rtr-ray: queries, candidates, the routing table, plans, outcomes.

Axis letters, one legend for the project: ``Q`` queries, ``C`` candidates, ``D`` embedding
dimensions, ``M`` training queries. Arrays carry them as a suffix (``accuracy_QC``); the public
fields below are plain words with their shape in the sentence beside them.

Estimates are float arrays. Money that was spent is a ``Decimal`` with at most 12 decimals
(tokens times a price of at most 6 decimals per million). Unknown is ``None`` or NaN, never 0.
Shapes are checked once, when a value is built, and trusted afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rtr_ray.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.integer[Any]]
Status = Literal["answered", "failed", "skipped_budget"]
Message = Mapping[str, Any]  # one chat message in OpenAI's form: {"role": ..., "content": ...}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_NUMBER = re.compile(r"[0-9]{1,6}")


def check_name(name: str, what: str) -> str:
    """Return `name` if it can stand in `model:strategy@samples`.

    Raises:
        ConfigError: If it holds anything but letters, digits, '.', '_', '-' and '/'.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} '{name}' is not a usable name. Use letters, digits, '.', '_', '-' and '/', "
            "beginning with a letter or digit."
        )
    return name


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One thing that the router may choose: a column of the routing table."""

    model: str
    strategy: str
    samples: int = 1  # answers drawn per query; the best or most frequent one is kept

    def __post_init__(self) -> None:
        check_name(self.model, "model")
        check_name(self.strategy, "strategy")
        if self.samples < 1:
            raise ConfigError(f"{self.model}:{self.strategy} has samples={self.samples}; 1 is the least.")

    def __str__(self) -> str:
        """`model:strategy`, with `@samples` behind it where more than one is drawn."""
        return f"{self.model}:{self.strategy}" + (f"@{self.samples}" if self.samples != 1 else "")

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read what `str` wrote.

        Raises:
            ConfigError: If `text` is not `model:strategy` or `model:strategy@samples`.

        Example:
            >>> Candidate.parse("small:cot@5")
            Candidate(model='small', strategy='cot', samples=5)
        """
        model, colon, rest = text.partition(":")
        strategy, at, samples = rest.partition("@")
        if not colon or (at and not _NUMBER.fullmatch(samples)):
            raise ConfigError(
                f"'{text}' does not name a candidate. Write model:strategy or model:strategy@samples."
            )
        return cls(model, strategy, int(samples) if at else 1)


@dataclass(frozen=True, slots=True)
class Query:
    """One row of a corpus, as far as routing and answering need it."""

    query_id: str
    text: str  # what the router reads
    messages: tuple[Message, ...] | None = None  # the whole conversation, where the corpus has one


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTable:
    """Everything that a policy may look at, for Q queries and C candidates."""

    query_ids: tuple[str, ...]  # Q
    candidates: tuple[Candidate, ...]  # C
    accuracy: FloatArray  # (Q, C) predicted probability of a correct answer, in [0, 1]
    output_tokens: FloatArray  # (Q, C) predicted completion tokens, all samples
    output_tokens_p95: FloatArray  # (Q, C) their 95% quantile, for reservations and deadlines
    cost_usd: FloatArray  # (Q, C) predicted US dollars: input and output tokens, all samples
    allowed: BoolArray  # (Q, C) fits the context window, not excluded, able
    unfamiliar: BoolArray | None = None  # (Q,) unlike the training queries; None: nobody looked

    def __post_init__(self) -> None:
        shape = (len(self.query_ids), len(self.candidates))
        for name in ("accuracy", "output_tokens", "output_tokens_p95", "cost_usd", "allowed"):
            found = getattr(self, name).shape
            if found != shape:
                raise DataError(
                    f"RoutingTable.{name} has shape {found}; "
                    f"{shape[0]} queries and {shape[1]} candidates need {shape}."
                )
        if self.unfamiliar is not None and self.unfamiliar.shape != shape[:1]:
            raise DataError(
                f"RoutingTable.unfamiliar has shape {self.unfamiliar.shape}; {shape[:1]} was expected."
            )
        if len(set(self.candidates)) != len(self.candidates):
            raise DataError("A routing table names the same candidate twice.")

    def rows(self, index: IntArray | BoolArray | slice) -> RoutingTable:
        """The table of some of its queries."""
        ids = np.asarray(self.query_ids, dtype=object)[index]
        return RoutingTable(
            tuple(ids),
            self.candidates,
            self.accuracy[index],
            self.output_tokens[index],
            self.output_tokens_p95[index],
            self.cost_usd[index],
            self.allowed[index],
            None if self.unfamiliar is None else self.unfamiliar[index],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A routing table and one choice per query."""

    table: RoutingTable
    choice: IntArray  # (Q,) column of table.candidates; -1: no candidate is allowed
    runner_up: IntArray | None = None  # (Q,) chosen if `choice` were not allowed; -1: nothing else is

    def __post_init__(self) -> None:
        queries, candidates = len(self.table.query_ids), len(self.table.candidates)
        if self.choice.shape != (queries,):
            raise DataError(f"A plan for {queries} queries has choices of shape {self.choice.shape}.")
        if queries and not (self.choice.min() >= -1 and self.choice.max() < candidates):
            raise DataError(f"A plan chooses a column outside of its {candidates} candidates.")
        if not self.chosen(self.table.allowed)[self.routed].all():
            raise DataError("A plan chooses a candidate that its table does not allow.")

    @property
    def routed(self) -> BoolArray:
        """(Q,) whether the query has a candidate at all."""
        routed_Q: BoolArray = self.choice >= 0
        return routed_Q

    def chosen(self, values_QC: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(Q,) the values of the chosen candidates; meaningless where the query is not routed."""
        chosen_Q: npt.NDArray[Any] = values_QC[np.arange(len(self.choice)), self.choice]
        return chosen_Q

    @property
    def cost_usd(self) -> float:
        """Expected dollars of the whole plan."""
        return float(self.chosen(self.table.cost_usd)[self.routed].sum(dtype=np.float64))

    @property
    def accuracy(self) -> float:
        """Expected share of correct answers among the routed queries; NaN where there are none."""
        chosen_Q = self.chosen(self.table.accuracy)[self.routed]
        return float(chosen_Q.mean(dtype=np.float64)) if len(chosen_Q) else float("nan")

    def groups(self) -> dict[Candidate, IntArray]:
        """The rows of each candidate that was chosen at least once, in the order of the candidates."""
        return {
            candidate: np.flatnonzero(self.choice == column)
            for column, candidate in enumerate(self.table.candidates)
            if (self.choice == column).any()
        }


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. None leaves the choice to the next one in line (see `over`)."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None

    def over(self, other: Sampling) -> Sampling:
        """These settings, and those of `other` where these leave one open."""
        return Sampling(
            **{
                name: getattr(other, name) if getattr(self, name) is None else getattr(self, name)
                for name in self.__dataclass_fields__
            }
        )

    def given(self) -> dict[str, float | int]:
        """The settings that were made, by name."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a model: a query put to one candidate."""

    query_id: str
    candidate: Candidate
    messages: tuple[Message, ...]
    max_tokens: int  # per sample
    max_input_tokens: int  # no more than this many prompt tokens have been paid for in advance
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sample: int = 0  # 0, 1, 2... where the same cell is asked several times
    expected_tokens: int | None = None  # 95% quantile of a sample's output tokens; None: not predicted

    @property
    def key(self) -> str:
        """What tells this request from every other of its run."""
        return f"{self.query_id}|{self.candidate}|{self.sample}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as the server counted them; never guessed."""

    input_tokens: int
    output_tokens: int  # all samples
    cached_input_tokens: int = 0  # part of input_tokens
    reasoning_tokens: int | None = None  # part of output_tokens, where the server tells

    def __post_init__(self) -> None:
        if min(self.input_tokens, self.output_tokens, self.cached_input_tokens) < 0:
            raise DataError(f"A usage with negative tokens: {self}.")
        if self.cached_input_tokens > self.input_tokens:
            raise DataError(f"A usage with more cached than input tokens: {self}.")


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the answers that were drawn."""

    text: str
    finish_reason: str  # "stop", "length", "budget" (cut, since no more money could be set aside), ...
    output_tokens: int | None  # None: the server counts all samples together
    answer: str | None = None  # what the strategy reads out of the text; None where it finds nothing


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request. A failed one keeps the usage that it cost, if that is known."""

    query_id: str
    candidate: Candidate
    samples: tuple[Sample, ...] = ()
    answer: str | None = None
    usage: Usage | None = None  # None: nothing was generated, or nobody knows what was
    latency_s: float = 0.0
    attempts: int = 1
    error: str | None = None
    sample: int = 0
    status: Status = "answered"

    @property
    def key(self) -> str:
        """The key of the request that this answers."""
        return f"{self.query_id}|{self.candidate}|{self.sample}"


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What was observed on M queries and C candidates: the training data of an estimator.

    NaN where a cell was not run; never filled with 0. Cells that were run several times hold
    means, with the number of runs in `runs`.
    """

    query_ids: tuple[str, ...]  # M
    queries: tuple[str, ...]  # M texts
    candidates: tuple[Candidate, ...]  # C
    accuracy: FloatArray  # (M, C) mean correctness in [0, 1]; NaN: not run or not graded
    input_tokens: FloatArray  # (M, C)
    output_tokens: FloatArray  # (M, C) per call, all samples
    cost_usd: FloatArray  # (M, C)
    cut: FloatArray  # (M, C) share of the runs that ended at max_tokens
    max_tokens: FloatArray  # (M, C) the limit of those runs; NaN: unknown
    runs: IntArray  # (M, C) how often the cell was run
    group_ids: tuple[str, ...] = ()  # M: queries of one group belong on the same side of a split
    datasets: tuple[str, ...] = ()  # M
    splits: tuple[str, ...] = ()  # M: "train", "test" or ""

    def __post_init__(self) -> None:
        shape = (len(self.query_ids), len(self.candidates))
        for name in ("accuracy", "input_tokens", "output_tokens", "cost_usd", "cut", "max_tokens", "runs"):
            found = getattr(self, name).shape
            if found != shape:
                raise DataError(f"Outcomes.{name} has shape {found}; {shape} was expected.")
        for name in ("queries", "group_ids", "datasets", "splits"):
            values: Sequence[str] = getattr(self, name)
            if len(values) not in ({shape[0]} if name == "queries" else {0, shape[0]}):
                raise DataError(f"Outcomes.{name} has {len(values)} entries for {shape[0]} queries.")

    def rows(self, index: IntArray | BoolArray) -> Outcomes:
        """The outcomes of some of the queries."""

        def pick(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(np.asarray(values, dtype=object)[index]) if values else ()

        return Outcomes(
            query_ids=pick(self.query_ids),
            queries=pick(self.queries),
            candidates=self.candidates,
            accuracy=self.accuracy[index],
            input_tokens=self.input_tokens[index],
            output_tokens=self.output_tokens[index],
            cost_usd=self.cost_usd[index],
            cut=self.cut[index],
            max_tokens=self.max_tokens[index],
            runs=self.runs[index],
            group_ids=pick(self.group_ids),
            datasets=pick(self.datasets),
            splits=pick(self.splits),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What a fitted estimator predicts for Q queries and C candidates."""

    accuracy: FloatArray  # (Q, C) in [0, 1]
    output_tokens: FloatArray  # (Q, C) mean, all samples
    output_tokens_p95: FloatArray  # (Q, C) 95% quantile
