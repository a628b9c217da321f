"""Rows per second and memory as a corpus grows: the batch job before engines that answer at once.

    python benchmarks/growth.py                # 10,000 and 100,000 rows
    python benchmarks/growth.py --million      # and 1,000,000
    python benchmarks/growth.py --tiny 100000  # as many files of JSONL with one row each
    python benchmarks/growth.py --plan 1000000 10000000   # `rtr-ray plan`: tables and choices, no answers

runs `rtr-ray run` on a Ray cluster of this machine, over embeddings that are there already and engines that
take no time (real Ray Serve deployments, benchmarks/simulation), so that what is left is ours: reading,
tables, choice, dispatch, ledger, results. Beside it, in the same session, Ray Data copies the same files with
nothing in between (`read_parquet(...).write_parquet(...)`). Told for each size: rows per second from end to
end, of the routing stage and of the copy; the peak of what driver and workers hold for themselves (shared
memory left out); objects written per 1,000 rows, each of which is a PUT in a bucket. Starting Ray and engines
is not counted. Writes benchmarks/out/growth.json and, of several sizes, growth.png: both against rows; the
other two write growth-tiny.json and growth-plan.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._looking import looking
from benchmarks._report import OUT, report
from benchmarks.simulation.cluster import BIN, ROOT, cluster
from benchmarks.simulation.engine import serving
from benchmarks.simulation.routing import Kept
from benchmarks.simulation.truth import SKILL, Truth
from benchmarks.user_trial import Trial
from rtr_ray.estimators.knn import KNN
from rtr_ray.pool import Pool
from rtr_ray.training import train_router

PREFIX = "growth"
LABELS, ROWS_PER_FILE, ROWS_PER_GROUP = 400, 100_000, 5_000
KINDS = {  # of processes, by what their titles hold
    "TableActor": "encoder actor",
    "MapWorker": "encoder actor",
    "DispatchActor": "dispatch actor",
    "SharedLedger": "ledger",
    "plan_slices": "task",
    "sketch_slices": "task",
    "look_": "task",
    "tally_parts": "task",
}
FLAT, END_TO_END_PER_S, SHARE_OF_COPY, ROUTING_PER_S = 1.2, 2_000, 0.5, 20_000


@dataclass(slots=True)
class Watch:
    """The most that each kind of process has held for itself, as often as it was looked at."""

    head: int | None  # process whose children are the workers; None: those are not looked at
    driver: int
    peak_mib: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        """Once."""
        self._look("driver", self.driver)
        if self.head is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.head).children(recursive=True):
                self._look(None, child.pid)

    def _look(self, kind: str | None, pid: int) -> None:
        try:
            process = psutil.Process(pid)
            title = " ".join(process.cmdline())
            memory = process.memory_info()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return
        named = kind or next((name for key, name in KINDS.items() if key in title), None)
        if named is not None:
            mib = (memory.rss - memory.shared) / 2**20
            self.peak_mib[named] = max(mib, self.peak_mib.get(named, 0.0))


def write_corpus(folder: Path, rows: int) -> None:
    """Questions of the simulated world, in files of Parquet."""
    truth = Truth()
    folder.mkdir(parents=True)
    for first in range(0, rows, ROWS_PER_FILE):
        numbers = range(first, min(first + ROWS_PER_FILE, rows))
        table = pa.table({"question": [truth.text(row) for row in numbers]})
        pq.write_table(table, folder / f"part-{first:09d}.parquet", row_group_size=ROWS_PER_GROUP)


def write_tiny(folder: Path, rows: int) -> None:
    """The same questions, each in a file of JSONL of its own."""
    truth = Truth()
    folder.mkdir(parents=True)
    for row in range(rows):
        (folder / f"{row:09d}.jsonl").write_text(json.dumps({"question": truth.text(row)}) + "\n")


def write_router(folder: Path, pool: Pool) -> None:
    """A router over kept embeddings; what it learns makes no difference to the time."""
    truth, labels = Truth(), []
    for row in range(10**9, 10**9 + LABELS):
        for candidate in pool.candidates:
            right, tokens = truth.drawn(row, candidate)
            labels.append(
                {
                    "query_id": f"label-{row}",
                    "query": truth.text(row),
                    "model": candidate.model,
                    "strategy": candidate.strategy,
                    "correct": float(right),
                    "input_tokens": truth.input_tokens(row),
                    "output_tokens": tokens,
                    "max_tokens": pool.max_tokens(candidate),
                }
            )
    pq.write_table(pa.Table.from_pylist(labels), folder / "labels.parquet")
    encoder: Any = Kept()
    knn: Any = KNN(k=40)
    train_router(str(folder / "labels.parquet"), pool, encoder, knn, str(folder / "router"))


def write_job(folder: Path, address: str, rows: int) -> Path:
    """The job over a corpus."""
    content = {
        "pool": str(folder / "pool.yaml"),
        "router": str(folder / "router"),
        "corpus": {"path": str(folder / f"corpus-{rows}"), "columns": {"query": "question"}},
        "output": str(folder / f"run-{rows}"),
        "policy": {"kind": "score", "lam": 0.7},
        "encoder": {"actors": 1, "num_cpus": 0.5},
        "cluster": {"serve_app": PREFIX, "address": address},
    }
    path = folder / f"job-{rows}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def watched(command: str, job: Path, head: int | None) -> Watch:
    """A command on a job in a process of its own, to its end.

    Raises:
        SystemExit: If it fails, with what it said last.
    """
    with (job.parent / f"{job.stem}.log").open("w") as log:
        process = subprocess.Popen(
            [str(BIN / "rtr-ray"), command, "--config", str(job)],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        watch = Watch(head, process.pid)
        with looking(watch.look):
            code = process.wait()
    if code:
        raise SystemExit((job.parent / f"{job.stem}.log").read_text()[-2000:])
    return watch


def planned(
    sizes: Sequence[int], folder: Path, address: str, console: Console, head: int
) -> list[dict[str, Any]]:
    """`rtr-ray plan` on all sizes: seconds, its own start included, and peaks."""
    write_router(folder, Trial(folder, max(sizes), console).pool())
    found = []
    for rows in sizes:
        write_corpus(folder / f"corpus-{rows}", rows)
        began_s = time.time()
        watch = watched("plan", write_job(folder, address, rows), head)
        whole_s = time.time() - began_s
        output = folder / f"run-{rows}"
        route_s = (output / "slices.json").stat().st_mtime - began_s  # written when all tables are there
        assert json.loads((output / "plan.json").read_text())["rows"] == rows
        found.append(
            {
                "rows": rows,
                "seconds": {"route": route_s, "plan": whole_s - route_s},
                "per_s": rows / whole_s,
                "routing_per_s": rows / route_s,
                "peak_mib": watch.peak_mib,
            }
        )
        console.print(json.dumps(found[-1]), highlight=False)
        shutil.rmtree(output)
    return found


def ran(job: Path, output: Path, head: int | None) -> dict[str, Any]:
    """The job to its end: seconds of its stages, peaks, objects."""
    watch = watched("run", job, head)
    summary = json.loads((output / "summary.json").read_text())
    objects = Counter(path.relative_to(output).parts[0] for path in output.rglob("*") if path.is_file())
    return {
        "answered": summary["rows"]["answered"],
        "seconds": summary["seconds"],
        "peak_mib": watch.peak_mib,
        "objects": dict(objects),
        "bytes": sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
    }


def copied(source: Path, target: Path, tiny: bool) -> float:
    """Seconds of the identity pipeline of Ray Data."""
    import ray.data

    began_s = time.monotonic()
    found = ray.data.read_json(str(source)) if tiny else ray.data.read_parquet(str(source))
    found.write_parquet(str(target))
    return time.monotonic() - began_s


def measure(
    sizes: Sequence[int],
    folder: Path,
    address: str,
    console: Console,
    head: int | None = None,
    tiny: bool = False,
) -> list[dict[str, Any]]:
    """All sizes on one cluster, of which this process is a driver already.

    Args:
        sizes: Rows.
        folder: For everything.
        address: Of the cluster.
        console: Told how far it is.
        head: Process whose children are the workers; None: those are not watched.
        tiny: Whether each row lies in a file of its own.
    """
    import ray.data

    pool = Trial(folder, max(sizes), console).pool()
    write_router(folder, pool)
    for rows in sizes:
        (write_tiny if tiny else write_corpus)(folder / f"corpus-{rows}", rows)
    found = []
    ray.data.DataContext.get_current().enable_progress_bars = False
    sources = {model: Truth(model) for model in SKILL}
    with serving(PREFIX, sources, folder / "meter.tsv", s_per_token=0.0):
        write_corpus(folder / "few", 300)
        copied(folder / "few", folder / "warm", False)
        for rows in sizes:
            before_s = copied(folder / f"corpus-{rows}", folder / f"copy-{rows}-0", tiny)
            one = ran(write_job(folder, address, rows), folder / f"run-{rows}", head)
            behind_s = copied(folder / f"corpus-{rows}", folder / f"copy-{rows}-1", tiny)
            found.append(figures_of(rows, one, (before_s + behind_s) / 2))
            console.print(f"{rows:,} rows: {json.dumps(one['seconds'])}", highlight=False)
    return found


def figures_of(rows: int, one: Mapping[str, Any], copy_s: float) -> dict[str, Any]:
    """One size, as it stands in the report."""
    seconds = one["seconds"]
    stages = {name: seconds[name] for name in ("route", "plan", "answer") if name in seconds}
    whole_s = sum(stages.values())
    return {
        "rows": rows,
        "answered": one["answered"],
        "seconds": stages | {"copy": copy_s},
        "per_s": rows / whole_s,
        "routing_per_s": rows / stages["route"],
        "copy_per_s": rows / copy_s,
        "share_of_copy": copy_s / whole_s,
        "peak_mib": dict(one["peak_mib"]),
        "objects": one["objects"],
        "objects_per_1000_rows": 1000 * sum(one["objects"].values()) / rows,
        "bytes_per_row": one["bytes"] / rows,
    }


def growth(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How time and memory grow from the smallest size to the largest; nothing of one size alone."""
    if len(found) < 2:
        return {}
    first, last = found[0], found[-1]
    whole = [one["rows"] / one["per_s"] for one in (first, last)]
    return {
        "time_exponent": math.log(whole[1] / whole[0]) / math.log(last["rows"] / first["rows"]),
        "memory": {
            kind: last["peak_mib"][kind] / mib
            for kind, mib in first["peak_mib"].items()
            if kind in last["peak_mib"]
        },
        "s_per_1000_more_rows": 1000 * (whole[1] - whole[0]) / (last["rows"] - first["rows"]),
    }


def printed(found: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A line per size."""
    table = Table(title="the batch job before engines that take no time")
    for name in ("rows", "rows/s", "routing/s", "copy/s", "of the copy", "objects/1,000", "peak MiB"):
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(
            f"{one['rows']:,}",
            f"{one['per_s']:,.0f}",
            f"{one['routing_per_s']:,.0f}",
            f"{one['copy_per_s']:,.0f}",
            f"{one['share_of_copy']:.0%}",
            f"{one['objects_per_1000_rows']:.1f}",
            ", ".join(f"{kind} {mib:,.0f}" for kind, mib in sorted(one["peak_mib"].items())),
        )
    console.print(table)
    console.print(
        f"Targets: {END_TO_END_PER_S:,} rows/s, {ROUTING_PER_S:,} of the routing stage, {SHARE_OF_COPY:.0%} "
        f"of the copy, memory within {FLAT - 1:.0%}. {growth(found)}",
        highlight=False,
    )


def draw(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time and memory against rows, both axes by powers of ten; straight and flat is what one wants."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    rows = [one["rows"] for one in found]
    stages = {"route": "route", "plan": "plan", "answer": "answer", "copy": "copy (Ray Data alone)"}
    for name, label in stages.items():
        style = "--" if name == "copy" else "-"
        left.loglog(rows, [one["seconds"][name] for one in found], style, marker="o", label=label)
    left.set(title="seconds of a stage", xlabel="rows")
    for kind in sorted({kind for one in found for kind in one["peak_mib"]}):
        right.semilogx(rows, [one["peak_mib"].get(kind, math.nan) for one in found], marker="o", label=kind)
    right.set(title="peak of memory held, MiB", xlabel="rows", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how a run grows.")
    parser.add_argument("--million", action="store_true", help="also 1,000,000 rows")
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--tiny", type=int, help="so many files of one row, and nothing else")
    parser.add_argument("--plan", type=int, nargs="+", help="plan so many rows, and nothing else")
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--out", type=Path, help="default: growth.json, growth-tiny.json, growth-plan.json")
    options = parser.parse_args()
    sizes = [300] if options.small else sorted({*options.rows, *([1_000_000] if options.million else [])})
    kind = "-tiny" if options.tiny else "-plan" if options.plan else ""
    out = options.out or OUT / f"growth{kind}.json"
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="rtr-growth-") as name, cluster(cpus=8) as where:
        import ray

        ray.init(where.address, log_to_driver=False, logging_level="ERROR")
        if options.plan:
            found = planned(sorted(options.plan), Path(name), where.address, console, where.head)
        else:
            few = [options.tiny] if options.tiny else sizes
            found = measure(few, Path(name), where.address, console, where.head, bool(options.tiny))
    if options.plan:
        ratio, baseline = (
            found[-1]["routing_per_s"] / ROUTING_PER_S,
            f"{ROUTING_PER_S:,} rows per second, the target",
        )
    else:
        printed(found, console)
        ratio = found[-1]["share_of_copy"]
        baseline = (
            "rows per second of an identity pipeline of Ray Data (a whole run over it, the largest size)"
        )
    if len(found) > 1 and not options.plan:
        draw(found, out.with_suffix(".png"))
    report(
        "growth",
        ratio,
        baseline,
        {"sizes": found, "growth": growth(found)},
        ("ray", "pyarrow", "numpy"),
        out,
    )


if __name__ == "__main__":
    main()
