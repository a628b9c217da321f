"""From what a model wrote to the answer: reading it out of the text, choosing among samples."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal

from rtr_ray.errors import ConfigError
from rtr_ray.strategies import Strategy
from rtr_ray.types import Outcome, Sample

RunProgram = Callable[[str], Awaitable[str | None]]
"""Runs a program in isolation; gives what it printed, None where it failed."""

_NUMBER = re.compile(r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_FENCED = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = ("python", "python3", "py")
_STATED = re.compile(r"^.*\b(?:answer|result)\s*(?:is\b|:|=)\s*[:=]?\s*(.+)", re.IGNORECASE | re.MULTILINE)
_CHOICE = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?![A-Za-z])")


def without_thinking(text: str) -> str | None:
    """What follows the model's thinking; None if it never stopped thinking.

    Example:
        >>> without_thinking("<think>2 and 2</think> 4")
        ' 4'
    """
    _, end, tail = text.rpartition("</think>")
    if end:
        return tail
    return None if "<think>" in text else text


def read_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, braces matched; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position].strip() or None
    return None


def read_text(text: str) -> str | None:
    """The whole text."""
    return text.strip() or None


def read_last_number(text: str) -> str | None:
    """The last number."""
    found = _NUMBER.findall(text)
    return found[-1].replace("−", "-") if found else None


def read_choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: boxed, stated, or the last one that stands alone."""
    stated = _STATED.findall(text)
    for source in (read_boxed(text), *reversed(stated), text):
        found = _CHOICE.findall(source) if source else []
        if found:
            letter: str = found[0] if source is not text else found[-1]
            return letter
    return None


def read_auto(text: str) -> str | None:
    """What is boxed; else what is stated as the answer; else the last line."""
    if (boxed := read_boxed(text)) is not None:
        return boxed
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if stated := _STATED.match(line):
            return stated.group(1).strip("* \t").rstrip(".") or None
    return lines[-1] if lines else None


def read_program(text: str) -> str | None:
    """The last Python block; else the last block of no language; the whole text where nothing is fenced."""
    blocks = [(language.lower(), code) for language, code in _FENCED.findall(text)]
    programs = [code for language, code in blocks if language in _PYTHON]
    programs = programs or [code for language, code in blocks if not language]
    program: str = programs[-1] if programs else ("" if blocks else text)
    return program if program.strip() else None


def printed_answer(printed: str) -> str | None:
    """The last line that a program printed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1] if lines else None


READERS: Mapping[str, Callable[[str], str | None]] = {
    "auto": read_auto,
    "text": read_text,
    "boxed": read_boxed,
    "last_number": read_last_number,
    "choice": read_choice,
    "program": read_program,  # what it gives is executed; the answer is what that prints
}


_UNIT = re.compile(
    r"(?!(?:and|or|to|pi|sqrt)\b)"  # `2 or 3` and `2\pi` are more than the number 2
    r"(?!(?:[xyzneiIE]|pi|sqrt)(?![A-Za-z]))"  # `3x`, `2e`, `5i`
    r"[A-Za-z°][A-Za-z.°/]*(?:\^?\d)?(?:\s+[A-Za-z°/][A-Za-z.°/]*(?:\^?\d)?)*"  # km/h, cm^2, nice apples
)
_WHOLE = re.compile(
    rf"(?P<sign>[-+]?)\s*[$€£]?\s*(?P<mixed>\d+(?=\s+\d+\s*/))?\s*(?P<top>{_NUMBER.pattern})"
    rf"(?:\s*/\s*(?P<bottom>\d+))?\s*(?:[%$€£]|{_UNIT.pattern})?"
)
_LARGEST_EXPONENT = 10_000  # beyond, a number is compared as text: nobody means it, and decimals overflow


def number(text: str | None) -> Decimal | None:
    """The number that an answer states, None where it states none or more than a number.

    Reads thousands separators, currency and percent signs, a unit behind the number, fractions
    (`3/4`, `\\frac{3}{4}`, `2 1/2`), and `x = 5`.

    Example:
        >>> number("$1,234.50"), number("x = 3/4"), number("six"), number("2 or 3")
        (Decimal('1234.50'), Decimal('0.75'), None, None)
    """
    if text is None:
        return None
    plain = text.strip().lstrip("$* ").rstrip("$*. ").replace("−", "-")
    plain = plain.replace("\\$", "").replace("\\%", "%").replace("\\,", "")
    plain = re.sub(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", r" \1/\2", plain)
    plain = re.sub(r"\\(?:text|mathrm)\{[^{}]*\}|\^\{?\\?circ\}?|\\", "", plain)
    left, equals, right = plain.rpartition("=")
    if equals:
        if re.search(r"[=<>!,;]|\b(?:and|or)\b", left):
            return None
        plain = right
    match = _WHOLE.fullmatch(plain.strip())
    if not match or (match["sign"] and match["top"][0] in "-+"):
        return None
    try:
        value = Decimal(match["top"].replace(",", ""))
        if abs(value.adjusted()) > _LARGEST_EXPONENT:
            return None
        if match["bottom"]:
            value /= Decimal(match["bottom"])
        if match["mixed"]:
            value += Decimal(match["mixed"])
    except ArithmeticError:
        return None
    return -value if match["sign"] == "-" else value


def canonical(answer: str) -> str:
    """The form in which two answers are compared: numbers by value, text without case and spacing."""
    value = number(answer)
    if value is None:
        return " ".join(answer.split()).casefold().rstrip(". ")
    if not value:
        return "0"
    exact = _EXACT.normalize(value)  # the usual context would round a long number
    return f"{exact:f}" if abs(exact.adjusted()) < 100 else str(exact)


_EXACT = Context(prec=2 * _LARGEST_EXPONENT)


def select_first(answers: Sequence[str | None]) -> str | None:
    """The first answer."""
    return answers[0] if answers else None


def select_majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer by value; the earlier one of two equally frequent; None if there is none."""
    votes = Counter(canonical(answer) for answer in answers if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    return next(answer for answer in answers if answer is not None and votes[canonical(answer)] == most)


SELECTORS: Mapping[str, Callable[[Sequence[str | None]], str | None]] = {
    "first": select_first,
    "majority": select_majority,
}


def check_answering(strategy: Strategy) -> None:
    """Refuse a strategy whose `answer` or `select` nobody knows.

    Raises:
        ConfigError: Naming what is known.
    """
    for key, value, known in (
        ("answer", strategy.answer, READERS),
        ("select", strategy.select, SELECTORS),
    ):
        if value not in known:
            raise ConfigError(
                f"Strategy '{strategy.id}' has {key}: {value}. Known: {', '.join(sorted(known))}."
            )


@dataclass(frozen=True, slots=True)
class Answerer:
    """Reads the answers of finished outcomes, each as its strategy says."""

    strategies: Mapping[str, Strategy]
    run_program: RunProgram | None = None  # needed where a strategy answers by program
    thinking: frozenset[str] = frozenset()  # models that think before they answer

    async def read(self, outcome: Outcome) -> Outcome:
        """The outcome with the answer of each sample, and the one that is selected."""
        if not outcome.samples:
            return outcome
        strategy = self.strategies[outcome.candidate.strategy]
        thinks = outcome.candidate.model in self.thinking
        reading = (self._read_sample(strategy, sample, thinks) for sample in outcome.samples)
        # a task for each costs more than to read what is no program
        together = strategy.answer == "program" and len(outcome.samples) > 1
        answers = await asyncio.gather(*reading) if together else [await one for one in reading]
        samples = tuple(replace(s, answer=a) for s, a in zip(outcome.samples, answers, strict=True))
        return replace(outcome, samples=samples, answer=SELECTORS[strategy.select](answers))

    async def _read_sample(self, strategy: Strategy, sample: Sample, thinks: bool) -> str | None:
        text = without_thinking(sample.text)
        # where the chat template writes the opening <think>, an answer that is cut in it has no tag at all
        unfinished = thinks and sample.finish_reason in ("length", "budget") and "</think>" not in sample.text
        if text is None or unfinished:
            return None
        found = READERS[strategy.answer](text)
        if strategy.answer != "program" or found is None:
            return found
        if self.run_program is None:
            raise ConfigError(f"Strategy '{strategy.id}' answers by program, but no sandbox was configured.")
        printed = await self.run_program(found)
        return None if printed is None else printed_answer(printed)
