"""`extend`: candidates come to a trained router, or leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtr_ray.cli.shared import app, screening


@app.command()
def extend(
    router: Annotated[str, typer.Option("--router", help="The router folder, local or s3://.")],
    output: Annotated[str, typer.Option("--output", help="The new router folder.")],
    profile: Annotated[
        Path | None, typer.Option("--profile", help="YAML: models and strategies with their profile texts.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option("--pool", help="A pool.yaml; without --profile its unknown candidates are added."),
    ] = None,
    outcomes: Annotated[
        str | None, typer.Option("--outcomes", help="Few outcomes of the new candidates: Parquet.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="model:strategy to leave out; may be given again.")
    ] = None,
) -> None:
    """Add candidates to a router by profile and few outcomes, or remove some. Nothing is retrained."""
    with screening() as screen:
        from rtr_ray.config import load_newcomers, load_pool
        from rtr_ray.errors import ConfigError
        from rtr_ray.extension import Newcomers
        from rtr_ray.extension import extend as extend_router
        from rtr_ray.router import RouterFolder
        from rtr_ray.types import Candidate

        if output.rstrip("/") == router.rstrip("/"):
            raise ConfigError("--output is the folder of the router itself. Name another one.")
        told = Newcomers() if profile is None else load_newcomers(profile)
        members = None if pool is None else load_pool(pool)
        gone = [Candidate.parse(text) for text in remove or []]
        with screen.stage("extend") as stage:
            made = extend_router(RouterFolder.load(router), told, members, outcomes, gone)
            made.folder.save(output)
            stage.done = len(made.folder.estimator.candidates)
    for candidate in made.removed:
        screen.say(f"Removed: {candidate}")
    for candidate, labels in made.added.items():
        by = f"{labels:,} labelled queries" if labels else "its profile alone"
        screen.say(f"Added: {candidate}, by {by}")
    screen.say(f"Router: {output}")
