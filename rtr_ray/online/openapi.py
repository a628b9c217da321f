"""What the endpoint's OpenAPI document says of its bodies and of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LAM = {"type": "number", "minimum": 0, "maximum": 1}
_CANDIDATE = {"type": "string", "description": "model:strategy, as GET /v1/models lists them"}

_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                    },
                },
            ]
        },
    },
}

WISH = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "lam": _LAM,
        "min_accuracy": _LAM,
        "max_cost_usd": {"type": "number", "minimum": 0},
        "candidates": {"type": "array", "minItems": 1, "items": _CANDIDATE},
        "latency_weight": {"type": "number", "minimum": 0, "maximum": 1000},
    },
}

SETTINGS: Mapping[str, Any] = {
    "model": {"type": "string", "description": "auto, auto:LAM, a model, or model:strategy"},
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 10_000_000},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "maxItems": 16, "items": {"type": "string"}}]},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "logprobs": {"type": "boolean"},
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
    "response_format": {"type": "object"},
    "tools": {"type": "array", "items": {"type": "object"}},
    "tool_choice": {"anyOf": [{"type": "string"}, {"type": "object"}]},
    "rtr": WISH,
}
"""The settings of a request that both kinds of completions take."""

CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {**SETTINGS, "messages": {"type": "array", "minItems": 1, "items": _MESSAGE}},
}

FEEDBACK = {
    "type": "object",
    "required": ["request_id", "score"],
    "properties": {"request_id": {"type": "string"}, "score": _LAM},
}

_SAID = {
    "400": "What is wrong with the request, by the field's name.",
    "401": "No key, or none that is known.",
    "403": "This key, or this page, may not do that.",
    "404": "There is no such model, request, file or batch.",
    "408": "The body did not come in time.",
    "409": "That was done already.",
    "413": "The body is too large.",
    "429": "A budget or a limit per minute is used up; `reset_at` or Retry-After says when it begins anew.",
    "503": "As many requests are here as may be, no model that may answer is up, or keys and budgets cannot "
    "be looked at. Retry-After says when to come again.",
}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def described(
    body: Mapping[str, Any] | None = None,
    statuses: Sequence[int] = (400, 401, 403, 404, 408, 413, 429, 503),
    stream: bool = False,
) -> dict[str, Any]:
    """What stands in the document beside a route.

    Args:
        body: The schema of its JSON; None: it takes none.
        statuses: Those that it may answer beside 200.
        stream: Whether its answer may be a stream of events.
    """
    kinds: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if stream:
        kinds["text/event-stream"] = {"schema": {"type": "string"}}
    answers: dict[str, Any] = {"200": {"description": "As it was asked.", "content": kinds}}
    for status in statuses:
        answers[str(status)] = {
            "description": _SAID[str(status)],
            "content": {"application/json": {"schema": _ERROR}},
        }
    said: dict[str, Any] = {"responses": answers}
    if body is not None:
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return said
