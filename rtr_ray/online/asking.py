"""The body of a chat completion, read with suspicion: what is asked, of whom, within which limits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rtr_ray.errors import ConfigError
from rtr_ray.online.problems import RequestError
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, Message

AUTO = "auto"
MOST_CHOICES = 16
_WISHES = ("lam", "max_cost_usd", "min_accuracy", "candidates", "latency_weight")
MOST_PER_SECOND = 1000.0
"""Points of accuracy; there are no more than 100, so that beyond it nothing but seconds counts."""
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_PLAIN_ONLY = ("tools", "functions", "response_format", "logprobs", "audio", "modalities")
"""Fields that a strategy's own instruction or reading would break: only candidates without one take them."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of the router; None: as the configured policy has it."""

    lam: float | None = None  # 0 looks at cost alone, 1 at accuracy alone
    max_cost_usd: Decimal | None = None  # the answer never costs more
    min_accuracy: float | None = None  # the cheapest candidate that is predicted to reach it
    candidates: tuple[Candidate, ...] | None = None  # one of these
    latency_weight: float | None = None  # points of accuracy that a second is worth


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat completion that somebody asked for.

    Of `model` and `candidate` one at most is set: a model that is called as it is, or a candidate;
    none of them: the router chooses.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    candidate: Candidate | None = None
    wish: Wish = Wish()
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    max_tokens: int | None = None  # of one answer
    fields: Mapping[str, Any] = field(default_factory=dict)  # for the engine, as they came
    needs: tuple[str, ...] = ()  # fields that only a plain candidate can serve

    @property
    def routed(self) -> bool:
        """Whether the router chooses."""
        return self.model is None and self.candidate is None


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
        RequestError: If it is no JSON object, holds NaN or a number that no float can hold, or half of a
            surrogate pair, which is no text.
    """
    try:
        body = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeError:
        raise RequestError("The body is not UTF-8 text, or holds half of a surrogate pair.") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise RequestError(f"The body is not JSON: {reason}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestError("The body is JSON, but no object. Send {...}.", code="invalid_json")
    return body


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def parse_chat(raw: bytes, pool: Pool) -> Asked:
    """What a request asks for.

    Args:
        raw: The body.
        pool: Whose models and candidates can be named.

    Raises:
        RequestError: With status 400, or 404 where the pool has no such model; the message names the field.
    """
    body = parse_json(raw)
    checked = {name: _FIELDS[name](name, value) for name, value in body.items() if name in _FIELDS}
    for name in body:
        if name not in _FIELDS and name not in _OURS and name not in _UNUSED:
            raise RequestError(
                f"The field '{name[:60]}' is not known here, or not safe to pass on. Leave it out.",
                param=name[:60],
                code="unknown_parameter",
            )
    model, candidate, lam = _target(body.get("model"), pool)
    wish = _wish(body.get("rtr"), lam, pool)
    if wish != Wish() and (model or candidate):
        raise _wrong("rtr", "is for the router", f"leave it out beside a named model, or ask for '{AUTO}'")
    options = _object("stream_options", body.get("stream_options") or {})
    given = {name: value for name, value in checked.items() if value is not None}
    needs = [name for name in _PLAIN_ONLY if given.get(name)]
    n = given.pop("n", 1)
    longest = given.pop("max_tokens", None)
    longest = given.pop("max_completion_tokens", longest)
    return Asked(
        messages=_messages(body.get("messages")),
        model=model,
        candidate=candidate,
        wish=wish,
        stream=bool(_boolean("stream", body.get("stream"))),
        include_usage=bool(_boolean("stream_options.include_usage", options.get("include_usage"))),
        n=n,
        max_tokens=longest,
        fields=given,
        needs=(*needs, *(("n",) if n > 1 else ())),
    )


def _target(name: Any, pool: Pool) -> tuple[str | None, Candidate | None, float | None]:
    """A model, a candidate or a lambda, as the field `model` has it."""
    if not isinstance(name, str) or not name:
        raise _wrong("model", "is missing or no text", f"name one of /v1/models, such as '{AUTO}'")
    if name == AUTO:
        return None, None, None
    if name.startswith(f"{AUTO}:"):
        return None, None, _lam("model", name.removeprefix(f"{AUTO}:"))
    if name in pool.models:
        return name, None, None
    try:
        candidate = Candidate.parse(name)
    except ConfigError:
        candidate = None
    if candidate is None or candidate not in pool.candidates:
        raise RequestError(
            f"There is no model '{name[:80]}'. GET /v1/models lists those there are.",
            status=404,
            param="model",
            code="model_not_found",
        )
    return None, candidate, None


def _wish(value: Any, lam: float | None, pool: Pool) -> Wish:
    if value is None:
        return Wish(lam=lam)
    keys = _object("rtr", value)
    for name in keys:
        if name not in _WISHES:
            raise _wrong(f"rtr.{name[:60]}", "is not known", f"{', '.join(_WISHES)} are")
    if keys.get("lam") is not None:
        if lam is not None:
            raise _wrong("rtr.lam", f"stands beside model '{AUTO}:{lam:g}'", "give one of them")
        lam = _lam("rtr.lam", keys["lam"])
    floor = keys.get("min_accuracy")
    if floor is not None:
        floor = _number(0, 1)("rtr.min_accuracy", floor)
        if lam is not None:
            raise _wrong("rtr.min_accuracy", "stands beside lam", "give one of them")
    ceiling = keys.get("max_cost_usd")
    if ceiling is not None:
        ceiling = Decimal(str(_number(0, 1e6)("rtr.max_cost_usd", _read_number(ceiling))))
    second = keys.get("latency_weight")
    if second is not None:
        second = float(_number(0, MOST_PER_SECOND)("rtr.latency_weight", second))
        if floor is not None:
            raise _wrong("rtr.latency_weight", "stands beside min_accuracy", "give one of them")
    return Wish(lam, ceiling, floor, _candidates(keys.get("candidates"), pool), second)


def _candidates(value: Any, pool: Pool) -> tuple[Candidate, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise _wrong("rtr.candidates", "is no list of names", "write model:strategy for each")
    found = {str(candidate): candidate for candidate in pool.candidates}
    for name in value:
        if name not in found:
            raise _wrong("rtr.candidates", f"names '{name[:80]}'", f"the pool has {', '.join(found)}"[:400])
    return tuple(found[name] for name in value)


def _read_number(value: Any) -> Any:
    """Money may come as text, which loses no digit."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _lam(name: str, value: Any) -> float:
    return float(_number(0, 1)(name, _read_number(value)))


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "is no list, or an empty one", "give one message at least")
    for number, message in enumerate(value):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise _wrong(where, "is no object", "write {role, content}")
        if message.get("role") not in _ROLES:
            raise _wrong(f"{where}.role", "is not known", f"one of {', '.join(_ROLES)} is")
        _content(f"{where}.content", message)
    return tuple(value)


def _content(where: str, message: Mapping[str, Any]) -> None:
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise _wrong(where, "is neither text nor a list of parts", "give a text")
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _wrong(where, "holds a part without a type", "write {type: text, text: ...}")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise _wrong(where, "holds a text part without a text", "write {type: text, text: ...}")


def _wrong(param: str, found: str, wanted: str) -> RequestError:
    return RequestError(f"{param} {found}; {wanted}.", param=param, code="invalid_value")


Check = Callable[[str, Any], Any]


def _number(low: float, high: float, above: bool = False) -> Check:
    def check(name: str, value: Any) -> Any:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (plain and (low < value if above else low <= value) and value <= high):
            return value
        raise _wrong(name, "is out of range or no number", f"a number from {low:g} to {high:g} is needed")

    return check


def _whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> Any:
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise _wrong(
            name, "is out of range or no whole number", f"a whole number from {low} to {high} is needed"
        )

    return check


def _boolean(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    raise _wrong(name, "is neither true nor false", "give one of them")


def _object(name: str, value: Any) -> Any:
    if value is None or isinstance(value, dict):
        return value
    raise _wrong(name, "is no object", "write {...}")


def _list(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
        return value
    raise _wrong(name, "is no list of objects", "write [{...}]")


def _stop(name: str, value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if value is None or (
        isinstance(texts, list) and len(texts) <= 16 and all(isinstance(one, str) and one for one in texts)
    ):
        return value
    raise _wrong(name, "is neither a text nor a list of at most 16", "give texts that are not empty")


def _tool_choice(name: str, value: Any) -> Any:
    if value is None or isinstance(value, dict) or value in ("none", "auto", "required"):
        return value
    raise _wrong(name, "is not known", "none, auto, required or {type: function, function: {name}} is")


def _effort(name: str, value: Any) -> Any:
    if value is None or value in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        return value
    raise _wrong(name, "is not known", "none, minimal, low, medium, high are")


def _bias(name: str, value: Any) -> Any:
    if value is None or (
        isinstance(value, dict)
        and len(value) <= 1024
        and all(key.isdecimal() and len(key) < 8 for key in value)
    ):
        for bias in (value or {}).values():
            _number(-100, 100)(name, bias)
        return value
    raise _wrong(name, "is no object of token ids", "give at most 1024")


_LONGEST = 10_000_000
_SEED = 2**63 - 1

_FIELDS: Mapping[str, Check] = {
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0, 10, above=True),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, above=True),
    "min_p": _number(0, 1),
    "top_k": _whole(-1, _LONGEST),
    "min_tokens": _whole(0, _LONGEST),
    "max_tokens": _whole(1, _LONGEST),
    "max_completion_tokens": _whole(1, _LONGEST),
    "n": _whole(1, MOST_CHOICES),
    "seed": _whole(-_SEED, _SEED),
    "stop": _stop,
    "ignore_eos": _boolean,
    "logit_bias": _bias,
    "logprobs": _boolean,
    "top_logprobs": _whole(0, 20),
    "parallel_tool_calls": _boolean,
    "response_format": _object,
    "tools": _list,
    "tool_choice": _tool_choice,
    "reasoning_effort": _effort,
    "chat_template_kwargs": _object,
}
"""What goes on to the engine, and how it is checked here; the engine checks what lies inside."""

_OURS = ("model", "messages", "stream", "stream_options", "rtr")

_UNUSED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")
"""Fields of OpenAI's that change no answer here: an unchanged client may send them."""
