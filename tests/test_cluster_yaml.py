"""cluster.yaml, by the Ray cluster launcher's own validation; starts nothing and asks no cloud."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# in a process of its own: no other test of this process needs ray in it
_VALIDATE = """
import json, sys, yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config
with open(sys.argv[1]) as file:
    config = fillout_defaults(yaml.safe_load(file))
validate_config(config)
print(json.dumps(sorted(config["available_node_types"])))
"""


def validated(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _VALIDATE, str(path)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.ray
def test_the_launcher_takes_cluster_yaml() -> None:
    done = validated(ROOT / "cluster.yaml")
    assert done.returncode == 0, done.stderr[-1500:]
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert json.loads(done.stdout) == sorted(config["available_node_types"])
    resources = [one.get("resources", {}) for one in config["available_node_types"].values()]
    assert any(one.get("GPU", 0) >= 1 for one in resources), "a GPU worker"
    assert any(one.get("CPU", 0) and not one.get("GPU") for one in resources), "a CPU worker"
    head = config["available_node_types"][config["head_node_type"]]
    assert not head.get("resources", {}).get("GPU"), "a CPU head"


@pytest.mark.ray
@pytest.mark.parametrize("change", [{"max_worker": 3}, {"head_node_type": "nobody"}])
def test_the_launchers_validation_refuses_what_is_wrong(change: dict[str, object], tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | change
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    assert validated(path).returncode != 0
