"""What `ray job submit --working-dir .` carries to the cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import ROOT, Cluster

pytestmark = pytest.mark.ray

TELL = """
import json, pathlib, sys
files = {str(path): path.stat().st_size for path in pathlib.Path().rglob("*") if path.is_file()}
pathlib.Path(sys.argv[1]).write_text(json.dumps(files))
"""


def test_without_the_weights_of_the_demo_a_job_carries_less_than_five_megabytes(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.dashboard,
            "--working-dir", str(ROOT), "--runtime-env", str(ROOT / "jobs" / "light.yaml"),
            "--", sys.executable, "-c", TELL, str(tmp_path / "carried.json"),
        ],
        env=cluster.environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # what a job prints just before it ends does not always come through
    files = json.loads((tmp_path / "carried.json").read_text())
    assert sum(files.values()) < 5e6
    assert not [name for name in files if name.endswith("model.safetensors")]
    assert not [name for name in files if name.startswith((".venv/", ".git/", "tests/", "benchmarks/"))]
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "rtr_ray").rglob("*.py")}
    assert code <= set(files)
    assert {"jobs/batch_route.py", "jobs/batch_route.yaml", "rtr_ray/pools/paper.yaml"} <= set(files)
