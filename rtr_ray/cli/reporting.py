"""`report`: a run as a page that one can look at."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from rtr_ray.cli.shared import app, screening

if TYPE_CHECKING:
    from rtr_ray.reports.page import Page
    from rtr_ray.screen import Screen


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run folder, local or s3://, finished or not.")],
    output: Annotated[
        str | None,
        typer.Option("--output", help="The folder for the page; local or s3://. None: RUN/report."),
    ] = None,
) -> None:
    """Show a run as a page: spending over time, candidates, predicted against actual, errors."""
    with screening() as screen:
        from rtr_ray.reports.digest import Digest
        from rtr_ray.reports.run import run_page

        with screen.stage("read", unit="parts") as stage:
            digest = Digest.read(run)
            stage.done = digest.parts
        where = output or f"{run.rstrip('/')}/report"
        page = run_page(digest)
        path = written(page, where, screen)
    screen.say(page.verdict)
    if digest.is_partial:
        screen.say("The page is partial: the run is not finished, or parts of it are damaged.", "yellow")
    screen.say(f"Page: {path}")


def written(page: Page, folder: str, screen: Screen) -> str:
    """Write a page and its pictures; gives where the page lies."""
    from rtr_ray.reports.written import INDEX, write_page

    with screen.stage("report", unit="files") as stage:
        names = write_page(page, folder)
        stage.done = len(names)
        if len(names) == 1:
            stage.note = "without PNGs, for which matplotlib is needed: pip install 'rtr-ray[report]'"
    return f"{folder.rstrip('/')}/{INDEX}" if "://" in folder else str(PurePosixPath(folder) / INDEX)
