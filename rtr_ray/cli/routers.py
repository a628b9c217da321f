"""`router diff|use|rollback|history`: what another router would change, and letting it serve."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtr_ray.cli.shared import PoolOption, app, json_or_name, screening, write_json
from rtr_ray.errors import ConfigError, ExecutionError

if TYPE_CHECKING:
    from rtr_ray.config import ServeFile
    from rtr_ray.online.served import Entry
    from rtr_ray.screen import Screen

router_app = typer.Typer(help="Routers of the endpoint: compare, use, roll back.", no_args_is_help=True)
app.add_typer(router_app, name="router")

ServeConfig = Annotated[Path, typer.Option("--config", help="The endpoint's serve.yaml.")]
_TAKEN_S = 60.0
_AGREE = 5  # answers in a row that name the new router: there may be several ingress replicas


@router_app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A router folder, local or s3://.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    pool: PoolOption = "pool.yaml",
    sample: Annotated[
        str | None,
        typer.Option("--sample", help="Queries: a file, folder or glob. None: those both have kept."),
    ] = None,
    query_column: Annotated[str, typer.Option(help="The column with the query.")] = "query",
    rows: Annotated[int, typer.Option("--rows", help="Queries of the sample at most.", min=1)] = 1000,
    policy: Annotated[
        str, typer.Option("--policy", help="JSON with kind and its fields, for both.")
    ] = '{"kind": "score", "lam": 0.95}',
    policy_b: Annotated[
        str | None, typer.Option("--policy-b", help="Another policy for B. None: the same.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
) -> None:
    """What would change if B served instead of A: choices, predicted accuracy, dollars, tokens."""
    with screening() as screen:
        from rtr_ray.config import load_pool
        from rtr_ray.online.diff import Sample, difference, sides

        members = load_pool(pool)
        policies = _policy(policy, "--policy"), _policy(policy_b or policy, "--policy-b")
        with screen.stage("compare", unit="queries") as stage:
            queries = None if sample is None else Sample.read(sample, query_column, rows)
            found = difference(*sides(one, other, members, policies, queries))
            stage.done = found["queries"]
        if json_file is not None:
            write_json(json_file, found)
    _show(found, screen)


@router_app.command()
def use(
    folder: Annotated[str, typer.Argument(help="A router folder, local or s3://.")],
    config: ServeConfig,
    policy: Annotated[str | None, typer.Option("--policy", help="JSON. None: as it is.")] = None,
    latency_weight: Annotated[
        float | None, typer.Option("--latency-weight", help="Points of accuracy a second is worth.")
    ] = None,
    warm_within: Annotated[
        float | None, typer.Option("--warm-within", help="Points that starting a replica is worth.")
    ] = None,
) -> None:
    """Let a running endpoint serve another router or policy, without a request that is dropped."""
    with screening() as screen:
        from rtr_ray.config import SwapKeys, absolute, load_pool, load_serving
        from rtr_ray.online.loading import frozen
        from rtr_ray.online.served import Served
        from rtr_ray.router import RouterFolder
        from rtr_ray.storage import open_store
        from rtr_ray.yaml_door import validated

        file = load_serving(config)
        served = Served(open_store(file.folder))
        history = served.read()
        base = history.now.swap if history.entries else file.absolute().swap
        changes = {
            "router": base.with_router(absolute(folder)).model_dump(),
            "policy": None if policy is None else _policy(policy, "--policy"),
            "latency_weight": latency_weight,
            "warm_within": warm_within,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        keys = validated(SwapKeys, base.model_dump() | given, "rtr-ray router use")
        members, router = load_pool(file.pool), RouterFolder.load(absolute(folder))
        router.check(members, keys.untrained)
        if keys.caution is not None:
            router.check_caution(members, keys.caution)
        if "run" not in keys.policy:
            held_out = None if router.held_out is None else router.held_out.table(members)
            frozen(keys.policy, members, held_out)
        _wait(file, served.use(keys), screen)


@router_app.command()
def rollback(config: ServeConfig) -> None:
    """Let a running endpoint serve what it served before."""
    with screening() as screen:
        from rtr_ray.config import load_serving
        from rtr_ray.online.served import Served
        from rtr_ray.storage import open_store

        file = load_serving(config)
        served = Served(open_store(file.folder))
        served.place_of(served.read().back().now)
        _wait(file, served.roll_back(), screen)


@router_app.command()
def history(config: ServeConfig) -> None:
    """What an endpoint served, and when."""
    with screening() as screen:
        from rich.table import Table

        from rtr_ray.config import load_serving
        from rtr_ray.online.served import Served
        from rtr_ray.storage import open_store

        found = Served(open_store(load_serving(config).folder)).read()
    table = Table(title="What was served", title_justify="left")
    for name in ("", "since (UTC)", "by", "router", "fingerprint", "policy"):
        table.add_column(name)
    for entry in found.entries:
        mark = "now" if entry.number == found.current else str(entry.number)
        keys = entry.swap
        table.add_row(
            mark, entry.at, entry.cause, keys.router_path, entry.router or "-", json.dumps(keys.policy)
        )
    screen.console.print(table)


def _policy(text: str, flag: str) -> dict[str, Any]:
    found = json_or_name(text, flag)
    if not isinstance(found, dict):
        raise ConfigError(f'{flag} is {text[:80]}; JSON is needed, such as {{"kind": "score", "lam": 0.9}}.')
    return found


def _wait(file: ServeFile, entry: Entry, screen: Screen) -> None:
    """Until the endpoint serves an entry.

    Raises:
        ExecutionError: If it refuses to, or does not in time.
    """
    what, agreed = f"{entry.swap.router_path} ({entry.router})", 0
    deadline = time.monotonic() + _TAKEN_S
    with screen.stage("take over"):
        while agreed < _AGREE:
            health = _health(file)
            if health is None:
                screen.say(
                    f"Nobody answers at {file.host}:{file.port}. {what} is served once the endpoint starts.",
                    "yellow",
                )
                return
            serving = health.get("serving") or {}
            if health.get("refused_change") and serving.get("number") != entry.number:
                raise ExecutionError(f"The endpoint serves on what it did: {health['refused_change']}")
            agreed = agreed + 1 if serving.get("number") == entry.number else 0
            if time.monotonic() > deadline:
                raise ExecutionError(
                    f"The endpoint has not taken over {what} within {_TAKEN_S:g} s. Is {file.folder} the "
                    "folder that it was started with?"
                )
            time.sleep(0.2)
    screen.say(f"Served: {what}.")


def _health(file: ServeFile) -> dict[str, Any] | None:
    host = "127.0.0.1" if file.host in ("0.0.0.0", "::") else file.host
    try:
        with urllib.request.urlopen(f"http://{host}:{file.port}/healthz", timeout=10) as reply:
            text = reply.read()
    except urllib.error.HTTPError as error:  # no model is up: the router is taken over all the same
        text = error.read()
    except OSError:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return found


def _show(found: dict[str, Any], screen: Screen) -> None:
    from rich.table import Table

    from rtr_ray.screen import money, percent

    one, other = found["routers"]
    for side in (one, other):
        if side["unknown"]:
            screen.say(f"{side['router']} has no outcomes of {', '.join(side['unknown'])}.", "yellow")
    screen.say(
        f"{found['changed']:,} of {found['queries']:,} queries ({percent(found['changed_share'])}) would go "
        "elsewhere."
    )
    sums = Table(title="What is expected of all queries", title_justify="left")
    for name in ("", "accuracy", "output tokens", "dollars"):
        sums.add_column(name, justify="right" if name else "left")
    for title, key in (
        ("A, as A predicts", "before"),
        ("A, as B predicts", "before_judged_by_after"),
        ("B, as B predicts", "after"),
    ):
        row = found[key]
        tokens = row["output_tokens"]
        sums.add_row(
            title,
            percent(row["accuracy"]),
            "-" if tokens is None else f"{tokens:,.0f}",
            money(row["cost_usd"]),
        )
    screen.console.print(sums)
    screen.console.print(_matrix(found["moves"]))
    if found["most_changed"]:
        screen.console.print(_most(found["most_changed"]))


def _matrix(moves: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    sources = list(dict.fromkeys(move["from"] for move in moves))
    targets = list(dict.fromkeys(move["to"] for move in moves))
    counts = {(move["from"], move["to"]): move["queries"] for move in moves}
    table = Table(title="Queries from A's choice (rows) to B's (columns)", title_justify="left")
    table.add_column("")
    for name in targets:
        table.add_column(name, justify="right")
    for source in sources:
        cells = [counts.get((source, target), 0) for target in targets]
        table.add_row(source, *(f"{count:,}" if count else "" for count in cells))
    return table


def _most(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="What changes most, as B predicts", title_justify="left")
    for name in ("query", "from", "to", "points", "dollars"):
        table.add_column(name, justify="right" if name in ("points", "dollars") else "left")
    for row in rows:
        text = " ".join((row["query"] or row["query_id"]).split())
        points = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:+.1f}"
        dollars = "-" if row["cost_usd"] is None else f"{row['cost_usd']:+.8f}"
        table.add_row(text[:60], row["from"], row["to"], points, dollars)
    return table
