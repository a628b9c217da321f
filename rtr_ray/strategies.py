"""Reasoning strategies: how a query becomes messages, and what is done with the answer.

Source: the four strategies of Route-To-Reason (WWW '26), section 4.1.1 and Appendix A.5 and
A.6; prompts and profiles are to their effect, in our words. A profile is what the router
reads about a strategy: it must say what the strategy is good at and how long its answers get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rtr_ray.errors import ConfigError
from rtr_ray.types import Message, Query, Sampling, check_name

PLACEHOLDER = "{query}"


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to ask a model."""

    id: str
    profile: str  # what the router reads about it
    max_tokens: int  # per sample; a model's thinking_tokens come on top
    system: str | None = None
    template: str = PLACEHOLDER  # of the user's message
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    answer: str = "auto"  # how the answer is read out of the text: see answers.READERS
    samples: tuple[int, ...] = (1,)  # each gives a candidate of its own
    select: str = "first"  # which of several samples is the answer: see answers.SELECTORS

    def __post_init__(self) -> None:
        check_name(self.id, "strategy")
        if not self.profile.strip():
            raise ConfigError(
                f"Strategy '{self.id}' has no profile. Say in a sentence or two what it is good at and how "
                "long its answers get: the router reads it."
            )
        if self.template.count(PLACEHOLDER) != 1:
            raise ConfigError(
                f"The template of strategy '{self.id}' holds {PLACEHOLDER} "
                f"{self.template.count(PLACEHOLDER)} times; exactly once is needed."
            )
        if self.max_tokens < 1:
            raise ConfigError(f"Strategy '{self.id}' has max_tokens={self.max_tokens}; 1 is the least.")
        if not self.samples or min(self.samples) < 1 or len(set(self.samples)) != len(self.samples):
            raise ConfigError(
                f"Strategy '{self.id}' has samples={list(self.samples)}; "
                "different numbers from 1 on are needed."
            )
        if max(self.samples) > 1 and self.select == "first":
            raise ConfigError(
                f"Strategy '{self.id}' draws {max(self.samples)} samples but keeps the first. "
                "Set select: majority."
            )

    def messages(self, query: Query) -> tuple[Message, ...]:
        """The conversation that puts `query` to a model.

        A plain query becomes the strategy's system message (if it has one) and the filled
        template. A conversation keeps its messages: the strategy's system text is put behind
        the user's own system message, or before everything where there is none, and the
        template is wrapped around the last user message where that is text.
        """
        if query.messages is None:
            system: tuple[Message, ...] = ({"role": "system", "content": self.system},) if self.system else ()
            return (*system, {"role": "user", "content": self._filled(query.text)})
        messages = [dict(message) for message in query.messages]
        if self.template != PLACEHOLDER:
            for message in reversed(messages):
                if message.get("role") == "user" and isinstance(message.get("content"), str):
                    message["content"] = self._filled(message["content"])
                    break
        if self.system:
            first = messages[0] if messages else {}
            if first.get("role") == "system" and isinstance(first.get("content"), str):
                first["content"] = f"{first['content']}\n\n{self.system}"
            else:
                messages.insert(0, {"role": "system", "content": self.system})
        return tuple(messages)

    def _filled(self, text: str) -> str:
        # not str.format: a query may hold braces
        return self.template.replace(PLACEHOLDER, text)


BUILTIN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "vanilla": {
            "profile": (
                "Plain prompting: the question goes to the model as it stands, with no instruction added. "
                "The model decides by itself how much to write. The cheapest choice for questions that it "
                "can answer directly, and the right one for models that reason without being asked."
            ),
            "max_tokens": 4096,
            "answer": "auto",
        },
        "cot": {
            "system": (
                "Work through the problem step by step, explaining each step, before you commit to a result. "
                "Write the final result inside \\boxed{}."
            ),
            "profile": (
                "Chain of thought: the model explains every step before it answers. Gives the longest and "
                "slowest answers, and pays off on hard problems of several steps, such as mathematics; on "
                "easy questions it mostly costs tokens."
            ),
            "max_tokens": 4096,
            "answer": "boxed",
        },
        "cod": {
            "system": (
                "Think in steps, but note down each step as a draft of five words or fewer. "
                "Then write the final result inside \\boxed{}."
            ),
            "profile": (
                "Chain of draft: the model writes short notes of its steps, the essential numbers and "
                "relations only, then the answer. Keeps most of the benefit of explained reasoning at a "
                "fraction of its length; loses some on problems with many dependent steps."
            ),
            "max_tokens": 2048,
            "answer": "boxed",
        },
        "pal": {
            "system": (
                "Solve the problem by writing one Python program that prints the final result and nothing "
                "else. Do not read input and do not draw plots. Give the program in a ```python block."
            ),
            "profile": (
                "Program-aided: the model writes a Python program, which is executed, and what it prints is "
                "the answer. Exact at arithmetic, symbols and algorithms, with answers of moderate and "
                "even length. Ill suited to common sense, reading comprehension and questions of opinion."
            ),
            "max_tokens": 2048,
            "answer": "program",
        },
    }
)
"""The strategies that ship with rtr-ray, as the keys that pool.yaml would spell out."""
