"""The fault campaign: what dies, what S3 refuses, a full disk; and whether money and rows still agree.

    python benchmarks/faults.py --runs 48 --vllm 12 --seed 1

runs jobs by their own command against metered engines in a real Serve deployment, kills by SIGKILL
at random moments, starts the same command again until it is done, and compares results, summary
and the meter. Prints a table, writes benchmarks/out/faults.json, and ends with 1 if a row was lost
or doubled, a dollar is unaccounted for or over the budget, or a run could not be finished.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks._surroundings import surroundings  # noqa: E402
from benchmarks.fault_tools.audit import Findings  # noqa: E402
from benchmarks.fault_tools.campaign import Site, run_case, tmpfs_works  # noqa: E402
from benchmarks.fault_tools.cluster import LocalCluster  # noqa: E402
from benchmarks.fault_tools.planning import plan  # noqa: E402
from benchmarks.fault_tools.s3 import BUCKET, S3  # noqa: E402

OUT = ROOT / "benchmarks" / "out" / "faults.json"
SUMS = (
    *("kills", "s3_faults", "disks_filled", "rows", "rows_lost", "rows_doubled", "rows_failed"),
    *("usd_unaccounted", "usd_overspent", "calls_paid_twice", "calls_in_flight", "calls_unexplained"),
    *("usd_wasted", "usd_unknown", "usd_metered", "raw_errors", "processes_left"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=48, help="runs with the fake engines")
    parser.add_argument("--vllm", type=int, default=12, help="runs on real vLLM")
    parser.add_argument("--seed", type=int, default=1, help="decides what goes wrong and when")
    parser.add_argument("--rows", type=int, default=400, help="rows of one corpus")
    parser.add_argument("--only", default="", help="kinds of faults, with commas between them")
    parser.add_argument("--keep", default="", help="a folder for all files of the runs; else they go")
    given = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = str(ROOT)
    with ExitStack() as stack:
        folder = Path(given.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="rtr-faults-")))
        folder = folder.resolve()
        found = campaign(folder, given)
    report = summed(found)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(report, indent=2, default=str) + "\n")
    show(report, found)
    return int(any(one.losses for one in found))


def campaign(folder: Path, given: argparse.Namespace) -> list[Findings]:
    """All runs, one after the other, on one cluster."""
    only = [name for name in given.only.split(",") if name]
    cases = plan(given.runs, given.vllm, given.seed, only, given.rows)
    if any(case.place == "tmpfs" for case in cases) and not tmpfs_works(folder):
        print("No small disks here (that takes root): the runs with a full disk are left out.", flush=True)
        cases = [case for case in cases if case.place != "tmpfs"]
    found = []
    with (
        _ray_is_quiet(folder) as screen,
        S3(given.seed) as s3,
        LocalCluster(environment=dict(s3.variables())) as cluster,
    ):
        os.environ.update(s3.variables(through_proxy=False))
        site = _site(folder, cluster, s3)
        for number, case in enumerate(cases, 1):
            try:
                one = run_case(site, case)
            except KeyboardInterrupt:
                print("Interrupted: the table is of the runs so far.", file=screen, flush=True)
                break
            found.append(one)
            print(told(number, len(cases), one), file=screen, flush=True)
            with (folder / "findings.jsonl").open("a") as file:
                file.write(json.dumps(one.to_json()) + "\n")
    return found


@contextmanager
def _ray_is_quiet(folder: Path) -> Iterator[TextIO]:
    """What Ray says of each process that dies goes to a file; gives the screen."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(folder / "ray.log", "ab") as log, os.fdopen(os.dup(1), "w") as screen:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            yield screen
        finally:
            sys.stdout.flush()
            for number, was in zip((1, 2), kept, strict=True):
                os.dup2(was, number)
                os.close(was)


def _site(folder: Path, cluster: LocalCluster, s3: S3) -> Site:
    import ray

    from benchmarks.fault_tools import engines
    from rtr_ray.storage import s3_client

    s3_client().create_bucket(Bucket=BUCKET)
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    # as Ctrl-C: the cluster goes, too; after Ray, which takes the signal for itself
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    served: set[str] = set()

    def ready(kind: str) -> None:
        cluster.wait_for_nodes()
        if kind not in served:
            served.add(kind)
            start = engines.serve_fake if kind == "fake" else engines.serve_vllm
            start(folder / "meters")
        engines.wait(kind, 120.0 if kind == "fake" else 600.0)

    return Site(folder, cluster, s3, ready)


def told(number: int, of: int, one: Findings) -> str:
    """A run in a line or two."""
    budget = f"${one.budget_usd}" if one.budget_usd is not None else "none"
    line = (
        f"{number:3d}/{of} {one.name} {one.kind}: {', '.join(one.events) or 'nothing hit'}; "
        f"exits {one.exit_codes}; metered ${one.usd_metered:.6f} of {budget}; paid twice "
        f"{one.calls_paid_twice} (in flight {one.calls_in_flight}); {one.seconds:.0f} s"
    )
    bad = {name: str(value) for name, value in one.losses.items()}
    more = {
        name: getattr(one, name)
        for name in ("calls_unexplained", "rows_failed", "raw_errors", "processes_left", "missed")
        if getattr(one, name)
    }
    if bad or more:
        line += f"\n        {'LOSS ' if bad else ''}{ {**bad, **more} } {one.said}"
    return line


def summed(found: Sequence[Findings]) -> dict[str, Any]:
    """The campaign's figures, over all runs and by kind."""
    kinds: dict[str, list[Findings]] = defaultdict(list)
    for one in found:
        kinds[one.kind].append(one)
    totals = _sums(found)
    return {
        "name": "faults",
        "runs": len(found),
        "runs_vllm": sum(one.engines == "vllm" for one in found),
        "runs_with_budget": sum(one.budget_usd is not None for one in found),
        "runs_unfinished": sum(not one.completed for one in found),
        "runs_without_a_hit": sum(one.missed and not one.events for one in found),
        **totals,
        "figures": {kind: {"runs": len(ones), **_sums(ones)} for kind, ones in sorted(kinds.items())},
        "losses": [one.to_json() for one in found if one.losses],
        **surroundings("ray", "pyarrow", "moto"),
    }


def _sums(found: Sequence[Findings]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for name in SUMS:
        values = [getattr(one, name) for one in found]
        sums[name] = str(sum(values, Decimal(0))) if name.startswith("usd_") else sum(values)
    return sums


def show(report: dict[str, Any], found: Sequence[Findings]) -> None:
    """The table."""
    columns = {
        "rows lost": "rows_lost",
        "doubled": "rows_doubled",
        "unaccounted": "usd_unaccounted",
        "overspent": "usd_overspent",
        "paid twice": "calls_paid_twice",
        "in flight": "calls_in_flight",
        "wasted": "usd_wasted",
        "unknown at worst": "usd_unknown",
    }
    table = Table(title="Faults", title_justify="left")
    table.add_column("kind")
    for name in ("runs", "kills", *columns):
        table.add_column(name, justify="right")
    for kind, figures in [*report["figures"].items(), ("all", report)]:
        cells = []
        for name in ("runs", "kills", *columns.values()):
            value = figures[name]
            cells.append(f"${Decimal(value):.6f}" if name.startswith("usd_") else f"{value:,}")
        table.add_row(kind, *cells, end_section=kind == list(report["figures"])[-1])
    Console(width=140).print(table)
    bad = [one.name for one in found if one.losses]
    print(f"{len(found) - len(bad)} of {len(found)} runs without a loss. {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
