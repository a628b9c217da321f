"""From rows of somebody else's form to a table of outcomes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from rtr_ray.errors import DataError
from rtr_ray.outcomes import checked
from rtr_ray.schemas import OUTCOMES, stamped

BYTES_PER_TOKEN = 4
COUNTED, ESTIMATED = "counted", "4 bytes a token"
SCHEMA = OUTCOMES.append(pa.field("tokens_source", pa.string()))
_QUANTUM = Decimal("0.000000000001")
_BATCH = 20_000  # rows that are held as Python objects


@dataclass(frozen=True, slots=True)
class Row:
    """One answer of one model to one query."""

    query_id: str
    query: str
    model: str
    correct: float | None  # 0 to 1; None: not graded
    strategy: str = "vanilla"
    dataset: str | None = None
    output_tokens: int | None = None
    input_tokens: int | None = None
    cost_usd: Decimal | None = None
    answer: str | None = None
    gold: str | None = None
    response: str | None = None
    tokens_source: str = COUNTED


class Importer(Protocol):
    """How one form is read: a frozen dataclass whose fields are its settings."""

    def rows(self, path: Path) -> Iterator[Row]:
        """The rows of one file, one after the other.

        Raises:
            DataError: If the file is not of this form; what was found is said.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A table of outcomes, and what must be said of it."""

    table: pa.Table  # of SCHEMA
    queries: int
    candidates: int
    estimated: int  # rows whose tokens nobody counted
    unpriced: int  # rows without dollars


def imported(importer: Importer, paths: Sequence[Path]) -> Imported:
    """Read files of one form into one table. A cell that comes again is another sample of it.

    Raises:
        DataError: If a file is not of this form, values are impossible, or there is nothing in them.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    batches: list[pa.Table] = []
    held: list[dict[str, Any]] = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"There is no file {path}. Give the files of the results, not their folder.")
        for row in importer.rows(path):
            cell = row.query_id, row.model, row.strategy
            held.append({**asdict(row), "samples": 1, "sample": seen[cell]})
            seen[cell] += 1
            if len(held) >= _BATCH:
                batches.append(pa.Table.from_pylist(held, SCHEMA))
                held = []
    batches.append(pa.Table.from_pylist(held, SCHEMA))
    table = checked(pa.concat_tables(batches), ", ".join(path.name for path in paths[:3]))
    if not len(table):
        raise DataError(f"The {len(paths)} file(s) hold no result.")
    queries = {cell[0] for cell in seen}
    return Imported(
        stamped(table),
        len(queries),
        len({cell[1:] for cell in seen}),
        sum(source != COUNTED for source in table["tokens_source"].to_pylist()),
        table["cost_usd"].null_count,
    )


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, where nobody has counted them; at least one."""
    return max(math.ceil(len(text.encode(errors="replace")) / BYTES_PER_TOKEN), 1)


def dollars(value: Any) -> Decimal | None:
    """An amount of somebody's file, as exact as our tables are; None where it is none."""
    if value is None or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return Decimal(str(value)).quantize(_QUANTUM)


def grade(value: Any, where: str) -> float | None:
    """A grade as a number; None where it is none.

    Raises:
        DataError: If it is neither.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, bool | int | float):
        raise DataError(f"{where}: a grade is '{str(value)[:40]}'; a number from 0 to 1 is needed.")
    return float(value)


def needed(found: Mapping[str, Any] | Iterable[str], names: Sequence[str], where: str, form: str) -> None:
    """Refuse what lacks fields.

    Raises:
        DataError: Naming them.
    """
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}: it is not of the form {form}.")
