"""From a request and a candidate to what its engine is told, and the most that it can cost."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from rtr_ray.gate import Offer
from rtr_ray.online.asking import Asked
from rtr_ray.online.problems import RequestError
from rtr_ray.pool import Pool
from rtr_ray.strategies import PLACEHOLDER, Strategy
from rtr_ray.terms import paid_tokens
from rtr_ray.types import BoolArray, Candidate, Query, Sampling

PLAIN = "vanilla"
_UNBOUNDED_TOKENS = 4096  # of a model that is called as it is, where nobody knows its context window


@dataclass(frozen=True, slots=True)
class Order:
    """One request as one candidate gets it."""

    offer: Offer
    deployment: str
    body: Mapping[str, Any]  # of an OpenAI completion, without `model`; of a raw one with `prompt`
    buffered: bool  # the answer is made of what the model writes, and cannot be passed on as it comes

    @property
    def candidate(self) -> Candidate:
        """Who answers."""
        return self.offer.candidate


def is_plain(strategy: Strategy) -> bool:
    """Whether a strategy leaves messages and answers alone, so that tools and formats work with it."""
    return strategy.system is None and strategy.template == PLACEHOLDER and strategy.answer != "program"


def may_serve(pool: Pool, asked: Asked, names: Collection[str] | None, up: Collection[str]) -> BoolArray:
    """(C,) which of the pool's candidates may take a request, whatever its length.

    Args:
        names: The candidates that the caller may use; None: all.
        up: The deployments that answer.
    """
    wanted = asked.wish.candidates
    return np.array(
        [
            (wanted is None or candidate in wanted)
            and (names is None or str(candidate) in names)
            and pool.deployment(candidate).id in up
            and (asked.prompt is None or pool.deployment(candidate).endpoint is None)
            and (
                not asked.needs or (candidate.samples == 1 and is_plain(pool.strategies[candidate.strategy]))
            )
            for candidate in pool.candidates
        ],
        dtype=bool,
    )


def order(pool: Pool, asked: Asked, query: Query, candidate: Candidate, most_usd: Decimal | None) -> Order:
    """What is sent to a candidate.

    A request's own settings stand over the strategy's and the model's; its `max_tokens` can only
    shorten a strategy's answer. A model that is called as it is gets the messages as they came.

    Args:
        most_usd: What the answer may cost at most: it gets no more tokens than that pays for. None:
            no such limit.

    Raises:
        RequestError: If that pays for no token, nobody can say what it costs, or the engine would die of it.
    """
    if asked.prompt is not None and pool.deployment(candidate).endpoint is not None:
        raise RequestError(
            f"{candidate.model} is somebody else's endpoint, which takes conversations alone. Ask "
            "/v1/chat/completions.",
            param="prompt",
        )
    direct = asked.model is not None
    strategy = None if direct else pool.strategies[candidate.strategy]
    messages = asked.messages if strategy is None else strategy.messages(query)
    input_tokens = pool.input_bound(messages, candidate)
    if input_tokens is None:
        raise RequestError(
            f"The request holds more than text, and {candidate.model} has no known context window, so that "
            "nobody can say what it costs. Ask another model.",
            param="messages",
        )
    context = pool.deployment(candidate).context_tokens
    more = [asked.fields[name] for name in ("tools", "response_format") if name in asked.fields]
    if more:
        input_tokens += len(json.dumps(more).encode())
        input_tokens = input_tokens if context is None else min(input_tokens, context)
    count = asked.n * candidate.samples
    longest = _longest(pool, asked, candidate, direct)
    limit = longest
    if most_usd is not None:
        limit = min(limit, paid_tokens(pool.price(candidate), input_tokens, most_usd, count))
        if limit < 1:
            raise RequestError(
                f"{candidate} may cost more than ${most_usd:f} before its first token. Raise the limit, or "
                "shorten the request.",
                code="max_cost",
                param="rtr.max_cost_usd",
            )
    body = _body(pool, asked, candidate, strategy)
    if asked.prompt is None:
        body["messages"] = [dict(one) for one in messages]
    else:
        body["prompt"] = asked.prompt
    if not direct or asked.max_tokens is not None or limit < longest or context is None:
        body["max_tokens"] = limit
    if count > 1:
        body["n"] = count
    worst_usd = pool.price(candidate).worst_case_usd(input_tokens, limit * count)
    return Order(
        Offer(candidate, worst_usd, input_tokens + limit * count),
        pool.deployment(candidate).id,
        body,
        buffered=strategy is not None and (strategy.answer == "program" or candidate.samples > 1),
    )


def _longest(pool: Pool, asked: Asked, candidate: Candidate, direct: bool) -> int:
    if not direct:
        own = pool.max_tokens(candidate)
        return own if asked.max_tokens is None else min(own, asked.max_tokens)
    if asked.max_tokens is not None:
        return asked.max_tokens
    return pool.deployment(candidate).context_tokens or _UNBOUNDED_TOKENS


def _body(pool: Pool, asked: Asked, candidate: Candidate, strategy: Strategy | None) -> dict[str, Any]:
    model = pool.models[candidate.model]
    sampling = model.sampling if strategy is None else strategy.sampling.over(model.sampling)
    body: dict[str, Any] = sampling.over(Sampling(temperature=0.0)).given() | dict(asked.fields)
    if asked.n > 1 and "temperature" not in asked.fields and not body["temperature"]:
        body["temperature"] = 1.0  # OpenAI's default: greedy answers would all be the same, and vLLM refuses
    stop = list(strategy.stop) if strategy is not None else []
    given = asked.fields.get("stop") or []
    stop += [given] if isinstance(given, str) else given
    if stop:
        body["stop"] = stop
    if model.chat_template_kwargs and asked.prompt is None:
        own = dict(asked.fields.get("chat_template_kwargs") or {})
        body["chat_template_kwargs"] = own | dict(
            model.chat_template_kwargs
        )  # these make the model what it is
    if body.get("seed") is not None and pool.deployment(candidate).accelerator == "cpu":
        if body.get("temperature"):
            raise RequestError(
                "A seed cannot be used with a model on the CPU, where its engine would die of it. Leave it "
                "out, or set temperature to 0.",
                param="seed",
            )
        del body["seed"]  # greedy answers have none
    return body


def as_it_is(model: str) -> Candidate:
    """The candidate under whose name a model that is called as it is keeps its books."""
    return Candidate(model, PLAIN)
