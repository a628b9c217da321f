"""The words of a text, each as telling as it is rare."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rtr_ray.types import FloatArray

_WORD = re.compile(r"\w\w+")


@lru_cache(maxsize=20_000)  # cross-validation asks for the same texts many times
def _counted(text: str) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(_WORD.findall(text.lower())).items())


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """TF-IDF: a word weighs its count times log((1 + M) / (1 + training queries that have it)) + 1."""

    known: tuple[str, ...]  # V
    rarity_V: FloatArray
    damped: bool = (
        False  # 1 + the logarithm of a count, so that a word said ten times does not drown the rest
    )

    @classmethod
    def fit(cls, texts: Sequence[str], most: int, damped: bool = False) -> Words:
        """Of the training queries.

        Args:
            texts: M queries.
            most: So many of the most frequent words are looked at.
            damped: Whether counts are.
        """
        has_word = Counter(word for text in texts for word, _ in _counted(text))
        common = sorted(has_word, key=lambda word: (-has_word[word], word))[:most] or [""]
        rarity_V = np.array([np.log((1 + len(texts)) / (1 + has_word[word])) + 1 for word in common])
        return cls(tuple(common), rarity_V, damped)

    def vectors(self, texts: Sequence[str]) -> Any:
        """(Q, V), sparse, rows of length 1; a text without a known word is zero."""
        from scipy.sparse import csr_matrix

        place = {word: v for v, word in enumerate(self.known)}
        rows: list[Any] = []
        columns: list[Any] = []
        values: list[Any] = []
        for row, text in enumerate(texts):
            counted = [(place[word], times) for word, times in _counted(text) if word in place]
            if counted:
                column_N, times_N = (np.array(one) for one in zip(*counted, strict=True))
                weight_N = (1 + np.log(times_N) if self.damped else times_N) * self.rarity_V[column_N]
                rows.append(np.full(len(column_N), row))
                columns.append(column_N)
                values.append(weight_N / np.linalg.norm(weight_N))
        shape = (len(texts), len(self.known))
        if not rows:
            return csr_matrix(shape, dtype=np.float32)
        cells = tuple(np.concatenate(one) for one in (rows, columns))
        return csr_matrix((np.concatenate(values).astype(np.float32), cells), shape=shape)
