"""What the commands share: options, a screen, and errors of ours as one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtr_ray.errors import ConfigError, RtrError

if TYPE_CHECKING:
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
def screening() -> Iterator[Screen]:
    """A screen; errors of ours become one sentence and exit code 1."""
    from rtr_ray.screen import Screen

    screen = Screen()
    try:
        with screen.running():
            yield screen
    except RtrError as error:
        fail(error.message)
    except KeyboardInterrupt:
        typer.secho("Interrupted. The same command goes on where this one stopped.", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str) -> None:
    """Say what is wrong, and end with 1."""
    typer.secho(f"error: {message}", fg="red", err=True)
    raise typer.Exit(1)


def json_or_name(text: str | None, flag: str) -> Any:
    """A flag's value: a name as it is, JSON as what it says."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{flag} is not JSON: {error}.") from None


def write_json(path: Path, value: Any) -> None:
    """Write a file, whole or not at all.

    Raises:
        StorageError: If it cannot be written.
    """
    from rtr_ray.storage import open_store

    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    open_store(str(path.parent)).write(path.name, text.encode())
