"""Parts of a router for simulations: an encoder that remembers, and an estimator that is wrong on purpose."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.estimators.base import FittedEstimator, State
from rtr_ray.estimators.knn import FittedKNN
from rtr_ray.types import Candidate, Estimate, FloatArray


@dataclass(frozen=True, slots=True)
class Remembering:
    """A bag of hashed words of all but the first line, which tells the rows of one question apart."""

    dim: int = 256
    _known: dict[str, FloatArray] = field(default_factory=dict, init=False, compare=False, repr=False)
    kind: ClassVar[str] = "remembering"

    @property
    def identity(self) -> str:
        """The name and the number of dimensions."""
        return f"remembering:{self.dim}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) float32; a question that was seen before takes no time."""
        questions = [text.partition("\n")[2] or text for text in texts]
        new = sorted({question for question in questions if question not in self._known})
        self._known.update(zip(new, HashEncoder(self.dim).encode(new), strict=True))
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.stack([self._known[question] for question in questions])


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """Neighbours whose token predictions are multiplied by a factor for each candidate."""

    candidates: tuple[Candidate, ...]
    inner: FittedKNN
    factor_C: FloatArray
    kind: ClassVar[str] = "scaled"

    @classmethod
    def of(cls, inner: FittedEstimator, factors: dict[Candidate, float]) -> Scaled:
        """With a factor for some candidates; 1 for the others."""
        assert isinstance(inner, FittedKNN)
        factor_C = np.array([factors.get(c, 1.0) for c in inner.candidates], dtype=np.float32)
        return cls(inner.candidates, inner, factor_C)

    def predict(self, embeddings_QD: FloatArray) -> Estimate:
        """The same accuracies, other lengths."""
        found = self.inner.predict(embeddings_QD)
        return Estimate(
            found.accuracy, found.output_tokens * self.factor_C, found.output_tokens_p95 * self.factor_C
        )

    def state(self) -> State:
        """That of the neighbours, and the factors."""
        inner = self.inner.state()
        return State({**inner.arrays, "factor_C": self.factor_C}, inner.values)

    @classmethod
    def from_state(cls, candidates: tuple[Candidate, ...], state: State) -> Scaled:
        """The estimator that `state` was taken from."""
        arrays = dict(state.arrays)
        factor_C = arrays.pop("factor_C")
        return cls(candidates, FittedKNN.from_state(candidates, State(arrays, state.values)), factor_C)


@dataclass(frozen=True, slots=True)
class Kept:
    """Embeddings that somebody has computed before: a text names a row of a table, by its checksum."""

    dim: int = 384
    rows: int = 4096
    _table: list[FloatArray] = field(default_factory=list, init=False, compare=False, repr=False)
    kind: ClassVar[str] = "kept"

    @property
    def identity(self) -> str:
        """The name and the shape of the table."""
        return f"kept:{self.rows}x{self.dim}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) float32."""
        if not self._table:
            drawn = np.random.default_rng(7).standard_normal((self.rows, self.dim), np.float32)
            self._table.append(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
        index_Q = np.fromiter((zlib.crc32(text.encode()) % self.rows for text in texts), np.intp, len(texts))
        return self._table[0][index_Q]
