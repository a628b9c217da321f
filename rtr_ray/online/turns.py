"""A conversation as the router sees it: the text that is encoded, and how large the prompt is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rtr_ray.corpus import last_user_text
from rtr_ray.pool import size_of
from rtr_ray.types import Message, Query

Reads = Literal["last_user", "conversation"]


def query_of(query_id: str, messages: Sequence[Message]) -> Query:
    """The query that a conversation is.

    One user message alone is a plain query, as a row of a corpus would be: so batch and online see
    the same. All else is a conversation, which keeps its messages.
    """
    text = last_user_text([dict(message) for message in messages]) or ""
    if len(messages) == 1 and messages[0].get("role") == "user" and set(messages[0]) == {"role", "content"}:
        content = messages[0]["content"]
        if isinstance(content, str):
            return Query(query_id, content)
    return Query(query_id, text, tuple(messages))


def text_of(query: Query, reads: Reads = "last_user", longest: int = 2000) -> str:
    """What the encoder reads of a query.

    Args:
        query: From `query_of`.
        reads: The text of the last user message, or the whole conversation.
        longest: Characters of a conversation that are kept, from its end: an encoder would cut the
            end instead, and the last turn says most.
    """
    if query.messages is None or reads == "last_user":
        return query.text
    said = [f"{message['role']}: {_text(message)}" for message in query.messages if _text(message)]
    return "\n".join(said)[-longest:]


def size_in_bytes(query: Query) -> int:
    """The size of a prompt as a router's input lengths are fitted on: see `parts.table_part`."""
    return len(query.text.encode()) if query.messages is None else size_of(query.messages)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""
