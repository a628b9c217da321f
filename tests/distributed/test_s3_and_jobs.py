"""A corpus and a run on S3, and `ray job submit`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from rtr_ray.storage import open_store, read_table, s3_client, s3_filesystem
from tests.distributed.conftest import ROOT, Cluster, free_ports
from tests.distributed.engine import metered
from tests.distributed.workbench import Workbench, money

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent


@pytest.fixture
def bench(tmp_path: Path, connected: Cluster) -> Workbench:
    bench = Workbench(tmp_path, f"job-{tmp_path.name[:20]}")
    bench.pool()
    bench.router()
    return bench


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A real S3 server on this machine with a bucket `rtr-test`; gives the variables that lead to it."""
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3_client.cache_clear()
    s3_filesystem.cache_clear()
    for _ in range(240):
        try:
            s3_client().create_bucket(Bucket="rtr-test")
            break
        except Exception:
            time.sleep(0.25)
    try:
        yield variables
    finally:
        server.terminate()
        server.wait(30)
        s3_client.cache_clear()
        s3_filesystem.cache_clear()


def submit(cluster: Cluster, script: str, arguments: list[str], variables: dict[str, str]) -> str:
    """`ray job submit` of the checkout as jobs/light.yaml says, waited for; gives its log."""
    light = yaml.safe_load((ROOT / "jobs" / "light.yaml").read_text())
    done = subprocess.run(
        [
            str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard,
            "--working-dir", str(ROOT),
            "--runtime-env-json", json.dumps(light | {"env_vars": variables}),
            "--", sys.executable, f"jobs/{script}", *arguments,
        ],
        env=cluster.environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_a_corpus_on_s3_is_routed_by_a_submitted_job_and_its_run_lies_on_s3(
    bench: Workbench, cluster: Cluster, bucket: dict[str, str]
) -> None:
    bench.corpus(300)
    store = open_store("s3://rtr-test/in")
    # two files of JSON lines, as people have them
    rows = pq.read_table(bench.folder / "corpus.parquet").to_pylist()
    for number, part in enumerate((rows[:100], rows[100:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        store.write(f"corpus/part-{number}.jsonl", lines.encode())
    for name in ("router.json", "estimator.safetensors"):
        open_store("s3://rtr-test/in/router").write(name, (bench.folder / "router" / name).read_bytes())
    job: dict[str, Any] = json.loads(bench.job().model_dump_json(exclude_none=True))
    job["corpus"]["path"] = "s3://rtr-test/in/corpus/*.jsonl"
    job["router"] = "s3://rtr-test/in/router"
    job["output"] = "s3://rtr-test/out/run"
    (bench.folder / "job.yaml").write_text(yaml.safe_dump(job))
    arguments = ["--config", str(bench.folder / "job.yaml"), "--budget-usd", "0.5"]
    with bench.serving():
        log = submit(cluster, "batch_route.py", arguments, bucket)
        asked = len(metered(bench.meter))
        again = submit(cluster, "batch_route.py", arguments, bucket)
    assert "300 of 300 rows answered" in log
    assert "300 of 300 rows answered" in again
    assert asked == len(metered(bench.meter)) == 300, "the second job asked again"
    run = open_store("s3://rtr-test/out/run")
    found = json.loads(run.read("summary.json") or b"{}")
    assert found["rows"] == {"total": 300, "answered": 300, "failed": 0, "skipped_budget": 0}
    assert found["cost_usd"]["budget"] == "0.5"
    parts = [read_table(run, key) for key in run.keys("results/")]
    assert sum(map(money, parts)) == Decimal(found["cost_usd"]["spent"])
    notes = [note for part in parts for note in part["note"].to_pylist()]
    assert sorted(notes) == sorted(f"note {i}" for i in range(300))


def test_a_submitted_job_refuses_an_output_that_would_go_with_it(bench: Workbench, cluster: Cluster) -> None:
    bench.corpus(10)
    job = json.loads(bench.job().model_dump_json(exclude_none=True)) | {"output": "runs/here"}
    (bench.folder / "job.yaml").write_text(yaml.safe_dump(job))
    done = subprocess.run(
        [
            str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard,
            "--working-dir", str(ROOT / "jobs"),
            "--", sys.executable, "batch_route.py", "--config", str(bench.folder / "job.yaml"),
        ],
        env=cluster.environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Give an absolute path that all nodes share, or s3://" in done.stdout + done.stderr


def test_outcomes_are_collected_by_a_submitted_job(bench: Workbench, cluster: Cluster) -> None:
    from rtr_ray.outcomes import pivot, read_long

    bench.corpus(60)
    content = {
        "pool": str(bench.folder / "pool.yaml"),
        "queries": {
            "path": str(bench.folder / "corpus.parquet"),
            "columns": {"query": "question", "reference": "sum"},
        },
        "output": str(bench.folder / "outcomes"),
        "grader": "numeric",
        "dispatch": {"chunk": 16, "commit_s": 0.2},
        "cluster": {"serve_app": bench.prefix},
    }
    (bench.folder / "collect.yaml").write_text(yaml.safe_dump(content))
    with bench.serving():
        submit(cluster, "collect_outcomes.py", ["--config", str(bench.folder / "collect.yaml")], {})
    outcomes = pivot(read_long(str(bench.folder / "outcomes" / "*.parquet")))
    assert outcomes.accuracy.shape == (60, 5)
    assert len(metered(bench.meter)) == 300
