"""A corpus in slices: so many of its rows are planned at a time, the others with what has been learned since.

A slice is a run of table parts, or of few parts those of their rows whose ids hash into a range.
Which row lies in which slice depends on nothing but the table parts, so that a run that is taken up
again cuts the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtr_ray.policies.base import stable_hash
from rtr_ray.types import BoolArray

_MOST = 40  # slices of a corpus of middle size
_LEAST_ROWS = 100  # fewer rows would make parts of a handful
_MOST_ROWS = 50_000  # what one task reads, chooses for and writes


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows of some table parts."""

    number: int
    tables: tuple[str, ...]  # keys of table parts
    part: int = 0  # of the rows of these tables, those whose id hashes to `part` modulo `of`
    of: int = 1
    ids: str | None = None  # key of a list of ids: only these rows

    @property
    def name(self) -> str:
        """The same for the same slice of the same run."""
        return f"{self.number:06d}"

    def rows(self, query_ids: Sequence[str]) -> BoolArray:
        """(Q,) which rows of its tables are in the slice, `ids` not looked at."""
        if self.of == 1:
            return np.ones(len(query_ids), dtype=bool)
        # the low bits alone: the policies that break ties by a hash look at others
        found: BoolArray = np.fromiter(
            ((stable_hash(name) >> 8) % self.of == self.part for name in query_ids), bool, len(query_ids)
        )
        return found

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same slice from."""
        return {
            "number": self.number,
            "tables": list(self.tables),
            "part": self.part,
            "of": self.of,
            "ids": self.ids,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Slice:
        """The slice that `to_json` was taken from."""
        return cls(found["number"], tuple(found["tables"]), found["part"], found["of"], found["ids"])


def cut(tables: Mapping[str, int]) -> list[Slice]:
    """The slices of a corpus.

    Args:
        tables: Key -> rows of each table part.
    """
    keys, rows = sorted(tables), sum(tables.values())
    wanted = max(1, min(_MOST, rows // _LEAST_ROWS), -(-rows // _MOST_ROWS))
    size = -(-rows // wanted)
    batches: list[list[str]] = []
    filled = size
    for key in keys:
        if filled >= size or filled + tables[key] > _MOST_ROWS:
            batches.append([])
            filled = 0
        batches[-1].append(key)
        filled += tables[key]
    slices = []
    for batch in batches:
        pieces = max(1, round(sum(tables[key] for key in batch) / size))
        slices += [(tuple(batch), part, pieces) for part in range(pieces)]
    return [Slice(number, *one) for number, one in enumerate(slices)]
