"""Answers: reading them out of what a model wrote, comparing them, choosing among samples."""

from __future__ import annotations

import asyncio
import doctest
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rtr_ray import answers
from rtr_ray.answers import (
    Answerer,
    canonical,
    number,
    printed_answer,
    read_auto,
    read_boxed,
    read_choice,
    read_last_number,
    read_program,
    read_text,
    select_first,
    select_majority,
    without_thinking,
)
from rtr_ray.errors import ConfigError
from rtr_ray.strategies import Strategy
from rtr_ray.types import Candidate, Outcome, Sample

NUMBERS = [
    ("7", "7"),
    (" 7 ", "7"),
    ("7.", "7"),
    ("007", "7"),
    ("+7", "7"),
    ("-3", "-3"),
    ("−3", "-3"),
    ("-0", "0"),
    ("0.0", "0"),
    ("1,234", "1234"),
    ("1,234,567.89", "1234567.89"),
    (".5", "0.5"),
    ("-.5", "-0.5"),
    ("$.50", "0.5"),
    ("2.50", "2.5"),
    ("1e3", "1000"),
    ("1.5E-3", "0.0015"),
    ("3/4", "0.75"),
    ("-3/4", "-0.75"),
    ("3 / 4", "0.75"),
    ("2 1/2", "2.5"),
    (r"\frac{3}{4}", "0.75"),
    (r"-\frac{3}{4}", "-0.75"),
    (r"\dfrac{3}{4}", "0.75"),
    (r"\tfrac{-3}{4}", "-0.75"),
    (r"2\frac{1}{2}", "2.5"),
    ("50%", "50"),
    (r"50\%", "50"),
    ("$5", "5"),
    (r"\$5", "5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("5 $", "5"),
    ("€1,000", "1000"),
    ("5€", "5"),
    ("$12$", "12"),
    ("**12**", "12"),
    ("x = 7", "7"),
    ("x = -3/4", "-0.75"),
    ("2 + 5 = 7", "7"),
    ("5 apples", "5"),
    ("5 green apples", "5"),
    ("5 km/h", "5"),
    ("5 cm^2", "5"),
    ("5 m2", "5"),
    ("45°", "45"),
    (r"45^\circ", "45"),
    (r"45^{\circ}", "45"),
    (r"5\text{ cm}", "5"),
    (r"1\,234", "1234"),
    ("９", "9"),
]
NO_NUMBERS = [
    "",
    ".",
    "six",
    "five apples",
    "12,34",
    "1.2.3",
    "3/0",
    "0/0",
    "1/2/3",
    "3:30",
    "2 or 3",
    "2 and 3",
    "2 to 3",
    "5 hours 30 minutes",
    "x=3, y=4",
    "x = 3 or x = 5",
    "x >= 5",
    "x != 5",
    "3x",
    "2x + 1",
    r"2\pi",
    r"3\sqrt{2}",
    "2e",
    "5i",
    "2^10",
    "[1, 2]",
    "1e1000005",
    "1e99999999999999999999",
    "NaN",
    "inf",
    "--5",
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_a_number_is_read_however_it_is_written(text, value):
    assert number(text) == Decimal(value)
    assert canonical(text) == value


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_text_that_is_no_number_or_more_than_one_is_none(text):
    assert number(text) is None


def test_nothing_is_no_number():
    assert number(None) is None


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Paris", "paris"),
        ("  New   York.  ", "new york"),
        ("a .", "a"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("x = 3 or x = 5", "x = 3 or x = 5"),
        ("1e400", "1E+400"),
        ("1" + "0" * 400, "1E+400"),
        ("1" + "0" * 99, "1" + "0" * 99),
        ("1e1000005", "1e1000005"),
    ],
)
def test_a_text_is_compared_without_case_and_spacing(text, form):
    assert canonical(text) == form


def test_long_numbers_are_compared_to_the_last_digit():
    assert canonical("9" * 60) == "9" * 60
    assert canonical("9" * 59 + "8") != canonical("9" * 60)


@given(st.text(max_size=30))
@example("a. .")
@example("five. .")
@example("1e1000005/3")
@example("1" * 20_000)
@example("-0.000")
def test_the_form_of_an_answer_is_its_own_form(text):
    assert canonical(canonical(text)) == canonical(text)


@given(st.text(alphabet="0123456789.,-+−/eE%$€=x \\{}frac^°", max_size=25))
def test_reading_a_number_never_fails(text):
    value = number(text)
    assert value is None or value.is_finite()


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12))
def test_a_decimal_is_read_as_itself(value):
    for text in (f"{value}", f"{value:,}", f"${value}", f"x = {value}", f"{value} apples"):
        assert number(text) == value


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>2 and 2</think> 4", " 4"),
        ("2 and 2</think>4", "4"),  # the template wrote the opening tag
        ("<think>a</think>b</think>c", "c"),
        ("no thinking", "no thinking"),
        ("<think>never done", None),
        ("", ""),
    ],
)
def test_what_a_model_thinks_is_no_answer(text, rest):
    assert without_thinking(text) == rest


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"\boxed{}", None),
        (r"\boxed{cut off", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer_with_its_braces_matched(text, answer):
    assert read_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The answer is 3, or rather \boxed{4}.", "4"),
        ("The answer is 7.", "7"),
        ("Answer: **7**", "7"),
        ("**Final answer:** 7.", "7"),
        ("The result = 7", "7"),
        ("The result is that x = 3, so the final answer is 7", "7"),
        ("The answer isn't obvious.\n12", "12"),
        ("a\nThe answer is 5.\nHope this helps!", "5"),
        ("first line\n\n  last line  \n", "last line"),
        ("Answers: 5 and 6", "Answers: 5 and 6"),
        ("", None),
        ("\n \n", None),
    ],
)
def test_an_answer_is_what_is_boxed_or_stated_or_in_the_last_line(text, answer):
    assert read_auto(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("a 1, b 2.5", "2.5"), ("−3 degrees", "-3"), ("1,234 of them", "1,234"), (".5", ".5"), ("none", None)],
)
def test_the_last_number_is_the_answer(text, answer):
    assert read_last_number(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B)", "B"),
        ("B.", "B"),
        (r"\boxed{C}", "C"),
        ("The answer is (D).", "D"),
        ("Answer: A", "A"),
        ("A is wrong, B is wrong, so C", "C"),
        ("The answer is B because A is wrong", "B"),
        ("Apples are red", None),
        ("42", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice_is_boxed_or_stated_or_the_last_one(text, letter):
    assert read_choice(text) == letter


@pytest.mark.parametrize("text", ["x" * 200_000, "answer " * 30_000, "a b " * 50_000, "1 " * 50_000])
def test_reading_a_long_text_does_not_take_long(text):
    for read in (read_auto, read_choice, read_last_number, read_program, number, canonical):
        read(text)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```py\nprint(1)\n```", "print(1)\n"),
        ("``` Python3 \nprint(1)\n```", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint(1)\n```\nor\n```python\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)\n```\nThis prints:\n```\n1\n```", "print(1)\n"),
        ("```json\n{}\n```\nthen\n```python\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint(1)", "print(1)"),
        ("print(1)", "print(1)"),
        ("```json\n{}\n```", None),
        ("```python\n\n```", None),
        ("  ", None),
    ],
)
def test_the_last_python_block_is_the_program(text, program):
    assert read_program(text) == program


@pytest.mark.parametrize(
    ("printed", "answer"), [("1\n2\n", "2"), ("  7  \n\n", "7"), ("", None), ("\n\n", None)]
)
def test_the_last_line_that_a_program_prints_is_its_answer(printed, answer):
    assert printed_answer(printed) == answer


def test_a_whole_text_may_be_the_answer():
    assert read_text("  all of\nthis ") == "all of\nthis"
    assert read_text(" \n") is None


@pytest.mark.parametrize(
    ("drawn", "first", "majority"),
    [
        (["1", "2", "2"], "1", "2"),
        (["2", "1", "1.0", "2"], "2", "2"),  # a tie goes to the earlier one
        (["1/2", "x", "0.5"], "1/2", "1/2"),
        ([None, "3", None], None, "3"),  # no answer has no vote
        (["Yes.", "no", "yes"], "Yes.", "Yes."),
        ([None, None], None, None),
        ([], None, None),
    ],
)
def test_of_several_samples_the_first_or_the_most_frequent_by_value_is_kept(drawn, first, majority):
    assert select_first(drawn) == first
    assert select_majority(drawn) == majority


# Answerer

STRATEGIES = {
    "cot": Strategy("cot", "a profile", 100, answer="boxed"),
    "vote": Strategy("vote", "a profile", 100, answer="auto", samples=(3,), select="majority"),
    "pal": Strategy("pal", "a profile", 100, answer="program"),
}


def outcome(strategy: str, *texts: str, finish_reason: str = "stop", **fields: object) -> Outcome:
    samples = tuple(Sample(text, finish_reason, 1) for text in texts)
    return Outcome("q", Candidate("m", strategy), samples, **fields)  # type: ignore[arg-type]


def read(answerer: Answerer, one: Outcome) -> Outcome:
    return asyncio.run(answerer.read(one))


def test_each_outcome_is_read_as_its_strategy_says():
    assert read(Answerer(STRATEGIES), outcome("cot", r"so \boxed{4}")).answer == "4"
    assert read(Answerer(STRATEGIES), outcome("cot", "so 4")).answer is None


def test_every_sample_keeps_its_answer_and_the_selected_one_is_the_outcomes():
    found = read(Answerer(STRATEGIES), outcome("vote", "4", "5", "4.0"))
    assert [sample.answer for sample in found.samples] == ["4", "5", "4.0"]
    assert found.answer == "4"


def test_an_outcome_without_an_answer_stays_as_it_is():
    failed = outcome("cot", error="the replica died", status="failed")
    assert read(Answerer(STRATEGIES), failed) is failed


def test_a_program_is_run_and_what_it_prints_is_the_answer():
    ran = []

    async def run(program: str) -> str | None:
        ran.append(program)
        return "working\n42\n" if "42" in program else None

    answerer = Answerer(STRATEGIES, run)
    assert read(answerer, outcome("pal", "```python\nprint(42)\n```")).answer == "42"
    assert read(answerer, outcome("pal", "```python\n1/0\n```")).answer is None
    assert ran == ["print(42)\n", "1/0\n"]


def test_a_program_without_a_sandbox_is_refused():
    with pytest.raises(ConfigError, match="no sandbox was configured"):
        read(Answerer(STRATEGIES), outcome("pal", "print(1)"))


@pytest.mark.parametrize(
    ("text", "finish_reason", "answer"),
    [
        ("it may be 4", "length", None),  # the template wrote <think>, and the limit came before </think>
        ("it may be 4</think>\n5", "length", "5"),
        ("4", "stop", "4"),
        ("<think>it may be 4", "stop", None),
    ],
)
def test_a_model_that_is_cut_while_it_thinks_gives_no_answer(text, finish_reason, answer):
    thinking = Answerer(STRATEGIES, thinking=frozenset({"m"}))
    assert read(thinking, outcome("vote", text, finish_reason=finish_reason)).answer == answer


def test_a_model_that_does_not_think_is_read_also_where_it_is_cut():
    assert read(Answerer(STRATEGIES), outcome("vote", "4", finish_reason="length")).answer == "4"


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(answers).failed == 0
