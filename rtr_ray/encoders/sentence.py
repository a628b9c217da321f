"""Sentence-transformers models as encoders."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from rtr_ray.encoders.base import encode_unique
from rtr_ray.encoders.packed import CACHE_TOKENS, PackedEncoder, packed
from rtr_ray.errors import ConfigError
from rtr_ray.types import FloatArray


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """A frozen sentence-transformers model.

    Texts are sorted by token count and put into batches of about `batch_tokens` tokens, so that
    little is padded; identical texts are encoded once. Texts longer than the model's limit are
    cut there. On a processor, models of BERT's shape are computed without any padding (`packed`).
    """

    model: str = "sentence-transformers/all-mpnet-base-v2"  # hub id, folder, or package:NAME/folder
    dtype: str = "auto"  # float32, bfloat16, float16; auto: the fastest that the machine computes natively
    device: str = "auto"  # cpu, cuda; auto: cuda where there is one
    batch_tokens: int = 8192
    max_tokens: int | None = None  # cut texts earlier than the model would
    kind: ClassVar[str] = "sentence"
    _loaded: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)
    _whole: list[PackedEncoder | None] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16")),
            ("device", self.device.split(":")[0], ("auto", "cpu", "cuda")),
        ):
            if value not in known:
                raise ConfigError(f"encoder.{name} is '{value}'. Known: {', '.join(known)}.")
        if self.batch_tokens < 1:
            raise ConfigError(f"encoder.batch_tokens is {self.batch_tokens}; 1 is the least.")

    def __reduce__(self) -> Any:
        # the loaded model stays where it is: another process loads its own
        return type(self), (self.model, self.dtype, self.device, self.batch_tokens, self.max_tokens)

    @property
    def dim(self) -> int:
        """D, as the model says."""
        dim = self._model().get_embedding_dimension()
        assert isinstance(dim, int)
        return dim

    @property
    def identity(self) -> str:
        """The model's name and where texts are cut; precision and device change nothing that matters."""
        name = self.model if "/" in self.model and not self.model.startswith("/") else Path(self.model).name
        return f"sentence:{name}" + (f":{self.max_tokens}" if self.max_tokens else "")

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(Q, D) float32."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        return encode_unique(self._encode, texts)

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        model = self._model()
        rows_QD = np.empty((len(texts), self.dim), dtype=np.float32)
        encoded = model.tokenizer(
            list(texts), truncation=True, max_length=model.max_seq_length, padding=False
        )
        counts = [len(ids) for ids in encoded["input_ids"]]
        if (whole := self._packed()) is not None:
            for indices in batches(counts, min(self.batch_tokens, CACHE_TOKENS)):
                rows_QD[indices] = whole([encoded["input_ids"][i] for i in indices])
            return rows_QD
        with torch.inference_mode():
            for indices in batches(counts, self.batch_tokens):
                chosen = {key: [values[i] for i in indices] for key, values in encoded.items()}
                self._forward(model, model.tokenizer.pad(chosen, return_tensors="pt"), rows_QD, indices)
        return rows_QD

    def _forward(self, model: Any, features: Any, rows_QD: FloatArray, indices: list[int]) -> None:
        """One batch; in two halves where it does not fit into the device's memory."""
        try:
            moved = {key: value.to(model.device) for key, value in features.items()}
            rows_QD[indices] = model(moved)["sentence_embedding"].float().cpu().numpy()
            return
        except torch.OutOfMemoryError:
            if len(indices) == 1:
                raise
        half = len(indices) // 2  # out of the `except`: its traceback would keep the tensors
        for part in (slice(None, half), slice(half, None)):
            cut = {key: value[part] for key, value in features.items()}
            self._forward(model, cut, rows_QD, indices[part])

    def _model(self) -> Any:
        if not self._loaded:
            self._loaded.append(_load(self.model, _dtype(self.dtype, self.device), self.device))
            if self.max_tokens is not None:
                self._loaded[0].max_seq_length = min(self.max_tokens, self._loaded[0].max_seq_length)
        return self._loaded[0]

    def _packed(self) -> PackedEncoder | None:
        # a list of its own: threads that begin together load twice, and no more than that
        if not self._whole:
            self._whole.append(packed(self._model()))
        return self._whole[0]


def batches(counts: Sequence[int], most: int) -> Iterator[list[int]]:
    """Texts that are encoded at once: indices into `counts`, short ones first.

    Args:
        counts: Tokens of each text.
        most: Tokens of one batch when all are as long as its longest; a text that is longer is alone.
    """
    order = sorted(range(len(counts)), key=counts.__getitem__)
    start = 0
    while start < len(order):
        end, longest = start, 0
        while end < len(order):
            longest = max(longest, counts[order[end]])
            if longest * (end + 1 - start) > most and end > start:
                break
            end += 1
        yield order[start:end]
        start = end


def _load(model: str, dtype: torch.dtype, device: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            "The encoder kind 'sentence' needs the Python package sentence-transformers: "
            f"pip install 'rtr-ray[train]'. ({error})"
        ) from error
    where = package_folder(model) if model.startswith("package:") else model
    given: dict[str, Any] = {
        "device": None if device == "auto" else device,
        "model_kwargs": {"dtype": dtype},
    }
    try:
        with _quiet():
            try:
                # what is here already is not asked for at the hub, which may be out of reach
                loaded = SentenceTransformer(where, local_files_only=True, **given)
            except OSError:
                if Path(where).is_dir():
                    raise
                loaded = SentenceTransformer(where, **given)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The encoder '{model}' cannot be loaded. Give a folder, or a hub id that this machine can reach "
            f"or has in its cache. ({type(error).__name__})"
        ) from error
    return loaded.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar while weights are loaded: rtr-ray's own screen says how far a run is."""
    import transformers

    switch: Any = transformers.utils.logging
    shown = switch.is_progress_bar_enabled()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            switch.enable_progress_bar()


def package_folder(model: str) -> str:
    """The folder that `package:NAME/folder` names: weights that came as a Python package.

    Raises:
        ConfigError: If the package is not installed or has no such folder.
    """
    name, _, folder = model.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"The encoder '{model}' needs the Python package {name.replace('_', '-')}: pip install it."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not path.is_dir():
        raise ConfigError(f"The Python package {name} has no folder '{folder}' (encoder '{model}').")
    return str(path)


def _dtype(name: str, device: str) -> torch.dtype:
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32
