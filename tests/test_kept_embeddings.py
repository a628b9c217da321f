"""Embeddings that are kept: the same numbers, encoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray.encoders.base import Encoder
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.encoders.kept import KeptEncoder
from tests.fakes import LookupEncoder

TABLE = {"a": (1.0, 0.5), "b": (0.0, 2.0), "ab": (3.0, 3.0), "": (0.0, 0.0)}


@pytest.fixture
def inner() -> LookupEncoder:
    return LookupEncoder(TABLE)


def test_texts_that_were_encoded_before_are_not_encoded_again(tmp_path: Path, inner: LookupEncoder) -> None:
    first = KeptEncoder(inner, str(tmp_path)).encode(["a", "b", "a"])
    again = KeptEncoder(inner, str(tmp_path)).encode(["a", "b", "a"])
    assert inner.calls == [("a", "b", "a")]
    assert again.dtype == np.float32
    assert np.array_equal(first, again)


def test_other_texts_another_order_and_another_encoder_are_encoded(
    tmp_path: Path, inner: LookupEncoder
) -> None:
    kept = KeptEncoder(inner, str(tmp_path))
    for texts in (["a", "b"], ["b", "a"], ["ab", ""], ["", "ab"], ["a"]):  # "ab" and "" are not "a" and "b"
        assert np.array_equal(kept.encode(texts), np.array([TABLE[text] for text in texts], np.float32))
    assert len(inner.calls) == 5
    other = LookupEncoder({name: (9.0, 9.0) for name in TABLE}, name="other")
    assert KeptEncoder(other, str(tmp_path)).encode(["a"]).tolist() == [[9.0, 9.0]]


def test_what_is_damaged_is_encoded_again_and_mended(tmp_path: Path, inner: LookupEncoder) -> None:
    kept = KeptEncoder(inner, str(tmp_path))
    kept.encode(["a", "b"])
    (path,) = tmp_path.rglob("*.parquet")
    for damage in (b"", b"PAR1", path.read_bytes()[:-9]):
        path.write_bytes(damage)
        assert kept.encode(["a", "b"]).tolist() == [list(TABLE["a"]), list(TABLE["b"])]
    assert len(inner.calls) == 4
    kept.encode(["a", "b"])
    assert len(inner.calls) == 4


def test_no_text_leaves_nothing(tmp_path: Path) -> None:
    assert KeptEncoder(HashEncoder(8), str(tmp_path)).encode([]).shape == (0, 8)
    assert not list(tmp_path.iterdir())


def test_it_is_an_encoder_that_is_known_as_the_one_behind_it(tmp_path: Path) -> None:
    kept = KeptEncoder(HashEncoder(8), str(tmp_path))
    assert isinstance(kept, Encoder)
    assert (kept.identity, kept.dim) == ("hash:8", 8)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6))
def test_whatever_the_texts_the_numbers_are_those_of_the_encoder(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    kept = KeptEncoder(HashEncoder(8), str(tmp_path_factory.getbasetemp() / "kept"))
    kept.encode(texts)
    assert np.array_equal(kept.encode(texts), HashEncoder(8).encode(texts))
