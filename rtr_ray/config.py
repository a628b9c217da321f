"""What a person writes: pool.yaml and job.yaml. The only reader of configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rtr_ray.errors import ConfigError
from rtr_ray.extension import Newcomers
from rtr_ray.familiarity import Caution
from rtr_ray.pool import Pool
from rtr_ray.pool_file import PoolFile
from rtr_ray.routing_keys import ActiveKeys, NewcomerFile, OodKeys, ShareCapKeys
from rtr_ray.types import Candidate, check_name
from rtr_ray.yaml_door import Door, read_yaml, validated

Count = Annotated[int, Field(ge=1)]

SHIPPED_POOLS = {"embedded": "embedded/pool.yaml", "paper": "pools/paper.yaml"}
"""Pools that come with rtr-ray, by the name that stands where a path would."""


class ColumnKeys(Door):
    """Which columns of the corpus mean what."""

    query: str = Field("query", description="the column with the text of the query")
    id: str | None = Field(None, description="the column with a unique id")
    messages: str | None = Field(None, description="the column with a conversation, instead of query")
    reference: str | None = Field(None, description="the column with the right answer, for grading only")
    settings: str | None = Field(None, description="the column with what a row asks for itself")


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
    ood: OodKeys | None = Field(None, description="level and fallback; none: nobody looks")
    plainly: bool = Field(False, description="true or false: read queries without odd signs and tails")

    @property
    def caution(self) -> Caution | None:
        """What becomes of queries unlike those of training, and how queries are read."""
        if self.ood is None:
            return Caution(None, plainly=True) if self.plainly else None
        return Caution(self.ood.level, self.ood.fallback, self.plainly)


class EncoderKeys(Door):
    """The actors that encode and predict."""

    actors: Count | tuple[Count, Count] = Field(1, description="a count, or [least, most]")
    num_cpus: float = Field(1.0, ge=0, description="logical CPUs of one actor")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of one actor; fractions allowed")
    batch_rows: int = Field(2048, ge=1, description="rows that are encoded together")
    device: str = Field("auto", description="auto, cpu or cuda")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    keep_embeddings: bool = Field(False, description="true or false")
    cache: str | None = Field(None, description="a folder that keeps embeddings, local or s3://; none: none")

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
    budget_currency: Literal["tokens", "gpu", "both"] = Field("tokens", description="tokens, gpu or both")
    cluster: ClusterKeys = ClusterKeys()

    @property
    def sandbox_keys(self) -> SandboxKeys:
        """The sandbox, however it was written."""
        if isinstance(self.sandbox, str):
            return validated(SandboxKeys, {"mode": self.sandbox}, "sandbox")
        return self.sandbox


class LabelKeys(Door):
    """The sample that is labelled and learned from where a job has no router."""

    rows: int = Field(300, ge=20, description="rows that are put to every candidate at most, 20 at least")
    share: float = Field(0.1, gt=0, lt=1, description="what they may cost at most, as a share of the budget")
    encoder: str | dict[str, Any] = Field(
        "sentence-transformers/all-mpnet-base-v2", description="a sentence-transformers model, or its kind"
    )
    estimator: str | dict[str, Any] = Field("knn", description="knn, rtr, prior, or kind and its fields")


class JobFile(JobKeys):
    """job.yaml."""

    pool: str = Field(description=f"a pool.yaml, or {' or '.join(SHIPPED_POOLS)}")
    router: str | RouterKeys | None = Field(
        None, description="a folder that rtr-ray train wrote; none: run labels a sample and trains one"
    )
    labels: LabelKeys = LabelKeys()
    corpus: CorpusKeys
    output: str = Field(description="the run folder, local or s3://")
    policy: dict[str, Any] | None = Field(
        None, description="kind and its fields; none: budget where there is one, else score"
    )
    budget_usd: Decimal | None = Field(None, gt=0, description="dollars, above 0")
    autopilot: bool = Field(True, description="true or false")
    grader: str | dict[str, Any] | None = Field(None, description="exact, numeric, multiple_choice, ...")

    @property
    def policy_spec(self) -> dict[str, Any]:
        """What to optimise, but for the amount: that may be raised as the run goes on."""
        if self.policy is not None:
            return self.policy
        return {"kind": "score", "lam": 0.7} if self.budget_usd is None else {"kind": "budget"}

    @property
    def router_keys(self) -> RouterKeys:
        """The router, however it was written.

        Raises:
            ConfigError: If there is none.
        """
        if self.router is None:
            raise ConfigError(
                "The job has no router. rtr-ray run makes one: it labels a sample of the corpus and trains, "
                "under the same budget. For all else make one first (rtr-ray collect, rtr-ray train), and "
                "name its folder as router."
            )
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
    active: ActiveKeys | None = Field(None, description="how cells are chosen; none: all are run")


class ShadowKeys(Door):
    """A second router, whose choices are written down and not served."""

    router: str | None = Field(None, description="a router folder; none: the one that serves")
    policy: dict[str, Any] | None = Field(None, description="kind and its fields; none: the one that serves")


class ReplicaKeys(Door):
    """How many replicas of a deployment the endpoint runs."""

    min_replicas: int | None = Field(None, ge=0, description="a count; 0: none while nobody asks")
    max_replicas: int | None = Field(None, ge=1, description="a count, 1 at least")
    target_in_flight: float = Field(16.0, gt=0, description="requests per replica that are aimed at")
    upscale_delay_s: float = Field(5.0, ge=0, description="seconds of load before one is added")
    downscale_delay_s: float = Field(60.0, ge=0, description="seconds without it before one is taken away")
    most_in_flight: int | None = Field(None, ge=1, description="requests; beyond them, 503")


class IngressKeys(Door):
    """The replicas that take requests and route them."""

    replicas: Count | tuple[Count, Count] = Field(1, description="a count, or [least, most]")
    target_in_flight: float = Field(64.0, gt=0, description="requests per replica that are aimed at")
    upscale_delay_s: float = Field(5.0, ge=0, description="seconds of load before one is added")
    downscale_delay_s: float = Field(60.0, ge=0, description="seconds without it before one is taken away")
    num_cpus: float = Field(1.0, ge=0, description="logical CPUs of one")
    threads: int = Field(1, ge=1, description="threads that encode")
    most_in_flight: int = Field(1024, ge=1, description="requests of one replica; beyond them, 503")
    patience_s: float = Field(60.0, gt=0, description="seconds for a model to begin its answer")
    cache_texts: int = Field(4096, ge=1, description="embeddings that are kept")
    device: str = Field("auto", description="auto, cpu or cuda")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    max_body_mib: float = Field(4.0, gt=0, description="MiB of a request's body; beyond them, 413")
    body_s: float = Field(30.0, gt=0, description="seconds for a body to come; after them, 408")

    @field_validator("replicas")
    @classmethod
    def _in_order(cls, replicas: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(replicas, tuple) and replicas[0] > replicas[1]:
            raise ValueError("the least is above the most")
        return replicas


class BatchKeys(Door):
    """Files of requests that are answered beside the others."""

    share: float = Field(0.25, gt=0, le=1, description="of each model's room, above 0 and up to 1")
    max_file_mib: float = Field(200.0, gt=0, description="MiB of an uploaded file; beyond them, 413")


class SwapKeys(Door):
    """What can be changed while the endpoint runs: the `user_config` of its ingress."""

    router: str | RouterKeys | None = Field(None, description="a folder that rtr-ray train wrote")
    policy: dict[str, Any] = Field({"kind": "score", "lam": 0.95}, description="kind and its fields, or run")
    shadow: ShadowKeys | None = Field(None, description="router and policy of a second one")
    latency_weight: float = Field(
        0.0, ge=0, le=1000, description="points of accuracy that a second is worth, 0 to 1000"
    )
    warm_within: float = Field(
        0.0, ge=0, le=100, description="points of accuracy that starting a replica is worth, 0 to 100"
    )

    @property
    def router_path(self) -> str | None:
        """The folder, however it was written."""
        return self.router.path if isinstance(self.router, RouterKeys) else self.router

    @property
    def untrained(self) -> Literal["refuse", "by_profile"]:
        """What becomes of candidates that the router has no outcomes of."""
        return self.router.untrained if isinstance(self.router, RouterKeys) else "refuse"

    @property
    def caution(self) -> Caution | None:
        """What becomes of queries unlike those of training."""
        return self.router.caution if isinstance(self.router, RouterKeys) else None

    def with_router(self, path: str) -> RouterKeys:
        """Another folder, with all else that is said of the router: it stays as cautious as it was."""
        if isinstance(self.router, RouterKeys):
            return self.router.model_copy(update={"path": path})
        return RouterKeys(path=path)


class ServeFile(SwapKeys):
    """serve.yaml."""

    pool: str = Field(description=f"a pool.yaml, or {' or '.join(SHIPPED_POOLS)}")
    reads: Literal["last_user", "conversation"] = Field("last_user", description="last_user or conversation")
    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="a port")
    folder: str = Field("runs/serve", description="a local folder for what the endpoint keeps")
    feedback: str | None = Field(None, description="a folder for outcomes, local or s3://; none: in folder")
    keys: str | None = Field(
        None, description="a file of rtr-ray keys, on the head node; none: anybody spends"
    )
    request_log: bool = Field(True, description="whether a line for each request is kept in folder")
    log_prompts: bool = Field(False, description="whether those lines hold the prompts")
    ingress: IngressKeys = IngressKeys()
    share_cap: ShareCapKeys | None = Field(None, description="share, window and times; none: no cap")
    models: dict[str, ReplicaKeys] = Field(default_factory=dict, description="deployment id: replicas")
    batches: BatchKeys = BatchKeys()
    sandbox: SandboxKeys = SandboxKeys()
    cluster: ClusterKeys = ClusterKeys()

    @property
    def swap(self) -> SwapKeys:
        """The part that can be changed in flight."""
        return SwapKeys.model_validate({name: getattr(self, name) for name in SwapKeys.model_fields})

    def absolute(self) -> ServeFile:
        """The same, with local paths that other processes find too."""
        router = self.router
        if isinstance(router, RouterKeys):
            router = router.model_copy(update={"path": absolute(router.path)})
        elif router is not None:
            router = absolute(router)
        return self.model_copy(update={"router": router, "folder": absolute(self.folder)})

    @property
    def feedback_uri(self) -> str:
        """Where outcomes from feedback go."""
        return self.feedback or f"{self.folder.rstrip('/')}/feedback"

    @property
    def requests_folder(self) -> Path:
        """Where a line for each request goes."""
        return Path(self.folder) / "requests"


def absolute(uri: str) -> str:
    """A path that does not depend on where one stands; another address as it is."""
    return uri if "://" in uri else str(Path(uri).absolute())


def load_serving(path: Path, changes: Mapping[str, Any] | None = None) -> ServeFile:
    """Read a serve file.

    Args:
        path: The file.
        changes: What flags of the command line set instead, by dotted key.

    Raises:
        ConfigError: Naming the file, the key and what was expected.
    """
    return validated(ServeFile, _changed(read_yaml(path), changes or {}), str(path))


def load_pool(name: str) -> Pool:
    """Read a pool file, or one of the shipped pools by name.

    Raises:
        ConfigError: Naming the file, the key and what was expected.
    """
    path = pool_path(name)
    return _located(
        path, lambda: validated(PoolFile, read_yaml(path), str(path)).build(path.parent, str(path))
    )


def load_newcomers(path: Path) -> Newcomers:
    """Read the profiles of new models and strategies.

    Raises:
        ConfigError: Naming the file, the key and what was expected.
    """
    file = validated(NewcomerFile, read_yaml(path), str(path))
    if not (file.models or file.strategies or file.candidates):
        raise ConfigError(f"{path} describes no model and no strategy. Expected: models: name: profile.")
    models, strategies = (
        {check_name(name, what): one.profile for name, one in keys.items()}
        for what, keys in (("model", file.models), ("strategy", file.strategies))
    )
    return Newcomers(models, strategies, tuple(Candidate.parse(text) for text in file.candidates))


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
