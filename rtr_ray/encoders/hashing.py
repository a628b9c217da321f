"""A bag of hashed words: no model, no download; for tests, and a floor for the others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rtr_ray.errors import ConfigError
from rtr_ray.types import FloatArray

_WORD = re.compile(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]")


@dataclass(frozen=True, slots=True)
class HashEncoder:
    """Each word adds a signed one to the dimension that its hash names; rows have length 1."""

    dim: int = 256
    kind: ClassVar[str] = "hash"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"encoder.dim is {self.dim}; 1 is the least.")

    @property
    def identity(self) -> str:
        """The name and the number of dimensions."""
        return f"hash:{self.dim}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) float32; a text without words is all zeros."""
        rows_QD = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()):
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                value = int.from_bytes(digest, "big")
                rows_QD[row, value % self.dim] += 1.0 if value >> 63 else -1.0
        norm_Q = np.linalg.norm(rows_QD, axis=1, keepdims=True)
        unit_QD: FloatArray = rows_QD / np.where(norm_Q == 0, 1, norm_Q)
        return unit_QD
