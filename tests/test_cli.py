"""The command line: what works, and the one sentence that a mistake gets before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rtr_ray.cli import app
from rtr_ray.router import RouterFolder

POOL = """\
deployments:
  engine:
    source: hub/small
    prices: {input_usd_per_mtok: 1, output_usd_per_mtok: 4}
models:
  small: {deployment: engine, profile: small and quick}
  large: {deployment: engine, profile: large and slow}
strategies: [vanilla, cot]
"""
JOB = """\
pool: pool.yaml
router: router
corpus: {path: corpus.jsonl}
output: run
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pool, outcomes, a corpus and a job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "pool.yaml").write_text(POOL)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "corpus.jsonl").write_text('{"query": "2+2?"}\n{"query": "3+3?"}\n')
    write_outcomes(
        tmp_path / "outcomes.parquet", ("small", "vanilla"), ("small", "cot"), ("large", "vanilla")
    )
    return tmp_path


def write_outcomes(path: Path, *candidates: tuple[str, str], queries: int = 12) -> None:
    rows = [
        {
            "query_id": f"q{i}",
            "query": f"question {i}",
            "model": model,
            "strategy": strategy,
            "correct": float(i % 3 > 0),
            "input_tokens": 10,
            "output_tokens": 5 + i,
            "split": "test" if i % 4 == 0 else "train",
        }
        for i in range(queries)
        for model, strategy in candidates
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def rtr_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def said(*arguments: str) -> str:
    """The one sentence that a mistake gets."""
    found = rtr_ray(*arguments)
    assert found.exit_code == 1, found.output
    lines = [line for line in found.stderr.splitlines() if line]
    assert len(lines) == 1
    assert "Traceback" not in found.output
    return lines[0].removeprefix("error: ")


def train(*more: str) -> tuple[str, ...]:
    return ("train", "--outcomes", "outcomes.parquet", "--output", "router", "--encoder", "hash", *more)


PRIOR = ("--estimator", "prior")


# The whole


def test_help_lists_the_commands():
    found = rtr_ray("--help")
    assert found.exit_code == 0
    for command in ("run", "collect", "train", "demo", "validate"):
        assert f" {command} " in found.output


@pytest.mark.parametrize("command", ["run", "collect", "train", "demo", "validate"])
def test_every_command_explains_itself(command):
    found = rtr_ray(command, "-h")
    assert found.exit_code == 0
    assert "Usage" in found.output


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["validate"], ["run"], ["train"], ["train", "--colour", "red"], ["demo", "--questions", "1"]],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert rtr_ray(*arguments).exit_code == 2


def test_the_command_is_installed_and_starts_without_anything_heavy():
    code = (
        "import sys; from rtr_ray.cli import main; print(sorted({'ray', 'vllm', 'torch'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


# validate


def test_a_pool_that_is_fine_is_shown():
    found = rtr_ray("validate", "pool.yaml")
    assert found.exit_code == 0
    for candidate in ("small:vanilla", "small:cot", "large:vanilla", "large:cot"):
        assert candidate in found.output
    assert found.output.endswith("pool.yaml: fine.\n")


def test_a_folder_and_a_shipped_pool_can_be_validated():
    assert "pool.yaml: fine." in rtr_ray("validate", ".").output
    found = rtr_ray("validate", "paper")
    assert found.exit_code == 0
    assert "qwq-32b:pal" in found.output


def test_a_job_is_validated_with_its_pool():
    found = rtr_ray("validate", "job.yaml")
    assert found.exit_code == 0
    assert found.output.endswith("job.yaml and pool.yaml: fine.\n")


def test_a_mistake_in_a_file_is_told(here):
    (here / "pool.yaml").write_text(POOL.replace("strategies:", "strategy:"))
    assert said("validate", "pool.yaml").startswith("pool.yaml: strategy: unknown key.")
    assert said("validate", "job.yaml").startswith("pool.yaml: strategy: unknown key.")
    (here / "job.yaml").write_text(JOB + "policies: {}\n")
    assert said("validate", "job.yaml").startswith("job.yaml: policies: unknown key.")
    assert said("validate", "nope.yaml") == "There is no file nope.yaml."


# train


def test_a_router_is_trained_and_what_it_lacks_is_told():
    found = rtr_ray(*train(*PRIOR))
    assert found.exit_code == 0, found.output
    assert "9 queries, 3 candidates" in found.output
    assert "Without outcomes, so not in the router: large:cot." in found.output
    assert "On held-out queries" in found.output
    assert found.output.endswith("Router: router\n")
    folder = RouterFolder.load("router")
    assert [str(c) for c in folder.estimator.candidates] == ["small:vanilla", "small:cot", "large:vanilla"]
    assert folder.encoder == {"kind": "hash", "dim": 256}
    assert folder.metrics["queries"] == 9
    assert set(folder.metrics["held_out"]) == {"small:vanilla", "small:cot", "large:vanilla"}


def test_estimator_and_encoder_may_be_told_in_full():
    flags = ("--estimator", '{"kind": "knn", "k": 3}', "--encoder", '{"kind": "hash", "dim": 16}')
    found = rtr_ray("train", "--outcomes", "outcomes.parquet", "--output", "router", *flags)
    assert found.exit_code == 0, found.output
    folder = RouterFolder.load("router")
    assert folder.encoder == {"kind": "hash", "dim": 16}
    assert folder.estimator.kind == "knn"


def test_a_candidate_without_held_out_outcomes_is_shown_with_dashes(here):
    write_outcomes(here / "outcomes.parquet", ("small", "vanilla"))
    more = here / "more.parquet"
    write_outcomes(more, ("large", "cot"))
    table = pq.read_table(more)
    pq.write_table(table.filter(pa.array([s == "train" for s in table["split"].to_pylist()])), more)
    (here / "outcomes").mkdir()
    for name in ("outcomes", "more"):
        (here / f"{name}.parquet").rename(here / "outcomes" / f"{name}.parquet")
    found = rtr_ray("train", "--outcomes", "outcomes", "--output", "router", "--encoder", "hash", *PRIOR)
    assert found.exit_code == 0, found.output
    (line,) = [line for line in found.output.splitlines() if line.startswith("│ large:cot")]
    assert line.replace("│", " ").split()[1:] == ["-"] * 5


def test_outcomes_of_other_candidates_are_told(here):
    write_outcomes(here / "outcomes.parquet", ("small", "cot"), ("huge", "cot"))
    assert "With outcomes, but not in the pool: huge:cot." in rtr_ray(*train(*PRIOR)).output
    write_outcomes(here / "outcomes.parquet", ("huge", "cot"))
    assert said(*train(*PRIOR)).startswith(
        "outcomes.parquet has outcomes of huge:cot, none of which is in the pool"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--estimator", "prioor"), "Unknown estimator kind 'prioor'. Known kinds: "),
        (("--estimator", '{"kind": "knn", "k": "many"}'), "estimator.k is 'many': a whole number is needed."),
        (("--estimator", '{"kind": "knn", "n": 1}'), "estimator 'knn' has no field 'n'. Its fields: "),
        (("--estimator", '{"kind": '), "--estimator is not JSON: "),
        (("--encoder", '{"kind": "hash", "dim": 0}'), "encoder.dim is 0; 1 is the least."),
        (("--pool", "nope.yaml"), "There is no file nope.yaml."),
        (("--outcomes", "nope"), "No such file or folder: nope. "),
        (
            ("--output", "gs://bucket/router"),
            "'gs://bucket/router' is neither a local path nor s3://bucket/prefix.",
        ),
        (("--output", "pool.yaml/router"), "Cannot write "),
    ],
)
def test_a_flag_that_cannot_be_is_told(flags, message):
    assert said(*train(*PRIOR, *flags)).startswith(message)


# run and collect, as far as they come without Ray


def test_a_job_that_is_not_there_is_told():
    assert said("run", "--config", "nope.yaml") == "There is no file nope.yaml."


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--budget-usd", "lots"),
            "job.yaml: budget_usd is 'lots': a number is needed. Expected: dollars, above 0.",
        ),
        (
            ("--budget-usd", "0"),
            "job.yaml: budget_usd is '0': it must be above 0. Expected: dollars, above 0.",
        ),
    ],
)
def test_a_flag_of_a_run_that_cannot_be_is_told(flags, message):
    assert said("run", "--config", "job.yaml", *flags) == message


def test_a_run_without_a_router_is_told_before_anything_starts(here):
    assert said("run", "--config", "job.yaml") == (
        "router is not a router folder: it has no router.json. Make one with rtr-ray train."
    )
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("", "The corpus corpus.jsonl is empty: 1 file(s) without a row."),
        (
            '{"question": "2+2?"}\n',
            "corpus.jsonl has no column 'query' (corpus.columns.query). Its columns: question.",
        ),
        ("not json\n", "Cannot read corpus.jsonl as jsonl: none of its first lines is a JSON object; "),
        (None, "No such file or folder: corpus.jsonl. "),
    ],
)
def test_a_corpus_that_cannot_be_is_told_before_anything_starts(here, corpus, message):
    (here / "pool.yaml").write_text(POOL + "exclude: [{model: large, strategy: cot}]\n")
    assert rtr_ray(*train(*PRIOR)).exit_code == 0
    if corpus is None:
        (here / "corpus.jsonl").unlink()
    else:
        (here / "corpus.jsonl").write_text(corpus)
    assert said("run", "--config", "job.yaml").startswith(message)
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "rtr-ray collect: output is missing. "),
        (("--output", "o", "--sample", "0"), "rtr-ray collect: sample is 0: 1 is the least. "),
        (("--output", "o", "--candidate", "small"), "'small' does not name a candidate. "),
        (
            ("--output", "o", "--candidate", "huge:cot"),
            "huge:cot is not a candidate of the pool. Known: small:vanilla",
        ),
        (("--output", "o", "--grader", "exakt"), "Unknown grader kind 'exakt'. "),
        (("--output", "o", "--grader", "exact"), "The grader 'exact' compares with a reference answer. "),
        (("--output", "o", "--grader", "{oops"), "--grader is not JSON: "),
        (("--output", "o", "--query-column", "q"), "corpus.jsonl has no column 'q' (corpus.columns.query). "),
    ],
)
def test_a_collection_that_cannot_be_is_told_before_anything_starts(here, flags, message):
    assert said("collect", "--pool", "pool.yaml", "--queries", "corpus.jsonl", *flags).startswith(message)
    assert not (here / "o").exists()


def test_no_message_holds_a_query_or_a_key(here, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    (here / "pool.yaml").write_text(POOL.replace("source: hub/small", "openai: {base_url: '${MY_KEY}'}"))
    assert "sk-secret" not in said("validate", "pool.yaml")
    (here / "corpus.csv").write_text("query,n\na secret question,1,2\n")
    message = said("collect", "--pool", "paper", "--queries", "corpus.csv", "--output", "o")
    assert "secret" not in message
    assert not (here / "o").exists()
