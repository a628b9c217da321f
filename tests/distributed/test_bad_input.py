"""Bad input in front of a cluster: one sentence before anything is spent, and no row is lost."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rtr_ray.errors import ConfigError, DataError, PlacementError, RouterError
from rtr_ray.job import Job
from tests.distributed.conftest import Cluster
from tests.distributed.engine import metered
from tests.distributed.workbench import POOL, Workbench, money, screen

pytestmark = pytest.mark.ray

CHEAP = {"policy": {"kind": "fixed", "candidate": "weak:vanilla"}}


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"bad-{tmp_path.name[:20]}")
    bench.pool()
    bench.router()
    return bench


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def applications() -> set[str]:
    from ray import serve

    return set(serve.status().applications)


def pool_with(name: str, **changes: Any) -> dict[str, Any]:
    """The deployments of the pool, one of them changed."""
    deployments = deepcopy(POOL["deployments"])
    deployments[name] |= changes
    return {"deployments": {k: {a: b for a, b in d.items() if b is not None} for k, d in deployments.items()}}


def check_nothing_was_spent(bench: Workbench, said: str) -> None:
    """No answer, no result, no application; the folder says what was wrong."""
    assert metered(bench.meter) == []
    assert not list(bench.output.glob("results/*.parquet"))
    assert not [path for path in bench.output.rglob("*") if path.name.startswith(".")]  # nothing half-written
    head = json.loads((bench.output / "run.json").read_text())
    assert (head["status"], head["error"]) == ("failed", said)
    # a job's own; the embedded pool may be up beside it, for other tests
    assert not [name for name in applications() if name.startswith("rtr-") and "-demo-" not in name]


# --- rows -----------------------------------------------------------------------------------------------


def test_every_bad_row_comes_back_with_its_reason_and_the_others_are_answered(bench: Workbench) -> None:
    bench.pool(**pool_with("strong", context_tokens=400_000))
    good = [
        {"question": f"Number {i}: what is {i} + 1?", "sum": str(i + 1), "note": f"note {i}"}
        for i in range(70)
    ]
    lines = [json.dumps(row).encode() for row in good]
    lines[3] = b'{"question": null, "sum": "1", "note": "note 3"}'
    lines[4] = b'{"question": " \\n ", "sum": "1", "note": "note 4"}'
    lines[5] = b'{"question": "caf\xe9 costs 1 + 1", "sum": "2", "note": "note 5"}'
    lines[6] = b'{"question": "what is'
    lines[7] = json.dumps(good[7] | {"question": "word " * 20_000 + "what is 7 + 1?"}).encode()
    lines[8] = lines[9]  # equal rows stay different rows
    (bench.folder / "corpus.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    columns = {"query": "question", "reference": "sum"}
    with bench.serving():
        found = bench.run(corpus={"path": str(bench.folder / "corpus.jsonl"), "columns": columns})
    results = bench.results()
    rows = {row["note"]: row for row in results.to_pylist()}
    assert found["rows"] == {"total": 70, "answered": 66, "failed": 4, "skipped_budget": 0}
    assert len(results) == len(set(results["query_id"].to_pylist())) == 70
    failed = [row for row in results.to_pylist() if row["status"] == "failed"]
    assert sorted(row["error"].split(":")[0] for row in failed) == [
        "not JSON",
        "not UTF-8",
        "the query is empty",
        "the query is null",
    ]
    assert {(row["cost_usd"], row["answer"], row["model"]) for row in failed} == {(None, None, None)}
    assert "byte 0xe9 at position" in next(row["error"] for row in failed if "UTF-8" in row["error"])
    # a query of 100,000 characters goes to the one that can take it, and is paid for
    long = rows["note 7"]
    assert (long["status"], long["model"], long["input_tokens"] > 20_000) == ("answered", "strong", True)
    assert [row["note"] for row in results.to_pylist()].count("note 9") == 2
    assert len(metered(bench.meter)) == 66
    assert money(results) == Decimal(found["cost_usd"]["spent"]) > long["cost_usd"] > 0


def test_models_that_cost_nothing_answer_all_within_any_budget(bench: Workbench) -> None:
    free = deepcopy(POOL["deployments"])
    for deployment in free.values():
        deployment["prices"] = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}
    bench.pool(deployments=free)
    bench.corpus(40)
    with bench.serving():
        found = bench.run(budget_usd="0.000001", policy={"kind": "score", "lam": 0.7})
    assert found["rows"] == {"total": 40, "answered": 40, "failed": 0, "skipped_budget": 0}
    assert (found["status"], Decimal(found["cost_usd"]["spent"])) == ("completed", 0)
    results = bench.results()
    assert set(results["cost_usd"].to_pylist()) == {Decimal(0)}  # known to be nothing, not unknown
    assert set(results["model"].to_pylist()) == {"strong"}  # where all is free, accuracy alone decides


# --- files ----------------------------------------------------------------------------------------------


def test_one_unreadable_file_among_good_ones_is_refused_or_set_aside_and_said(bench: Workbench) -> None:
    from rtr_ray.distributed.batch import run_job

    folder = bench.folder / "corpus"
    folder.mkdir()
    pq.write_table(pq.read_table(bench.corpus(30)), folder / "1.parquet")
    (folder / "2.parquet").write_bytes(b"PAR1 none")
    pq.write_table(pq.read_table(bench.corpus(20)), folder / "3.parquet")
    corpus = {"path": str(folder), "columns": {"query": "question", "reference": "sum"}}
    with pytest.raises(
        DataError, match=r"^Cannot read 2\.parquet as parquet: .* Repair or remove it, or set "
    ):
        bench.run(corpus=corpus)
    assert not bench.output.exists()
    shown = screen()
    with bench.serving():
        found = run_job(Job.check(bench.job(corpus=corpus | {"unreadable": "skip"}, **CHEAP)), shown)
    assert found["rows"] == {"total": 50, "answered": 50, "failed": 0, "skipped_budget": 0}
    assert "Set aside, since it cannot be read: 2.parquet (" in shown.console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_a_file_that_is_damaged_behind_its_beginning_is_named_before_anything_is_asked(
    bench: Workbench, unreadable: str
) -> None:
    folder = bench.folder / "corpus"
    folder.mkdir()
    for number in (1, 2):
        pq.write_table(pq.read_table(bench.corpus(30)), folder / f"{number}.parquet")
    whole = bytearray((folder / "2.parquet").read_bytes())
    whole[4:400] = b"\xff" * 396  # its footer still says that all is well
    (folder / "2.parquet").write_bytes(whole)
    corpus = {
        "path": str(folder),
        "columns": {"query": "question", "reference": "sum"},
        "unreadable": unreadable,
    }
    with bench.serving(), pytest.raises(DataError, match=r"^Cannot read 2\.parquet as parquet: ") as said:
        bench.run(corpus=corpus)
    assert "\n" not in said.value.message
    check_nothing_was_spent(bench, said.value.message)


# --- the router -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (
            {"encoder": {"kind": "hash", "dim": 16}},
            RouterError,
            "The router was trained with the encoder 'hash:32'; the configuration has 'hash:16'. "
            "Use the same encoder, or train again.",
        ),
        (
            {"encoder": {"kind": "nowhere.to_be_found:Encoder"}},
            ConfigError,
            "The encoder 'nowhere.to_be_found:Encoder' needs a package that cannot be imported: "
            "No module named 'nowhere'.",
        ),
    ],
)
def test_a_router_of_another_encoder_is_refused_before_anything_is_asked(
    bench: Workbench, head: dict[str, Any], error: type[Exception], message: str
) -> None:
    bench.corpus(80)
    path = bench.folder / "router" / "router.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | head))
    with bench.serving(), pytest.raises(error) as said:
        bench.run()
    assert str(said.value) == message
    check_nothing_was_spent(bench, message)
    assert files_of(bench.output) == {"run.json", "config.yaml"}


# --- the cluster ----------------------------------------------------------------------------------------

OWNED = {"cluster": {}}  # engines that the job would start itself


@pytest.mark.parametrize(
    ("pool", "job", "message"),
    [
        (
            pool_with("strong", num_cpus=50),
            OWNED,
            "The deployment 'strong' needs 51.2 CPU (dispatch to strong 0.1 CPU, strong 50.1 CPU, one task "
            "of 1 CPU), and the cluster has 8 CPU and 2 GPU in all. Give it more, or ask for less in the "
            "pool.",
        ),
        (
            pool_with("strong", accelerator="gpu", num_gpus=4),
            OWNED,
            "The deployment 'strong' needs 1.3 CPU and 4 GPU (dispatch to strong 0.1 CPU, strong 0.2 CPU 4 "
            "GPU, one task of 1 CPU), and the cluster has 8 CPU and 2 GPU in all. Give it more, or ask for "
            "less in the pool.",
        ),
        (
            {},
            {"encoder": {"actors": 9, "num_cpus": 1}},
            "The routing stage needs 10 CPU (9 encoder actor(s) of 1 CPU, one task of 1 CPU), and the "
            "cluster has 8 CPU and 2 GPU in all. Give it more, or ask for fewer or smaller encoder actors "
            "(encoder.actors, num_cpus, num_gpus).",
        ),
    ],
)
def test_what_a_cluster_lacks_is_named_at_once(
    bench: Workbench, pool: dict[str, Any], job: dict[str, Any], message: str
) -> None:
    bench.pool(**pool)
    bench.corpus(20)
    began = time.monotonic()
    with pytest.raises(PlacementError) as said:
        bench.run(**job)
    assert time.monotonic() - began < 60  # it does not wait for what cannot come (`placement_timeout_s`)
    assert said.value.message == message
    check_nothing_was_spent(bench, message)
    assert files_of(bench.output) == {"run.json", "config.yaml"}


def test_after_a_refusal_the_same_command_goes_on_with_what_was_lacking(bench: Workbench) -> None:
    bench.corpus(20)
    with bench.serving():
        with pytest.raises(PlacementError):
            bench.run(encoder={"actors": 9, "num_cpus": 1})
        found = bench.run()
    assert found["rows"]["answered"] == 20


def test_applications_that_do_not_run_are_named(bench: Workbench) -> None:
    bench.corpus(20)
    with pytest.raises(PlacementError) as said:
        bench.run(**CHEAP)
    message = said.value.message
    assert message.startswith(f"No running application '{bench.prefix}-weak' to attach to. Running: ")
    check_nothing_was_spent(bench, message)


def test_an_endpoint_whose_key_is_not_set_is_told_before_anything_is_asked(bench: Workbench) -> None:
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}
    bench.pool(**pool_with("weak", source=None, openai=endpoint))
    bench.router()
    bench.corpus(40)
    with bench.serving(), pytest.raises(ConfigError) as said:
        bench.run(policy={"kind": "fixed", "candidate": "weak:vanilla"})
    assert said.value.message == (
        "The environment variable NO_SUCH_KEY with the key of http://127.0.0.1:9/v1 is not set."
    )
    check_nothing_was_spent(bench, said.value.message)
    assert files_of(bench.output) == {"run.json", "config.yaml"}
