"""The chunks of a stream, folded into the one response that they are parts of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens so far, as the engine counts them."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Folded:
    """What the chunks of one completion have said so far."""

    created: int = 0
    choices: dict[int, dict[str, Any]] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict)  # output tokens by choice, while it runs
    _usage: dict[str, Any] = field(default_factory=dict)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take in one chunk."""
        self.created = self.created or chunk.get("created") or 0
        usage = chunk.get("usage")
        choices = chunk.get("choices") or []
        if usage:
            # while it runs a chunk counts the tokens of its own choice; the last one, of no choice, all
            for choice in choices:
                self._counts[choice.get("index", 0)] = usage.get("completion_tokens") or 0
            self._usage = usage
            if not choices:
                self._counts = {0: usage.get("completion_tokens") or 0}
        for choice in choices:
            self._add(choice)

    def _add(self, part: Mapping[str, Any]) -> None:
        index = part.get("index", 0)
        choice = self.choices.setdefault(index, {"index": index, "message": {"role": "assistant"}})
        message = choice["message"]
        if part.get("text"):  # of a raw completion
            message["content"] = (message.get("content") or "") + part["text"]
        for name, value in (part.get("delta") or {}).items():
            if name == "tool_calls":
                _join_calls(message.setdefault("tool_calls", []), value or [])
            elif name != "role" and isinstance(value, str):
                message[name] = (message.get(name) or "") + value
        if part.get("logprobs"):
            known = choice.setdefault("logprobs", {} if "text" in part else {"content": []})
            for name, values in part["logprobs"].items():
                if isinstance(values, list) and (name == "content" or "text" in part):
                    known[name] = known.get(name, []) + values
        for name in ("finish_reason", "stop_reason"):
            if part.get(name) is not None:
                choice[name] = part[name]

    @property
    def counted(self) -> Counted:
        """The tokens so far."""
        details = self._usage.get("prompt_tokens_details") or {}
        return Counted(
            self._usage.get("prompt_tokens") or 0,
            details.get("cached_tokens") or 0,
            sum(self._counts.values()),
        )

    @property
    def ended(self) -> bool:
        """Whether every choice has come to its end."""
        return bool(self.choices) and all("finish_reason" in one for one in self.choices.values())

    def response_choices(self) -> list[dict[str, Any]]:
        """The choices of the whole response, in OpenAI's form."""
        found = []
        for index in sorted(self.choices):
            choice = dict(self.choices[index])
            message = dict(choice["message"])
            message.setdefault("content", None if message.get("tool_calls") else "")
            choice["message"] = message
            choice.setdefault("logprobs", None)
            found.append(choice)
        return found


def _join_calls(known: list[dict[str, Any]], parts: list[Mapping[str, Any]]) -> None:
    for part in parts:
        index = part.get("index", len(known))
        while len(known) <= index:
            known.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call = known[index]
        if part.get("id"):
            call["id"] = part["id"]
        function = part.get("function") or {}
        if function.get("name"):
            call["function"]["name"] = function["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


def usage_of(counted: Counted, cost_usd: Any = None) -> dict[str, Any]:
    """OpenAI's usage, with dollars as text beside it; null where nobody knows them."""
    return {
        "prompt_tokens": counted.input_tokens,
        "completion_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_input_tokens},
        "cost_usd": None if cost_usd is None else f"{cost_usd:f}",
    }
