"""LLMRouterBench's results: one JSON file for each dataset, split and model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtr_ray.errors import DataError
from rtr_ray.importers.base import Row, dollars, grade, needed

_FORM = "llmrouterbench"


@dataclass(frozen=True, slots=True)
class LLMRouterBench:
    """`DATASET/SPLIT/MODEL/TIME.json`, an object whose `records` are the answers.

    A model that thinks or does not is two models there, and stays so here.

    Source:
        LLMRouterBench (Li et al., 2026), results/bench.
    """

    strategy: str = "vanilla"

    def rows(self, path: Path) -> Iterator[Row]:
        """The records of one file."""
        try:
            whole = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"Cannot read {path.name} as JSON: {error}.") from error
        if not isinstance(whole, dict):
            raise DataError(f"{path.name} holds no object: it is not of the form {_FORM}.")
        needed(whole, ("records",), path.name, _FORM)
        dataset, split, model = self._named(path, whole)
        for number, record in enumerate(whole["records"]):
            yield self._row(record, f"{path.name}, record {number}", (dataset, split, model))

    @staticmethod
    def _named(path: Path, whole: dict[str, Any]) -> tuple[str, str, str]:
        """Dataset, split and model: those in the file, else those of its folders."""
        folders = path.absolute().parts[-4:-1]
        if len(folders) < 3:
            raise DataError(f"{path} does not lie in DATASET/SPLIT/MODEL/, from which its names come.")
        keys = ("dataset_name", "split", "model_name")
        dataset, split, model = (
            str(whole.get(key) or folder) for key, folder in zip(keys, folders, strict=True)
        )
        return dataset, split, model

    def _row(self, record: dict[str, Any], where: str, named: tuple[str, str, str]) -> Row:
        needed(record, ("index", "origin_query", "score", "completion_tokens"), where, _FORM)
        dataset, split, model = named
        query = record["origin_query"]
        return Row(
            query_id=f"{dataset}/{split}/{record['index']}",
            query=query if isinstance(query, str) else json.dumps(query, ensure_ascii=False),
            model=model,
            correct=grade(record["score"], where),
            strategy=self.strategy,
            dataset=dataset,
            input_tokens=record.get("prompt_tokens"),
            output_tokens=record["completion_tokens"],
            cost_usd=dollars(record.get("cost")),
            answer=_text(record.get("prediction")),
            gold=_text(record.get("ground_truth")),
            response=_text(record.get("raw_output")),
        )


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
