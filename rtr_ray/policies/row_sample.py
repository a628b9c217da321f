"""Some rows of all tables, drawn by the hash of their ids: a sketch that keeps rows instead of counting them.

Those with the lowest hashes are kept, so that samples merge in any order, and that of all tables is
a random one (bottom-k sampling).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rtr_ray.errors import DataError
from rtr_ray.policies.hull import id_hash, mix
from rtr_ray.types import BoolArray, FloatArray, RoutingTable

ROWS = 8192
_SALT = np.uint64(
    0x5A3C_19E7_0B8D_42F1
)  # the rows that are drawn have nothing to do with other uses of the hash
_NAMES = ("accuracy", "cost_usd", "output_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class RowSample:
    """N rows that have a candidate, out of `routed`."""

    rows: int  # of all tables
    routed: int  # of these, that have a candidate
    candidates: tuple[str, ...]  # C
    hash: npt.NDArray[np.uint64]  # (N,) rising
    accuracy: FloatArray  # (N, C)
    cost_usd: FloatArray  # (N, C)
    output_tokens: FloatArray  # (N, C)
    allowed: BoolArray  # (N, C)

    @classmethod
    def of(cls, table: RoutingTable, allowed_QC: BoolArray) -> RowSample:
        """The sample of one table."""
        finite_QC = allowed_QC & np.isfinite(table.cost_usd + table.accuracy + table.output_tokens)
        routed_Q = finite_QC.any(axis=1)
        hash_Q = mix(id_hash(table.query_ids) ^ _SALT) if len(routed_Q) else np.zeros(0, np.uint64)
        order = np.argsort(hash_Q, kind="stable")
        kept = order[routed_Q[order]][:ROWS]
        return cls(
            len(routed_Q),
            int(routed_Q.sum()),
            tuple(map(str, table.candidates)),
            hash_Q[kept],
            **{name: np.asarray(getattr(table, name), np.float32)[kept] for name in _NAMES},
            allowed=finite_QC[kept],
        )

    def __add__(self, other: RowSample) -> RowSample:
        """The sample of both.

        Raises:
            DataError: If their candidates differ.
        """
        if self.candidates != other.candidates:
            raise DataError(
                f"Samples of {', '.join(self.candidates)} and of {', '.join(other.candidates)} cannot be "
                "added up. Start the run anew (--fresh)."
            )
        arrays = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("hash", *_NAMES, "allowed")
        }
        # equal ids have equal hashes: what they predict decides, so that the order of merging does not
        order = np.lexsort((arrays["cost_usd"].sum(axis=1), arrays["accuracy"].sum(axis=1), arrays["hash"]))
        kept = {name: array[order[:ROWS]] for name, array in arrays.items()}
        return RowSample(
            self.rows + other.rows, self.routed + other.routed, candidates=self.candidates, **kept
        )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same from."""
        return {
            "rows": self.rows,
            "routed": self.routed,
            "candidates": list(self.candidates),
            "hash": _packed(self.hash),
            **{name: _packed(getattr(self, name)) for name in _NAMES},
            "allowed": _packed(self.allowed),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> RowSample:
        """The sample that `to_json` was taken from."""
        names: Sequence[str] = found["candidates"]
        width = len(names)
        return cls(
            found["rows"],
            found["routed"],
            tuple(names),
            _unpacked(found["hash"], np.uint64),
            **{name: _unpacked(found[name], np.float32).reshape(-1, width) for name in _NAMES},
            allowed=_unpacked(found["allowed"], np.bool_).reshape(-1, width),
        )


def _packed(array: npt.NDArray[Any]) -> str:
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.dtype.itemsize)
    return base64.b85encode(zlib.compress(raw.T.tobytes(), 3)).decode()  # like bytes side by side


def _unpacked(text: str, dtype: Any) -> npt.NDArray[Any]:
    size = np.dtype(dtype).itemsize
    raw = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
    array: npt.NDArray[Any] = raw.reshape(size, -1).T.copy().view(dtype).reshape(-1)
    return array
