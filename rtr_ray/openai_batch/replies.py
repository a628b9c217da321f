"""Writing output and error files in OpenAI's form from the rows of our results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """One line of an output or error file."""

    content: Mapping[str, Any]
    failed: bool

    def line(self) -> bytes:
        """As it is written, with its newline."""
        return json.dumps(self.content, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def request_id(batch_id: str, custom_id: str, prefix: str = "batch_req") -> str:
    """An id that is the same whenever the file is written again."""
    text = f"{batch_id}\0{custom_id}\0{prefix}".encode()
    return f"{prefix}_{hashlib.blake2b(text, digest_size=12).hexdigest()}"


def reply_of(row: Mapping[str, Any], batch_id: str, created: int) -> Reply:
    """What the client reads of a results row.

    An answered row goes into the output file as a chat completion, with an object `rtr` beside
    OpenAI's fields: the strategy, the answer that was read, the dollars (text, exact; null where they
    are not known) and what was predicted. Any other row goes into the error file.

    Args:
        row: As in `rtr_ray.schemas.RESULTS`.
        batch_id: Of the batch object.
        created: Seconds since 1970, of the completion.
    """
    custom_id = str(row["query_id"])
    line: dict[str, Any] = {"id": request_id(batch_id, custom_id), "custom_id": custom_id}
    if row["status"] != "answered":
        code = "budget_exceeded" if row["status"] == "skipped_budget" else "request_failed"
        message = row.get("error") or "The request was not answered."
        return Reply(line | {"response": None, "error": {"code": code, "message": message}}, failed=True)
    body = {
        "id": request_id(batch_id, custom_id, "chatcmpl"),
        "object": "chat.completion",
        "created": created,
        "model": _candidate(row),
        "choices": _choices(row),
        "usage": _usage(row),
        "rtr": {
            "strategy": row.get("strategy"),
            "answer": row.get("answer"),
            "cost_usd": _usd(row.get("cost_usd")),
            "predicted_accuracy": _number(row.get("predicted_accuracy")),
            "predicted_cost_usd": _number(row.get("predicted_cost_usd")),
            "runner_up": row.get("runner_up"),
            **({"code": row["code"]} if row.get("code") is not None else {}),
        },
    }
    response = {"status_code": 200, "request_id": request_id(batch_id, custom_id, "req"), "body": body}
    return Reply(line | {"response": response, "error": None}, failed=False)


def _candidate(row: Mapping[str, Any]) -> str:
    samples = row.get("samples") or 1
    return f"{row['model']}:{row['strategy']}" + (f"@{samples}" if samples != 1 else "")


def _choices(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The one answer: of several samples, the one that was kept."""
    finish = row.get("finish_reason") or "stop"
    return [
        {
            "index": 0,
            "message": {"role": "assistant", "content": row.get("response") or "", "refusal": None},
            "logprobs": None,
            "finish_reason": "length" if finish == "budget" else finish,
        }
    ]


def _usage(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tokens as they were counted; null where nobody knows, never zero."""
    prompt, answer = row.get("input_tokens"), row.get("output_tokens")
    if prompt is None or answer is None:
        return None
    cached = row.get("cached_input_tokens")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached or 0},
    }


def _usd(usd: Decimal | None) -> str | None:
    return None if usd is None else f"{usd:f}"


def _number(value: float | None) -> float | None:
    return value if value is not None and value == value and abs(value) != float("inf") else None
