"""Traces: each ends in the right answer, each of its equations is true, each program prints the answer."""

import contextlib
import io
import re

import pytest

from rtr_ray.embedded.columns import add_columns, long_division, subtract_columns, times_digit_columns
from rtr_ray.embedded.questions import draw
from rtr_ray.embedded.traces import STRATEGIES, SYSTEM_PROMPTS, completion

QUESTIONS = draw("model", 1500, seed=11)


def test_vanilla_is_the_answer_alone():
    assert all(completion(question, "vanilla") == question.gold for question in QUESTIONS)


@pytest.mark.parametrize("strategy", ["cot", "cod"])
def test_the_box_holds_the_answer(strategy):
    for question in QUESTIONS:
        assert re.findall(r"\\boxed\{(.*?)\}", completion(question, strategy)) == [question.gold]


def test_a_thought_ends_before_the_answer():
    for question in QUESTIONS:
        thought, answer = completion(question, "think").removeprefix("<think>").split("</think>")
        assert thought
        assert answer == question.gold


def test_every_program_prints_the_answer():
    for question in QUESTIONS:
        text = completion(question, "pal")
        program = re.fullmatch(r"```python\n(.*)\n```", text, re.S).group(1)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, {})
        assert printed.getvalue() == f"{question.gold}\n", text


@pytest.mark.parametrize("strategy", ["cot", "cod", "think"])
def test_every_equation_is_true(strategy):
    seen = 0
    for question in QUESTIONS:
        for left, right in re.findall(r"(\d+(?: ?[-+*/] ?\d+)+) ?= ?(\d+)", completion(question, strategy)):
            seen += 1
            assert eval(left.replace("/", "//")) == int(right)
        for left, right, rest in re.findall(r"(\d+) mod (\d+) = (\d+)", completion(question, strategy)):
            seen += 1
            assert int(left) % int(right) == int(rest)
    assert seen > 500


@pytest.mark.parametrize("strategy", ["cot", "think"])
def test_a_long_working_ends_with_the_answer(strategy):
    for question in QUESTIONS:
        if question.family in ("chain", "product", "expression", "word", "digits", "sequence"):
            before_the_end = completion(question, strategy).split("</think>")[0].split(". The answer")[0]
            assert re.findall(r"\d+", before_the_end)[-1] == question.gold


def test_a_draft_uses_five_words_or_fewer_for_each_step():
    for question in QUESTIONS:
        for step in completion(question, "cod").split("; "):
            assert len(step.split()) <= 5


def test_columns_are_what_one_writes_on_paper():
    assert add_columns(95, 7) == "5 + 7 = 12, 9 + 1 = 10"
    assert subtract_columns(1000, 1) == "10 - 1 = 9, 9, 9, 0"
    assert times_digit_columns(205, 4) == "5 * 4 = 20, 0 * 4 + 2 = 2, 2 * 4 = 8"
    assert long_division(205, 41) == ("205 - 205 = 0", 0)


def test_each_strategy_but_think_has_a_system_prompt():
    assert set(STRATEGIES) - set(SYSTEM_PROMPTS) == {"think"}
    assert SYSTEM_PROMPTS["vanilla"] == ""
    with pytest.raises(ValueError, match="Known strategies: vanilla, cot"):
        completion(QUESTIONS[0], "guess")
