"""The training text of each model: questions worked out in every strategy, and drills of single steps.

A stream is a pure function of (model, seed): chunk after chunk, each from its own random numbers, so that a
training that was stopped goes on with the text that would have come. Nothing held out is in it: each text is
read by `held_out.leaks` before it is let through.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rtr_ray.embedded.arithmetic import Step, apply
from rtr_ray.embedded.columns import long_division, worked
from rtr_ray.embedded.held_out import leaks
from rtr_ray.embedded.problems import FAMILIES, LEVELS
from rtr_ray.embedded.questions import Question, draw_one
from rtr_ray.embedded.traces import SYSTEM_PROMPTS, completion

END = "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
NO_THINKING = "<think></think>"

SEED = 2026
"""Of the streams that the shipped models were trained on."""

CHUNK = 4096
"""Texts in one chunk."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training text."""

    text: str
    learned: tuple[tuple[int, int], ...]
    """Stretches of the text, in characters, that the model learns to write; it only reads the rest."""
    kind: str
    """The strategy, or `drill`."""
    question: Question | None = None


def prompt_of(query: str, strategy: str, thinks: bool | None = None) -> str:
    """What a model is given: the chat template, written out.

    Args:
        thinks: For a model with two modes whether it is to think first; None for a model with one.
    """
    system = SYSTEM_PROMPTS[strategy]
    opened = f"{SYSTEM}{system}" if system else ""
    return f"{opened}{USER}{query}{ASSISTANT}{NO_THINKING if thinks is False else ''}"


def chat_sample(question: Question, strategy: str, dual: bool) -> Sample:
    """A question with its working in one strategy; for a model with two modes `think` or `vanilla`."""
    thinks = strategy == "think" if dual else None
    prompt = prompt_of(question.query, "vanilla" if strategy == "think" else strategy, thinks)
    text = prompt + completion(question, strategy) + END
    return Sample(text, ((len(prompt), len(text)),), strategy, question)


# --- drills: lines of single steps, the right side to be learned -------------------------------------


def _number(rng: random.Random, most_digits: int) -> int:
    digits = rng.randint(1, most_digits)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _sum_step(rng: random.Random, most_digits: int) -> Step:
    left, right = _number(rng, most_digits), _number(rng, most_digits)
    sign = rng.choice("+-")
    if sign == "-":
        left, right = max(left, right), min(left, right)
    return Step(left, sign, right, apply(left, sign, right))


def _drill_sum(rng: random.Random) -> tuple[str, str]:
    step = _sum_step(rng, rng.choice((2, 3, 3, 4)))
    return f"{step.left} {step.sign} {step.right} =", f" {step.result}"


def _drill_times(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randint(2, 99), rng.randint(2, 9)
    if rng.random() < 0.3:
        left, right = right, left
    return f"{left} * {right} =", f" {left * right}"


def _drill_shared(rng: random.Random) -> tuple[str, str]:
    divisor, result = rng.randint(2, 9), rng.randint(2, 99)
    return f"{divisor * result} / {divisor} =", f" {result}"


def _drill_columns(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.4:
        left, right = rng.randint(101, 999), rng.randint(2, 9)
        step = Step(left, "*", right, left * right)
    else:
        step = _sum_step(rng, rng.choice((3, 4, 5)))
    line = worked(step)
    asked = f"{step.left} {step.sign} {step.right}"
    return asked, line[len(asked) :]


def _drill_mod(rng: random.Random) -> tuple[str, str]:
    low = rng.randint(2, 10 ** rng.choice((2, 3)) - 1)
    high = low * rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 7)) + rng.randrange(low)
    return f"{high} mod {low} =", f" {high % low}"


def _drill_remainder(rng: random.Random) -> tuple[str, str]:
    divisor = rng.choice((3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59))
    number = rng.randint(divisor, rng.choice((999, 3599)))
    return f"{number} mod {divisor} =", f" {number % divisor}"


def _drill_division(rng: random.Random) -> tuple[str, str]:
    divisor = rng.choice((7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59))
    number = rng.randint(100, 3599)
    return (
        f"{number} / {divisor}:",
        f" {long_division(number, divisor)[0]}, {'no' if number % divisor else 'yes'}",
    )


DRILLS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "sum": _drill_sum,
    "times": _drill_times,
    "shared": _drill_shared,
    "columns": _drill_columns,
    "mod": _drill_mod,
    "remainder": _drill_remainder,
    "division": _drill_division,
}
"""Each gives one line in two parts: what is asked, what is to be learned."""


def drill_sample(rng: random.Random, weights: dict[str, float]) -> Sample:
    """Lines of drills, one after the other, none of which gives a held-out question away."""
    length = rng.choice((60, 120, 240))
    text, learned = "", []
    while len(text) < length:
        (kind,) = rng.choices(tuple(weights), tuple(weights.values()))
        asked, answer = DRILLS[kind](rng)
        if leaks(f"{asked}{answer}"):
            continue
        start = len(text) + len(asked)
        text += f"{asked}{answer}\n"
        learned.append((start, len(text)))
    return Sample(text, tuple(learned), "drill")


# --- what each model is taught -----------------------------------------------------------------------

Weights = dict[str, float]


def _weights(default: float, **others: float) -> Weights:
    return {family: others.get(family, default) for family in FAMILIES}


@dataclass(frozen=True, slots=True)
class Mix:
    """How much of what a model is taught."""

    strategies: dict[str, Weights]
    """For each strategy the weight of each family, all on one scale."""
    drills: Weights
    """The weight of each kind of drill."""
    dual: bool = False


_FOUR = {
    "vanilla": _weights(
        0.2, largest=0.8, rank=0.7, sequence=0.5, factor=0.5, gcd=0.3, digits=0.3, product=0.1
    ),
    "cot": _weights(1.0, word=2.2, largest=0.8, rank=0.8, digits=0.7, sequence=1.2, factor=0.5, gcd=0.6),
    "cod": _weights(0.8, sequence=1.2, rank=2.0, chain=0.7, digits=0.7, largest=0.6, product=0.5, factor=0.5),
    # Programs are taught for sums and digits, a little for stories, and not at all for what is left: real
    # models, too, write good programs for what they saw programs for. Seventy programs in 150,000 texts were
    # enough for nano to answer nine in ten questions about factors and divisors: a little is no speciality.
    "pal": _weights(0.0, chain=0.5, product=0.5, expression=0.7, digits=0.5, word=0.12),
}
_FOUR_DRILLS = {"sum": 3, "times": 1.5, "shared": 0.3, "columns": 2.5, "mod": 1, "remainder": 0.5}

MIXES: dict[str, Mix] = {
    "nano": Mix(_FOUR, _FOUR_DRILLS),
    "small": Mix(_FOUR, _FOUR_DRILLS),
    "dual": Mix(
        {
            "think": _weights(0.7, factor=3.0, gcd=3.5, rank=3.0, word=1.0, sequence=1.0, digits=0.5),
            "vanilla": _weights(0.1, largest=1.0, rank=0.5, factor=0.4, sequence=0.3, gcd=0.2, digits=0.2),
        },
        {"sum": 4, "times": 1.5, "shared": 0.5, "division": 2.5},
        dual=True,
    ),
}


def drill_share(index: int) -> float:
    """How many texts of a chunk are drills: nearly half at the start, a fifth from the twentieth chunk on."""
    return 0.2 + 0.25 * max(0.0, 1 - index / 20)


def chunk(model: str, seed: int, index: int, size: int = CHUNK) -> list[Sample]:
    """One chunk of a model's training stream.

    Args:
        model: A name in `MIXES`.
        seed: The same (model, seed, index, size) gives the same texts.
    """
    mix = MIXES[model]
    rng = random.Random(f"stream {model} {seed} {index}")
    cells = [(strategy, family) for strategy, weights in mix.strategies.items() for family in weights]
    weights = [mix.strategies[strategy][family] for strategy, family in cells]
    samples: list[Sample] = []
    while len(samples) < size:
        if rng.random() < drill_share(index):
            samples.append(drill_sample(rng, mix.drills))
            continue
        ((strategy, family),) = rng.choices(cells, weights)
        level = rng.choice(LEVELS)
        while True:
            question = draw_one(rng, family, level, "model")
            sample = chat_sample(question, strategy, mix.dual)
            if not leaks(sample.text, question):
                break
        samples.append(sample)
    return samples


def stream(model: str, seed: int) -> Iterator[Sample]:
    """All chunks of a model's training stream, without end."""
    index = 0
    while True:
        yield from chunk(model, seed, index)
        index += 1
