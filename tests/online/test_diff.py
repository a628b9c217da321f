"""`rtr-ray router diff`: what another router would change, by routers whose choices one can count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rtr_ray.cli import app

POOL = """\
deployments:
  engine:
    source: hub/small
    prices: {input_usd_per_mtok: 1, output_usd_per_mtok: 4}
models:
  small: {deployment: engine, profile: small and quick}
  large:
    deployment: engine
    profile: large and slow
    prices: {input_usd_per_mtok: 2, output_usd_per_mtok: 8}
strategies: [vanilla, cot]
"""
CANDIDATES = ("small:vanilla", "small:cot", "large:vanilla", "large:cot")
BEST = '{"kind": "score", "lam": 1.0, "normaliser_usd": 1}'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pool and 40 questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "pool.yaml").write_text(POOL)
    rows = [{"query": f"question {i}: what is {i} + {i}?"} for i in range(40)]
    (tmp_path / "sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def trained(
    name: str,
    right: Mapping[str, float],
    encoder: str = '{"kind": "hash", "dim": 16}',
    estimator: str = "prior",
    first: int = 0,
) -> str:
    """A router that has seen so large a share of right answers of each candidate."""
    rows = [
        {
            "query_id": f"q{i}",
            "query": f"question {i}",
            "model": candidate.partition(":")[0],
            "strategy": candidate.partition(":")[2],
            "correct": float(i % 10 < 10 * share),
            "input_tokens": 10,
            "output_tokens": 20,
        }
        for i in range(first, first + 40)
        for candidate, share in right.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), f"{name}.parquet")
    flags = ("--estimator", estimator, "--encoder", encoder, "--output", name)
    found = rtr_ray("train", "--outcomes", f"{name}.parquet", *flags)
    assert found.exit_code == 0, found.output
    return name


def rtr_ray(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def said(*arguments: str) -> str:
    """The one sentence that a mistake gets."""
    found = rtr_ray(*arguments)
    assert found.exit_code == 1, found.output
    (line,) = [line for line in found.stderr.splitlines() if line]
    return line.removeprefix("error: ")


def diff(*arguments: str) -> tuple[dict[str, Any], str]:
    found = rtr_ray("router", "diff", *arguments, "--policy", BEST, "--json", "diff.json")
    assert found.exit_code == 0, found.output
    return json.loads(Path("diff.json").read_text()), found.output


A = dict(zip(CANDIDATES, (0.2, 0.3, 0.4, 0.8), strict=True))
B = dict(zip(CANDIDATES, (0.2, 0.9, 0.4, 0.5), strict=True))


def test_routers_are_compared_on_a_sample_with_every_query_that_moves_and_what_it_costs():
    found, shown = diff(trained("a", A), trained("b", B), "--sample", "sample.jsonl")
    assert (found["queries"], found["changed"], found["changed_share"]) == (40, 40, 1.0)
    assert found["moves"] == [{"from": "large:cot", "to": "small:cot", "queries": 40}]
    assert found["before"]["accuracy"] == pytest.approx(0.8, abs=0.02)
    assert found["before_judged_by_after"]["accuracy"] == pytest.approx(0.5, abs=0.02)
    assert found["after"]["accuracy"] == pytest.approx(0.9, abs=0.02)
    assert found["before"]["cost_usd"] == pytest.approx(2 * found["after"]["cost_usd"])
    assert found["after"]["output_tokens"] == pytest.approx(40 * 20)
    assert len(found["most_changed"]) == 10
    assert found["most_changed"][0]["query"].startswith("question ")
    assert found["most_changed"][0]["accuracy"] == pytest.approx(0.4, abs=0.02)
    for text in ("40 of 40 queries (100.0%)", "large:cot", "small:cot", "A, as B predicts", "+40.0"):
        assert text in shown


def test_a_router_does_not_differ_from_itself_nor_from_one_trained_on_the_same():
    one, other = trained("a", A), trained("b", A)
    found, shown = diff(one, other, "--sample", "sample.jsonl", "--rows", "7")
    assert (found["queries"], found["changed"], found["most_changed"]) == (7, 0, [])
    assert found["before"] == found["after"]
    assert "0 of 7 queries (0.0%)" in shown


def test_without_a_sample_the_queries_that_both_have_kept_are_compared():
    one, other = trained("a", A), trained("b", B)
    found, _ = diff(one, other)
    assert found["queries"] == 40
    assert found["changed"] == 40
    assert found["most_changed"][0]["query"] is None, "a router keeps no texts"
    trained("elsewhere", A, first=100)
    assert "have none in common. Give some with --sample FILE." in said("router", "diff", one, "elsewhere")
    for name in ("held_out.json", "held_out.safetensors"):
        Path("a", name).unlink()
    flags = ("--policy", BEST)
    assert said("router", "diff", one, other, *flags) == (
        "a keeps no held-out queries. Give some with --sample FILE."
    )


def test_a_router_that_does_not_know_a_candidate_does_not_choose_it():
    one = trained("a", {name: A[name] for name in CANDIDATES[:3]})
    found, shown = diff(one, trained("b", A), "--sample", "sample.jsonl")
    assert found["moves"] == [{"from": "large:vanilla", "to": "large:cot", "queries": 40}]
    assert found["routers"][0]["unknown"] == ["large:cot"]
    assert "a has no outcomes of large:cot." in shown


def test_other_encoders_and_other_policies_are_compared_too():
    other = trained("b", A, encoder='{"kind": "hash", "dim": 24}')
    cheapest = '{"kind": "score", "lam": 0.0, "normaliser_usd": 1}'
    found, _ = diff(trained("a", A), other, "--sample", "sample.jsonl", "--policy-b", cheapest)
    assert found["routers"][0]["encoder"] != found["routers"][1]["encoder"]
    assert {move["to"].partition(":")[0] for move in found["moves"]} == {"small"}
    assert found["after"]["cost_usd"] < found["before"]["cost_usd"]


def test_what_cannot_be_compared_is_said_in_a_sentence(here: Path):
    one, other = trained("a", A), trained("b", B)
    (here / "empty.jsonl").write_text("")
    (here / "nulls.jsonl").write_text('{"query": null}\n{"query": " "}\n')
    (here / "other.yaml").write_text(POOL.replace("small:", "tiny:").replace("large:", "huge:"))
    sample = ("--sample", "sample.jsonl")
    assert "is empty" in said("router", "diff", one, other, "--sample", "empty.jsonl")
    assert said("router", "diff", one, other, "--sample", "nulls.jsonl") == (
        "nulls.jsonl holds no query: 2 of its 2 rows cannot be used."
    )
    assert "nowhere" in said("router", "diff", one, "nowhere", *sample)
    assert "none of which is in the pool" in said(
        "router", "diff", one, other, *sample, "--pool", "other.yaml"
    )
    assert "--policy is score" in said("router", "diff", one, other, *sample, "--policy", "score")
    assert "Give policy.run" in said(
        "router", "diff", one, other, *sample, "--policy", '{"kind": "budget", "budget_usd": 1}'
    )
