"""Graders: is an answer right? A number between 0 and 1, or None where nobody can say.

The reference answer lives here and nowhere else: no estimator and no policy sees it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Protocol, SupportsFloat, runtime_checkable

from rtr_ray.answers import canonical, number, read_choice, read_program, without_thinking
from rtr_ray.errors import ConfigError
from rtr_ray.types import Candidate

KNOWN = {
    "exact": "rtr_ray.grading:Exact",
    "numeric": "rtr_ray.grading:Numeric",
    "multiple_choice": "rtr_ray.grading:MultipleChoice",
    "code": "rtr_ray.grading:Code",
    "reference": "rtr_ray.grading:Reference",
    "judge": "rtr_ray.grading:Judge",
}
"""kind -> where its class is. `package.module:function` names a function of one's own."""


CheckProgram = Callable[[str, str], Awaitable[bool]]
"""Runs a program in isolation with tests that it cannot reach; whether they pass."""


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to be graded."""

    query: str
    candidate: Candidate
    answer: str | None  # None: the strategy found none in the response
    response: str
    gold: str | None  # the reference answer; None: there is none


@runtime_checkable
class Grader(Protocol):
    """Grades answers. A frozen dataclass; its fields are its configuration."""

    kind: ClassVar[str]

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """One score per item: 0 to 1, None where it cannot be graded."""
        ...


@dataclass(frozen=True, slots=True)
class Exact:
    """The same text, without regard to case, spacing and a final full stop."""

    kind: ClassVar[str] = "exact"

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """1 or 0; None without a reference answer."""
        return [_graded(item, lambda a, g: _plain(a) == _plain(g)) for item in items]


@dataclass(frozen=True, slots=True)
class Numeric:
    """The same number, written in whatever way; the same text where neither is a number."""

    relative_tolerance: float = 1e-6
    kind: ClassVar[str] = "numeric"

    def __post_init__(self) -> None:
        if not 0 <= self.relative_tolerance < 1:
            raise ConfigError(
                f"grader.relative_tolerance is {self.relative_tolerance}; 0 <= it < 1 is needed."
            )

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """1 or 0; None without a reference answer."""
        return [_graded(item, self._same) for item in items]

    def _same(self, answer: str, gold: str) -> bool:
        found, wanted = number(answer), number(gold)
        if found is None or wanted is None:
            return found is None and wanted is None and canonical(answer) == canonical(gold)
        return abs(found - wanted) <= Decimal(str(self.relative_tolerance)) * abs(wanted)


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    """The same letter."""

    kind: ClassVar[str] = "multiple_choice"

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """1 or 0; None without a reference answer, or where that is no letter."""
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> float | None:
        wanted = None if item.gold is None else _letter(item.gold)
        if wanted is None:
            return None
        return 0.0 if item.answer is None else float(_letter(item.answer) == wanted)


@dataclass(frozen=True, slots=True)
class Code:
    """The answer is a program; the reference is Python code that tests it with `assert`.

    The tests run in the sandbox beside the program, where it cannot reach them: one that prints,
    patches or leaves early does not pass.
    """

    check_program: CheckProgram | None = None
    kind: ClassVar[str] = "code"

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """1 if all tests pass, else 0; None without tests."""
        return [await self._one(item) for item in items]

    async def _one(self, item: Item) -> float | None:
        if self.check_program is None:
            raise ConfigError("The grader 'code' needs the sandbox, and none was configured.")
        if item.gold is None:
            return None
        program = read_program(item.response)
        return 0.0 if program is None else float(await self.check_program(program, item.gold))


@dataclass(frozen=True, slots=True)
class Reference:
    """Agreement with the answer of one candidate, for users who have no reference answers.

    The caller puts that candidate's answer where the reference answer would be.
    """

    candidate: str  # "model:strategy"
    kind: ClassVar[str] = "reference"

    def __post_init__(self) -> None:
        Candidate.parse(self.candidate)

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """1 or 0; None where the reference candidate gave no answer."""
        return await Numeric().grade(items)


Ask = Callable[[Sequence[str]], Awaitable[list[str | None]]]
"""Puts prompts to the judge; gives its answers, None where it failed. The caller pays."""

JUDGE_PROMPT = """\
You grade an answer to a question.

Question:
{query}

{reference}Answer to grade:
{answer}

Is the answer right? Reply with one number between 0 (wrong) and 1 (right), and nothing else."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A candidate of the pool scores the answers; what it costs counts."""

    candidate: str
    prompt: str = JUDGE_PROMPT
    ask: Ask | None = None
    kind: ClassVar[str] = "judge"

    def __post_init__(self) -> None:
        Candidate.parse(self.candidate)
        for needed in ("{query}", "{answer}"):
            if needed not in self.prompt:
                raise ConfigError(f"grader.prompt of the judge lacks {needed}.")

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """What the judge says, cut to 0 to 1; None where it says no number. No answer: 0, unasked."""
        if self.ask is None:
            raise ConfigError("The grader 'judge' needs a candidate that can be asked; none was connected.")
        asked = [item for item in items if item.answer is not None]
        replies = iter(await self.ask([self.filled(item) for item in asked]))
        return [0.0 if item.answer is None else score(next(replies)) for item in items]

    def filled(self, item: Item) -> str:
        """The prompt that puts an answer to the judge."""
        reference = f"Reference answer:\n{item.gold}\n\n" if item.gold is not None else ""
        values = {"{query}": item.query, "{answer}": item.answer or "", "{reference}": reference}
        return re.sub(r"\{(?:query|answer|reference)\}", lambda found: values[found.group()], self.prompt)


@dataclass(frozen=True, slots=True)
class Own:
    """A function of the user's: `function(item) -> float | bool | None`, plain or async."""

    path: str
    kind: ClassVar[str] = "own"

    def __post_init__(self) -> None:
        self.function()

    def function(self) -> Callable[[Item], Any]:
        """The function that `path` names.

        Raises:
            ConfigError: If it cannot be imported or called.
        """
        module, _, name = self.path.partition(":")
        if not module or not name:
            raise ConfigError(f"The grader '{self.path}' names no function. Write package.module:function.")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"The grader '{self.path}' cannot be imported: {error}.") from error
        if not callable(found):
            raise ConfigError(f"The grader '{self.path}' is not a function.")
        function: Callable[[Item], Any] = found
        return function

    async def grade(self, items: Sequence[Item]) -> list[float | None]:
        """What the function says.

        Raises:
            ConfigError: If it raises, or says something else than a number between 0 and 1, or None.
        """
        function = self.function()
        return [await self._one(function, item) for item in items]

    async def _one(self, function: Callable[[Item], Any], item: Item) -> float | None:
        try:
            score = function(item)
            if inspect.isawaitable(score):
                score = await score
        except Exception as error:
            # its message may hold the answer, so only its name goes into ours
            raise ConfigError(f"The grader '{self.path}' raised {type(error).__name__}.") from error
        if score is None:
            return None
        if not isinstance(score, SupportsFloat) or not 0 <= float(score) <= 1:
            found = score if isinstance(score, SupportsFloat) else type(score).__name__
            raise ConfigError(
                f"The grader '{self.path}' gave {found}; a number between 0 and 1, or None, is needed."
            )
        return float(score)


def _graded(item: Item, same: Callable[[str, str], bool]) -> float | None:
    if item.gold is None:
        return None
    return 0.0 if item.answer is None else float(same(item.answer, item.gold))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(". ")


def _letter(text: str) -> str | None:
    """The letter that is chosen; `b` counts as B where nothing else is said."""
    plain = text.strip(" ().")
    return plain.upper() if re.fullmatch(r"[A-Ja-j]", plain) else read_choice(text)


def score(reply: str | None) -> float | None:
    """The number that a judge's reply is or first holds, cut to 0 to 1; None where there is none.

    What a judge thinks before it replies does not count.
    """
    said = without_thinking(reply or "")
    value = number(said)
    if value is None:
        found = re.search(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?", said or "")
        value = number(found.group()) if found else None
    return None if value is None else float(min(max(value, Decimal(0)), Decimal(1)))


def check_candidate(grader: Grader, candidates: Sequence[Candidate]) -> None:
    """Refuse a grader that names a candidate which the pool does not have.

    Raises:
        ConfigError: Naming those that it has.
    """
    if isinstance(grader, Reference | Judge) and Candidate.parse(grader.candidate) not in candidates:
        raise ConfigError(
            f"The grader '{grader.kind}' names {grader.candidate}. The pool's candidates: "
            f"{', '.join(map(str, candidates))}."
        )
