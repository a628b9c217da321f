"""The benchmark of a run's growth, so small that it shows only that it runs and what it tells."""

from __future__ import annotations

import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from benchmarks._cpu import CpuWatch
from benchmarks._looking import looking
from benchmarks.dispatch import figures_of
from benchmarks.growth import growth, measure, printed
from tests.distributed.conftest import Cluster

pytestmark = pytest.mark.ray


def test_growth_tells_rows_per_second_memory_and_objects(tmp_path: Path, connected: Cluster) -> None:
    console = Console(file=StringIO())
    (found,) = measure([300], tmp_path, connected.address, console)
    assert found["answered"] == 300
    assert set(found["seconds"]) == {"route", "plan", "answer", "copy"}
    assert min(found["per_s"], found["routing_per_s"], found["copy_per_s"]) > 0
    assert set(found["objects"]) >= {"tables", "plan", "slices", "results"}
    assert found["peak_mib"]["driver"] > 10
    printed([found], console)
    assert "of the copy" in console.file.getvalue()  # type: ignore[attr-defined]
    twice = {**found, "rows": 600, "per_s": found["per_s"] / 2}
    assert growth([found, twice])["time_exponent"] == pytest.approx(2.0)


def test_dispatch_is_compared_round_by_round() -> None:
    turns = {
        "raw": [{"seconds": s, "output_tokens": 7, "cores": {"engine": s}} for s in (1.0, 2.0, 4.5)],
        "ours": [{"seconds": s, "output_tokens": 7, "cores": {}} for s in (2.0, 2.0, 2.0)],
    }
    found = figures_of(turns, 100)
    assert found["ours_over"] == {"raw": 1.0}
    assert found["per_s"] == {"raw": 50.0, "ours": 50.0}
    assert found["cores"] == {"raw": {"engine": 2.5}, "ours": {}}


def test_who_uses_the_processor_is_told_by_process() -> None:
    program = "for _ in range(10**9): pass  # busy-for-a-test"
    with subprocess.Popen([sys.executable, "-c", program]) as busy:
        try:
            watch = CpuWatch({"busy-for-a-test": "busy", "no such process": "idle"})
            with looking(watch.look):
                for _ in range(1200):
                    if (used := psutil.Process(busy.pid).cpu_times().user) >= 0.5:
                        break
                    time.sleep(0.05)
        finally:
            busy.kill()
    found = watch.cores(last_s=1e9)
    assert used >= 0.5
    assert set(found) == {"busy"}
    assert found["busy"] > 0
