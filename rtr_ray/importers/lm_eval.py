"""The sample files of the lm-evaluation-harness: `samples_TASK_TIME.jsonl`, one line a question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtr_ray.errors import DataError
from rtr_ray.importers.base import ESTIMATED, Row, estimated_tokens, grade, needed

_FORM = "lm-eval"
_NAME = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[\d\-.:]+)?\.jsonl")
_QUESTIONS = ("question", "query", "problem", "prompt", "input", "text")
_METRICS = ("exact_match", "acc", "acc_norm", "pass@1", "pass_at_1", "em", "f1", "prompt_level_strict_acc")
"""Looked for in this order where a line names none."""


@dataclass(frozen=True, slots=True)
class LmEval:
    """What `lm_eval --log_samples --output_path` wrote. The model is the folder's name, with `/` for `__`.

    Nobody has counted tokens there: of a generated answer they are taken as a quarter of its bytes, and
    an answer that was chosen by its likelihood counts as one token. There are no dollars either.

    Source:
        EleutherAI's lm-evaluation-harness, version 0.4.
    """

    model: str | None = None  # None: the folder's name
    strategy: str = "vanilla"
    metric: str | None = None  # None: the first one that a line names
    filter: str | None = None  # of several the one to take; None: the first that the file has

    def rows(self, path: Path) -> Iterator[Row]:
        """The lines of one file; those of other filters are left out."""
        named = _NAME.fullmatch(path.name)
        if named is None:
            raise DataError(f"{path.name} is not named samples_TASK_TIME.jsonl, from which the task comes.")
        model = self.model or path.absolute().parent.name.replace("__", "/")
        wanted = self.filter
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    where = f"{path.name}, line {number}"
                    found = _object(line, where)
                    if wanted is None:
                        wanted = str(found.get("filter", "none"))
                    if str(found.get("filter", "none")) == wanted:
                        yield from self._answers(found, where, named["task"], model)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"Cannot read {path.name}: {error}.") from error

    def _answers(self, found: dict[str, Any], where: str, task: str, model: str) -> Iterator[Row]:
        needed(found, ("doc_id", "doc", "resps"), where, _FORM)
        correct = grade(found[self._metric(found, where)], where)
        query, prompt = _query(found), _prompt(found)
        for response in _responses(found["resps"]):
            yield Row(
                query_id=f"{task}/{found['doc_id']}",
                query=query or prompt or "",
                model=model,
                correct=correct,
                strategy=self.strategy,
                dataset=task,
                input_tokens=estimated_tokens(prompt or query or ""),
                output_tokens=1 if response is None else estimated_tokens(response),
                gold=None if found.get("target") is None else str(found["target"]),
                response=response,
                tokens_source=ESTIMATED if response is not None else "one token: chosen by likelihood",
            )

    def _metric(self, found: dict[str, Any], where: str) -> str:
        names = [self.metric] if self.metric else [*found.get("metrics", ()), *_METRICS]
        for name in names:
            if name in found:
                return name
        given = [
            key
            for key, value in found.items()
            if isinstance(value, int | float) and key not in ("doc_id", "target")
        ]
        raise DataError(
            f"{where} has no grade {names[0] if self.metric else 'of a known name'}; it has "
            f"{', '.join(given) or 'no number'}. Name one with --metric."
        )


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{where} is no JSON object.")
    return found


def _query(found: dict[str, Any]) -> str | None:
    """The question alone, with its choices, as its dataset has it: without examples before it."""
    doc = found["doc"]
    text = next((doc[name] for name in _QUESTIONS if isinstance(doc.get(name), str)), None)
    choices = doc.get("choices")
    if isinstance(choices, dict):  # {"text": [...], "label": [...]}
        choices = choices.get("text")
    if text is None or not isinstance(choices, list):
        return text
    return "\n".join([text, *(f"{chr(65 + n)}. {choice}" for n, choice in enumerate(choices))])


def _prompt(found: dict[str, Any]) -> str | None:
    """What the model was given; older versions hold lists in place of objects."""
    first = found.get("arguments")
    for key in ("gen_args_0", "arg_0"):
        if isinstance(first, dict):
            first = first.get(key)
        elif isinstance(first, list) and first:
            first = first[0]
    return first if isinstance(first, str) else None


def _responses(resps: Any) -> list[str | None]:
    """The generated texts of a line; one None where likelihoods were compared."""
    first = resps[0] if isinstance(resps, list) and resps else None
    texts = [text for text in (first if isinstance(first, list) else [first]) if isinstance(text, str)]
    return list(texts) or [None]
