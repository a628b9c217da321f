"""The words of a text, each as telling as it is rare."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtr_ray.types import FloatArray

_WORD = re.compile(r"\w\w+")


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
        has_word = Counter(word for text in texts for word in set(_WORD.findall(text.lower())))
        common = sorted(has_word, key=lambda word: (-has_word[word], word))[:most] or [""]
        rarity_V = np.array([np.log((1 + len(texts)) / (1 + has_word[word])) + 1 for word in common])
        return cls(tuple(common), rarity_V, damped)

    def vectors(self, texts: Sequence[str]) -> Any:
        """(Q, V), sparse, rows of length 1; a text without a known word is zero."""
        from scipy.sparse import csr_matrix

        place = {word: v for v, word in enumerate(self.known)}
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counted = Counter(place[word] for word in _WORD.findall(text.lower()) if word in place)
            weight_N = np.array([self._count(n) * self.rarity_V[v] for v, n in counted.items()])
            rows += [row] * len(counted)
            columns += list(counted)
            values += list(weight_N / np.linalg.norm(weight_N)) if counted else []
        shape = (len(texts), len(self.known))
        return csr_matrix((np.array(values, dtype=np.float32), (rows, columns)), shape=shape)

    def _count(self, times: int) -> float:
        return 1 + float(np.log(times)) if self.damped else float(times)
