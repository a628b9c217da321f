"""`demo` and `validate`: the whole on the models that ship inside, and a look at a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtr_ray.cli.shared import Fresh, app, screening


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", help="The run folder.")] = "runs/demo",
    questions: Annotated[
        int, typer.Option("--questions", help="How many held-out questions.", min=20)
    ] = 1200,
    fresh: Fresh = False,
) -> None:
    """The main job on the models that ship inside: train a router, route, answer, compare."""
    with screening() as screen:
        from rtr_ray.distributed.demo import run_demo

        found = run_demo(output, questions, screen, fresh)
    from rtr_ray.distributed.demo import show_demo

    show_demo(found, screen, output)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A pool.yaml or job.yaml; or the name of a shipped pool.")],
) -> None:
    """Check a pool or job file, and print what it comes to. Starts nothing."""
    with screening() as screen:
        from rtr_ray.config import SHIPPED_POOLS, load_job, load_pool, pool_path
        from rtr_ray.screen import pool_table
        from rtr_ray.yaml_door import read_yaml

        name = str(file)
        content = {} if name in SHIPPED_POOLS or file.is_dir() else read_yaml(file)
        if isinstance(content, dict) and "corpus" in content:
            job = load_job(file)
            pool = load_pool(job.pool)
            where = f"{name} and {pool_path(job.pool)}"
        else:
            pool = load_pool(name)
            where = str(pool_path(name))
    screen.console.print(pool_table(pool))
    screen.say(f"{where}: fine.")
