"""`grafana`: the dashboard of the endpoint."""

from __future__ import annotations

from importlib import resources

import typer

from rtr_ray.cli.shared import app


@app.command()
def grafana() -> None:
    """Print the endpoint's Grafana dashboard, as JSON to import."""
    typer.echo((resources.files("rtr_ray.online") / "grafana.json").read_text(), nl=False)
