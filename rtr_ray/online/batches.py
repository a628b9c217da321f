"""Batches as the endpoint takes them: what a client may ask, and what each request becomes for a job."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any

from rtr_ray.errors import ConfigError, DataError
from rtr_ray.gate import Caller
from rtr_ray.online.asking import AUTO, Asked, parse_chat, parse_json
from rtr_ray.online.orders import as_it_is, is_plain
from rtr_ray.online.problems import RequestError
from rtr_ray.online.turns import query_of
from rtr_ray.openai_batch import BatchRequest, Problem, problem_of
from rtr_ray.pool import Pool
from rtr_ray.terms import Terms
from rtr_ray.types import Candidate, Sampling

_TRIES = 3  # that a batch sets money aside for, where it is told no budget
_DRAWN = tuple(one.name for one in fields(Sampling))


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """How a batch is carried out: fixed when it is created, so that a restart changes nothing.

    Attributes:
        router: The folder.
        untrained: As `RouterKeys` has it.
        policy: Of `auto`.
        normaliser_usd: The unit of a lambda; None: none has one.
        candidates: Those that the key may use; None: all.
        max_request_usd: What one request may cost at most; None: not limited.
    """

    router: str
    untrained: str
    policy: Mapping[str, Any]
    normaliser_usd: float | None
    candidates: tuple[str, ...] | None = None
    max_request_usd: Decimal | None = None

    @classmethod
    def of(
        cls,
        router: str,
        untrained: str,
        policy: Mapping[str, Any],
        normaliser_usd: float | None,
        caller: Caller,
    ) -> BatchOrder:
        """The order of a caller; a lambda has the unit that it has for single requests."""
        found = dict(policy)
        if "lam" in found and found.get("kind", "score") == "score":
            found = {"normaliser_usd": normaliser_usd} | found | {"kind": "score"}
        return cls(router, untrained, found, normaliser_usd, caller.candidates, caller.max_request_usd)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same from."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        most = self.max_request_usd
        return found | {"max_request_usd": None if most is None else f"{most:f}"}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> BatchOrder:
        """What `to_json` was taken from."""
        names, most = found["candidates"], found["max_request_usd"]
        return cls(
            **{
                **found,
                "candidates": None if names is None else tuple(names),
                "max_request_usd": None if most is None else Decimal(most),
            }
        )

    def policies(self, model: str, pool: Pool, bounded: bool) -> list[Mapping[str, Any]]:
        """By what the requests to a model are planned: the first whose plan the money pays for.

        Args:
            model: As the requests have it.
            pool: The endpoint's.
            bounded: Whether a budget bounds them. Then one that is too small for the configured policy
                is divided so that it buys the most.

        Raises:
            ConfigError: If the endpoint's policy cannot plan a batch.
        """
        if model != AUTO and not model.startswith(f"{AUTO}:"):
            candidate = as_it_is(model) if model in pool.models else Candidate.parse(model)
            return [{"kind": "fixed", "candidate": str(candidate)}]
        divided: list[Mapping[str, Any]] = [{"kind": "budget"}] if bounded else []
        if model == AUTO and "run" in self.policy:
            if divided:
                return divided
            raise ConfigError(
                "The endpoint's policy is taken over from a run, which planned another corpus. Give the "
                "batch metadata.budget_usd, or name auto:LAM as its model."
            )
        policy = self.policy
        if model != AUTO:
            lam = float(model.removeprefix(f"{AUTO}:"))
            policy = {"kind": "score", "lam": lam, "normaliser_usd": self.normaliser_usd}
        return [policy, *divided]


def checking(pool: Pool, order: BatchOrder) -> Callable[[BatchRequest], BatchRequest | Problem]:
    """What becomes of the requests of a batch: settings that a job reads, or a problem of their line."""
    seeds = all(one.accelerator != "cpu" for one in pool.deployments.values())

    def check(request: BatchRequest) -> BatchRequest | Problem:
        body = {"model": request.model, "messages": list(request.messages), **request.settings}
        try:
            asked = parse_chat(json.dumps(body).encode(), pool)
            _refuse_online_only(asked, request, order, seeds)
            return replace(request, settings=_terms(asked, pool, order).to_json())
        except RequestError as problem:
            code = problem.code or problem.kind
            param = None if problem.param is None else f"body.{problem.param}"
            return problem_of(request, code, problem.message, param)

    return check


def most_usd(pool: Pool, request: BatchRequest) -> Decimal:
    """What a request that was checked costs at most, whoever answers it, with two calls that are lost."""
    terms = Terms.read(json.dumps(request.settings))
    query = query_of(request.custom_id, request.messages)
    found = [Decimal(0)]
    for candidate in pool.candidates:
        if terms.candidates is None or str(candidate) in terms.candidates:
            with contextlib.suppress(DataError):  # nobody can say: it will not be put to that one
                found.append(pool.worst_case_usd(terms.applied(pool.request(query, candidate), pool)))
    return _TRIES * max(found)


def _refuse_online_only(asked: Asked, request: BatchRequest, order: BatchOrder, seeds: bool) -> None:
    if asked.wish.min_accuracy is not None:
        raise _not_here("rtr.min_accuracy", "which only single requests can. Name auto:LAM as the model")
    if asked.wish.lam is not None:
        if request.model == AUTO:
            raise _not_here("rtr.lam", f"in a body. Name auto:{asked.wish.lam:g} as the model instead")
        if order.normaliser_usd is None:
            raise _not_here("a lambda", "whose unit this endpoint's router does not know. Name auto")
    if asked.fields.get("seed") is not None and not seeds and asked.fields.get("temperature") != 0:
        raise _not_here("seed", "of which a model on the CPU may die. Leave it out, or set temperature to 0")


def _not_here(what: str, why: str) -> RequestError:
    return RequestError(f"A batch does not take {what}, {why}.", code="unsupported_field", param=what)


def _terms(asked: Asked, pool: Pool, order: BatchOrder) -> Terms:
    names = _candidates(asked, pool)
    if order.candidates is not None:
        names = tuple(one for one in order.candidates if names is None or one in names)
        if not names:
            raise RequestError(
                "This key may use none of the candidates that are asked for.",
                code="permission_denied",
                param="model",
            )
    predicted = asked.wish.max_cost_usd
    limits = [usd for usd in (predicted, order.max_request_usd) if usd is not None]
    stop = asked.fields.get("stop") or ()
    return Terms(
        names,
        asked.max_tokens,
        asked.model is not None and asked.max_tokens is not None,
        min(limits, default=None),
        None if predicted is None else float(predicted),
        Sampling(**{name: asked.fields[name] for name in _DRAWN if name in asked.fields}),
        (stop,) if isinstance(stop, str) else tuple(stop),
    )


def _candidates(asked: Asked, pool: Pool) -> tuple[str, ...] | None:
    if asked.candidate is not None:
        return (str(asked.candidate),)
    if asked.model is not None:
        candidate = as_it_is(asked.model)
        if candidate not in pool.candidates or not is_plain(pool.strategies[candidate.strategy]):
            raise RequestError(
                f"A batch puts a request for {asked.model} to {candidate}, and the pool has no such plain "
                "candidate. Name model:strategy.",
                code="no_candidate",
                param="model",
            )
        return (str(candidate),)
    wanted = asked.wish.candidates
    return None if wanted is None else tuple(map(str, wanted))


def parse_batch(raw: bytes) -> dict[str, Any]:
    """The body of a batch that is to be created, as `BatchStore.create` takes it.

    Raises:
        RequestError: With status 400; the message names the field.
    """
    body = parse_json(raw)
    known = {
        "input_file_id": "input_file_id", "endpoint": "endpoint", "completion_window": "window",
        "metadata": "metadata",
    }  # fmt: skip
    for name in body:
        if name not in known:
            raise RequestError(
                f"The field '{name[:60]}' is not known here. Leave it out.",
                param=name[:60],
                code="unknown_parameter",
            )
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(body.get(name), str):
            raise RequestError(f"{name} is missing or no text.", param=name, code="invalid_value")
    return {known[name]: value for name, value in body.items()}
