"""What a person is shown: which models there are, and why a request would go where it would."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from rtr_ray.online.asking import AUTO
from rtr_ray.online.orders import as_it_is
from rtr_ray.online.reply import plain_usd
from rtr_ray.online.routing import Routed
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate


def model_cards(pool: Pool, names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """OpenAI's list of models: the router, every model, every candidate.

    Args:
        names: The candidates that the caller may use; None: all.
    """
    found = [_card(AUTO, "the router chooses a candidate for each request")]
    for model in pool.models.values():
        if names is None or str(as_it_is(model.id)) in names:
            found.append(_card(model.id, model.profile.strip()))
    for candidate in pool.candidates:
        if names is None or str(candidate) in names:
            found.append(
                _card(
                    str(candidate),
                    pool.strategies[candidate.strategy].profile.strip(),
                    model=candidate.model,
                    strategy=candidate.strategy,
                )
            )
    return found


def _card(name: str, description: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "rtr-ray",
        "metadata": {"description": description, **more},
    }


def routing_shown(routed: Routed, query_id: str) -> dict[str, Any]:
    """A choice with the table that it was read from, the cheapest candidate first."""
    table = routed.plan.table
    order = np.argsort(table.cost_usd[0], kind="stable")
    return {
        "object": "routing",
        "id": query_id,
        "router": routed.router,
        "policy": getattr(routed.policy, "kind", type(routed.policy).__name__),
        "choice": _row(routed, routed.candidate),
        "runner_up": None if routed.runner_up is None else _row(routed, routed.runner_up),
        "why": why(routed),
        "unfamiliar": routed.unfamiliar,
        "table": [_row(routed, table.candidates[column]) for column in order],
    }


def why(routed: Routed) -> str:
    """The choice in a sentence or two."""
    said = (
        f"{routed.candidate} is expected to be right with {100 * routed.predicted('accuracy'):.1f}% for "
        f"${plain_usd(routed.predicted('cost_usd'))}."
    )
    if routed.unfamiliar:
        said = f"The request is unlike those that the router was trained on. {said}"
    calm = routed.unhurried
    if calm is not None and calm != routed.candidate:
        said += f" It is not {calm}, for which one would wait longer."
    other = routed.runner_up
    if other is None:
        return f"{said} No other candidate may take this request."
    points = 100 * (routed.predicted("accuracy", other) - routed.predicted("accuracy"))
    dearer = routed.predicted("cost_usd", other) - routed.predicted("cost_usd")
    money = f"${plain_usd(abs(dearer))} {'more' if dearer >= 0 else 'less'}"
    return f"{said} Next is {other}: {points:+.1f} points for {money}."


def _row(routed: Routed, candidate: Candidate) -> dict[str, Any]:
    column = routed.plan.table.candidates.index(candidate)
    return {
        "candidate": str(candidate),
        "allowed": bool(routed.plan.table.allowed[0, column]),
        "predicted_accuracy": routed.predicted("accuracy", candidate),
        "predicted_output_tokens": routed.predicted("output_tokens", candidate),
        "predicted_output_tokens_p95": routed.predicted("output_tokens_p95", candidate),
        "predicted_cost_usd": routed.predicted("cost_usd", candidate),
        "expected_s": _seconds(routed, column),
    }


def _seconds(routed: Routed, column: int) -> float | None:
    seconds_C = routed.expected_s
    return None if seconds_C is None or np.isnan(seconds_C[column]) else float(seconds_C[column])
