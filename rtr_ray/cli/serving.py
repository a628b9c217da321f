"""`serve`: the online endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtr_ray.cli.shared import Address, app, screening


@app.command()
def serve(
    config: Annotated[Path, typer.Option("--config", help="A serve.yaml.")],
    host: Annotated[str | None, typer.Option("--host", help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="The port to listen on.")] = None,
    address: Address = None,
    keys: Annotated[str | None, typer.Option("--keys", help="The file of rtr-ray keys.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let others in although no key is configured.")
    ] = False,
) -> None:
    """Answer OpenAI's chat completions: `model: auto` is routed. Until it is interrupted."""
    with screening() as screen:
        from rtr_ray.config import load_serving

        changes = {"host": host, "port": port, "cluster.address": address, "keys": keys}
        file = load_serving(config, {key: value for key, value in changes.items() if value is not None})
        from rtr_ray.distributed.online.running import serve_file

        serve_file(file, screen, insecure)
