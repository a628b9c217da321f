"""Encoders of BERT's shape computed without padding, on a processor: the same function in fewer steps.

Texts lie one behind the other in one (tokens, width) matrix, so that a short text costs what a short text
costs. Query, key and value are one product; a bias and GELU are applied where the product leaves its results.
A model of another shape, or one for which something else comes out, is left to its own code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional

from rtr_ray.types import FloatArray

CACHE_TOKENS = 1024  # of one pass: what is between two layers stays in a core's cache
_LEAST_COSINE = 0.9995  # to the model's own code, on the texts below
_PROBES = ("", "What is 2 + 2?", "A train leaves at noon and a second one an hour later. " * 9)
_SHAPES = ("BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel")

_Weights = tuple[torch.Tensor, torch.Tensor]  # (out, in) or (width,), and a bias
_Run = tuple[int, int]  # tokens of a text, texts of that length beside each other


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Weights
    out: _Weights
    out_norm: _Weights
    inner: _Weights
    outer: _Weights
    outer_norm: _Weights


class PackedEncoder:
    """The embeddings of a sentence-transformers model, from its weights.

    Args:
        model: Of a shape that `packed` knows.
    """

    def __init__(self, model: Any) -> None:
        body = model[0].auto_model
        config, embeddings = body.config, body.embeddings
        # BERT counts places from 0, the others behind the padding's number
        first = 0 if type(body).__name__ == "BertModel" else config.pad_token_id + 1
        places = embeddings.position_embeddings.weight[first:]
        if hasattr(embeddings, "token_type_embeddings"):
            places = places + embeddings.token_type_embeddings.weight[0]  # a text is one sequence
        self._words, self._places_LD, self._norm = (
            embeddings.word_embeddings.weight,
            places,
            _both(embeddings.LayerNorm),
        )
        self._heads, self._eps = config.num_attention_heads, config.layer_norm_eps
        self._layers = [_layer(one) for one in body.encoder.layer]
        self._bias_HLL: torch.Tensor | None = None  # added to attention scores
        if hasattr(body.encoder, "compute_position_bias"):
            longest = min(len(places), model.max_seq_length or len(places))
            with torch.inference_mode():
                self._bias_HLL = body.encoder.compute_position_bias(torch.empty(1, longest, 1))[0]
        self._mean = model[1].pooling_mode == "mean"
        self._normalised = len(model) == 3

    def __call__(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """(Q, D) float32 of texts given as token ids, special tokens among them.

        Least work where texts of one length lie beside each other, `CACHE_TOKENS` at a time.
        """
        counts = [len(one) for one in ids]
        runs = [(count, len(list(some))) for count, some in groupby(counts)]
        with torch.inference_mode():
            places_TD = torch.cat([self._places_LD[:count] for count in counts])
            words_TD = functional.embedding(
                torch.tensor([token for one in ids for token in one]), self._words
            )
            x_TD = self._normed(words_TD + places_TD, self._norm)
            for layer in self._layers:
                attended_TD = self._attention(_linear(x_TD, layer.qkv), runs)
                x_TD = self._normed(x_TD + _linear(attended_TD, layer.out), layer.out_norm)
                inner_TI = _linear(x_TD, layer.inner, "gelu")
                x_TD = self._normed(x_TD + _linear(inner_TI, layer.outer), layer.outer_norm)
            pooled_QD = torch.cat([self._pooled(part, run) for part, run in _split(x_TD, runs)])
            if self._normalised:
                pooled_QD = functional.normalize(pooled_QD, dim=1)
            rows: FloatArray = pooled_QD.numpy()
        return rows

    def _attention(self, qkv_TX: torch.Tensor, runs: Sequence[_Run]) -> torch.Tensor:
        """(T, D): each text attends to itself, texts of one length at once."""
        width = qkv_TX.shape[1] // 3
        found = []
        for part, (count, texts) in _split(qkv_TX, runs):
            each = part.view(texts, count, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
            bias = None if self._bias_HLL is None else self._bias_HLL[None, :, :count, :count]
            heads = functional.scaled_dot_product_attention(each[0], each[1], each[2], attn_mask=bias)
            found.append(heads.transpose(1, 2).reshape(texts * count, width))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _normed(self, x_TD: torch.Tensor, norm: _Weights) -> torch.Tensor:
        return functional.layer_norm(x_TD, (x_TD.shape[1],), *norm, self._eps)

    def _pooled(self, x_TD: torch.Tensor, run: _Run) -> torch.Tensor:
        count, texts = run
        each = x_TD.view(texts, count, -1).float()
        return each.mean(dim=1) if self._mean else each[:, 0]


def packed(model: Any) -> PackedEncoder | None:
    """A sentence-transformers model's function without padding, where it is of a known shape.

    Returns:
        None where the model's own code is to be used: another shape, another device, a precision that the
        processor has no fused product for, or results that differ from the model's own on a few texts.
    """
    if model.device.type != "cpu" or not _known(model):
        return None
    made = PackedEncoder(model)
    given = model.tokenizer(list(_PROBES), truncation=True, max_length=model.max_seq_length)["input_ids"]
    if any(len(ids) == 0 for ids in given):
        return None
    try:
        found_QD = torch.from_numpy(made(given))
    except RuntimeError:
        return None
    with torch.inference_mode():
        for ids, row_D in zip(given, found_QD, strict=True):
            features = {
                "input_ids": torch.tensor([ids]),
                "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
            }
            wanted_D = model(features)["sentence_embedding"][0].float()
            alike = functional.cosine_similarity(wanted_D, row_D, dim=0).item()
            ratio = (row_D.norm() / wanted_D.norm()).item()
            if not (alike >= _LEAST_COSINE and math.isclose(ratio, 1, rel_tol=0.01)):
                return None
    return made


def _known(model: Any) -> bool:
    names = [type(one).__name__ for one in model]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return False
    body = model[0].auto_model
    config = body.config
    return (
        type(body).__name__ in _SHAPES
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and model[1].pooling_mode in ("mean", "cls")
    )


def _both(one: Any) -> _Weights:
    return one.weight, one.bias


def _layer(one: Any) -> _Layer:
    attention = one.attention
    if hasattr(attention, "attn"):  # MPNet
        three = attention.attn.q, attention.attn.k, attention.attn.v
        out, out_norm = attention.attn.o, attention.LayerNorm
    else:
        three = attention.self.query, attention.self.key, attention.self.value
        out, out_norm = attention.output.dense, attention.output.LayerNorm
    with torch.inference_mode():
        qkv = torch.cat([part.weight for part in three]), torch.cat([part.bias for part in three])
    inner, outer = one.intermediate.dense, one.output.dense
    return _Layer(qkv, _both(out), _both(out_norm), _both(inner), _both(outer), _both(one.output.LayerNorm))


def _split(x_TD: torch.Tensor, runs: Sequence[_Run]) -> list[tuple[torch.Tensor, _Run]]:
    """The rows of each run."""
    parts = torch.split(x_TD, [count * texts for count, texts in runs])
    return list(zip(parts, runs, strict=True))


def _linear(x_TD: torch.Tensor, weights: _Weights, then: str = "none") -> torch.Tensor:
    """x W' + b, then GELU where it is asked for."""
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # what torch.compile makes of a product and what follows it; elementwise steps of their own cost as
        # much as the product where it runs at bfloat16's rate
        fused: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, *weights, then, [], "none")
        return fused
    plain = functional.linear(x_TD, *weights)
    return functional.gelu(plain) if then == "gelu" else plain
