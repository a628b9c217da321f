"""A user's trial from end to end: a corpus on S3, one budget, `ray job submit`, two kills, a resume.

    python benchmarks/user_trial.py

starts a Ray cluster and an S3 server on this machine, writes 200,000 questions to S3, trains a router on
500 labels, and submits the batch job with a budget that binds. The driver is killed by SIGKILL at about a
third of the answers; the same command goes on, and at about two thirds an actor that dispatches to one of
the two deployments is killed. The world is simulated (benchmarks/simulation/truth.py): 8 candidates, lengths
with a heavy tail, engines behind Ray Serve that answer from it, and write down what they answered in a
meter of their own.

Then everything is counted from the results and from that meter:

- `spent_share`: dollars of all results over the budget, 0.97 to 1. What the killed session may have paid
  without telling is in `figures.unknown_share`; what was paid by the meter in `figures.metered_share`.
- `rows_lost`, `rows_doubled`: rows of the corpus without a result, and with more than one.
- `deployments_left`: what the jobs left on the cluster: applications beside the simulated engines (rtr-ray
  owns engines of vLLM only, and attaches to these), and living actors of guards, ledgers, dispatch, encoding.
- `accuracy`, `accuracy_best_mix`: right answers over all rows, and those of the best fixed mix of candidates
  for the same dollars, of which the simulation knows the truth.

Writes benchmarks/out/user_trial.json; ends with 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._surroundings import surroundings
from benchmarks.simulation.cluster import BIN, Cluster, bucket, cluster
from benchmarks.simulation.engine import metered, serving
from benchmarks.simulation.truth import SKILL, WAYS, Truth, best_mix
from rtr_ray.config import load_pool
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.knn import KNN
from rtr_ray.pool import Pool
from rtr_ray.storage import open_store, read_table, write_table
from rtr_ray.training import train_router
from rtr_ray.types import Usage

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out"
BUCKET, PREFIX = "trial", "trial"
PRICES = {"small": ("0.1", "0.4"), "large": ("2", "8")}  # dollars per million tokens
BUDGET_USD_PER_ROW = Decimal("0.0005")  # of 0.00003 for the cheapest candidate to 0.0085 for the dearest
LABELS, ROWS_PER_FILE = 500, 25_000
LEAST_SPENT = 0.97
OURS = ("GuardActor", "SharedLedger", "DispatchActor", "TableActor")


@dataclass(slots=True)
class Trial:
    """One trial: where it lies, and what happened."""

    folder: Path
    rows: int
    console: Console
    truth: Truth = field(default_factory=Truth)
    events: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def meter(self) -> Path:
        """What the engines write down."""
        return self.folder / "meter.tsv"

    @property
    def budget_usd(self) -> Decimal:
        """It binds."""
        return BUDGET_USD_PER_ROW * self.rows

    def tell(self, what: str) -> None:
        """Note an event, with the seconds since the beginning."""
        line = f"{time.monotonic() - self.began_s:6.0f} s  {what}"
        self.events.append(line)
        self.console.print(line, highlight=False)

    def pool(self) -> Pool:
        """The pool file: a deployment per model, and four strategies."""
        content = {
            "deployments": {
                model: {
                    "source": "nowhere",
                    "accelerator": "cpu",
                    "num_cpus": 0.1,
                    "context_tokens": 16_384,
                    "max_in_flight": 64,
                    "prices": {
                        "input_usd_per_mtok": float(before),
                        "output_usd_per_mtok": float(behind),
                        "source": "made up",
                    },
                }
                for model, (before, behind) in PRICES.items()
            },
            "models": {
                model: {"deployment": model, "profile": f"The {model} model of a simulation."}
                for model in SKILL
            },
            "strategies": {
                name: {
                    "system": name,
                    "profile": f"Answers of about {way.median_tokens:g} tokens.",
                    "max_tokens": way.max_tokens,
                    "answer": "text",
                }
                for name, way in WAYS.items()
            },
        }
        (self.folder / "pool.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_pool(str(self.folder / "pool.yaml"))

    def corpus(self) -> None:
        """The questions on S3, in files of Parquet."""
        store = open_store(f"s3://{BUCKET}/in")
        for first in range(0, self.rows, ROWS_PER_FILE):
            rows = range(first, min(first + ROWS_PER_FILE, self.rows))
            table = pa.table(
                {
                    "id": [f"r{row:07d}" for row in rows],
                    "question": [self.truth.text(row) for row in rows],
                    "answer": ["right"] * len(rows),
                }
            )
            write_table(store, f"corpus/part-{first:07d}.parquet", table, row_group_rows=5000)

    def router(self, pool: Pool) -> None:
        """A router on S3, trained on labels of questions that are not in the corpus."""
        labels = []
        for row in range(10**9, 10**9 + LABELS):
            for candidate in pool.candidates:
                right, tokens = self.truth.drawn(row, candidate)
                labels.append(
                    {
                        "query_id": f"label-{row}",
                        "query": self.truth.text(row),
                        "model": candidate.model,
                        "strategy": candidate.strategy,
                        "correct": float(right),
                        "input_tokens": self.truth.input_tokens(row),
                        "output_tokens": tokens,
                        "max_tokens": pool.max_tokens(candidate),
                    }
                )
        pq.write_table(pa.Table.from_pylist(labels), self.folder / "labels.parquet")
        knn: Any = KNN(k=40)
        labelled = str(self.folder / "labels.parquet")
        train_router(labelled, pool, HashEncoder(256), knn, f"s3://{BUCKET}/in/router")

    def job(self) -> Path:
        """The job file."""
        content = {
            "pool": str(self.folder / "pool.yaml"),
            "router": f"s3://{BUCKET}/in/router",
            "corpus": {
                "path": f"s3://{BUCKET}/in/corpus/*.parquet",
                "columns": {"query": "question", "id": "id", "reference": "answer"},
            },
            "output": f"s3://{BUCKET}/run",
            "grader": "exact",
            "encoder": {"actors": 1, "num_cpus": 0.5},
            "dispatch": {"commit_s": 0.5},
            "cluster": {"serve_app": PREFIX},
        }
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def submit(self, where: Cluster, variables: Mapping[str, str]) -> subprocess.Popen[str]:
        """`ray job submit`: the same command each time."""
        log = (self.folder / "job.log").open("a")
        return subprocess.Popen(
            [
                str(BIN / "ray"), "job", "submit", "--address", where.dashboard,
                "--working-dir", str(ROOT / "jobs"),
                "--runtime-env-json", json.dumps({"env_vars": dict(variables)}),
                "--", sys.executable, "batch_route.py",
                "--config", str(self.job()), "--budget-usd", f"{self.budget_usd:f}",
            ],
            stdout=log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def answers(self) -> int:
        """How many the engines have given."""
        with self.meter.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))

    def kill(self, where: Cluster, what: str, fits: Callable[[str], bool], least: int) -> None:
        """SIGKILL to one process of the cluster, once there are so many answers."""
        while self.answers() < least:
            time.sleep(2)
        victims = where.processes(fits)
        if not victims:
            raise RuntimeError(f"There is no process of {what} to kill.")
        os.kill(victims[0].pid, signal.SIGKILL)
        self.tell(f"{what} killed after {self.answers():,} answers")


def is_driver(command: str) -> bool:
    """Whether a command line is that of the job's driver, not of the shell around it."""
    return "batch_route.py" in command and command.startswith(sys.executable)


def is_dispatch(command: str) -> bool:
    """Whether it is an actor that dispatches."""
    return command.startswith("ray::DispatchActor")


def left_behind(where: Cluster) -> dict[str, int]:
    """What jobs have left on the cluster, beside the engines that they attached to."""
    from ray import serve
    from ray.util.state import list_actors

    mine = {f"{PREFIX}-{model}" for model in PRICES}
    left = Counter(f"application {name}" for name in serve.status().applications if name not in mine)
    alive = list_actors(where.dashboard, filters=[("state", "=", "ALIVE")], limit=1000)
    left.update(actor.class_name for actor in alive if actor.class_name.endswith(OURS))
    return dict(left)


def count(trial: Trial, pool: Pool) -> dict[str, Any]:
    """All figures, from the results, the meter and the truth."""
    run = open_store(f"s3://{BUCKET}/run")
    ids: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    spent_usd, right = Decimal(0), 0.0
    finished: Counter[str] = Counter()
    for key in run.keys("results/"):
        part = read_table(run, key, ["query_id", "status", "cost_usd", "correct", "finish_reason"])
        ids.update(part["query_id"].to_pylist())
        statuses.update(part["status"].to_pylist())
        finished.update(map(str, part["finish_reason"].to_pylist()))
        spent_usd += sum((cost for cost in part["cost_usd"].to_pylist() if cost is not None), Decimal(0))
        right += sum(value or 0.0 for value in part["correct"].to_pylist())
    metered_usd, asked = Decimal(0), Counter[str]()
    for line in metered(trial.meter):
        price = pool.deployments[line.engine].price
        metered_usd += price.cost_usd(Usage(line.input_tokens, line.output_tokens))
        asked[line.row] += 1
    ledger = json.loads(run.read("ledger.json") or b"{}")
    summary = json.loads(run.read("summary.json") or b"{}")
    expected = trial.truth.expected(pool, range(trial.rows))
    spent_per_row = float(spent_usd) / trial.rows
    wanted = {f"r{row:07d}" for row in range(trial.rows)}
    budget = trial.budget_usd
    return {
        "spent_share": float(spent_usd / budget),
        "rows_lost": len(wanted - ids.keys()),
        "rows_doubled": sum(number - 1 for number in ids.values()),
        "deployments_left": 0,
        "accuracy": right / trial.rows,
        "accuracy_best_mix": best_mix(list(expected.values()), spent_per_row),
        "figures": {
            "rows": trial.rows,
            "budget_usd": str(budget),
            "status": summary.get("status"),
            "by_status": dict(statuses),
            "finish_reasons": dict(finished),
            "unknown_share": float(Decimal(ledger.get("unknown_usd", "0")) / budget),
            "metered_share": float(metered_usd / budget),
            "calls": summary.get("calls"),
            "calls_paid_twice": sum(number - 1 for number in asked.values()),
            "plan_versions": len(run.keys("policies/")),
            "results_parts": len(run.keys("results/")),
            "by_candidate": summary.get("by_candidate"),
            "last_session_s": summary.get("seconds"),
            "fixed": {str(c): {"usd": usd, "accuracy": a} for c, (usd, a) in expected.items()},
        },
    }


def cpu_seconds(where: Cluster) -> dict[str, float]:
    """CPU seconds by kind of process, of those that live."""
    import psutil

    found: dict[str, float] = {}
    kinds = ("DispatchActor", "SharedLedger", "SimulatedEngine", "TableActor", "batch_route.py", "Serve")
    for one in where.processes(lambda _: True):
        try:
            command, times = " ".join(one.cmdline()), one.cpu_times()
        except psutil.Error:
            continue
        kind = next((kind for kind in kinds if kind in command), "other")
        found[kind] = found.get(kind, 0.0) + times.user + times.system
    return {kind: round(seconds, 1) for kind, seconds in found.items()}


def failed_checks(found: Mapping[str, Any]) -> list[str]:
    """What is not as it should be."""
    told = [
        f"{name} is {found[name]}"
        for name in ("rows_lost", "rows_doubled", "deployments_left")
        if found[name]
    ]
    if not LEAST_SPENT <= found["spent_share"] <= 1:
        told.append(f"{found['spent_share']:.2%} of the budget is spent")
    if found["figures"]["metered_share"] > 1:
        told.append(f"{found['figures']['metered_share']:.2%} of the budget was paid by the meter")
    if found["accuracy"] <= found["accuracy_best_mix"]:
        told.append(f"accuracy is {found['accuracy']:.2%}, the best mix has {found['accuracy_best_mix']:.2%}")
    return told


def tried(trial: Trial, kills: bool) -> dict[str, Any]:
    """The whole trial."""
    import ray

    with bucket(BUCKET) as variables, cluster() as where:
        trial.tell("cluster and S3 are up")
        pool = trial.pool()
        trial.corpus()
        trial.router(pool)
        trial.tell(f"{trial.rows:,} rows on S3, router trained on {LABELS} labels")
        ray.init(where.address, log_to_driver=False, configure_logging=False)
        sources = {model: Truth(model) for model in PRICES}
        with serving(PREFIX, sources, trial.meter, s_per_token=2e-5):
            trial.tell("engines are up; the job is submitted")
            began_s = time.monotonic()
            job = trial.submit(where, variables)
            if kills:
                trial.kill(where, "the driver", is_driver, trial.rows // 3)
                job.wait()
                trial.tell("the job has ended; the same command again")
                job = trial.submit(where, variables)
                trial.kill(where, "a dispatch actor", is_dispatch, 2 * trial.rows // 3)
            watched: dict[str, float] = {}
            while job.poll() is None:
                watched = cpu_seconds(where) or watched
                time.sleep(5)
            took_s = time.monotonic() - began_s
            trial.tell(f"the job ended with {job.returncode}")
            time.sleep(5)  # for actors to go
            left = left_behind(where)
            found = count(trial, pool)
    found["deployments_left"] = sum(left.values())
    found["figures"] |= {
        "left": left,
        "job_exit_code": job.returncode,
        "job_s": took_s,
        "rows_per_s": trial.rows / took_s,
        "cpu_s_last_session": watched,
        "events": trial.events,
    }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT / "user_trial.json")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="rtr-trial-") as name:
        trial = Trial(Path(name), options.rows, console)
        try:
            found = tried(trial, not options.no_kills)
        except BaseException:
            log = trial.folder / "job.log"
            console.print(log.read_text()[-3000:] if log.exists() else "", markup=False)
            raise
    table = Table(title=f"{options.rows:,} rows, budget ${trial.budget_usd}")
    names = [name for name in found if name != "figures"]
    for one in names:
        table.add_column(one, justify="right")
    table.add_row(*(f"{found[n]:.2%}" if isinstance(found[n], float) else f"{found[n]:,}" for n in names))
    console.print(table)
    told = failed_checks(found)
    for sentence in told:
        console.print(f"[red]{sentence}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    measured_on = surroundings("ray", "numpy", "pyarrow", "moto")
    options.out.write_text(json.dumps(found | {"failed": told} | measured_on, indent=1))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
