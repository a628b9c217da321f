"""Results of others become outcomes: files typed by hand in the public forms."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rtr_ray.cli import app
from rtr_ray.errors import DataError
from rtr_ray.importers.base import imported
from rtr_ray.importers.llmrouterbench import LLMRouterBench
from rtr_ray.importers.lm_eval import LmEval
from rtr_ray.importers.routerbench import RouterBench
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.types import Candidate

WIDE = {
    "sample_id": ["mmlu-law.val.1", "grade-school-math.val.2"],
    "prompt": ["Which court? A) one B) two", "['How many pens are 3 and 4?']"],
    "eval_name": ["mmlu-law", "grade-school-math"],
    "oracle_model_to_route_to": ["mistralai/mistral-7b-chat", "no_model_correct"],
    "mistralai/mistral-7b-chat": [1.0, 0.25],
    "gpt-4-1106-preview": [0.0, None],
    "mistralai/mistral-7b-chat|model_response": ["['A']", "['It is 7, it\\'s easy']"],
    "gpt-4-1106-preview|model_response": ["['B']", None],
    "mistralai/mistral-7b-chat|total_cost": [0.0000144, 0.00002],
    "gpt-4-1106-preview|total_cost": [0.00083, 0.0],
}
RECORD = {
    "index": 1, "origin_query": "What is 2+2?", "prompt": "Question: What is 2+2?", "prediction": "4",
    "ground_truth": "4", "score": 1.0, "prompt_tokens": 15, "completion_tokens": 5, "cost": 0.0001,
    "raw_output": "It is 4.",
}  # fmt: skip
GENERATED = {
    "doc_id": 7, "doc": {"question": "How many?", "answer": "#### 4"}, "target": "4",
    "arguments": {"gen_args_0": {"arg_0": "Question: How many?\nAnswer:", "arg_1": {"until": ["Question:"]}}},
    "resps": [["there are 4"]], "filtered_resps": ["4"], "filter": "strict-match", "metrics": ["exact_match"],
    "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "exact_match": 1.0,
}  # fmt: skip
CHOSEN = {
    "doc_id": 0, "doc": {"question": "Which?", "choices": ["red", "blue"], "answer": 1}, "target": 1,
    "arguments": [["Which?\nAnswer:", " A"], ["Which?\nAnswer:", " B"]],
    "resps": [[[-1.5, False]], [[-0.5, True]]], "filtered_resps": [[-1.5, False], [-0.5, True]], "acc": 0.0,
}  # fmt: skip


def sample_file(folder: Path, task: str, *lines: dict[str, Any], model: str = "org__small-1b") -> Path:
    path = folder / model / f"samples_{task}_2026-01-02T03-04-05.678901.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bench_file(folder: Path, model: str, *records: dict[str, Any], time: str = "20260101_000000") -> Path:
    path = folder / "math500" / "test" / model / f"{time}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"performance": 1.0, "counts": len(records), "records": records}))
    return path


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_wide_table_of_routerbench_becomes_long(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"wide.{ending}"
    (pq.write_table if ending == "parquet" else pacsv.write_csv)(pa.table(WIDE), path)
    rows = imported(RouterBench(), [path]).table.to_pylist()
    assert [(row["query_id"], row["model"], row["correct"]) for row in rows] == [
        ("mmlu-law/mmlu-law.val.1", "mistralai/mistral-7b-chat", 1.0),
        ("mmlu-law/mmlu-law.val.1", "gpt-4-1106-preview", 0.0),
        ("grade-school-math/grade-school-math.val.2", "mistralai/mistral-7b-chat", 0.25),
    ]
    assert rows[0]["cost_usd"] == Decimal("0.0000144")
    assert rows[2]["response"] == "It is 7, it's easy"
    assert rows[2]["query"] == "How many pens are 3 and 4?"
    assert [row["output_tokens"] for row in rows] == [1, 1, 5]
    assert {row["tokens_source"] for row in rows} == {"4 bytes a token"}
    assert {row["dataset"] for row in rows} == {"mmlu-law", "grade-school-math"}


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "routerbench_0shot.pkl"
    path.write_bytes(pickle.dumps(WIDE))
    with pytest.raises(DataError, match=r"is a pickle, which runs code when it is opened.*to_parquet"):
        imported(RouterBench(), [path])


def test_records_of_llmrouterbench_have_their_names_from_their_folders(tmp_path: Path) -> None:
    other = RECORD | {
        "index": 2,
        "score": 0.0,
        "origin_query": [{"role": "user", "content": "x"}],
        "cost": None,
    }
    first = bench_file(tmp_path, "Qwen3-8B", RECORD, other)
    again = bench_file(tmp_path, "Qwen3-8B", RECORD, time="20260202_000000")
    found = imported(LLMRouterBench(), [first, again])
    rows = found.table.to_pylist()
    assert [(row["query_id"], row["model"], row["sample"], row["correct"]) for row in rows] == [
        ("math500/test/1", "Qwen3-8B", 0, 1.0),
        ("math500/test/2", "Qwen3-8B", 0, 0.0),
        ("math500/test/1", "Qwen3-8B", 1, 1.0),
    ]
    assert (rows[0]["input_tokens"], rows[0]["output_tokens"], rows[0]["cost_usd"]) == (
        15,
        5,
        Decimal("0.0001"),
    )
    assert (rows[0]["answer"], rows[0]["gold"], rows[0]["response"]) == ("4", "4", "It is 4.")
    assert (found.queries, found.candidates, found.estimated, found.unpriced) == (2, 1, 0, 1)


def test_generated_answers_of_the_harness_take_one_filter(tmp_path: Path) -> None:
    flexible = GENERATED | {"filter": "flexible-extract", "exact_match": 0.0}
    path = sample_file(tmp_path, "gsm8k_cot", GENERATED, flexible)
    (row,) = imported(LmEval(), [path]).table.to_pylist()
    assert (row["query_id"], row["model"], row["dataset"]) == ("gsm8k_cot/7", "org/small-1b", "gsm8k_cot")
    assert (row["query"], row["correct"], row["gold"], row["response"]) == (
        "How many?",
        1.0,
        "4",
        "there are 4",
    )
    assert row["output_tokens"] == 3
    (row,) = imported(LmEval(filter="flexible-extract", strategy="cot"), [path]).table.to_pylist()
    assert (row["correct"], row["strategy"]) == (0.0, "cot")


def test_answers_that_were_chosen_by_likelihood_are_one_token(tmp_path: Path) -> None:
    (row,) = imported(LmEval(model="mine"), [sample_file(tmp_path, "arc_easy", CHOSEN)]).table.to_pylist()
    assert (row["query"], row["model"]) == ("Which?\nA. red\nB. blue", "mine")
    assert (row["correct"], row["output_tokens"], row["response"]) == (0.0, 1, None)
    assert row["tokens_source"] == "one token: chosen by likelihood"


def test_several_generations_are_several_samples(tmp_path: Path) -> None:
    path = sample_file(tmp_path, "aime", GENERATED | {"resps": [["a", "b", "c"]]})
    assert imported(LmEval(), [path]).table["sample"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"doc_id": 1}, "line 1 lacks doc, resps: it is not of the form lm-eval"),
        ({k: v for k, v in CHOSEN.items() if k != "acc"}, "no grade of a known name; it has no number"),
        (CHOSEN | {"acc": "yes"}, "a grade is 'yes'; a number from 0 to 1 is needed"),
        (CHOSEN | {"acc": 7}, "correct lies between 7 and 7; 0 to 1 is possible"),
    ],
)
def test_lines_of_another_form_are_refused_in_a_sentence(tmp_path: Path, line: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        imported(LmEval(), [sample_file(tmp_path, "arc", line)])


def test_files_of_another_form_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.jsonl").write_text("{}")
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    for importer, name, told in (
        (LLMRouterBench(), "a.json", "holds no object"),
        (LmEval(), "b.jsonl", "is not named samples_TASK_TIME.jsonl"),
        (RouterBench(), "c.csv", "lacks sample_id, prompt, eval_name"),
        (RouterBench(), "d.csv", "There is no file"),
    ):
        with pytest.raises(DataError, match=told):
            imported(importer, [tmp_path / name])


def test_the_command_writes_what_an_estimator_reads(tmp_path: Path) -> None:
    files = [
        bench_file(tmp_path, model, *(RECORD | {"index": n, "score": float(n % 2)} for n in range(4)))
        for model in ("a", "b")
    ]
    output = tmp_path / "out" / "table.parquet"
    arguments = ["import-outcomes", "--from", "llmrouterbench", *map(str, files), "--output", str(output)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "8 outcomes of 4 queries and 2 candidates" in done.output
    found = pivot(read_long(str(output)))
    assert found.candidates == (Candidate("a", "vanilla"), Candidate("b", "vanilla"))
    assert found.accuracy.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    done = CliRunner().invoke(app, ["import-outcomes", "--from", "nothing", str(files[0]), "--output", "x"])
    assert done.exit_code == 1
    assert "Known kinds: llmrouterbench, lm-eval, routerbench" in done.stderr
    done = CliRunner().invoke(app, [*arguments, "--metric", "acc"])
    assert "has no field 'metric'" in done.stderr
