"""The benchmark of routing quality in a small form, so that it does not rot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import active, paper, quality
from benchmarks._paper_subject import Subject
from benchmarks._recorded import kept
from rtr_ray.embedded.questions import draw
from rtr_ray.embedded.shipped_outcomes import COUNT, SEED
from tests.test_quality import outcomes_of

HASH = '{"kind": "hash", "dim": 32}'
RTR = '{"kind": "rtr", "hidden": 8, "learned": 2, "max_epochs": 1}'  # wants profiles: the names


def written(path: Path, texts: list[str]) -> None:
    """Outcomes of two candidates; the cheap one is right on every second query."""
    rows = [
        {
            "query_id": f"q{number}",
            "query": text,
            "model": model,
            "strategy": "cot",
            "correct": float(model == "dear" or number % 2 == 0),
            "input_tokens": 10,
            "output_tokens": 20 if model == "cheap" else 40,
            "cost_usd": 0.001 if model == "cheap" else 0.02,
        }
        for number, text in enumerate(texts)
        for model in ("cheap", "dear")
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def run(folder: Path, *more: str) -> dict[str, object]:
    """What was written."""
    out = folder / "quality.json"
    quality.main(["--data", str(folder), "--encoder", HASH, "--out", str(out), "--quick", *more])
    found: dict[str, object] = json.loads(out.read_text())
    return found


def test_every_table_that_is_there_is_measured_and_an_absent_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "here.parquet", [f"a question of kind {i % 2} number {i}" for i in range(60)])
    found = run(
        tmp_path, "--tables", "gone", "here", "--estimators", "prior", "vocabulary", RTR, "--repeats", "1"
    )
    (report,) = found["tables"]  # type: ignore[misc]
    assert {one["name"] for one in report["routers"]} == {"prior", "vocabulary", RTR}
    said = capsys.readouterr().out
    assert "gone: passed over" in said
    assert "| `vocabulary` |" in said
    assert "| oracle, knows its luck |" in said
    found = run(tmp_path, "--tables", "here", "--estimators", "prior", "linear", "--repeats", "2", "--add")
    (report,) = found["tables"]  # type: ignore[misc]
    counts = {one["name"]: one["repeats"] for one in report["routers"]}
    assert counts == {"prior": 2, "linear": 2, "vocabulary": 1, RTR: 1}
    quality.main(["--show", "--out", str(tmp_path / "quality.json")])
    assert "| `vocabulary` | 1 |" in capsys.readouterr().out


def test_what_labels_buy_is_drawn_as_a_line_for_each_rule() -> None:
    rows = [
        {"rule": rule, "share": share, "cost": share * (1 + seed), "over_hull": 0.01 * seed}
        for rule in ("tempered", "rows")
        for share in (0.5, 0.1)
        for seed in (0, 1)
    ]
    chart = active.picture(rows, "labels", "usd")
    assert [line.name for line in chart.marks] == ["active (tempered)", "random rows"]
    assert chart.marks[0].points == [(pytest.approx(0.15), 0.5), (pytest.approx(0.75), 0.5)]


def test_the_lookup_knows_the_family_and_level_of_a_shipped_question() -> None:
    questions = draw("route", COUNT, SEED)[:400]
    cells = [(question.family, question.level) for question in questions]
    known = sorted(set(cells))
    accuracy_MC = np.array([[known.index(cell) / len(known), 1.0] for cell in cells])
    texts = tuple(question.query for question in questions)
    outcomes = replace(outcomes_of(len(questions)), queries=texts, accuracy=accuracy_MC)
    fitted = quality.Lookup().fit(outcomes, np.zeros((len(questions), 1)), quality.Profiles({}, {}))
    told = fitted.predict_texts(np.zeros((len(questions), 1)), texts)
    assert np.corrcoef(told.accuracy[:, 0], accuracy_MC[:, 0])[0, 1] > 0.98


@pytest.mark.skipif(
    not (quality.DATA / "renze_dense_joined17.parquet").exists(),
    reason="the recorded outcomes of real models are not part of the repository",
)
def test_recorded_outcomes_of_real_models_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    quality.main(
        [
            *("--tables", "renze_dense_joined17", "--estimators", "prior", "linear", "--repeats", "1"),
            *("--encoder", HASH, "--out", str(out), "--quick"),
        ]
    )
    found = json.loads(out.read_text())
    assert found["tables"][0]["n_ood"] > 0


def test_the_papers_tables_tell_accuracy_tokens_and_dollars_of_each_dataset(tmp_path: Path) -> None:
    """gpt-4 is always right, for ten times the dollars; gpt-3.5 never on the second exam."""
    rows = [
        {
            "query_id": f"q{number}",
            "query": f"a question of {('law', 'sums')[number % 2]}, number {number}",
            "dataset": ("law", "sums")[number % 2],
            "split": "test" if number % 5 == 0 else "train",
            "model": model,
            "strategy": strategy,
            "correct": float(model == "gpt-4" or number % 2 == 0),
            "input_tokens": 10,
            "output_tokens": 20 if strategy == "vanilla" else 40,
            "cost_usd": (0.001 if model == "gpt-4" else 0.0001) * (1 if strategy == "vanilla" else 2),
        }
        for number in range(60)
        for model in ("gpt-35-turbo", "gpt-4")
        for strategy in ("vanilla", "cot")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "renze.parquet")
    subject = Subject.read("renze", tmp_path / "renze.parquet", kept(HASH, tmp_path), ("prior", "knn"))
    found = {"tables2-4": paper.tables_2_to_4(subject), "figure6": paper.figure_6(subject)}
    told = paper.markdown({"subjects": {"renze": found}})
    assert "| test | law | sums |" in told
    assert "| gpt-35-turbo:vanilla (cheapest) | 100.0 / 20 / 0.1 | 0.0 / 20 / 0.1 |" in told
    assert "| oracle | 100.0 / 20 / 0.1 | 100.0 / 20 / 1 |" in told
    assert "| prior | gpt-4:cot | 1.000 |" in told
