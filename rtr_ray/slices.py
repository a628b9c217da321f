"""A corpus in slices: so many of its rows are planned at a time, the others with what has been learned since.

A slice is a run of table parts, or of few parts those of their rows whose ids hash into a range. The
first one is a pilot: some rows from all over the corpus, by a hash of their ids, for which an answer
tells most about the others.
Which row lies in which slice depends on nothing but the table parts, so that a run that is taken up
again cuts the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rtr_ray.policies.base import stable_hash
from rtr_ray.types import BoolArray, IntArray

_MOST = 40  # slices of a corpus of middle size
_LEAST_ROWS = 100  # fewer rows would make parts of a handful
_MOST_ROWS = 50_000  # what one task reads, chooses for and writes
_PILOT_ROWS = 50
_PILOT_SHARE = 1 / 10  # of a corpus at most
_PILOT_CORPUS = 200  # a smaller one has none
_PILOT_TABLES = 16  # that the rows of a pilot come from at most
_HASHES = 1 << 24


@dataclass(frozen=True, slots=True)
class Slice:
    """Some rows of some table parts."""

    number: int
    tables: tuple[str, ...]  # keys of table parts
    part: int = 0  # of the rows of these tables, those whose id hashes to `part` modulo `of`
    of: int = 1
    pilot: int = 0  # rows whose hash lies below are the pilot's
    is_pilot: bool = False
    ids: str | None = None  # key of a list of ids: these rows and no others

    @property
    def name(self) -> str:
        """The same for the same slice of the same run."""
        return f"{self.number:06d}"

    def rows(self, query_ids: Sequence[str]) -> BoolArray:
        """(Q,) which rows of its tables are in the slice, `ids` not looked at."""
        if self.of == 1 and not self.pilot:
            return np.ones(len(query_ids), dtype=bool)
        hash_Q = np.fromiter(map(stable_hash, query_ids), np.uint64, len(query_ids))
        is_pilot_Q = (hash_Q >> np.uint64(40)) < self.pilot
        found: BoolArray = is_pilot_Q if self.is_pilot else ~is_pilot_Q & self._mine(hash_Q)
        return found

    def _mine(self, hash_Q: IntArray) -> BoolArray:
        mine_Q: BoolArray = (hash_Q & np.uint64(0xFFFFFFFFFF)) % np.uint64(self.of) == self.part
        return mine_Q

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same slice from."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Slice:
        """The slice that `to_json` was taken from."""
        return cls(**dict(found) | {"tables": tuple(found["tables"])})


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
    # whole batches, of which each may be as good as another: keys are hashes, in no order of the corpus
    tried = next(
        (n for n in range(1, len(batches)) if sum(map(len, batches[:n])) >= _PILOT_TABLES), len(batches)
    )
    asked = [key for batch in batches[:tried] for key in batch]
    share = (
        min(_PILOT_ROWS / sum(tables[key] for key in asked), _PILOT_SHARE) if rows >= _PILOT_CORPUS else 0.0
    )
    pilot = round(_HASHES * share)
    slices = [Slice(0, tuple(asked), pilot=pilot, is_pilot=True)] if pilot else []
    for number, batch in enumerate(batches):
        pieces = max(1, round(sum(tables[key] for key in batch) / size))
        taken = pilot if number < tried else 0
        slices += [Slice(0, tuple(batch), part, pieces, pilot=taken) for part in range(pieces)]
    return [replace(one, number=number) for number, one in enumerate(slices)]
