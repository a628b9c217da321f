"""Reading a batch input file: line by line, so that its size does not matter.

Every line is checked before anything is asked. What is wrong is said with its line, in OpenAI's form
of an error list; and a setting that the batch could not honour is refused rather than ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from rtr_ray.corpus import last_user_text

CHAT = "/v1/chat/completions"
MOST_REQUESTS = 50_000  # as OpenAI has it
MOST_ID = 512  # characters of a custom_id
SETTINGS = frozenset({"max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "rtr"})
"""Fields of a body that travel with the row, for the job to honour."""
_HARMLESS = frozenset({"model", "messages", "metadata", "user", "store"})
_ONLY = {"stream": False, "n": 1, "logprobs": False}  # field -> what may be there
_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line that is fine."""

    line: int  # from 1
    custom_id: str
    model: str  # "auto", "auto:0.7", "small", "small:cot"
    messages: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line, or the file, cannot be used. Holds no text of the user's."""

    line: int | None  # None: the file as a whole
    code: str
    message: str
    param: str | None = None

    def to_json(self) -> dict[str, Any]:
        """An entry of a batch object's `errors`."""
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}


class _WrongError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def read_batch(
    lines: Iterable[bytes],
    endpoint: str = CHAT,
    settings: frozenset[str] = SETTINGS,
    most_requests: int = MOST_REQUESTS,
) -> Iterator[BatchRequest | Problem]:
    """The requests of a file, in order, and what is wrong with the lines that are none.

    Empty lines are passed over. The file is to be refused as a whole if there is any problem, as
    OpenAI does; nothing may be asked before its end was seen.

    Args:
        lines: Of the file, with or without newlines.
        endpoint: Of the batch; every line must name it.
        settings: Fields of a body that the job will honour; others are problems.
        most_requests: More than these are refused.
    """
    seen: dict[str, int] = {}
    count = 0
    for number, raw in enumerate(lines, 1):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not line.strip():
            continue
        count += 1
        if count > most_requests:
            yield Problem(
                number, "too_many_tasks", f"The file has more than {most_requests:,} requests. Split it."
            )
            return
        try:
            found = _request(line, number, endpoint, settings)
            first = seen.setdefault(found.custom_id, number)
            if first != number:
                raise _WrongError(
                    "duplicate_custom_id",
                    f"has the custom_id of line {first} again. Give each request its own",
                    "custom_id",
                )
        except _WrongError as wrong:
            yield Problem(number, wrong.code, f"Line {number} {wrong.message}.", wrong.param)
        else:
            yield found
    if not count:
        yield Problem(None, "empty_file", "The file is empty: it has no line with a request.")


def problem_of(request: BatchRequest, code: str, message: str, param: str | None = None) -> Problem:
    """A request that cannot be asked, and why, in a sentence."""
    return Problem(request.line, code, f"Line {request.line}: {message}", param)


def write_corpora(requests: Iterable[BatchRequest], open_corpus: Any) -> dict[str, int]:
    """Share the requests out over one corpus for each model; gives how many each has.

    A corpus is again a file in OpenAI's form, with `custom_id` as the id of its rows: it can be
    read as `format: openai_batch`. Settings of a row stand in its column `settings`, as JSON.

    Args:
        requests: Of one file.
        open_corpus: A function from a model's name to a binary file that is written to; closed here.
    """
    sinks: dict[str, IO[bytes]] = {}
    counts: dict[str, int] = {}
    try:
        for one in requests:
            if one.model not in sinks:
                sinks[one.model] = open_corpus(one.model)
            row: dict[str, Any] = {"custom_id": one.custom_id, "body": {"messages": list(one.messages)}}
            row["settings"] = json.dumps(dict(one.settings), ensure_ascii=False, sort_keys=True)
            sinks[one.model].write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            counts[one.model] = counts.get(one.model, 0) + 1
    finally:
        for sink in sinks.values():
            sink.close()
    return counts


def _request(line: bytes, number: int, endpoint: str, settings: frozenset[str]) -> BatchRequest:
    value = _object(line)
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id.strip():
        raise _WrongError(
            "missing_custom_id", "has no custom_id. Give each request a text of its own", "custom_id"
        )
    if len(custom_id) > MOST_ID:
        raise _WrongError(
            "invalid_custom_id", f"has a custom_id of more than {MOST_ID} characters", "custom_id"
        )
    if value.get("method") != "POST":
        raise _WrongError("invalid_method", "must have the method POST", "method")
    if value.get("url") != endpoint:
        raise _WrongError("mismatched_url", f"must have the url {endpoint}, as its batch has", "url")
    body = value.get("body")
    if not isinstance(body, dict):
        raise _WrongError("missing_body", "has no body that is an object", "body")
    model = body.get("model")
    if not isinstance(model, str) or not model.strip():
        raise _WrongError("missing_model", "names no model. Write auto, or a model", "body.model")
    messages = _messages(body.get("messages"))
    kept = {}
    for name, there in body.items():
        if there is None or name in _HARMLESS:
            continue
        if name in settings:
            if not _FITS.get(name, _anything)(there):
                raise _WrongError("invalid_value", f"has a {name} that cannot be", f"body.{name}")
            kept[name] = there
        elif not (name in _ONLY and type(there) is type(_ONLY[name]) and there == _ONLY[name]):
            raise _unsupported(name)
    return BatchRequest(number, custom_id, model.strip(), messages, kept)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _anything(value: Any) -> bool:
    return True


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: (_whole(value) or isinstance(value, float)) and low <= value <= high


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "max_tokens": lambda value: _whole(value) and value >= 1,
    "max_completion_tokens": lambda value: _whole(value) and value >= 1,
    "temperature": _between(0, 2),
    "top_p": _between(0, 1),
    "seed": _whole,
    "stop": lambda value: (
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    ),
    "rtr": lambda value: isinstance(value, dict),
}


def _unsupported(name: str) -> _WrongError:
    shown = name if name.isidentifier() and len(name) <= 40 else "a field"
    return _WrongError(
        "unsupported_field", f"asks for {shown}, which a batch cannot do. Leave it out", f"body.{shown}"
    )


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_no_number)
        if b"\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:  # what json says may quote the line
        what = "is not UTF-8" if isinstance(error, UnicodeError) else "is not JSON"
        raise _WrongError("invalid_json_line", what) from None
    if not isinstance(value, dict):
        raise _WrongError("invalid_json_line", "is not a JSON object")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _messages(found: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(found, list) or not found:
        raise _WrongError("missing_messages", "has no messages", "body.messages")
    for place, message in enumerate(found):
        where = f"body.messages[{place}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _WrongError("invalid_messages", f"has no known role in {where}", where)
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise _WrongError("invalid_messages", f"has neither text nor parts in {where}.content", where)
    text = last_user_text(found)
    if text is None or not text.strip():
        raise _WrongError("invalid_messages", "has no user message with text", "body.messages")
    return tuple(found)
