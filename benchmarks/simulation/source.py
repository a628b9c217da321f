"""Where the answers of a simulated engine come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model would say, if nobody cut it."""

    text: str
    input_tokens: int
    output_tokens: int


Answers = Callable[[str, str], Answer]
"""From the system's and the user's text to the answer."""


class Source(Protocol):
    """Where the answers come from; travels to the replicas, which open it."""

    def open(self) -> Answers:
        """Read what is needed."""
        ...
