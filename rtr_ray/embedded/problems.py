"""The numbers of a question: ten families, three levels, no words yet.

| family | easy | medium | hard |
|---|---|---|---|
| chain | 3 terms, 2 digits | 4 terms, 2 digits | 5 terms, 3 digits |
| product | 3 digits by 1 | 2 digits by 2 | 3 digits by 2 |
| expression | 2 operations | 3 operations | 4 or 5 operations |
| word | 1 or 2 operations | 2 or 3 | 3 or 4 |
| largest | of 4, 2 digits | of 6, 3 digits | of 9, 4 digits, close together |
| rank | 2nd of 5 | 3rd of 6 | 4th of 8 |
| digits | sum of 4 digits | of 7 | of 11 |
| sequence | equal steps up | equal steps down or up, or a factor | growing steps |
| factor | of 100 to 1099 | of odd 700 to 2699 | of 1501 to 3599, neither even nor a multiple of 3 |
| gcd | 2 digits | 3 digits | 3 and 4 digits |

The work in `factor` and `gcd` depends on the number and not on its length: a prime needs the whole list of
divisors.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from rtr_ray.embedded.arithmetic import Step, Tree, chain_of, leaves_of, steps_of, text_of
from rtr_ray.embedded.stories import draw_story

LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked, in numbers."""

    answer: int
    numbers: tuple[int, ...]
    """In the order of the question."""
    form: str = ""
    """The sum as text; for `rank` which place is asked for; for `sequence` its kind."""
    steps: tuple[Step, ...] = ()
    """The operations that lead to the answer, for the families that have a fixed list of them."""
    notes: tuple[str, ...] = ()
    """For `word`: what each step finds."""
    text: str = ""
    """For `word`: the story, which has its numbers in it."""
    template: str = ""
    """For `word`: the story's name."""


def smallest_prime_factor(number: int) -> int:
    """The smallest prime that divides a number; the number itself if it is prime."""
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return divisor
        divisor += 1
    return number


def euclid(left: int, right: int) -> tuple[tuple[int, int], ...]:
    """The pairs of Euclid's algorithm, larger number first, down to the one that divides without remainder.

    Example:
        >>> euclid(36, 84)
        ((84, 36), (36, 12))
    """
    pairs = [(max(left, right), min(left, right))]
    while pairs[-1][0] % pairs[-1][1]:
        pairs.append((pairs[-1][1], pairs[-1][0] % pairs[-1][1]))
    return tuple(pairs)


def _from_tree(tree: Tree) -> Problem:
    steps = steps_of(tree)
    return Problem(steps[-1].result, leaves_of(tree), form=text_of(tree), steps=steps)


def _chain(rng: random.Random, level: str) -> Problem:
    terms, low, high = {"easy": (3, 10, 99), "medium": (4, 10, 99), "hard": (5, 100, 999)}[level]
    while True:
        rest = tuple((rng.choice("+-"), rng.randint(low, high)) for _ in range(terms - 1))
        problem = _from_tree(chain_of(rng.randint(low, high), rest))
        if all(step.result >= 0 for step in problem.steps):
            return problem


def _product(rng: random.Random, level: str) -> Problem:
    if level == "medium":
        left, right = (rng.choice([n for n in range(12, 100) if n % 10]) for _ in range(2))
    else:
        left = rng.randint(101, 999)
        right = rng.randint(3, 9) if level == "easy" else rng.choice([n for n in range(12, 100) if n % 10])
    pair = (left, right) if rng.random() < 0.7 else (right, left)
    return _from_tree((pair[0], "*", pair[1]))


def _expression_tree(rng: random.Random, level: str) -> Tree:
    def small() -> int:
        return rng.randint(2, 9)

    def two() -> int:
        return rng.randint(11, 79)

    shapes: dict[str, tuple[Tree, ...]] = {
        "easy": (
            ((two(), "+", two()), "*", small()),
            ((two(), "-", two()), "*", small()),
            ((two(), "*", small()), "+", two()),
            ((two(), "*", small()), "-", two()),
            (two(), "+", (two(), "*", small())),
        ),
        "medium": (
            (((two(), "+", two()), "*", small()), "-", two()),
            ((two(), "*", small()), "+", (two(), "*", small())),
            ((two(), "*", small()), "-", (small(), "*", small())),
            ((two(), "+", two()), "*", (small(), "+", small())),
            (small(), "*", (two(), "-", (small(), "+", small()))),
        ),
        "hard": (
            (((two(), "+", two()), "*", small()), "+", (two(), "*", small())),
            (((two(), "-", two()), "*", (small(), "+", small())), "+", two()),
            ((two(), "*", two()), "-", (small(), "*", (small(), "+", two()))),
            (((two(), "*", small()), "+", (two(), "*", small())), "-", (small(), "*", small())),
            ((two(), "+", (small(), "*", small())), "*", (two(), "-", two())),
        ),
    }
    return rng.choice(shapes[level])


def _expression(rng: random.Random, level: str) -> Problem:
    while True:
        problem = _from_tree(_expression_tree(rng, level))
        if all(step.result > 0 for step in problem.steps) and problem.answer < 5000:
            return problem


def _word(rng: random.Random, level: str) -> Problem:
    story = draw_story(rng, level)
    steps = steps_of(story.tree)
    return Problem(
        steps[-1].result,
        story.numbers,
        form=text_of(story.tree),
        steps=steps,
        notes=story.notes,
        text=story.text,
        template=story.name,
    )


def _list_of(rng: random.Random, count: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.sample(range(low, high + 1), count))


def _largest(rng: random.Random, level: str) -> Problem:
    if level == "hard":
        low = rng.randint(1000, 9500)
        numbers = _list_of(rng, 9, low, low + rng.choice((90, 400)))
    else:
        numbers = _list_of(rng, *((4, 10, 99) if level == "easy" else (6, 100, 999)))
    return Problem(max(numbers), numbers)


def _rank(rng: random.Random, level: str) -> Problem:
    count, low, high = {"easy": (5, 10, 99), "medium": (6, 10, 199), "hard": (8, 100, 999)}[level]
    place = {"easy": 2, "medium": 3, "hard": 4}[level]
    numbers = _list_of(rng, count, low, high)
    return Problem(sorted(numbers)[place - 1], numbers, form=str(place))


def _digits(rng: random.Random, level: str) -> Problem:
    length = {"easy": 4, "medium": 7, "hard": 11}[level]
    number = rng.randint(10 ** (length - 1), 10**length - 1)
    return Problem(sum(map(int, str(number))), (number,))


def _sequence(rng: random.Random, level: str) -> Problem:
    if level == "hard":
        start, step, growth = rng.randint(1, 60), rng.randint(2, 15), rng.randint(2, 9)
        numbers = [start + step * i + growth * i * (i - 1) // 2 for i in range(6)]
        return Problem(numbers[-1], tuple(numbers[:-1]), form="growing")
    if level == "medium" and rng.random() < 0.3:
        start, factor = rng.randint(2, 40), rng.choice((2, 3))
        numbers = [start * factor**i for i in range(5)]
        return Problem(numbers[-1], tuple(numbers[:-1]), form="factor")
    if level == "easy":
        start, step = rng.randint(1, 80), rng.randint(2, 15)
    else:
        step = rng.randint(11, 60)
        start = rng.randint(1, 400)
        if start > 4 * step and rng.random() < 0.6:
            step = -step
    numbers = [start + step * i for i in range(5)]
    return Problem(numbers[-1], tuple(numbers[:-1]), form="equal")


def _factor(rng: random.Random, level: str) -> Problem:
    low, high = {"easy": (100, 1099), "medium": (700, 2699), "hard": (1501, 3599)}[level]
    while True:
        number = rng.randint(low, high)
        if level == "easy" or (number % 2 and (level == "medium" or number % 3)):
            return Problem(smallest_prime_factor(number), (number,))


def _gcd(rng: random.Random, level: str) -> Problem:
    low, high, limit = {"easy": (20, 99, 8), "medium": (100, 499, 12), "hard": (300, 1999, 16)}[level]
    while True:
        common = rng.randint(2, 24) if rng.random() < 0.8 else 1
        left, right = (common * rng.randint(-(-low // common), high // common) for _ in range(2))
        pairs = euclid(left, right)
        # The sum of the quotients bounds how long the work can get when it is done by taking away.
        if left != right and sum(a // b for a, b in pairs) <= limit:
            return Problem(pairs[-1][1], (left, right))


FAMILIES: dict[str, Callable[[random.Random, str], Problem]] = {
    "chain": _chain,
    "product": _product,
    "expression": _expression,
    "word": _word,
    "largest": _largest,
    "rank": _rank,
    "digits": _digits,
    "sequence": _sequence,
    "factor": _factor,
    "gcd": _gcd,
}
"""Each draws a problem of a level."""
