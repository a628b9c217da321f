"""Grading: 1 or 0, something between, or None where nobody can say."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from rtr_ray import registry
from rtr_ray.errors import ConfigError
from rtr_ray.grading import (
    KNOWN,
    Code,
    Exact,
    Grader,
    Item,
    Judge,
    MultipleChoice,
    Numeric,
    Own,
    Reference,
    check_candidate,
    score,
)
from rtr_ray.types import Candidate

SMALL = Candidate("small", "cot")


def item(answer: str | None, gold: str | None, response: str | None = None, query: str = "2+2?") -> Item:
    return Item(query, SMALL, answer, answer or "" if response is None else response, gold)


def grades(grader: Grader, *items: Item) -> list[float | None]:
    return asyncio.run(grader.grade(items))


@pytest.mark.parametrize(
    ("grader", "answer", "gold", "grade"),
    [
        (Exact(), "Paris", "paris.", 1.0),
        (Exact(), "New  York", "new york", 1.0),
        (Exact(), "Paris", "Rome", 0.0),
        (Exact(), "4.0", "4", 0.0),
        (Exact(), None, "4", 0.0),
        (Exact(), "4", None, None),
        (Exact(), None, None, None),
        (Numeric(), "4.0", "4", 1.0),
        (Numeric(), "$1,234.50", "1234.5", 1.0),
        (Numeric(), r"\frac{1}{2}", "0.5", 1.0),
        (Numeric(), "0.3333333", "1/3", 1.0),
        (Numeric(), "0.333", "1/3", 0.0),
        (Numeric(), "5", "4", 0.0),
        (Numeric(), "-4", "4", 0.0),
        (Numeric(), "0", "0.0", 1.0),
        (Numeric(), "1e-9", "0", 0.0),
        (Numeric(), "Paris", "paris", 1.0),  # neither is a number
        (Numeric(), "four", "4", 0.0),
        (Numeric(), "4", "four", 0.0),
        (Numeric(), "x=3, y=4", "x=5, y=4", 0.0),
        (Numeric(), "1e1000005", "1E1000005", 1.0),
        (Numeric(), "9" * 40, "9" * 39 + "8", 1.0),
        (Numeric(relative_tolerance=0), "9" * 40, "9" * 39 + "8", 0.0),
        (Numeric(relative_tolerance=0.1), "109", "100", 1.0),
        (Numeric(relative_tolerance=0.1), "111", "100", 0.0),
        (Numeric(), None, "4", 0.0),
        (Numeric(), "4", None, None),
        (MultipleChoice(), "(B)", "B", 1.0),
        (MultipleChoice(), "b", "B", 1.0),
        (MultipleChoice(), "B", "b", 1.0),
        (MultipleChoice(), "The answer is C.", "(C)", 1.0),
        (MultipleChoice(), "A", "B", 0.0),
        (MultipleChoice(), "no idea", "B", 0.0),
        (MultipleChoice(), None, "B", 0.0),
        (MultipleChoice(), "B", None, None),
        (MultipleChoice(), "no idea", "42", None),  # the reference is no letter: nobody can say
        (Reference("small:cot"), "4.0", "4", 1.0),
        (Reference("small:cot"), "5", "4", 0.0),
        (Reference("small:cot"), "5", None, None),
    ],
)
def test_an_answer_is_compared_with_the_reference(grader, answer, gold, grade):
    assert grades(grader, item(answer, gold)) == [grade]


def test_every_item_gets_a_grade_in_its_order():
    items = [item("1", "1"), item("2", "1"), item("3", None), item(None, "4")]
    assert grades(Numeric(), *items) == [1.0, 0.0, None, 0.0]
    assert grades(Numeric()) == []


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, math.nan])
def test_a_tolerance_that_says_nothing_is_refused(tolerance):
    with pytest.raises(ConfigError, match="0 <= it < 1 is needed"):
        Numeric(tolerance)


# Code


def test_a_program_is_checked_by_the_tests_and_not_by_its_answer():
    seen = []

    async def check(program: str, tests: str) -> bool:
        seen.append((program, tests))
        return "return 4" in program

    grader = Code(check)
    right, wrong = "```python\ndef f(): return 4\n```", "```python\ndef f(): return 5\n```"
    assert grades(grader, item(None, "assert f() == 4", right), item(None, "assert f() == 4", wrong)) == [
        1.0,
        0.0,
    ]
    assert seen[0] == ("def f(): return 4\n", "assert f() == 4")


def test_an_answer_without_a_program_fails_the_tests_unrun():
    async def check(program: str, tests: str) -> bool:
        raise AssertionError("nothing is to be run")

    assert grades(Code(check), item(None, "assert True", " "), item("x", None, "print(1)")) == [0.0, None]


def test_code_without_a_sandbox_is_refused():
    with pytest.raises(ConfigError, match="needs the sandbox"):
        grades(Code(), item("1", "assert True", "print(1)"))


# Judge


class Judges:
    """Replies as told, and remembers the prompts."""

    def __init__(self, *replies: str | None) -> None:
        self.replies, self.prompts = list(replies), list[str]()

    async def ask(self, prompts: Sequence[str]) -> list[str | None]:
        self.prompts += prompts
        return self.replies[: len(prompts)]


def test_a_judge_scores_the_answers_that_there_are():
    judges = Judges("0.5", "right: 1", None, "no idea")
    items = [item("a", None), item(None, "gold"), item("b", "gold"), item("c", None), item("d", None)]
    assert grades(Judge("small:cot", ask=judges.ask), *items) == [0.5, 0.0, 1.0, None, None]
    assert len(judges.prompts) == 4  # what has no answer is wrong, and nobody is asked


def test_a_judge_reads_the_question_the_answer_and_the_reference_where_there_is_one():
    judges = Judges("1", "1")
    asked = item("four", "4", query="What is {answer}?")
    grades(Judge("small:cot", ask=judges.ask), asked, item("four", None))
    with_gold, without = judges.prompts
    assert "What is {answer}?" in with_gold  # braces in a query are text
    assert "Reference answer:\n4\n" in with_gold
    assert "Answer to grade:\nfour\n" in with_gold
    assert "Reference" not in without


def test_a_judge_may_have_a_prompt_of_its_own():
    judges = Judges("1")
    grades(Judge("small:cot", "Q {query} A {answer} R {reference}", judges.ask), item("4", None))
    assert judges.prompts == ["Q 2+2? A 4 R "]


@pytest.mark.parametrize("prompt", ["only {query}", "only {answer}", "neither"])
def test_a_prompt_that_lacks_the_query_or_the_answer_is_refused(prompt):
    with pytest.raises(ConfigError, match=r"grader.prompt of the judge lacks \{(query|answer)\}"):
        Judge("small:cot", prompt)


def test_a_judge_that_nobody_connected_is_refused():
    with pytest.raises(ConfigError, match="none was connected"):
        grades(Judge("small:cot"), item("4", "4"))


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("1", 1.0),
        ("0.75", 0.75),
        (".5", 0.5),
        ("Score: 0.8", 0.8),
        ("8/10", 0.8),
        ("I give it 3/4.", 0.75),
        ("7", 1.0),
        ("-1", 0.0),
        ("**0.9**", 0.9),
        ("<think>Step 1: is it 7?</think> 0.3", 0.3),
        ("<think>Step 1: is it", None),
        ("right", None),
        ("", None),
        (None, None),
    ],
)
def test_what_a_judge_says_is_a_number_between_0_and_1(reply, grade):
    assert score(reply) == grade


# A function of the user's


def half(one: Item) -> float:
    return 0.5


async def later(one: Item) -> bool:
    await asyncio.sleep(0)
    return one.answer == one.gold


def unsure(one: Item) -> None:
    return None


def too_much(one: Item) -> float:
    return 1.5


def nan(one: Item) -> float:
    return math.nan


def words(one: Item) -> str:
    return f"about half of {one.answer}"


def broken(one: Item) -> float:
    raise KeyError(one.answer)


NOT_A_FUNCTION = 5


def own(name: str) -> Own:
    return Own(f"{__name__}:{name}")


def test_a_function_of_ones_own_grades_plainly_or_later():
    assert grades(own("half"), item("4", "4")) == [0.5]
    assert grades(own("later"), item("4", "4"), item("5", "4")) == [1.0, 0.0]
    assert grades(own("unsure"), item("4", "4")) == [None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_much", "gave 1.5; a number between 0 and 1, or None, is needed"),
        ("nan", "gave nan; a number between 0 and 1, or None, is needed"),
        ("words", "gave str; a number between 0 and 1, or None, is needed"),
        ("broken", "raised KeyError"),
    ],
)
def test_what_a_function_of_ones_own_gets_wrong_is_told_without_the_answer(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        grades(own(name), item("the secret answer", "4"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.module:grade", "cannot be imported"),
        ("math:no_such_function", "cannot be imported"),
        (f"{__name__}:NOT_A_FUNCTION", "is not a function"),
        (":grade", "names no function"),
        ("math:", "names no function"),
    ],
)
def test_a_function_that_is_not_there_is_told_at_once(path, message):
    with pytest.raises(ConfigError, match=message):
        Own(path)


# All of them


@pytest.mark.parametrize("kind", KNOWN)
def test_every_known_kind_is_a_grader(kind):
    needs = {"reference": {"candidate": "small:cot"}, "judge": {"candidate": "small:cot"}}
    grader = registry.build({"kind": kind, **needs.get(kind, {})}, KNOWN, "grader")
    assert isinstance(grader, Grader)
    assert grader.kind == kind


@pytest.mark.parametrize("kind", ["reference", "judge"])
def test_a_grader_that_names_a_candidate_needs_one_that_the_pool_has(kind):
    grader = registry.build({"kind": kind, "candidate": "tall:cot"}, KNOWN, "grader")
    with pytest.raises(
        ConfigError, match=rf"^The grader '{kind}' names tall:cot. The pool's candidates: small:cot\.$"
    ):
        check_candidate(grader, [SMALL])
    check_candidate(registry.build({"kind": kind, "candidate": "small:cot"}, KNOWN, "grader"), [SMALL])
    check_candidate(Exact(), [SMALL])
    with pytest.raises(ConfigError, match="does not name a candidate"):
        registry.build({"kind": kind, "candidate": "small"}, KNOWN, "grader")
