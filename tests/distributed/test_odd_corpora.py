"""Corpora and replicas of odd shapes: one row, many files, rows of every length, one very slow replica."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.errors import ExecutionError
from rtr_ray.types import FloatArray
from tests.distributed.conftest import Cluster
from tests.distributed.engine import metered
from tests.distributed.workbench import Workbench, money

pytestmark = pytest.mark.ray

CHEAP = {"kind": "fixed", "candidate": "weak:vanilla"}


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"odd-{tmp_path.name[:20]}")
    bench.pool()
    bench.router()
    return bench


@dataclass(frozen=True)
class Gluttonous:
    """A hash encoder that is killed, as if for its memory, where it is given more texts than fit."""

    folder: str  # holds `fits`: how many
    dim: int = 32
    kind: ClassVar[str] = "gluttonous"

    @property
    def identity(self) -> str:
        return "gluttonous"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        if len(texts) > int((Path(self.folder) / "fits").read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        return HashEncoder(self.dim).encode(texts)


def gluttonous(bench: Workbench, fits: int) -> None:
    """The router of the bench with an encoder that dies of more texts at once."""
    (bench.folder / "fits").write_text("1000000")
    bench.router(encoder=Gluttonous(str(bench.folder)))  # type: ignore[arg-type]
    (bench.folder / "fits").write_text(str(fits))


def test_an_encoder_actor_that_is_killed_for_its_memory_comes_back_with_half_the_batch(
    bench: Workbench,
) -> None:
    gluttonous(bench, fits=20)
    bench.corpus(300)
    with bench.serving():
        found = bench.run(encoder={"actors": 1, "num_cpus": 0.5, "batch_rows": 64}, policy=CHEAP)
    assert found["rows"] == {"total": 300, "answered": 300, "failed": 0, "skipped_budget": 0}
    assert len(set(bench.results()["query_id"].to_pylist())) == len(metered(bench.meter)) == 300
    (deaths,) = bench.output.glob("restarts/*.json")
    assert json.loads(deaths.read_text()) == [2, 0]  # 64, 32, 16; and never again


def test_an_encoder_actor_that_dies_of_a_single_row_ends_the_run_in_one_sentence(bench: Workbench) -> None:
    gluttonous(bench, fits=0)
    bench.corpus(8)
    with (
        bench.serving(),
        pytest.raises(ExecutionError, match="An encoder actor was killed 13 times over the"),
    ):
        bench.run(encoder={"actors": 1, "num_cpus": 0.5, "batch_rows": 2}, policy=CHEAP)
    assert metered(bench.meter) == []


def test_a_second_run_over_kept_embeddings_encodes_nothing(bench: Workbench) -> None:
    gluttonous(bench, fits=10_000)
    bench.corpus(300)
    encoder = {"actors": 1, "num_cpus": 0.5, "cache": str(bench.folder / "embeddings")}
    with bench.serving():
        first = bench.run(encoder=encoder, policy=CHEAP)
        (bench.folder / "fits").write_text("0")  # it dies of the first text
        again = bench.run(encoder=encoder, policy=CHEAP, output=str(bench.folder / "again"))
    assert first["rows"]["answered"] == again["rows"]["answered"] == 300
    tables = [
        pq.read_table(bench.folder / name / "tables", columns=["query_id", "_accuracy"]).sort_by("query_id")
        for name in ("run", "again")
    ]
    assert tables[0].equals(tables[1])


def test_one_row_is_a_corpus(bench: Workbench) -> None:
    bench.corpus(1)
    with bench.serving():
        found = bench.run(budget_usd="0.01", policy=None)
    assert found["rows"] == {"total": 1, "answered": 1, "failed": 0, "skipped_budget": 0}
    assert money(bench.results()) == Decimal(found["cost_usd"]["spent"]) > 0


def test_three_hundred_files_of_one_row_and_rows_of_every_length_are_a_corpus(bench: Workbench) -> None:
    folder = bench.folder / "many"
    folder.mkdir()
    for number in range(300):
        words = "word " * (1 << (number % 9))  # 1 to 256
        question = f"{words}Number {number}: what is {number} + 1?"
        pq.write_table(pa.table({"question": [question]}), folder / f"{number:04d}.parquet")
    with bench.serving():
        found = bench.run(
            corpus={"path": str(folder), "columns": {"query": "question"}}, grader=None, policy=CHEAP
        )
    assert found["rows"] == {"total": 300, "answered": 300, "failed": 0, "skipped_budget": 0}
    assert len(set(bench.results()["question"].to_pylist())) == 300


def test_a_replica_fifty_times_slower_than_the_others_holds_up_only_what_it_was_given(
    bench: Workbench,
) -> None:
    bench.corpus(400)
    with bench.serving(strong={"latency_s": 0.02, "slow_one": 50.0, "replicas": 3}):
        found = bench.run(policy={"kind": "fixed", "candidate": "strong:vanilla"})
    assert found["rows"] == {"total": 400, "answered": 400, "failed": 0, "skipped_budget": 0}
    assert len(metered(bench.meter)) == 400
    late = [s for s in bench.results()["latency_s"].to_pylist() if s >= 1.0]
    assert 0 < len(late) <= 200, "the slow replica was given as much as each of the others, or nothing"
