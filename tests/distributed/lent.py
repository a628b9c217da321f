"""Requests put to a running deployment under a ledger actor, as a dispatch actor does it."""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from pathlib import Path

import ray
from ray import serve

from rtr_ray.dispatch import Dispatcher, Gate, Settings, settlement
from rtr_ray.distributed.executor import ServeExecutor
from rtr_ray.distributed.ledger_actor import RemoteBooks, claim, release
from rtr_ray.ledger import Balance
from rtr_ray.pool import Pool
from rtr_ray.types import Outcome, Request


def answered(
    handle: tuple[str, str], pool: Pool, requests: list[Request], budget_usd: Decimal | None, folder: Path
) -> tuple[dict[str, Outcome], Balance]:
    """The outcomes by query, and the ledger's last balance."""

    async def run() -> list[Outcome]:
        books = RemoteBooks(actor, "part")
        await books.begin({})
        executor = ServeExecutor(serve.get_deployment_handle(*handle))
        dispatcher = Dispatcher(executor, books, pool, Gate(64), Settings(chunk=16))
        found = []
        async with contextlib.aclosing(dispatcher.run(requests)) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
                if (one := settlement(pool, outcome)) is not None:
                    await books.settle([one])
        await books.finish()
        return found

    actor = claim(str(folder), budget_usd)
    try:
        ray.get(actor.resume.remote({}, {}))
        found = asyncio.run(run())
        return {outcome.query_id: outcome for outcome in found}, ray.get(actor.close.remote()).balance
    finally:
        release(actor)
