"""Nothing held out is in the training text, and the checks notice it when something is."""

import functools
import re
from dataclasses import replace

import pytest

from rtr_ray.embedded.held_out import asked, leaks, stated
from rtr_ray.embedded.questions import draw, split_of, split_of_numbers
from rtr_ray.embedded.stream import MIXES, SEED, Sample, chat_sample, chunk

CHUNKS = {"nano": 5, "small": 4, "dual": 4}
"""How much of each stream is read: 53,248 texts, the very first that the models are trained on."""


@functools.cache
def training_texts():
    return [
        sample for model in MIXES for index in range(CHUNKS[model]) for sample in chunk(model, SEED, index)
    ]


def held_out_by_key(samples):
    """By the numbers that a question says it has."""
    return [s for s in samples if s.question is not None and split_of(s.question) != "model"]


LIST = re.compile(r"[0-9]+(?:, [0-9]+){3,}")
SUM = re.compile(r"[0-9]+(?:[ (]+|[ )]+)?(?:[-+*/][-+*/ ()]*[0-9]+[ )]*){2,}")
PRODUCT = re.compile(r"\b(10[1-9]|1[1-9][0-9]|[2-9][0-9]{2}) \* ([3-9])\b")
REMAINDER = re.compile(r"\b([0-9]{2,}) mod ([2-9][0-9]|[0-9]{3,})\b")
DIVISION = re.compile(r"\b([0-9]{3,4}) / [0-9]{1,2}:")
DIGITS = re.compile(r"[0-9]+")


def claims_of(text):
    """What a text asks or states, as groups of numbers; read in another way than `held_out.stated` does."""
    if "<|user|>" in text:
        yield DIGITS.findall(text.split("<|user|>")[1].split("<|assistant|>")[0])
    for run in LIST.findall(text):
        yield DIGITS.findall(run)
    for run in SUM.findall(text):
        if max(map(int, numbers := DIGITS.findall(run))) > 9:
            yield numbers
    yield from PRODUCT.findall(text)
    yield from REMAINDER.findall(text)
    yield from ((number,) for number in DIVISION.findall(text))


def held_out_by_text(samples):
    """By the text alone."""
    return [
        sample
        for sample in samples
        if any(
            split_of_numbers(tuple(sorted(map(int, claim)))) != "model" for claim in claims_of(sample.text)
        )
    ]


def held_out_by_search(samples, questions):
    """By looking for each held-out question itself: its words, its sum, its list."""
    texts = "\x00".join(sample.text for sample in samples)
    needles = {q.query for q in questions}
    needles |= {q.form for q in questions if q.family in ("chain", "expression")}
    needles |= {
        ", ".join(map(str, q.numbers)) for q in questions if q.family in ("largest", "rank", "sequence")
    }
    needles |= {f"digits of {q.numbers[0]}" for q in questions if q.family == "digits"}
    needles |= {f"n = {q.numbers[0]}\n" for q in questions if q.family == "factor"}
    found = [needle for needle in needles if needle in texts]
    return [needle for needle in found if re.search(rf"(?<!\d){re.escape(needle)}(?!\d)", texts)]


def test_the_training_text_has_nothing_held_out_by_key():
    assert len(training_texts()) >= 50_000
    assert held_out_by_key(training_texts()) == []


def test_the_training_text_has_nothing_held_out_by_what_it_says():
    assert held_out_by_text(training_texts()) == []


def test_no_held_out_question_stands_in_the_training_text():
    questions = draw("test", 300, seed=1) + draw("route", 300, seed=1)
    assert held_out_by_search(training_texts()[::4], questions) == []


@pytest.mark.parametrize("strategy", ["vanilla", "cot", "cod", "pal", "think"])
@pytest.mark.parametrize("split", ["route", "test"])
def test_a_leaked_question_is_noticed(split, strategy):
    for question in draw(split, 60, seed=2):
        sample = chat_sample(question, strategy, dual=False)
        assert leaks(sample.text, question)
        assert held_out_by_key([sample])
        assert held_out_by_text([sample])
        assert held_out_by_search([sample], [question])
        # Also where the key is lost and only the text is left.
        assert leaks(sample.text, replace(question, numbers=(1, 2)))


def test_a_leak_inside_a_drill_is_noticed():
    for family in ("product", "chain", "largest"):
        question = draw("test", 3, seed=3, families=(family,))[0]
        text = question.form or f"of {', '.join(map(str, question.numbers))}"
        drill = Sample(f"3 + 4 = 7\n{text} = {question.gold}\n", (), "drill")
        assert leaks(drill.text)


def test_what_is_stated_is_read_from_the_text():
    assert list(stated("34 + 7 - 5 + 9 = 45")) == [(5, 7, 34), (5, 7, 9, 34)]
    assert list(stated("print(347*26)")) == [(26, 347)]
    assert list(stated("math.gcd(84, 36)")) == [(36, 84)]
    assert list(stated("84 36; 36 12; \\boxed{12}")) == [(36, 84)]
    assert list(stated("1763 / 41: 176 - 164 = 12")) == [(1763,)]
    assert list(stated("7 * 6 = 42, 4 * 6 + 4 = 28, 44 + 69 = 113, 47 * 6 = 282")) == []
    assert asked("Add 12 to 7 and 30.") == (7, 12, 30)
