"""What an encoder is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from rtr_ray.types import FloatArray


@runtime_checkable
class Encoder(Protocol):
    """Texts in, one embedding each out. A frozen dataclass; its fields are its configuration."""

    kind: ClassVar[str]

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        ...

    @property
    def identity(self) -> str:
        """What tells this encoder's embeddings from those of every other; not where it runs."""
        ...

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) float32, one row per text; a pure function of each text."""
        ...


def encode_unique(encode: Callable[[Sequence[str]], FloatArray], texts: Sequence[str]) -> FloatArray:
    """Encode identical texts once.

    Args:
        encode: Gives one row per text; called with different texts only.
        texts: Q texts, in any order, with repetitions.
    """
    first: dict[str, int] = {}
    index_Q = np.array([first.setdefault(text, len(first)) for text in texts], dtype=np.intp)
    unique_UD = encode(list(first))
    return unique_UD if len(first) == len(texts) else unique_UD[index_Q]
