"""docs/deploy: manifests that the operator's resources have a place for, and that name what there is."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rtr_ray.cli import app

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "docs" / "deploy"
# the fields of KubeRay's ray.io/v1 that a manifest may use, by resource
SPEC = {
    "RayJob": {
        *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "entrypoint", "runtimeEnvYAML"),
        *("submissionMode", "ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend"),
        *("entrypointNumCpus", "submitterConfig", "submitterPodTemplate", "metadata"),
    },
    "RayService": {"serveConfigV2", "rayClusterConfig", "serveService"},
}
CLUSTER = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"}


@pytest.fixture(params=["rayjob.yaml", "rayservice.yaml"])
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / request.param).read_text())
    return found


def cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"][CLUSTER[manifest["kind"]]]
    return found


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    groups = [cluster(manifest)["headGroupSpec"], *cluster(manifest)["workerGroupSpecs"]]
    for group in groups:
        yield group["template"]["spec"]


def test_the_operator_has_a_place_for_every_field(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == "ray.io/v1"
    assert set(manifest["spec"]) <= SPEC[manifest["kind"]]
    spec = cluster(manifest)
    assert set(spec) <= {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"),
    }
    assert set(spec["headGroupSpec"]) <= GROUP - {"groupName", "replicas", "minReplicas", "maxReplicas"}
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # start parameters are words for the operator, numbers too
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_a_cpu_head_does_no_work_and_one_group_has_gpus(manifest: dict[str, Any]) -> None:
    assert cluster(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods(manifest)]
    assert ["nvidia.com/gpu" in one for one in limits] == [False, False, True]


def test_what_is_mounted_is_there_and_all_pods_run_one_image(manifest: dict[str, Any]) -> None:
    images = set()
    for pod in pods(manifest):
        (container,) = pod["containers"]
        images.add(container["image"])
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert len(images) == 1


def test_ray_is_the_version_that_is_pinned(manifest: dict[str, Any]) -> None:
    version = cluster(manifest)["rayVersion"]
    assert f"serve]=={version}" in (ROOT / "pyproject.toml").read_text()
    assert f"ray-llm:{version}-" in (DEPLOY / "Dockerfile").read_text()


def test_the_jobs_command_is_one_that_rtr_ray_takes() -> None:
    manifest = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    shell, flag, script = shlex.split(manifest["spec"]["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    name, *arguments = shlex.split(script.partition(";")[0])
    assert name == "rtr-ray"
    found = CliRunner().invoke(app, arguments)
    assert "There is no file /config/job.yaml." in found.output  # it gets as far as that


def test_the_services_application_is_built_by_what_there_is() -> None:
    manifest = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    module, _, function = application["import_path"].partition(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert function in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
