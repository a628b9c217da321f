"""A job without a router: what it needs, what is said where it lacks it, and what becomes of its budget."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rtr_ray.cli import app
from rtr_ray.config import JobFile, load_job
from rtr_ray.errors import BudgetError, ConfigError
from rtr_ray.labelling import Labelling
from rtr_ray.labels import Labels

POOL = """\
deployments:
  engine:
    source: hub/small
    prices: {input_usd_per_mtok: 1, output_usd_per_mtok: 4}
models:
  small: {deployment: engine, profile: small and quick}
  large: {deployment: engine, profile: large and slow}
strategies:
  vanilla: {builtin: vanilla, max_tokens: 1000}
"""
JUDGE = {"kind": "judge", "candidate": "large:vanilla"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pool and a corpus with right answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "pool.yaml").write_text(POOL)
    rows = [{"query": f"{i} + {i}?", "sum": str(2 * i)} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus.parquet")
    return tmp_path


def job(**changes: Any) -> JobFile:
    content = {
        "pool": "pool.yaml",
        "corpus": {"path": "corpus.parquet", "columns": {"reference": "sum"}},
        "output": "run",
        "budget_usd": "25",
        "grader": "numeric",
        "labels": {"encoder": "hash"},
    }
    merged = {key: value for key, value in (content | changes).items() if value is not None}
    return JobFile.model_validate(merged)


def rtr_ray(command: str, *flags: str, **changes: Any) -> Any:
    text = json.dumps(json.loads(job(**changes).model_dump_json(exclude_none=True)))
    Path("job.yaml").write_text(text)  # JSON is YAML
    return CliRunner().invoke(app, [command, "--config", "job.yaml", *flags], catch_exceptions=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_usd": None}, "a sample is labelled first, and that takes money. Give a budget_usd"),
        ({"grader": None}, "nobody says which answers are right. Give a grader: numeric, exact or"),
        ({"corpus": {"path": "corpus.parquet"}}, "The grader 'numeric' compares with a reference answer."),
        ({"grader": JUDGE | {"candidate": "huge:cot"}}, "The grader 'judge' names huge:cot."),
        (
            {"policy": {"kind": "score", "lam": 0.5}},
            "its policy 'score' does not divide budget_usd among the rows.",
        ),
        ({"policy": {"kind": "budget", "min_accuracy": 0.9}}, "policy 'budget' does not divide budget_usd"),
        ({"budget_currency": "both"}, "budget_currency is 'both': engines that stay up from labels to"),
        ({"labels": {"encoder": "hash", "estimator": "kn"}}, "Unknown labels.estimator kind 'kn'."),
    ],
)
def test_what_a_job_without_a_router_lacks_is_told_before_anything_starts(here, changes, message):
    with pytest.raises(ConfigError) as caught:
        Labelling.check(job(**changes))
    assert message in str(caught.value)
    assert not list(here.glob("run*"))


def test_a_budget_of_which_the_share_does_not_cover_one_answer_is_refused():
    # 1,000 tokens at $4 a million are $0.004
    with pytest.raises(BudgetError, match=r"may cost \$0\.004: .* Raise budget_usd to more than \$0\.04, "):
        Labelling.check(job(budget_usd="0.03"))
    Labelling.check(job(budget_usd="0.04"))


def test_the_run_has_what_the_labels_left_to_the_last_digit():
    work = Labelling.check(job())
    labels = Labels(40, Decimal("1.000000000001"), Decimal("0.2"), True)
    file = work.routed(labels, "apps")
    assert file.budget_usd == Decimal("23.799999999999")
    assert file.router_keys.path == "run-router"
    assert (file.grader, file.cluster.serve_app) == ("numeric", "apps")
    with pytest.raises(BudgetError, match=r"^Labels have taken \$30\.2, and budget_usd is \$25 for labels"):
        work.routed(replace(labels, spent_usd=Decimal(30)), None)


def test_a_judge_grades_the_labels_and_not_the_run():
    work = Labelling.check(job(grader=JUDGE, corpus={"path": "corpus.parquet"}))
    sample = work.sample(20, None)
    assert (sample.file.sample, sample.file.budget_usd, sample.file.grader) == (20, Decimal("2.5"), JUDGE)
    assert sample.file.output == "run-labels/outcomes"
    assert work.routed(Labels(), None).grader is None


def test_more_labels_go_on_in_the_same_folder_and_another_grader_does_not():
    work = Labelling.check(job())
    more = Labelling.check(job(labels={"encoder": "hash", "rows": 500, "share": 0.2}, budget_usd="50"))
    other = Labelling.check(job(grader=JUDGE))
    assert more.fingerprints == work.fingerprints
    assert {name for name in work.fingerprints if work.fingerprints[name] != other.fingerprints[name]} == {
        "config"
    }


def test_the_split_of_the_budget_is_shown_and_without_a_terminal_yes_must_be_said(here):
    shown = StringIO()
    Console(file=shown, width=120).print(Labelling.check(job(grader=JUDGE)).split_table())
    lines = [line for line in shown.getvalue().splitlines() if "│" in line]
    assert "at most $2.50" in lines[0]
    assert "up to 300 rows, each answered by all 2 candidates and judged" in lines[0]
    assert "at least $22.50" in lines[1]
    found = rtr_ray("run")
    assert found.exit_code == 1
    assert found.stderr.strip() == (
        "error: This run may spend $25, part of it on labels, and there is no terminal to ask on. "
        "Add --yes, or give a router."
    )
    assert "at most $2.50" in found.stdout
    assert not list(here.glob("run*"))


@pytest.mark.parametrize("place", ["run/run.json", "run-router/router.json"])
def test_a_place_that_is_taken_is_found_before_labels_are_paid_for(here, place):
    (here / place).parent.mkdir()
    (here / place).write_text("{}")
    found = rtr_ray("run", "--yes")
    assert found.exit_code == 1
    where = place.partition("/")[0]
    assert found.stderr.startswith(f"error: {where} is there already, and run-labels, from which it would")
    assert not (here / "run-labels").exists()


def test_a_plan_without_a_router_is_told_what_to_do():
    found = rtr_ray("plan")
    assert found.exit_code == 1
    assert found.stderr.startswith("error: The job has no router. rtr-ray run makes one: it labels a sample")


def test_the_example_of_a_job_without_a_router_is_one(monkeypatch):
    for name in ("CORPUS", "OUTPUT"):
        monkeypatch.setenv(name, "somewhere")
    file = load_job(Path(__file__).parents[1] / "jobs" / "run_unrouted.yaml")
    assert file.router is None
    assert (file.labels.rows, file.labels.share, file.budget_usd) == (300, 0.1, Decimal(25))
