"""What a query looks like: its length, its digits, its choices. What it means is the encoder's affair."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rtr_ray.types import FloatArray

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")
_SIGN = re.compile(r"\$|\\\\|\^|=")  # of mathematics
_CHOICE = re.compile(r"(?m)^\s*\(?[A-H][).:]")
_BLANK = re.compile(r"_{4}|\.\.\.")
_FURTHEST = 4.0  # standard deviations: one odd text is not further from all others than that

FEATURES = (
    "log_characters",
    "log_lines",
    "log_last_line",
    "log_median_line",
    "digits",
    "capitals",
    "signs",
    "numbers_per_word",
    "commas_per_word",
    "different_words",
    "word_length",
    "choices",
    "question_marks",
    "asks_which",
    "negates",
    "has_a_blank",
)


def features_of(texts: Sequence[str]) -> FloatArray:
    """(Q, F) the `FEATURES` of each text; shares lie in [0, 1], the rest are counts or logarithms."""
    return np.array([_features(text) for text in texts], dtype=np.float64).reshape(-1, len(FEATURES))


@lru_cache(maxsize=20_000)  # cross-validation asks for the same texts many times
def _features(text: str) -> tuple[float, ...]:
    size, lower = max(len(text), 1), text.lower()
    words, lines = _WORD.findall(text), text.split("\n")
    count = max(len(words), 1)
    return (
        float(np.log(size)),
        float(np.log1p(len(lines))),
        float(np.log1p(len(lines[-1]))),
        float(np.log1p(sorted(map(len, lines))[len(lines) // 2])),
        sum(map(str.isdigit, text)) / size,
        sum(map(str.isupper, text)) / size,
        len(_SIGN.findall(text)) / size,
        len(_NUMBER.findall(text)) / count,
        text.count(",") / count,
        len(set(words)) / count,
        sum(map(len, words)) / count,
        float(len(_CHOICE.findall(text))),
        float(text.count("?")),
        float("which" in lower),
        float(" not " in lower or "except" in lower),
        float(_BLANK.search(text) is not None),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Wording:
    """Features in units of their spread in training: rows of about unit length."""

    mean_F: FloatArray
    scale_F: FloatArray  # 1 / spread; 0 for a feature that never varied

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Wording:
        """Of the training queries."""
        features_MF = features_of(texts)
        spread_F = features_MF.std(axis=0)
        varies_F = spread_F > 1e-9
        return cls(features_MF.mean(axis=0), np.where(varies_F, 1 / np.where(varies_F, spread_F, 1), 0.0))

    def of(self, texts: Sequence[str]) -> FloatArray:
        """(Q, F) of any texts."""
        apart_QF = (features_of(texts) - self.mean_F) * self.scale_F
        clipped_QF: FloatArray = np.clip(apart_QF, -_FURTHEST, _FURTHEST) / np.sqrt(len(FEATURES))
        return clipped_QF
