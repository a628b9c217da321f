"""What `ray job submit --working-dir .` carries to the cluster."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import yaml

from tests.distributed.conftest import ROOT

pytestmark = pytest.mark.ray


def test_without_the_weights_of_the_demo_a_job_carries_less_than_five_megabytes(tmp_path: Path) -> None:
    # what `ray job submit` packs with; there is no public name for it
    from ray._private.runtime_env.packaging import create_package

    excludes = yaml.safe_load((ROOT / "jobs" / "light.yaml").read_text())["excludes"]
    create_package(str(ROOT), tmp_path / "light.zip", include_gitignore=True, excludes=excludes)
    packed = zipfile.ZipFile(tmp_path / "light.zip")
    names = set(packed.namelist())
    assert (tmp_path / "light.zip").stat().st_size < 5e6
    assert not [name for name in names if name.endswith("model.safetensors")]
    assert not [name for name in names if name.startswith((".venv/", ".git/", "tests/", "benchmarks/"))]
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "rtr_ray").rglob("*.py")}
    assert code <= names
    assert {"jobs/batch_route.py", "jobs/batch_route.yaml", "rtr_ray/pools/paper.yaml"} <= names
