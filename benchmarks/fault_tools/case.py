"""One run of the campaign: its corpus, router, pool and job, and the faults that are planned for it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.fault_tools.engine import SlowEncoder, usage_of
from benchmarks.fault_tools.meter import RUN, query_id, tag
from rtr_ray.config import load_pool, pool_path
from rtr_ray.embedded.questions import draw
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.knn import KNN
from rtr_ray.policies import KNOWN
from rtr_ray.pool import Pool
from rtr_ray.router import train
from rtr_ray.storage import open_store
from rtr_ray.types import Outcomes

MAX_IN_FLIGHT, CHUNK = 24, 8
_WORDS = ("alpha", "beta", "gamma")  # a query's word decides which candidate the router believes in
_FAKE: dict[str, Any] = {
    "deployments": {
        name: {
            "source": "nowhere",
            "accelerator": "cpu",
            "num_cpus": 0.1,
            "context_tokens": 2000,
            "max_in_flight": MAX_IN_FLIGHT,
            "prices": {
                "input_usd_per_mtok": 0.03,
                "cached_input_usd_per_mtok": 0.01,
                "output_usd_per_mtok": price,
                "source": "made up",
            },
        }
        for name, price in (("weak", 0.4), ("strong", 1.3))
    },
    "models": {
        "weak": {"deployment": "weak", "profile": "A weak and cheap model."},
        "strong": {"deployment": "strong", "profile": "A strong and dear model."},
    },
    "strategies": {
        "vanilla": {"builtin": "vanilla", "max_tokens": 60, "system": "[strategy vanilla]"},
        "cot": {
            "builtin": "cot",
            "max_tokens": 60,
            "samples": [1, 3],
            "select": "majority",
            "system": "[strategy cot]",
        },
    },
    "exclude": [{"model": "weak", "strategy": ["cot"]}],
}
_BELIEVED = {  # by word and candidate; what is not named is believed to be bad
    "fake": {"alpha": "weak:vanilla", "beta": "strong:vanilla", "gamma": "strong:cot@3"},
    "vllm": {"alpha": "nano:vanilla", "beta": "nano:cot", "gamma": "nano:pal"},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at some moment of a run."""

    victim: str  # driver, encoder, dispatch, ledger, replica, engine, node, s3 or disk
    share: float | None = None  # once so large a share of the rows was answered
    after_s: float | None = None  # or so long after a session began
    lasts_s: float = 0.0  # for s3 and disk
    strength: float = 0.0  # s3: the share of requests that fail; disk: how full, in bytes left


@dataclass(frozen=True, slots=True)
class Case:
    """A run, as planned."""

    name: str
    kind: str  # the row of the table that it counts for
    seed: int
    faults: tuple[Fault, ...]
    engines: str = "fake"  # or vllm
    rows: int = 600
    budget_share: float | None = None  # of what all answers would cost; None: no budget
    place: str = "local"  # of the run folder (and the corpus): local, s3 or tmpfs

    def __post_init__(self) -> None:
        if not re.fullmatch(RUN, self.name):
            raise ValueError(f"A case is named '{self.name}'; the meter knows small letters, digits and '-'.")


@dataclass(slots=True)
class Bench:
    """A case's files."""

    case: Case
    folder: Path
    apps: str  # the prefix of the engines that are served
    address: str  # of the cluster
    output: str  # where the run folder is to be: a path, or s3://
    corpus: str  # where the corpus is to be: a path, or s3://
    pool: Pool = field(init=False)
    budget_usd: Decimal | None = field(init=False, default=None)

    @property
    def job(self) -> Path:
        """The job file."""
        return self.folder / "job.yaml"

    @property
    def encoders(self) -> Path:
        """Where encoder processes write down that they are some."""
        return self.folder / "encoders"

    @property
    def ids(self) -> list[str]:
        """Every row of the corpus."""
        return [query_id(self.case.name, row) for row in range(self.case.rows)]

    def write(self) -> None:
        """Pool, router, corpus, job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        texts, words = self._texts()
        self._write_pool()
        self._write_router()
        self._write_corpus(texts)
        if self.case.budget_share is not None:
            whole = self._whole_usd(texts, words)
            self.budget_usd = (whole * Decimal(str(self.case.budget_share))).quantize(Decimal("0.000001"))
        self.job.write_text(yaml.safe_dump(self._job(), sort_keys=False))

    def _texts(self) -> tuple[list[str], list[str]]:
        luck = random.Random(self.case.seed)
        words = [luck.choice(_WORDS) for _ in range(self.case.rows)]
        if self.case.engines == "vllm":
            asked = [one.query for one in draw("test", self.case.rows, seed=self.case.seed)]
        else:
            asked = [f"what is {luck.randint(1, 999)} + {luck.randint(1, 999)}?" for _ in words]
        return [
            f"{word} {word} {word} {tag(self.case.name, row)} {text}"
            for row, (word, text) in enumerate(zip(words, asked, strict=True))
        ], words

    def _write_pool(self) -> None:
        content = _FAKE
        if self.case.engines == "vllm":
            whole = yaml.safe_load(pool_path("embedded").read_text())
            nano = whole["deployments"]["nano"] | {
                "source": str(pool_path("embedded").parent / whole["deployments"]["nano"]["source"]),
                "max_in_flight": 2 * MAX_IN_FLIGHT,
            }
            content = {
                "deployments": {"nano": nano},
                "models": {"nano": whole["models"]["nano"]},
                "strategies": {name: whole["strategies"][name] for name in ("vanilla", "cot", "pal")},
            }
        path = self.folder / "pool.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        self.pool = load_pool(str(path))

    def _write_router(self) -> None:
        """A router that believes in one candidate for each word, and in answers that are too short.

        So a binding budget lies above the plan's expectation, and binds all the same.
        """
        candidates = self.pool.candidates
        believed = _BELIEVED[self.case.engines]
        asked = [word for word in _WORDS for _ in range(8)]
        accuracy_MC = np.array([[0.9 if believed[w] == str(c) else 0.1 for c in candidates] for w in asked])
        tokens_MC = np.tile([8.0 * c.samples for c in candidates], (len(asked), 1))
        outcomes = Outcomes(
            query_ids=tuple(f"t{i}" for i in range(len(asked))),
            queries=tuple(f"{word} {word} {word}" for word in asked),
            candidates=candidates,
            accuracy=accuracy_MC,
            input_tokens=np.full(accuracy_MC.shape, 20.0),
            output_tokens=tokens_MC,
            cost_usd=np.zeros(accuracy_MC.shape),
            cut=np.zeros(accuracy_MC.shape),
            max_tokens=np.full(accuracy_MC.shape, 60.0),
            runs=np.ones(accuracy_MC.shape, dtype=int),
        )
        slow = any(fault.victim == "encoder" for fault in self.case.faults)
        estimator: Any = KNN(k=8, shrinkage=0.0)
        encoder: Any = SlowEncoder(str(self.encoders)) if slow else HashEncoder(64)
        train(outcomes, self.pool, encoder, estimator).save(str(self.folder / "router"))
        for path in self.encoders.glob("*"):
            path.unlink()  # that was this process

    def _write_corpus(self, texts: Sequence[str]) -> None:
        table = pa.table(
            {"id": self.ids, "question": list(texts), "note": [f"note {row}" for row in range(len(texts))]}
        )
        rows = max(25, self.case.rows // 12)
        if not self.corpus.startswith("s3://"):
            pq.write_table(table, self.corpus, row_group_size=rows)
            return
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=rows)
        where, _, name = self.corpus.rpartition("/")
        open_store(where).write(name, sink.getvalue().to_pybytes())

    def _whole_usd(self, texts: Sequence[str], words: Sequence[str]) -> Decimal:
        """What all answers cost, more or less, from the candidates that the router believes in."""
        total = Decimal(0)
        for text, word in zip(texts, words, strict=True):
            name = _BELIEVED[self.case.engines][word]
            model, samples = name.split(":")[0], int(name.partition("@")[2] or 1)
            if self.case.engines == "vllm":
                tokens = {"vanilla": 8, "cot": 67, "pal": 23}[name.split(":")[1]]  # docs/embedded.md
                usage = {"input_tokens": 90, "cached_input_tokens": 0, "output_tokens": tokens}
            else:
                usage = usage_of(model, text, samples, 60)
            total += self.dollars({"model": model, **usage})
        return total

    def dollars(self, line: Mapping[str, Any]) -> Decimal:
        """What a line of the meter costs, by the pool file's prices; not by the product's arithmetic."""
        price = self.pool.deployments[self.pool.models[line["model"]].deployment].price
        cached = price.cached_input_usd_per_mtok
        cached = price.input_usd_per_mtok if cached is None else cached
        fresh = int(line["input_tokens"]) - int(line["cached_input_tokens"])
        return (
            fresh * price.input_usd_per_mtok
            + int(line["cached_input_tokens"]) * cached
            + int(line["output_tokens"]) * price.output_usd_per_mtok
        ) / 1_000_000

    def _job(self) -> dict[str, Any]:
        slow = any(fault.victim == "encoder" for fault in self.case.faults)
        content: dict[str, Any] = {
            "pool": str(self.folder / "pool.yaml"),
            "router": str(self.folder / "router"),
            "corpus": {"path": self.corpus, "columns": {"query": "question", "id": "id"}},
            "output": self.output,
            "policy": {"kind": "score", "lam": 0.99, "normaliser_usd": 1e-4},
            "encoder": {"actors": 2 if slow else 1, "num_cpus": 0.5, "batch_rows": 25 if slow else 2048},
            "dispatch": {
                "chunk": CHUNK,
                "backoff_s": 0.2,
                "max_backoff_s": 5.0 if self.case.engines == "fake" else 30.0,
                "commit_s": 0.2,
                "commit_rows": 50,
                "attempts": 12,
            },
            "cluster": {"serve_app": self.apps, "address": self.address},
        }
        if self.budget_usd is not None:
            content["budget_usd"] = str(self.budget_usd)
            if "budget" in KNOWN and self.case.seed % 2:
                del content["policy"]  # what a job with a budget does where nothing is said
        return json.loads(json.dumps(content))  # type: ignore[no-any-return]
