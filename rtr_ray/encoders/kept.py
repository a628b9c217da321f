"""Embeddings that are kept in a folder, so that the same texts are encoded once and for all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rtr_ray.encoders.base import Encoder
from rtr_ray.storage import open_store, write_table
from rtr_ray.types import FloatArray

_EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class KeptEncoder:
    """Another encoder, asked only for texts that have no embeddings in a folder yet.

    What is encoded together lies in one Parquet object, named by a hash of the texts in their order; so
    nothing in it can be out of date, several runs share a folder, and it may be emptied at any time.
    Where everything is there, the other encoder never loads its model.
    """

    encoder: Encoder
    folder: str  # local or s3://
    kind: ClassVar[str] = "kept"

    @property
    def dim(self) -> int:
        """That of the other encoder."""
        return self.encoder.dim

    @property
    def identity(self) -> str:
        """That of the other encoder: the embeddings are the same."""
        return self.encoder.identity

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) float32, as the other encoder gave it or gives it now."""
        if not texts:
            return self.encoder.encode(texts)
        store, key = open_store(self.folder), self._key(texts)
        found_QD = _read(store.read(key), len(texts))
        if found_QD is None:
            found_QD = self.encoder.encode(texts)
            flat = pa.array(np.ascontiguousarray(found_QD, dtype=np.float32).reshape(-1))
            rows = pa.FixedSizeListArray.from_arrays(flat, found_QD.shape[1])
            write_table(store, key, pa.table({_EMBEDDING: rows}))
        return found_QD

    def _key(self, texts: Sequence[str]) -> str:
        digest = hashlib.blake2b(digest_size=20)
        for text in texts:
            data = text.encode(errors="surrogatepass")
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        whose = hashlib.blake2b(self.identity.encode(), digest_size=8).hexdigest()
        return f"{whose}/{digest.hexdigest()}.parquet"


def _read(data: bytes | None, rows: int) -> FloatArray | None:
    """The embeddings of an object; None where there is none, or it is damaged: then it is made anew."""
    if data is None:
        return None
    try:
        column: Any = pq.read_table(pa.BufferReader(data))[_EMBEDDING].combine_chunks()
        found_QD: FloatArray = column.flatten().to_numpy(zero_copy_only=False).reshape(rows, -1)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    return found_QD
