"""What a person writes: pool.yaml and job.yaml. The only reader of configuration files."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rtr_ray.answers import check_answering
from rtr_ray.errors import ConfigError
from rtr_ray.pool import Deployment, Endpoint, ModelSpec, Pool, Price
from rtr_ray.strategies import BUILTIN, Strategy
from rtr_ray.types import Sampling
from rtr_ray.yaml_door import Door, read_yaml, validated

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

SHIPPED_POOLS = {"embedded": "embedded/pool.yaml", "paper": "pools/paper.yaml"}
"""Pools that come with rtr-ray, by the name that stands where a path would."""


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
    max_in_flight: int = Field(256, ge=1, description="requests in flight per replica")
    prices: Prices = Field(description="input_usd_per_mtok and output_usd_per_mtok; 0 for free")
    gpu_usd_per_hour: Decimal | None = Field(None, ge=0, description="dollars per GPU and hour")

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
            max_in_flight=self.max_in_flight,
            gpu_usd_per_hour=self.gpu_usd_per_hour,
            written_source=self.source or "",
        )

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


class ColumnKeys(Door):
    """Which columns of the corpus mean what."""

    query: str = Field("query", description="the column with the text of the query")
    id: str | None = Field(None, description="the column with a unique id")
    messages: str | None = Field(None, description="the column with a conversation, instead of query")
    reference: str | None = Field(None, description="the column with the right answer, for grading only")


class CorpusKeys(Door):
    """What is to be answered."""

    path: str = Field(description="a file, folder or glob, local or s3://")
    format: Literal["auto", "parquet", "jsonl", "csv", "openai_batch"] = Field(
        "auto", description="auto, parquet, jsonl, csv or openai_batch"
    )
    columns: ColumnKeys = ColumnKeys()
    unreadable: Literal["refuse", "skip"] = Field("refuse", description="refuse or skip")


class RouterKeys(Door):
    """The router."""

    path: str = Field(description="a folder that rtr-ray train wrote")
    untrained: Literal["refuse", "by_profile"] = Field("refuse", description="refuse or by_profile")


class EncoderKeys(Door):
    """The actors that encode and predict."""

    actors: Count | tuple[Count, Count] = Field(1, description="a count, or [least, most]")
    num_cpus: float = Field(1.0, ge=0, description="logical CPUs of one actor")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of one actor; fractions allowed")
    batch_rows: int = Field(2048, ge=1, description="rows that are encoded together")
    device: str = Field("auto", description="auto, cpu or cuda")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    keep_embeddings: bool = Field(False, description="true or false")

    @field_validator("actors")
    @classmethod
    def _in_order(cls, actors: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(actors, tuple) and actors[0] > actors[1]:
            raise ValueError("the least is above the most")
        return actors


class DispatchKeys(Door):
    """How hard to push, and how long to insist."""

    chunk: int = Field(64, ge=1, description="requests that travel together")
    attempts: int = Field(8, ge=1, description="how often a request is sent at most")
    backoff_s: float = Field(1.0, gt=0, description="seconds before the second attempt")
    max_backoff_s: float = Field(30.0, gt=0, description="seconds between later attempts at most")
    timeout_s: float = Field(600.0, gt=0, description="seconds without a reply before a chunk is given up")
    commit_rows: int = Field(1000, ge=1, description="rows that become durable together")
    commit_s: float = Field(1.0, gt=0, description="seconds before they do, however few they are")


class SandboxKeys(Door):
    """How the programs of program-aided answers are run."""

    mode: Literal["auto", "namespaces", "seccomp", "rlimits-only"] = Field(
        "auto", description="auto, namespaces, seccomp or rlimits-only"
    )
    cpu_s: float | None = Field(None, gt=0, description="CPU seconds of one program")
    wall_s: float | None = Field(None, gt=0, description="seconds of one program")
    memory_mib: int | None = Field(None, ge=32, description="MiB of one program, 32 at least")


class ClusterKeys(Door):
    """Where it runs."""

    address: str | None = Field(None, description="the address of a Ray cluster; none: this machine")
    grows: bool = Field(False, description="true where the cluster adds nodes on demand")
    placement_timeout_s: float = Field(60.0, gt=0, description="seconds to wait for resources")
    startup_timeout_s: float = Field(900.0, gt=0, description="seconds to wait for an engine")
    serve_app: str | None = Field(None, description="the prefix of running applications to attach to")


class JobKeys(Door):
    """What every job on a cluster needs, whatever it is about."""

    encoder: EncoderKeys = EncoderKeys()
    dispatch: DispatchKeys = DispatchKeys()
    sandbox: SandboxKeys | str = SandboxKeys()
    cluster: ClusterKeys = ClusterKeys()

    @property
    def sandbox_keys(self) -> SandboxKeys:
        """The sandbox, however it was written."""
        if isinstance(self.sandbox, str):
            return validated(SandboxKeys, {"mode": self.sandbox}, "sandbox")
        return self.sandbox


class JobFile(JobKeys):
    """job.yaml."""

    pool: str = Field(description=f"a pool.yaml, or {' or '.join(SHIPPED_POOLS)}")
    router: str | RouterKeys = Field(description="a folder that rtr-ray train wrote")
    corpus: CorpusKeys
    output: str = Field(description="the run folder, local or s3://")
    policy: dict[str, Any] = Field(
        default_factory=lambda: {"kind": "score", "lam": 0.7}, description="kind and its fields"
    )
    budget_usd: Decimal | None = Field(None, gt=0, description="dollars, above 0")
    grader: str | dict[str, Any] | None = Field(None, description="exact, numeric, multiple_choice, ...")

    @property
    def router_keys(self) -> RouterKeys:
        """The router, however it was written."""
        return RouterKeys(path=self.router) if isinstance(self.router, str) else self.router


class CollectFile(JobKeys):
    """What `rtr-ray collect` is told, by flags or in a file."""

    pool: str = Field(description=f"a pool.yaml, or {' or '.join(SHIPPED_POOLS)}")
    queries: CorpusKeys
    output: str = Field(description="the folder for the outcomes, local or s3://")
    grader: str | dict[str, Any] | None = Field(None, description="exact, numeric, multiple_choice, ...")
    candidates: list[str] | None = Field(None, description="a list of model:strategy; none: all")
    sample: int | None = Field(None, ge=1, description="how many of the queries; none: all")
    repeats: int = Field(1, ge=1, description="how often each candidate is put each query")
    budget_usd: Decimal | None = Field(None, gt=0, description="dollars, above 0")


def load_pool(name: str) -> Pool:
    """Read a pool file, or one of the shipped pools by name.

    Raises:
        ConfigError: Naming the file, the key and what was expected.
    """
    path = pool_path(name)
    return _located(
        path, lambda: validated(PoolFile, read_yaml(path), str(path)).build(path.parent, str(path))
    )


def pool_path(name: str) -> Path:
    """The file of a pool."""
    if name in SHIPPED_POOLS:
        return Path(str(resources.files("rtr_ray") / SHIPPED_POOLS[name]))
    path = Path(name)
    return path / "pool.yaml" if path.is_dir() else path


def load_job(path: Path, changes: Mapping[str, Any] | None = None) -> JobFile:
    """Read a job file.

    Args:
        path: The file.
        changes: What flags of the command line set instead, by dotted key.

    Raises:
        ConfigError: Naming the file, the key and what was expected.
    """
    return validated(JobFile, _changed(read_yaml(path), changes or {}), str(path))


def load_collection(path: Path | None, changes: Mapping[str, Any]) -> CollectFile:
    """Read what is to be collected, from a file, from flags, or from both.

    Raises:
        ConfigError: Naming the key and what was expected.
    """
    content = {} if path is None else read_yaml(path)
    return validated(
        CollectFile, _changed(content, changes), "rtr-ray collect" if path is None else str(path)
    )


def _changed(content: Any, changes: Mapping[str, Any]) -> Any:
    """The content with some values replaced, by dotted key."""
    if not isinstance(content, dict):
        return content
    changed = dict(content)
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        if not dot:
            changed[first] = value
        else:
            below = changed.get(first, {})
            changed[first] = _changed(below if isinstance(below, dict) else {}, {rest: value})
    return changed


def _located(path: Path, build: Any) -> Pool:
    try:
        pool: Pool = build()
    except ConfigError as error:
        if str(path) in error.message:
            raise
        raise ConfigError(f"{path}: {error.message}") from error
    return pool


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value
