"""The Grafana dashboard asks for metrics that there are, and is what Grafana takes."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rtr_ray.cli import app

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "rtr_ray/online/grafana.json").read_text())
MADE = re.compile(r'(Counter|Gauge|Histogram)\(\s*"(rtr_\w+)"')
RAYS_OWN = {"ray_serve_deployment_replica_healthy"}


def made() -> dict[str, str]:
    """What the code exports: name -> kind."""
    files = (ROOT / "rtr_ray/distributed/online").glob("*.py")
    return {name: kind for file in files for kind, name in MADE.findall(file.read_text())}


def exprs() -> list[str]:
    """What the panels ask."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def asked_for() -> set[str]:
    """The metrics in them, as Prometheus has them."""
    return {name for expr in exprs() for name in re.findall(r"\bray_\w+", expr)}


def test_every_panel_asks_for_a_metric_that_the_code_exports_and_every_metric_has_a_panel():
    exported = {
        f"ray_{name}_bucket" if kind == "Histogram" else f"ray_{name}" for name, kind in made().items()
    }
    assert len(exported) >= 11
    assert asked_for() - RAYS_OWN == exported
    assert all(re.search(r"\bray_\w+", expr) for expr in exprs())


def test_every_metric_stands_in_the_docs_and_the_docs_name_no_other():
    text = (ROOT / "docs/observability.md").read_text()
    assert set(re.findall(r"^\| `ray_(rtr_\w+)` \|", text, re.MULTILINE)) == set(made())


def test_panels_have_targets_a_place_of_their_own_and_the_datasource_that_one_chooses():
    assert DASHBOARD["schemaVersion"] >= 36
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert place["h"] > 0
        assert panel["description"]
        assert panel["datasource"] == chosen
        assert panel["targets"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
        for target in panel["targets"]:
            assert target["datasource"] == chosen
            assert target["expr"].count("(") == target["expr"].count(")")
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_grafanas_own_library_knows_every_field_of_it():
    sdk = pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    assert sdk is not None
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    assert list(missing(DASHBOARD, json.loads(JSONEncoder().encode(read)))) == []
    panels = DASHBOARD["panels"]
    odd = DASHBOARD | {"panels": [panels[0] | {"gridpos": panels[0]["gridPos"]}]}
    kept = json.loads(JSONEncoder().encode(Dashboard.from_json(odd)))
    assert list(missing(odd, kept)) == [".panels.0.gridpos"]


def missing(wanted: Any, found: Any, place: str = "") -> Any:
    """Where what was written is lost or changed when it is read."""
    if isinstance(wanted, dict):
        for name, value in wanted.items():
            if value is None:
                continue
            if not isinstance(found, dict) or name not in found:
                yield f"{place}.{name}"
            else:
                yield from missing(value, found[name], f"{place}.{name}")
    elif isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            yield place
        else:
            for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
                yield from missing(one, other, f"{place}.{number}")
    elif wanted != found:
        yield place


def test_a_command_prints_it():
    done = CliRunner().invoke(app, ["grafana"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == DASHBOARD
