"""Which questions a text gives away.

A text gives a question away when it asks it, in any wording, or when it states what was to be found: the sum,
the product, the list, the division. `stated` reads all of these from the text alone and reports their keys;
the stream drops every text of which one key is not in the split `model`.

What every working needs and no question asks does not count: two numbers added or subtracted, the times table
up to 99 by 9, columns of single digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rtr_ray.embedded.problems import euclid
from rtr_ray.embedded.questions import Question, split_of_numbers

Key = tuple[int, ...]

_SUM = re.compile(r"\d+(?:[ ()]*[-+*/]+[ ()]*\d+){2,}")
_LIST = re.compile(r"\d+(?:, ?\d+){3,}")
_PRODUCT = re.compile(r"(?=(?<!\d)(\d+) ?\* ?(\d+))")
_GCD = re.compile(r"(?<!\d)(?:(?<=gcd\()(\d+), (\d+)\)|(\d+) mod (\d+)|(\d+) (\d+);)")
_DIVIDED = re.compile(r"(?<!\d)(\d+) (?:/|mod) \d\d?(?!\d)")
_NUMBER = re.compile(r"\d+")


def _key(numbers: list[str] | tuple[str, ...]) -> Key:
    return tuple(sorted(map(int, numbers)))


def _is_product(low: int, high: int) -> bool:
    return (high > 100 and 3 <= low <= 9) or (low >= 12 and bool(low % 10 and high % 10))


def stated(text: str) -> Iterator[Key]:
    """The keys of all questions that a text states, wherever in it they stand.

    Sums are read in every stretch of three numbers or more, so a long sum states the shorter ones inside it.

    Example:
        >>> list(stated("First 34 + 7 - 5 = 36, then 347 * 6 = 2082. 7 * 8 = 56."))
        [(5, 7, 34), (6, 347)]
        >>> list(stated("of 12, 62, 40, 9 the largest; 84 mod 36 = 12"))
        [(9, 12, 40, 62), (36, 84)]
    """
    for match in _SUM.finditer(text):
        numbers = _NUMBER.findall(match.group())
        for size in range(3, len(numbers) + 1):
            for start in range(len(numbers) - size + 1):
                key = _key(numbers[start : start + size])
                if key[-1] >= 10:
                    yield key
    for match in _LIST.finditer(text):
        yield _key(_NUMBER.findall(match.group()))
    for match in _PRODUCT.finditer(text):
        low, high = _key(match.groups())
        if _is_product(low, high):
            yield low, high
    for match in _GCD.finditer(text):
        low, high = _key([number for number in match.groups() if number])
        if low >= 20:
            yield low, high
    for match in _DIVIDED.finditer(text):
        number = int(match.group(1))
        if 100 <= number <= 3599:
            yield (number,)


def asked(query: str) -> Key:
    """The key of a question, from its words alone: all numbers in them."""
    return _key(_NUMBER.findall(query))


def implied(question: Question) -> Iterator[Key]:
    """The keys of questions that are solved on the way to this one, even where the text does not name them.

    Euclid's algorithm on one pair is Euclid's algorithm on all the smaller pairs that it passes.
    """
    yield question.key
    if question.family == "gcd":
        for high, low in euclid(*question.numbers):
            if low >= 20:
                yield low, high


def is_held_out(key: Key) -> bool:
    """Whether a key belongs to questions on which routers are trained or anything is measured."""
    return split_of_numbers(key) != "model"


def leaks(text: str, question: Question | None = None) -> list[Key]:
    """The held-out questions that a training text gives away; an empty list is what we want.

    Args:
        text: All of the text: the question and its working, or a drill.
        question: The question that the text works out, if it does.
    """
    keys = set(stated(text))
    if question is not None:
        keys |= {asked(question.query), *implied(question)}
    return sorted(key for key in keys if is_held_out(key))
