"""RouterBench's wide table: one row a prompt, three columns a model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from rtr_ray.corpus import first_line
from rtr_ray.errors import DataError
from rtr_ray.importers.base import ESTIMATED, Row, dollars, estimated_tokens, grade, needed

_COST, _RESPONSE = "|total_cost", "|model_response"
_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class RouterBench:
    """For each model of a prompt a grade `NAME`, a text `NAME|model_response`, dollars `NAME|total_cost`.

    Nobody has counted tokens there: they are taken as a quarter of the bytes of prompt and response.

    Source:
        RouterBench (Hu et al., 2024), routerbench_0shot and routerbench_5shot.
    """

    strategy: str = "vanilla"

    def rows(self, path: Path) -> Iterator[Row]:
        """Parquet or CSV. The published pickles are refused: opening one runs what is in it."""
        for table in _blocks(path):
            names = table.column_names
            needed(names, ("sample_id", "prompt", "eval_name"), path.name, "routerbench")
            models = [name.removesuffix(_COST) for name in names if name.endswith(_COST)]
            needed(names, models, path.name, "routerbench")
            if not models:
                raise DataError(
                    f"{path.name} has no column NAME{_COST}, so no model. It is not RouterBench's."
                )
            for cells in table.to_pylist():
                for model in models:
                    if (row := self._row(cells, model, path.name)) is not None:
                        yield row

    def _row(self, cells: dict[str, Any], model: str, where: str) -> Row | None:
        correct = grade(cells[model], f"{where}, {model}")
        if correct is None:
            return None
        response = _text(cells.get(f"{model}{_RESPONSE}"))
        prompt = _text(cells["prompt"]) or ""
        return Row(
            query_id=f"{cells['eval_name']}/{cells['sample_id']}",
            query=prompt,
            model=model,
            correct=correct,
            strategy=self.strategy,
            dataset=str(cells["eval_name"]),
            input_tokens=estimated_tokens(prompt),
            output_tokens=None if response is None else estimated_tokens(response),
            cost_usd=dollars(cells[f"{model}{_COST}"]),
            response=response,
            tokens_source=ESTIMATED,
        )


def _blocks(path: Path) -> Iterator[pa.Table]:
    try:
        if path.suffix in (".pkl", ".pickle"):
            raise DataError(
                f"{path.name} is a pickle, which runs code when it is opened. If you trust it: python -c "
                f"\"import pandas; pandas.read_pickle('{path.name}').to_parquet('routerbench.parquet')\"."
            )
        if path.suffix in (".parquet", ".pq"):
            with pq.ParquetFile(path) as source:
                for batch in source.iter_batches(batch_size=_ROWS):
                    yield pa.Table.from_batches([batch])
            return
        options = pacsv.ParseOptions(newlines_in_values=True)
        for batch in pacsv.open_csv(path, parse_options=options):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"Cannot read {path.name}: {first_line(error)}.") from error


def _text(value: Any) -> str | None:
    """A cell's text; RouterBench writes it as a Python list of one text."""
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, str):
        return None
    if value[:2] in ("['", '["'):
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        if isinstance(parsed, list):
            return "\n".join(map(str, parsed))
    return value
