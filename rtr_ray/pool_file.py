"""What pool.yaml may say, and the pool that comes of it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rtr_ray.answers import check_answering
from rtr_ray.errors import ConfigError
from rtr_ray.pool import Deployment, Endpoint, ModelSpec, Pool, Price
from rtr_ray.strategies import BUILTIN, Strategy
from rtr_ray.types import Sampling
from rtr_ray.yaml_door import Door

Usd = Annotated[
    Decimal,
    Field(
        ge=0,
        le=1_000_000,
        decimal_places=6,
        description="dollars per million tokens, 0 for free, at most 6 decimals",
    ),
]
Count = Annotated[int, Field(ge=1)]
_IN_FLIGHT = 256  # requests at a replica where nobody says another number: vLLM's own on most machines


class Prices(Door):
    """Dollars per million tokens."""

    input_usd_per_mtok: Usd
    output_usd_per_mtok: Usd
    cached_input_usd_per_mtok: Usd | None = None
    source: str = Field("", description="where the prices were read")
    date: datetime.date | str = Field("", description="when they were read, such as 2026-11-01")

    def build(self) -> Price:
        """The exact price."""
        return Price(
            self.input_usd_per_mtok,
            self.output_usd_per_mtok,
            self.cached_input_usd_per_mtok,
            self.source,
            str(self.date),
        )


class SamplingKeys(Door):
    """How an answer is drawn."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 (greedy) to 2")
    top_p: float | None = Field(None, gt=0, le=1, description="above 0, at most 1")
    top_k: int | None = Field(None, ge=-1, description="a count; -1 for all")
    min_p: float | None = Field(None, ge=0, le=1, description="0 to 1")
    repetition_penalty: float | None = Field(None, gt=0, description="a positive number, 1 for none")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2")
    seed: int | None = Field(None, description="a whole number")

    def build(self) -> Sampling:
        """The settings."""
        return Sampling(**self.model_dump())


class OpenAIKeys(Door):
    """An OpenAI-compatible endpoint."""

    base_url: str = Field(description="the URL up to /v1", pattern=r"^https?://")
    model: str | None = Field(None, description="the name that the service knows the model by")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key")
    requests_per_minute: int | None = Field(None, ge=1, description="a count, 1 at least")
    tokens_per_minute: int | None = Field(None, ge=1, description="a count, 1 at least")
    timeout_s: float = Field(600.0, gt=0, description="seconds")

    def build(self, name: str) -> Endpoint:
        """The endpoint; it knows the model by the deployment's name where nothing else is said."""
        return Endpoint(
            self.base_url,
            self.model or name,
            self.api_key_env,
            self.requests_per_minute,
            self.tokens_per_minute,
            self.timeout_s,
        )


class Autoscaling(Door):
    """How many replicas."""

    min_replicas: int = Field(1, ge=1, description="a count, 1 at least")
    max_replicas: int = Field(1, ge=1, description="a count, min_replicas at least")


class DeploymentKeys(Door):
    """One place that answers."""

    source: str | None = Field(None, description="a folder (relative to this file) or a hub id")
    openai: OpenAIKeys | None = Field(None, description="an OpenAI-compatible endpoint")
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM engine arguments by name")
    accelerator: str = Field("gpu", description="cpu, gpu or an accelerator type such as H100")
    num_cpus: float = Field(1.0, gt=0, description="logical CPUs of one replica")
    num_gpus: float | None = Field(None, ge=0, description="GPUs of one replica")
    autoscaling: Autoscaling = Autoscaling()
    env: dict[str, str] = Field(default_factory=dict, description="environment variables of the engine")
    context_tokens: int | None = Field(None, ge=1, description="the context window in tokens")
    max_in_flight: int | None = Field(
        None, ge=1, description="requests in flight per replica; none: 256, or what a larger engine needs"
    )
    prices: Prices = Field(description="input_usd_per_mtok and output_usd_per_mtok; 0 for free")
    gpu_usd_per_hour: Decimal | None = Field(None, ge=0, description="dollars per GPU and hour")
    output_tokens_per_s: float | None = Field(
        None, gt=0, description="output tokens per second of one replica under load, measured"
    )

    def build(self, name: str, folder: Path) -> Deployment:
        """The deployment; a source that is a folder beside the file becomes its path."""
        local = folder / self.source if self.source else None
        if self.source and self.source.startswith(("./", "../")) and not (folder / self.source).is_dir():
            raise ConfigError(
                f"deployments.{name}.source is '{self.source}': there is no such folder beside the file. "
                "Expected: a folder (relative to this file) or a hub id."
            )
        parallel = self._parallel(name, "tensor_parallel_size") * self._parallel(
            name, "pipeline_parallel_size"
        )
        local_gpus = 0.0 if self.accelerator == "cpu" or self.openai else float(parallel)
        longest = self.engine.get("max_model_len")
        own = longest if isinstance(longest, int) and longest > 0 else None  # -1 and "auto": as it fits
        return Deployment(
            id=name,
            price=self.prices.build(),
            source=str(local) if local and local.is_dir() else self.source,
            endpoint=None if self.openai is None else self.openai.build(name),
            engine=self.engine,
            accelerator=self.accelerator,
            num_cpus=self.num_cpus,
            num_gpus=local_gpus if self.num_gpus is None else self.num_gpus,
            min_replicas=self.autoscaling.min_replicas,
            max_replicas=self.autoscaling.max_replicas,
            env=self.env,
            context_tokens=self.context_tokens or own,
            max_in_flight=self.max_in_flight or self._depth(),
            gpu_usd_per_hour=self.gpu_usd_per_hour,
            output_tokens_per_s=self.output_tokens_per_s,
            written_source=self.source or "",
        )

    def _depth(self) -> int:
        """A quarter more than the engine generates at once: else it idles while others are on their way."""
        slots = self.engine.get("max_num_seqs")
        return max(_IN_FLIGHT, 5 * slots // 4) if isinstance(slots, int) else _IN_FLIGHT

    def _parallel(self, name: str, key: str) -> int:
        value = self.engine.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"deployments.{name}.engine.{key} is {value!r}: a whole number is needed. "
                "Expected: over how many GPUs the model is spread."
            )
        return value


class ModelKeys(Door):
    """One model that answers."""

    deployment: str = Field(description="the name of one of the deployments")
    profile: str = Field(description="a sentence or two that the router reads about the model", min_length=1)
    sampling: SamplingKeys = SamplingKeys()
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments by name")
    thinking_tokens: int = Field(0, ge=0, description="tokens for thinking on top of max_tokens")
    prices: Prices | None = Field(None, description="input_usd_per_mtok and output_usd_per_mtok")

    def build(self, name: str) -> ModelSpec:
        """The model."""
        return ModelSpec(
            name,
            self.deployment,
            self.profile,
            self.sampling.build(),
            self.chat_template_kwargs,
            self.thinking_tokens,
            None if self.prices is None else self.prices.build(),
        )


class StrategyKeys(Door):
    """One way to ask."""

    builtin: str | None = Field(None, description=f"one of {', '.join(BUILTIN)}")
    profile: str | None = Field(None, description="a sentence or two that the router reads about it")
    system: str | None = Field(None, description="the system message")
    template: str | None = Field(None, description="the user's message, with {query} in it")
    sampling: SamplingKeys = SamplingKeys()
    max_tokens: int | None = Field(None, ge=1, description="the longest answer of one sample")
    stop: list[str] = Field(default_factory=list, description="texts that end an answer")
    answer: str | None = Field(None, description="how the answer is read out of the text")
    samples: int | list[int] = Field(1, description="answers drawn per query, or several such numbers")
    select: str | None = Field(None, description="first or majority")

    def build(self, name: str, where: str) -> Strategy:
        """The strategy: what is given here over what the builtin one says."""
        if self.builtin is not None and self.builtin not in BUILTIN:
            raise ConfigError(
                f"{where}: strategies.{name}.builtin is '{self.builtin}'. "
                f"Expected: one of {', '.join(BUILTIN)}."
            )
        fields: dict[str, Any] = dict(BUILTIN[self.builtin]) if self.builtin else {}
        own = self.model_dump(exclude={"builtin", "sampling", "stop", "samples"}, exclude_none=True)
        fields |= own
        for key, expected in (
            ("profile", "a sentence or two that the router reads about it"),
            ("max_tokens", "the longest answer in tokens"),
        ):
            if key not in fields:
                raise ConfigError(f"{where}: strategies.{name}.{key} is missing. Expected: {expected}.")
        samples = [self.samples] if isinstance(self.samples, int) else self.samples
        strategy = Strategy(
            id=name,
            sampling=self.sampling.build(),
            stop=tuple(self.stop),
            samples=tuple(samples),
            **fields,
        )
        check_answering(strategy)
        return strategy


class Exclusion(Door):
    """Pairs that are not candidates."""

    model: str | list[str] = Field(description="a model, or a list of models")
    strategy: str | list[str] = Field(description="a strategy, or a list of strategies")


class PoolFile(Door):
    """pool.yaml."""

    deployments: dict[str, DeploymentKeys] = Field(description="name -> where it runs and what it costs")
    models: dict[str, ModelKeys] = Field(description="name -> deployment and profile")
    strategies: dict[str, StrategyKeys] | list[str] = Field(
        description=f"name -> strategy, or a list of {', '.join(BUILTIN)}"
    )
    exclude: list[Exclusion] = Field(default_factory=list, description="a list of {model, strategy}")

    def build(self, folder: Path, where: str) -> Pool:
        """The pool."""
        if isinstance(self.strategies, list):
            keys = {name: StrategyKeys(builtin=name) for name in self.strategies}
            if len(keys) < len(self.strategies):
                twice = next(name for name in keys if self.strategies.count(name) > 1)
                raise ConfigError(f"{where}: strategies names '{twice}' twice. Expected: each once.")
        else:
            keys = self.strategies
        return Pool(
            {name: spec.build(name, folder) for name, spec in self.deployments.items()},
            {name: spec.build(name) for name, spec in self.models.items()},
            {name: spec.build(name, where) for name, spec in keys.items()},
            frozenset(
                (model, strategy)
                for pair in self.exclude
                for model in _listed(pair.model)
                for strategy in _listed(pair.strategy)
            ),
        )


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value
