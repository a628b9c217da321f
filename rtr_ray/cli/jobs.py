"""`plan`, `run`, `explain`: a corpus under one budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rtr_ray.cli.shared import BUDGET_EXHAUSTED, Address, Budget, Config, Fresh, Output, app, fail, screening

if TYPE_CHECKING:
    from rtr_ray.config import JobFile
    from rtr_ray.job import Job
    from rtr_ray.labelling import Labelling
    from rtr_ray.screen import Screen


@app.command()
def plan(
    config: Config,
    budget_usd: Budget = None,
    output: Output = None,
    address: Address = None,
    fresh: Fresh = False,
    pilot: Annotated[
        bool,
        typer.Option("--pilot", help="Answer and pay for about 50 rows, and correct the forecast by them."),
    ] = False,
) -> None:
    """Say what a budget buys, before a cent is spent. `run` goes on from there."""
    with screening() as screen:
        job = _checked(screen, config, budget_usd, output, address)
        from rtr_ray.distributed.batch import plan_job

        found = plan_job(job, screen, fresh, pilot)
    from rtr_ray.plan_screen import show_plan

    show_plan(found, screen.console)


@app.command()
def run(
    config: Config,
    budget_usd: Budget = None,
    output: Output = None,
    address: Address = None,
    fresh: Fresh = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask rows again that failed and were not paid for.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Without a router: spend on labels without asking.")
    ] = False,
) -> None:
    """Route and answer a corpus. The same command goes on where an earlier one stopped.

    Without a router, a sample of the corpus is labelled and learned from first, under the same budget.
    """
    work = _unrouted(config, budget_usd, output, address)
    if work is not None:
        _agreed(work, fresh, yes)
    with screening() as screen:
        if work is not None:
            from rtr_ray.distributed.labelling import run_unrouted

            found, output = run_unrouted(work, screen, fresh, retry_failed), work.file.output
        else:
            job = _checked(screen, config, budget_usd, output, address)
            from rtr_ray.distributed.batch import run_job

            found, output = run_job(job, screen, fresh, retry_failed), job.file.output
    from rtr_ray.distributed.batch import show_summary

    show_summary(found, screen, output)
    if found["status"] == "budget_exhausted":
        raise typer.Exit(BUDGET_EXHAUSTED)


@app.command()
def explain(
    folder: Annotated[str, typer.Argument(help="The run folder, local or s3://.")],
    query_id: Annotated[str, typer.Option("--query-id", help="The row's id, as its results have it.")],
    pool: Annotated[str | None, typer.Option("--pool", help="Its pool; none: as the run has it.")] = None,
) -> None:
    """Say why a row of a run went where it did, and what more money would have changed."""
    with screening() as screen:
        from rtr_ray.config import load_pool
        from rtr_ray.explanation import explain as explained
        from rtr_ray.explanation import pool_of
        from rtr_ray.run_folder import RunFolder
        from rtr_ray.storage import open_store

        run_folder = RunFolder(open_store(folder))
        found = explained(run_folder, query_id, load_pool(pool or pool_of(run_folder)))
    from rtr_ray.plan_screen import options_table

    screen.console.print(options_table(found))
    for sentence in found.words():
        screen.say(sentence)


def _unrouted(
    config: Path, budget_usd: str | None, output: str | None, address: str | None
) -> Labelling | None:
    """The job of a file that has no router, and the flags beside it; None where it has one."""
    with screening() as screen:
        file = _file(config, budget_usd, output, address)
        if file.router is not None:
            return None
        from rtr_ray.labelling import Labelling

        with screen.stage("check", unit="splits") as stage:
            work = Labelling.check(file)
            stage.done = len(work.collection.splits)
    return work


def _agreed(work: Labelling, fresh: bool, yes: bool) -> None:
    """Show how the budget is split, and ask whether it may be spent; not again where it goes on."""
    with screening() as screen:
        from rtr_ray.distributed.labelling import begun

        goes_on = begun(work) and not fresh
    screen.console.print(work.split_table())
    if yes or goes_on:
        return
    if not sys.stdin.isatty():
        fail(
            f"This run may spend ${work.budget_usd:f}, part of it on labels, and there is no terminal to "
            "ask on. Add --yes, or give a router."
        )
    if not typer.confirm("Spend it so?"):
        raise typer.Exit(1)


def _file(config: Path, budget_usd: str | None, output: str | None, address: str | None) -> JobFile:
    """A job file, with the flags beside it."""
    from rtr_ray.config import load_job

    changes = {"budget_usd": budget_usd, "output": output, "cluster.address": address}
    return load_job(config, {key: value for key, value in changes.items() if value is not None})


def _checked(
    screen: Screen, config: Path, budget_usd: str | None, output: str | None, address: str | None
) -> Job:
    """The job of a file and the flags beside it."""
    file = _file(config, budget_usd, output, address)
    from rtr_ray.job import Job

    with screen.stage("check", unit="splits") as stage:
        job = Job.check(file)
        stage.done = len(job.splits)
    return job
