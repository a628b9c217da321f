"""`keys create|list|show|change|revoke`: who may use the endpoint, and for how much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rtr_ray.cli.shared import app, fail
from rtr_ray.errors import ConfigError, RtrError

if TYPE_CHECKING:
    from rich.table import Table

    from rtr_ray.keys import Key, KeyStore, Limits
    from rtr_ray.keys.store import Usage

keys_app = typer.Typer(help="API keys of the endpoint, and their budgets.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

KeysFile = Annotated[Path, typer.Option("--keys", help="The SQLite file with the keys.")]
Name = Annotated[str, typer.Argument(help="The key's name or id.")]
DEFAULT = Path("keys.sqlite")

Day = Annotated[str | None, typer.Option("--day-usd", help="Dollars a day, from 00:00 UTC.")]
Month = Annotated[str | None, typer.Option("--month-usd", help="Dollars a month, from 00:00 UTC on the 1st.")]
Total = Annotated[str | None, typer.Option("--total-usd", help="Dollars in all.")]
Most = Annotated[str | None, typer.Option("--max-request-usd", help="Dollars for one request at most.")]
Requests = Annotated[str | None, typer.Option("--requests-per-minute", help="Requests a minute.")]
Tokens = Annotated[str | None, typer.Option("--tokens-per-minute", help="Input and output tokens a minute.")]
Candidates = Annotated[
    list[str] | None,
    typer.Option("--candidate", help="A model:strategy that it may use; may be given again. None: all."),
]


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="What lists, logs and metrics call it.")],
    keys: KeysFile = DEFAULT,
    day_usd: Day = None,
    month_usd: Month = None,
    total_usd: Total = None,
    max_request_usd: Most = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    candidate: Candidates = None,
) -> None:
    """Make a key and print it, this once; only its hash is kept. Makes the file if there is none."""
    money = (day_usd, month_usd, total_usd, max_request_usd)
    with _explained():
        from rtr_ray.keys import Limits

        limits = _limits(Limits(), money, requests_per_minute, tokens_per_minute, candidate)
        token, key = _store(keys).create(name, limits)
        typer.echo(token)
        typer.secho(
            f"The key '{key.name}' ({key.id}): keep what stands above, it is not shown again.", err=True
        )


@keys_app.command("list")
def list_keys(
    keys: KeysFile = DEFAULT,
    revoked: Annotated[bool, typer.Option("--revoked", help="Those that were revoked, too.")] = False,
) -> None:
    """All keys, with what they have used."""
    with _explained():
        store = _store(keys)
        found = [key for key in store.all_keys() if revoked or key.revoked_at is None]
        _print(_overview(store, found))


@keys_app.command()
def show(name: Name = "global", keys: KeysFile = DEFAULT) -> None:
    """One key: its limits, and what it has used today, this month and in all. 'global': all together."""
    with _explained():
        store = _store(keys)
        key = store.find(name)
        typer.echo(_described(key))
        _print(_periods(store.usage(key.id)))


@keys_app.command()
def change(
    name: Annotated[str, typer.Argument(help="The key's name or id; 'global' for all together.")],
    keys: KeysFile = DEFAULT,
    day_usd: Day = None,
    month_usd: Month = None,
    total_usd: Total = None,
    max_request_usd: Most = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    candidate: Candidates = None,
) -> None:
    """Change the limits that are given, from the next request on; 'none' takes a limit away."""
    money = (day_usd, month_usd, total_usd, max_request_usd)
    with _explained():
        from rtr_ray.keys import GLOBAL, Limits

        store = _store(keys)
        old = Limits() if name == GLOBAL and not keys.exists() else store.find(name).limits
        limits = _limits(old, money, requests_per_minute, tokens_per_minute, candidate)
        typer.echo(_described(store.change(name, limits)))


@keys_app.command()
def revoke(name: Name, keys: KeysFile = DEFAULT) -> None:
    """End a key: its next request is refused; those on their way are still settled."""
    with _explained():
        key = _store(keys).revoke(name)
        typer.echo(f"The key '{key.name}' ({key.id}) is revoked.")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RtrError as error:
        fail(error.message)


def _store(path: Path) -> KeyStore:
    from rtr_ray.keys import KeyStore

    return KeyStore(path)


def _limits(
    old: Limits,
    money: tuple[str | None, ...],
    requests_per_minute: str | None,
    tokens_per_minute: str | None,
    candidate: list[str] | None,
) -> Limits:
    """The old limits with those that were typed in their place."""
    names = old.candidates if candidate is None else tuple(candidate)
    before = (old.day_usd, old.month_usd, old.total_usd, old.max_request_usd)
    flags = ("--day-usd", "--month-usd", "--total-usd", "--max-request-usd")
    day, month, total, most = (_usd(*one) for one in zip(money, before, flags, strict=True))
    requests = _count(requests_per_minute, old.requests_per_minute, "--requests-per-minute")
    tokens = _count(tokens_per_minute, old.tokens_per_minute, "--tokens-per-minute")
    return type(old)(day, month, total, most, requests, tokens, None if names == ("none",) else names)


def _usd(typed: str | None, old: Decimal | None, flag: str) -> Decimal | None:
    if typed is None or typed == "none":
        return old if typed is None else None
    try:
        return Decimal(typed.removeprefix("$"))
    except InvalidOperation:
        raise ConfigError(f"{flag} '{typed}' is no number. Give dollars, such as 2.50, or none.") from None


def _count(typed: str | None, old: int | None, flag: str) -> int | None:
    if typed is None or typed == "none":
        return old if typed is None else None
    try:
        return int(typed)
    except ValueError:
        raise ConfigError(f"{flag} '{typed}' is no whole number. Give one, such as 60, or none.") from None


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def _overview(store: KeyStore, keys: list[Key]) -> Table:
    from rich.table import Table

    rows = [_row(key, store.usage(key.id)) for key in (store.find("global"), *keys)]
    table = Table(title=f"Keys in {store.path}", title_justify="left")
    shown = [name for name in rows[0] if name in _ALWAYS or any(row[name] for row in rows)]
    for name in shown:
        table.add_column(name, no_wrap=name in ("name", "id"))
    for row in rows:
        table.add_row(*(row[name] or "-" for name in shown))
    return table


_ALWAYS = ("name", "id", "today", "this month", "in all")


def _row(key: Key, usage: tuple[Usage, ...]) -> dict[str, str]:
    today, month, total = usage
    return {
        "name": key.name,
        "id": "" if key.id == key.name else key.id,
        "today": _used(today),
        "this month": _used(month),
        "in all": _used(total),
        "a minute": _a_minute(key.limits),
        "candidates": ", ".join(key.limits.candidates or ()),
        "revoked": key.revoked_at or "",
    }


def _periods(usages: tuple[Usage, ...]) -> Table:
    from rich.table import Table

    table = Table()
    for name in ("period (UTC)", "budget", "spent", "unknown", "on the way", "left", "calls", "tokens"):
        table.add_column(name, justify="left" if name.startswith("period") else "right")
    for one in usages:
        money = (one.budget_usd, one.spent_usd, one.unknown_usd, one.reserved_usd, one.left_usd)
        calls = f"{one.calls:,}" + (f" ({one.lost:,} lost)" if one.lost else "")
        table.add_row(one.period, *map(_dollars, money), calls, f"{one.tokens:,}")
    return table


def _described(key: Key) -> str:
    limits = key.limits
    lines = [f"{key.name} ({key.id})" if key.name != key.id else "All keys together"]
    lines += [f"  {_dollars(usd)} {what}" for usd, what in (
        (limits.day_usd, "a day"), (limits.month_usd, "a month"), (limits.total_usd, "in all"),
        (limits.max_request_usd, "for one request"),
    ) if usd is not None]  # fmt: skip
    lines += [f"  {_a_minute(limits)} a minute"] if _a_minute(limits) else []
    lines += [f"  candidates: {', '.join(limits.candidates)}"] if limits.candidates is not None else []
    lines += [f"  revoked {key.revoked_at}"] if key.revoked_at else []
    return "\n".join(lines if len(lines) > 1 else [*lines, "  no limits"])


def _a_minute(limits: Limits) -> str:
    counts = ((limits.requests_per_minute, "requests"), (limits.tokens_per_minute, "tokens"))
    return ", ".join(f"{count:,} {what}" for count, what in counts if count is not None)


def _used(one: Usage) -> str:
    used = _dollars(one.spent_usd + one.unknown_usd + one.reserved_usd)
    return used if one.budget_usd is None else f"{used} of {_dollars(one.budget_usd)}"


def _dollars(usd: Decimal | None) -> str:
    """At least two decimals, and as many as there are."""
    if usd is None:
        return "-"
    whole, _, part = f"{abs(usd):f}".partition(".")
    return f"{'-' if usd < 0 else ''}${int(whole):,}.{part.rstrip('0'):0<2}"
