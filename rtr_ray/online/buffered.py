"""Answers that are made of what a model writes: a program that is run, or the best of several samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rtr_ray.answers import Answerer, read_program
from rtr_ray.errors import SandboxError
from rtr_ray.online.reply import Named
from rtr_ray.types import Outcome, Sample


async def whole_answer(
    answerer: Answerer, named: Named, choices: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The one choice that a client gets, and what stands beside it in the field `rtr`.

    A program's output is the content, with the program in `rtr.code`; where it prints nothing the
    content is what the model wrote. Of several samples the one whose answer was selected is kept.
    """
    samples = tuple(
        Sample(choice["message"].get("content") or "", choice.get("finish_reason") or "stop", None)
        for choice in choices
    )
    strategy = answerer.strategies[named.candidate.strategy]
    asked = Outcome(named.id, named.candidate, samples)
    more: dict[str, Any] = {}
    try:
        outcome = await answerer.read(asked)
    except SandboxError as error:  # the program is given as it stands, and why
        outcome, more = asked, {"error": error.message}
    kept = next((i for i, one in enumerate(outcome.samples) if one.answer == outcome.answer), 0)
    choice = dict(choices[kept]) | {"index": 0}
    more["answer"] = outcome.answer
    if len(samples) > 1:
        more["sample_answers"] = [sample.answer for sample in outcome.samples]
    if strategy.answer == "program":
        more["code"] = read_program(samples[kept].text)
        if outcome.answer is not None:
            choice["message"] = dict(choice["message"]) | {"content": outcome.answer}
    return [choice], more
