"""Questions in words, and the split that keeps training and measuring apart.

A question belongs to a split by its numbers alone, in any order: no wording, no name, no object and no other
family carries the same numbers from one split to another.

    model   80%   trains the language models; nothing else is in their training text
    route   10%   outcomes for training a router are collected here
    test    10%   touched by neither
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from rtr_ray.embedded.arithmetic import Step
from rtr_ray.embedded.problems import FAMILIES, LEVELS, Problem

SPLITS = ("model", "route", "test")

_TRIES = 400
"""Draws for one question before its cell counts as exhausted and numbers may come again."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question and its answer."""

    query: str
    gold: str
    family: str
    level: str
    numbers: tuple[int, ...]
    """Every number that the query names, in its order."""
    template: str
    """Which wording or story was used."""
    form: str
    """The sum as text; for `rank` which place is asked for; for `sequence` its kind; else empty."""
    steps: tuple[Step, ...]
    """The operations that lead to the answer, for families that have a fixed list of them."""
    notes: tuple[str, ...]
    """For `word`: what each step finds."""

    @property
    def key(self) -> tuple[int, ...]:
        """What the split hangs on: the numbers, sorted."""
        return tuple(sorted(self.numbers))


WORDINGS: dict[str, tuple[str, ...]] = {
    "chain": (
        "What is {form}?",
        "Work out {form} from left to right.",
        "{form} = ?",
        "Add and subtract: {form}",
    ),
    "product": (
        "What is {form}?",
        "Multiply {a} by {b}.",
        "What do you get for {a} times {b}?",
        "Find the product of {a} and {b}.",
    ),
    "expression": (
        "Evaluate {form}.",
        "Simplify the expression {form}.",
        "What is the value of {form}?",
        "Calculate {form}, brackets first.",
    ),
    "largest": (
        "Which number is the largest: {list}?",
        "Find the maximum of {list}.",
        "What is the greatest of the numbers {list}?",
    ),
    "rank": (
        "What is the {place} smallest number of {list}?",
        "Sort {list} in ascending order. Which number is in the {place} place?",
        "Put {list} in order from low to high. Name the {place} one.",
    ),
    "digits": (
        "What is the sum of the digits of {a}?",
        "Add up all digits of {a}.",
        "Find the digit sum of {a}.",
    ),
    "sequence": (
        "What comes next: {list}, ...?",
        "Continue the sequence {list}.",
        "Which number follows in the pattern {list}?",
    ),
    "factor": (
        "What is the smallest prime factor of {a}?",
        "Which is the smallest prime that divides {a}?",
        "Find the least prime divisor of {a}.",
    ),
    "gcd": (
        "What is the greatest common divisor of {a} and {b}?",
        "Find the gcd of {a} and {b}.",
        "Which is the largest number that divides both {a} and {b}?",
    ),
}
"""Wordings by family; those of `word` are in stories.py."""

_PLACES = {"2": "second", "3": "third", "4": "fourth"}


def _say(family: str, level: str, problem: Problem, rng: random.Random) -> Question:
    if problem.text:
        query, template = problem.text, problem.template
    else:
        number = rng.randrange(len(WORDINGS[family]))
        a, b = (*problem.numbers, 0)[:2]
        listed = ", ".join(map(str, problem.numbers))
        query = WORDINGS[family][number].format(
            form=problem.form, a=a, b=b, list=listed, place=_PLACES.get(problem.form, "")
        )
        template = f"{family} {number}"
    return Question(
        query,
        str(problem.answer),
        family,
        level,
        problem.numbers,
        template,
        problem.form,
        problem.steps,
        problem.notes,
    )


def split_of_numbers(key: tuple[int, ...]) -> str:
    """The split of a set of numbers, whatever is asked about them.

    Args:
        key: The numbers, sorted.
    """
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8, person=b"rtr-ray").digest()
    return {0: "route", 1: "test"}.get(int.from_bytes(digest, "big") % 10, "model")


def split_of(question: Question) -> str:
    """Which split a question belongs to: `model`, `route` or `test`."""
    return split_of_numbers(question.key)


def draw_one(rng: random.Random, family: str, level: str, split: str) -> Question:
    """Draw one question of a cell and a split."""
    while True:
        problem = FAMILIES[family](rng, level)
        if split_of_numbers(tuple(sorted(problem.numbers))) == split:
            return _say(family, level, problem, rng)


def draw(split: str, n: int, seed: int, families: tuple[str, ...] = tuple(FAMILIES)) -> list[Question]:
    """Draw n questions of a split, balanced over (family, level), in random order.

    No two have the same numbers as long as their cell has unused ones; after that no two have the same text.

    Args:
        split: `model`, `route` or `test`.
        n: How many questions; cells differ by one at most.
        seed: The same arguments give the same questions.
        families: Which families to draw from.

    Raises:
        ValueError: If there is no such split or family, or a cell has fewer texts than were asked for.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Known splits: {', '.join(SPLITS)}.")
    if unknown := set(families) - set(FAMILIES):
        raise ValueError(f"Unknown families {sorted(unknown)}. Known families: {', '.join(FAMILIES)}.")
    rng = random.Random(f"draw {split} {seed}")
    cells = [(family, level) for family in families for level in LEVELS]
    extra = set(rng.sample(cells, n % len(cells)))
    questions: list[Question] = []
    used_keys: set[tuple[int, ...]] = set()
    used_texts: set[str] = set()
    for cell in cells:
        for _ in range(n // len(cells) + (cell in extra)):
            for tries in range(2 * _TRIES):
                question = draw_one(rng, *cell, split)
                fresh = question.key not in used_keys or tries >= _TRIES
                if fresh and question.query not in used_texts:
                    break
            else:
                raise ValueError(
                    f"Cell {cell} of split {split!r} has fewer different questions than asked for."
                )
            used_keys.add(question.key)
            used_texts.add(question.query)
            questions.append(question)
    rng.shuffle(questions)
    return questions
