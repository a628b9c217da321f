"""The pool: which models there are, where they run, what their tokens cost, who may be asked what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from rtr_ray.errors import ConfigError, DataError
from rtr_ray.strategies import Strategy
from rtr_ray.types import (
    Candidate,
    FloatArray,
    Message,
    Query,
    Request,
    RoutingTable,
    Sampling,
    Usage,
    check_name,
)

MTOK = Decimal(1_000_000)
USD_QUANTUM = Decimal("1e-12")  # decimal128(38, 12) in Parquet
_MAX_USD_PER_MTOK = Decimal(1_000_000)


def check_price(value: Decimal | None, name: str) -> None:
    """Refuse a price that is not a plain amount with at most 6 decimals.

    Raises:
        ConfigError: If it is negative, not finite, absurdly high or has more than 6 decimals,
            in which case dollars would no longer add up to the last digit.
    """
    if value is None:
        return
    if not value.is_finite() or value < 0 or value > _MAX_USD_PER_MTOK:
        raise ConfigError(
            f"{name} is {value}; a price lies between 0 and {_MAX_USD_PER_MTOK} dollars per million tokens."
        )
    if value != value.quantize(Decimal("1e-6")):
        raise ConfigError(f"{name} is {value}; a price has at most 6 decimals per million tokens.")


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens, exact, with where and when they were read."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    cached_input_usd_per_mtok: Decimal | None = None  # None: cached tokens cost as much as the others
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        for name in ("input_usd_per_mtok", "output_usd_per_mtok", "cached_input_usd_per_mtok"):
            check_price(getattr(self, name), name)

    def cost_usd(self, usage: Usage) -> Decimal:
        """Exact dollars of a usage: at most 12 decimals."""
        cached = self.cached_input_usd_per_mtok
        if cached is None:
            cached = self.input_usd_per_mtok
        per_mtok = (
            (usage.input_tokens - usage.cached_input_tokens) * self.input_usd_per_mtok
            + usage.cached_input_tokens * cached
            + usage.output_tokens * self.output_usd_per_mtok
        )
        return (per_mtok / MTOK).quantize(USD_QUANTUM)

    def worst_case_usd(self, max_input_tokens: int, max_output_tokens: int) -> Decimal:
        """The most that a call of these sizes can cost."""
        dearest = max(self.input_usd_per_mtok, self.cached_input_usd_per_mtok or Decimal(0))
        per_mtok = max_input_tokens * dearest + max_output_tokens * self.output_usd_per_mtok
        return (per_mtok / MTOK).quantize(USD_QUANTUM)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible service that somebody else runs."""

    base_url: str
    model: str  # the name that the service knows it by
    api_key_env: str | None = None  # the environment variable with the key; None: no key is sent
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """One place that answers: a vLLM engine that we start on Ray Serve, or an endpoint."""

    id: str
    price: Price
    source: str | None = None  # folder or hub id of the weights; None for an endpoint
    endpoint: Endpoint | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)  # vLLM engine arguments
    accelerator: str = "gpu"  # "cpu", "gpu" (any) or a Ray accelerator type such as "H100"
    num_cpus: float = 1.0  # logical CPUs of one replica
    num_gpus: float = 1.0
    min_replicas: int = 1
    max_replicas: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    context_tokens: int | None = None  # prompt and answer together; None: unknown
    max_in_flight: int = 256  # requests per replica
    gpu_usd_per_hour: Decimal | None = None
    output_tokens_per_s: float | None = None  # of one replica under full load, as somebody measured it
    written_source: str = ""  # as the pool file has it, so that moving the folder changes no fingerprint

    def __post_init__(self) -> None:
        check_name(self.id, "deployment")
        if (self.source is None) == (self.endpoint is None):
            raise ConfigError(
                f"Deployment '{self.id}' needs either a source (a folder or hub id) or openai (an endpoint)."
            )
        if not 0 < self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"Deployment '{self.id}' has min_replicas={self.min_replicas} and "
                f"max_replicas={self.max_replicas}; 1 <= min_replicas <= max_replicas is needed."
            )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model that answers. Two may share a deployment: a thinking and a non-thinking mode, say."""

    id: str
    deployment: str
    profile: str  # what the router reads about it
    sampling: Sampling = Sampling()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    thinking_tokens: int = 0  # allowed for thinking, on top of a strategy's max_tokens
    price: Price | None = None  # None: the deployment's

    def __post_init__(self) -> None:
        check_name(self.id, "model")
        if not self.profile.strip():
            raise ConfigError(
                f"Model '{self.id}' has no profile. Say in a sentence or two how large it is, what it is "
                "good at and how long its answers get: the router reads it."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Everything that a query may be put to."""

    deployments: Mapping[str, Deployment]
    models: Mapping[str, ModelSpec]
    strategies: Mapping[str, Strategy]
    excluded: frozenset[tuple[str, str]] = frozenset()  # (model, strategy)
    _samplings: dict[Candidate, Sampling] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for what, members in (("models", self.models), ("strategies", self.strategies)):
            if not members:
                raise ConfigError(f"The pool has no {what}; one at least is needed.")
        for model in self.models.values():
            if model.deployment not in self.deployments:
                raise ConfigError(
                    f"Model '{model.id}' names the deployment '{model.deployment}'. "
                    f"Known deployments: {', '.join(sorted(self.deployments)) or 'none'}."
                )
        for model_id, strategy_id in self.excluded:
            for what, name, known in (
                ("model", model_id, self.models),
                ("strategy", strategy_id, self.strategies),
            ):
                if name not in known:
                    raise ConfigError(
                        f"exclude names the {what} '{name}'. Known: {', '.join(sorted(known))}."
                    )
        for candidate in self.candidates:
            if self.deployment(candidate).accelerator == "cpu" and self._seeded(candidate):
                raise ConfigError(
                    f"{candidate} draws with a seed on the CPU, where vLLM's engine dies of it. Leave the "
                    "seed out, set temperature: 0, or run the deployment on a GPU."
                )
        if not self.candidates:
            raise ConfigError("The pool has no candidate left: every model and strategy pair is excluded.")

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every (model, strategy, samples) that is not excluded, in the order of the file."""
        return tuple(
            Candidate(model, strategy.id, samples)
            for model in self.models
            for strategy in self.strategies.values()
            if (model, strategy.id) not in self.excluded
            for samples in strategy.samples
        )

    def deployment(self, candidate: Candidate) -> Deployment:
        """Where a candidate runs."""
        return self.deployments[self.models[candidate.model].deployment]

    def price(self, candidate: Candidate) -> Price:
        """What its tokens cost."""
        return self.models[candidate.model].price or self.deployment(candidate).price

    def cost_usd(self, candidate: Candidate, usage: Usage) -> Decimal:
        """Exact dollars of one call."""
        return self.price(candidate).cost_usd(usage)

    @property
    def thinking(self) -> frozenset[str]:
        """The models that think before they answer."""
        return frozenset(name for name, model in self.models.items() if model.thinking_tokens)

    def max_tokens(self, candidate: Candidate) -> int:
        """The longest answer that one sample of a candidate may have."""
        return self.strategies[candidate.strategy].max_tokens + self.models[candidate.model].thinking_tokens

    def sampling(self, candidate: Candidate) -> Sampling:
        """How its answers are drawn: the strategy's settings, then the model's, then greedily."""
        known = self._samplings.get(candidate)  # each of a million requests asks
        if known is None:
            strategy, model = self.strategies[candidate.strategy], self.models[candidate.model]
            known = strategy.sampling.over(model.sampling).over(Sampling(temperature=0.0))
            self._samplings[candidate] = known
        return known

    def request(
        self, query: Query, candidate: Candidate, sample: int = 0, expected_tokens: int | None = None
    ) -> Request:
        """The call that puts a query to a candidate.

        Its `max_input_tokens` is a bound, not an estimate (see `input_bound`).

        Raises:
            DataError: If there is no such bound, so that nobody can say what the call costs at most.
        """
        strategy, model = self.strategies[candidate.strategy], self.models[candidate.model]
        messages = strategy.messages(query)
        max_input_tokens = self.input_bound(messages, candidate)
        if max_input_tokens is None:
            raise DataError(
                f"The query '{query.query_id}' holds more than text (an image, say), which may be any number "
                f"of tokens, and is put to {candidate}, whose context window is not known: give the "
                f"deployment '{self.deployment(candidate).id}' its context_tokens in the pool."
            )
        return Request(
            query_id=query.query_id,
            candidate=candidate,
            messages=messages,
            max_tokens=self.max_tokens(candidate),
            max_input_tokens=max_input_tokens,
            sampling=self.sampling(candidate),
            stop=strategy.stop,
            chat_template_kwargs=model.chat_template_kwargs,
            sample=sample,
            expected_tokens=expected_tokens,
        )

    def input_bound(self, messages: Sequence[Message], candidate: Candidate) -> int | None:
        """The most tokens that a conversation can be; None where nobody can say.

        A byte-level tokenizer makes at most one token of a byte, the template's own text is allowed
        for, and no engine takes more than its context window. What an image is in tokens has nothing
        to do with the length of its URL: then the context window alone is a bound.
        """
        context = self.deployment(candidate).context_tokens
        if not only_text(messages):
            return context
        size = size_of(messages) + TEMPLATE_TOKENS
        return size if context is None else min(size, context)

    def worst_case_usd(self, request: Request) -> Decimal:
        """The most that a call can cost: the longest prompt once, the longest answer for each sample."""
        return self.price(request.candidate).worst_case_usd(
            request.max_input_tokens, request.max_tokens * request.candidate.samples
        )

    def _seeded(self, candidate: Candidate) -> bool:
        sampling = self.sampling(candidate)
        return sampling.seed is not None and bool(sampling.temperature)

    def behaviour(self, candidate: Candidate) -> str:
        """A fingerprint of all that decides how a candidate answers and at what length; not of prices."""
        model, strategy = self.models[candidate.model], self.strategies[candidate.strategy]
        deployment = self.deployment(candidate)
        endpoint = deployment.endpoint
        return fingerprint(
            {
                "source": deployment.written_source or (endpoint.model if endpoint else ""),
                "engine": {key: deployment.engine.get(key) for key in ("dtype", "quantization", "revision")},
                "template": dict(model.chat_template_kwargs),
                "sampling": self.sampling(candidate).given(),
                "max_tokens": self.max_tokens(candidate),
                "system": strategy.system,
                "prompt": strategy.template,
                "stop": list(strategy.stop),
                "answer": strategy.answer,
                "samples": candidate.samples,
                "select": strategy.select,
            }
        )

    @property
    def fingerprint(self) -> str:
        """A fingerprint of all candidates: how they answer and what they cost."""
        return fingerprint(
            {
                str(candidate): [
                    self.behaviour(candidate),
                    *(
                        str(getattr(self.price(candidate), name))
                        for name in ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")
                    ),
                ]
                for candidate in self.candidates
            }
        )


def priced_table(
    pool: Pool,
    query_ids: Sequence[str],
    accuracy_QC: FloatArray,
    output_tokens_QC: FloatArray,
    output_tokens_p95_QC: FloatArray,
    input_tokens_QC: FloatArray,
) -> RoutingTable:
    """The routing table of predictions for all candidates of a pool, at its prices.

    A cell is allowed where prompt and longest answer fit the candidate's context window.
    """
    candidates = pool.candidates
    prices = [pool.price(candidate) for candidate in candidates]
    input_C = np.array([float(price.input_usd_per_mtok / MTOK) for price in prices])
    output_C = np.array([float(price.output_usd_per_mtok / MTOK) for price in prices])
    limit_C = np.array([pool.deployment(c).context_tokens or np.inf for c in candidates])
    longest_C = np.array([pool.max_tokens(c) for c in candidates])
    return RoutingTable(
        tuple(query_ids),
        candidates,
        accuracy_QC,
        output_tokens_QC,
        output_tokens_p95_QC,
        (input_tokens_QC * input_C + output_tokens_QC * output_C).astype(np.float32),
        input_tokens_QC + longest_C <= limit_C,
    )


TEMPLATE_TOKENS = 512  # more than the text that chat templates of known models add


def size_of(messages: Sequence[Message]) -> int:
    """Bytes of a conversation's texts in UTF-8, and a few for each message's frame."""
    total = 0
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        total += len(text.encode()) + 16
        # calls of tools, say, are in the prompt too
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        total += len(json.dumps(more, ensure_ascii=False).encode()) if more else 0
    return total


_TEXT_PARTS = {"text": "text", "refusal": "refusal"}  # type of a content part -> where its text stands


def only_text(messages: Sequence[Message]) -> bool:
    """Whether a conversation holds texts alone, so that its length bounds its tokens: no image, no sound."""
    return all(_is_text(message.get("content")) for message in messages)


def _is_text(content: Any) -> bool:
    if not isinstance(content, list | tuple):
        return content is None or isinstance(content, str)
    return all(
        isinstance(part, Mapping)
        and isinstance(kind := part.get("type"), str)
        and isinstance(part.get(_TEXT_PARTS.get(kind, "")), str)
        for part in content
    )


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that stand for a JSON-like value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
