"""Word problems: their texts, and what each step of their solution finds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from rtr_ray.embedded.arithmetic import Tree, steps_of

NAMES: tuple[str, ...] = ("Ada", "Ben", "Clara", "David", "Elif", "Finn", "Grace", "Hugo", "Ines", "Jonas")
NAMES += ("Kira", "Leo", "Mona", "Nils", "Olga", "Paul", "Rosa", "Sven", "Tara", "Yusuf")
THINGS: tuple[str, ...] = ("apples", "books", "cards", "coins", "eggs", "flowers", "lemons", "marbles")
THINGS += ("pencils", "plates", "shells", "stamps", "stones", "tickets", "toys")

TWO, SMALL, BIG = (11, 99), (2, 9), (101, 399)


@dataclass(frozen=True, slots=True)
class Story:
    """A kind of word problem."""

    name: str
    texts: tuple[str, ...]
    """Wordings; {a} to {e} are numbers in the order of `ranges`, {n} and {m} people, {o} and {p} things."""
    ranges: tuple[tuple[int, int], ...]
    tree: Callable[..., Tree]
    """From the numbers to the sum."""
    notes: tuple[str, ...]
    """What each step of the sum finds."""


@dataclass(frozen=True, slots=True)
class Told:
    """A story with its numbers, people and things in place."""

    name: str
    text: str
    numbers: tuple[int, ...]
    """In the order of the text."""
    tree: Tree
    notes: tuple[str, ...]


STORIES: dict[str, tuple[Story, ...]] = {
    "easy": (
        Story(
            "buys and gives",
            (
                "{n} has {a} {o}. {n} buys {b} more and gives {c} to {m}. How many {o} does {n} have now?",
                "There are {a} {o} in the box of {n}. {b} more are added, then {m} takes {c}. "
                "How many {o} are left in the box?",
            ),
            (TWO, TWO, TWO),
            lambda a, b, c: ((a, "+", b), "-", c),
            ("with the new ones", "left"),
        ),
        Story(
            "loses and finds",
            (
                "{n} had {a} {o}, lost {b} of them and found {c}. How many {o} does {n} have?",
                "A shop had {a} {o}. It sold {b} and then got {c} from {m}. "
                "How many {o} are in the shop now?",
            ),
            (TWO, TWO, TWO),
            lambda a, b, c: ((a, "-", b), "+", c),
            ("after losing some", "in the end"),
        ),
        Story(
            "bags",
            (
                "{n} fills {a} bags with {b} {o} each and has {c} {o} left over. "
                "How many {o} are there in all?",
                "There are {b} {o} in each of {a} bags, and {c} {o} on the table. How many {o} does {n} see?",
            ),
            (SMALL, TWO, TWO),
            lambda a, b, c: ((a, "*", b), "+", c),
            ("in the bags", "in all"),
        ),
        Story(
            "together",
            (
                "{n} has {a} {o} and {m} has {b} more than {n}. How many {o} do they have together?",
                "{m} owns {b} {o} more than {n}, who owns {a}. How many {o} do both own together?",
            ),
            (TWO, TWO),
            lambda a, b: (a, "+", (a, "+", b)),
            ("for the other", "together"),
        ),
    ),
    "medium": (
        Story(
            "price",
            (
                "{n} buys {a} {o} for {b} dollars each and pays with {c} dollars. How much money comes back?",
                "Each of {a} {o} costs {b} dollars. {n} has {c} dollars and buys them all. "
                "How many dollars are left?",
            ),
            (SMALL, TWO, BIG),
            lambda a, b, c: (c, "-", (a, "*", b)),
            ("to pay", "comes back"),
        ),
        Story(
            "two goods",
            (
                "{n} buys {a} {o} for {b} dollars each and {c} {p} for {d} dollars each. "
                "What does it all cost?",
                "A shop sells {o} for {b} dollars and {p} for {d} dollars. "
                "What do {a} {o} and {c} {p} cost together?",
            ),
            (SMALL, TWO, SMALL, TWO),
            lambda a, b, c, d: ((a, "*", b), "+", (c, "*", d)),
            ("for the first", "for the second", "for all"),
        ),
        Story(
            "shared",
            (
                "{n} has {a} {o} and gets {b} more. Then {c} friends share them all equally. "
                "How many {o} does each friend get?",
                "{a} {o} of {n} and {b} {o} of {m} go into {c} boxes, the same number in each. "
                "How many {o} are in a box?",
            ),
            (TWO, TWO, SMALL),
            lambda a, b, c: ((a, "+", b), "/", c),
            ("all of them", "for each"),
        ),
        Story(
            "pages",
            (
                "{n} reads {a} pages a day for {b} days and then {c} pages on the last day. "
                "The book has {d} pages. How many pages are left?",
                "A book of {d} pages: {n} reads {a} pages on each of {b} days, and {c} pages after that. "
                "How many pages are still to read?",
            ),
            (TWO, SMALL, TWO, (301, 699)),
            lambda a, b, c, d: (d, "-", ((a, "*", b), "+", c)),
            ("in those days", "read so far", "left"),
        ),
    ),
    "hard": (
        Story(
            "hall",
            (
                "A hall has {a} rows of {b} seats. On Monday {c} seats stay empty, on Tuesday {d}. "
                "How many people came on both days together?",
                "{n} counts the guests of a hall with {a} rows of {b} seats: "
                "all seats but {c} on the first day, all but {d} on the second. "
                "How many guests came in total?",
            ),
            (SMALL, TWO, (11, 40), (11, 40)),
            lambda a, b, c, d: (((a, "*", b), "-", c), "+", ((a, "*", b), "-", d)),
            ("seats", "on the first day", "seats", "on the second day", "on both days"),
        ),
        Story(
            "farm",
            (
                "{n} packs {a} boxes of {b} {o} and {c} boxes of {d} {o}. {e} {o} are broken. "
                "How many are good?",
                "From {a} boxes with {b} {o} each and {c} boxes with {d} {o} each, "
                "{n} throws away {e} bad {o}. How many {o} remain?",
            ),
            (SMALL, TWO, SMALL, TWO, TWO),
            lambda a, b, c, d, e: (((a, "*", b), "+", (c, "*", d)), "-", e),
            ("in the first boxes", "in the other boxes", "in all", "good"),
        ),
        Story(
            "savings",
            (
                "{n} has {a} dollars and saves {b} dollars a week for {c} weeks. "
                "Then {n} buys {d} {o} for {e} dollars each. How many dollars does {n} have left?",
                "With {a} dollars to begin with, {n} earns {b} dollars in each of {c} weeks "
                "and pays for {d} {o} at {e} dollars each. How much money is left?",
            ),
            (BIG, TWO, SMALL, SMALL, TWO),
            lambda a, b, c, d, e: ((a, "+", (b, "*", c)), "-", (d, "*", e)),
            ("saved", "in all", "to pay", "left"),
        ),
        Story(
            "teams",
            (
                "{a} girls and {b} boys make teams of {c}. Each team gets {d} {o}. How many {o} are needed?",
                "A school with {a} girls and {b} boys sends them out in groups of {c}, "
                "with {d} {o} for each group. How many {o} does {n} have to buy?",
            ),
            (TWO, TWO, SMALL, TWO),
            lambda a, b, c, d: (((a, "+", b), "/", c), "*", d),
            ("children", "groups", "needed"),
        ),
    ),
}


def _fits(tree: Tree) -> bool:
    try:
        return all(0 < step.result < 2500 for step in steps_of(tree))
    except ValueError:  # a division that leaves a remainder
        return False


def draw_story(rng: random.Random, level: str) -> Told:
    """Draw a story whose steps are all whole and positive."""
    story = rng.choice(STORIES[level])
    while True:
        values = [rng.randint(low, high) for low, high in story.ranges]
        tree = story.tree(*values)
        if _fits(tree):
            break
    people, things = rng.sample(NAMES, 2), rng.sample(THINGS, 2)
    by_letter = dict(zip("abcde", values, strict=False))
    wording = rng.choice(story.texts)
    text = wording.format(n=people[0], m=people[1], o=things[0], p=things[1], **by_letter)
    in_text = sorted(by_letter, key=lambda letter: wording.index("{" + letter + "}"))
    return Told(story.name, text, tuple(by_letter[letter] for letter in in_text), tree, story.notes)
