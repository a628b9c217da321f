"""A router: an encoder and a fitted estimator over a pool. Queries in, routing tables out.

A router folder holds `router.json` (the encoder, the candidates and how they behaved when their
outcomes were recorded, figures from training) and `estimator.safetensors`; where it was trained by
`rtr-ray train`, also `held_out.safetensors` and `held_out.json`, from which plans are forecast, and
`profiles.safetensors`, the embedded profile texts that new candidates are compared with. No pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from rtr_ray import registry
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import RouterError, RtrError
from rtr_ray.estimators import FITTED, KNOWN
from rtr_ray.estimators.base import (
    Estimator,
    Extendable,
    FittedEstimator,
    Profiles,
    State,
    columns_of,
    predicted,
    related,
)
from rtr_ray.estimators.extended import by_profile
from rtr_ray.familiarity import Caution, Familiarity, Guard, usual_of
from rtr_ray.held_out import HeldOut
from rtr_ray.plainly import plainly
from rtr_ray.pool import Pool, fingerprint, priced_table
from rtr_ray.storage import open_store
from rtr_ray.types import Candidate, FloatArray, Outcomes, RoutingTable

SCHEMA_VERSION = 1
_LEAST_TOKENS_PER_BYTE = 0.1
_USUAL_QUERIES = 256  # that tell what candidates are like on average
_TYPICAL_TOKENS_PER_BYTE = 0.3  # English in most tokenizers; only where nothing was recorded


@dataclass(frozen=True, slots=True)
class InputTokens:
    """How many prompt tokens a query makes: overhead + per_byte * (its length in UTF-8).

    Works for tokenizers that nobody has at hand, such as those behind an endpoint.
    """

    overhead: Mapping[str, float]  # candidate -> tokens of template and instruction
    per_byte: Mapping[str, float]

    @classmethod
    def fit(cls, outcomes: Outcomes) -> InputTokens:
        """Least squares per candidate over the recorded prompt tokens."""
        size_M = np.array([len(query.encode()) for query in outcomes.queries], dtype=np.float64)
        overhead, per_byte = {}, {}
        for column, candidate in enumerate(outcomes.candidates):
            tokens_M = outcomes.input_tokens[:, column]
            seen_M = ~np.isnan(tokens_M)
            if not seen_M.any():
                continue
            x, y = size_M[seen_M], tokens_M[seen_M]
            varies = x.std() > 0
            slope = float(np.cov(x, y, bias=True)[0, 1] / x.var()) if varies else _TYPICAL_TOKENS_PER_BYTE
            # at most a token a byte; and queries that hardly vary in length must not teach that long
            # ones cost nothing
            slope = min(max(slope, _LEAST_TOKENS_PER_BYTE), 1.0)
            overhead[str(candidate)] = float(y.mean() - slope * x.mean())
            per_byte[str(candidate)] = slope
        return cls(overhead, per_byte)

    def predict(self, candidates: Sequence[Candidate], size_Q: FloatArray) -> FloatArray:
        """(Q, C) prompt tokens of queries with these lengths in bytes."""

        def of(values: Mapping[str, float], default: float) -> FloatArray:
            typical = float(np.median(list(values.values()))) if values else default
            return np.array([values.get(str(c), typical) for c in candidates])

        overhead_C, per_byte_C = of(self.overhead, 30.0), of(self.per_byte, _TYPICAL_TOKENS_PER_BYTE)
        tokens_QC: FloatArray = np.maximum(overhead_C + size_Q[:, None] * per_byte_C, 1.0)
        return tokens_QC


@dataclass(frozen=True, slots=True)
class Plain:
    """An encoder that reads texts plainly."""

    inner: Encoder
    kind: ClassVar[str] = "plain"

    @property
    def dim(self) -> int:
        """As the encoder within."""
        return self.inner.dim

    @property
    def identity(self) -> str:
        """Another one than that of the encoder within: embeddings of some texts differ."""
        return f"plain:{self.inner.identity}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """What the encoder within makes of the plain texts."""
        return self.inner.encode([plainly(text) for text in texts])


@dataclass(frozen=True, eq=False)
class Router:
    """Predicts routing tables for one pool. Pure once built."""

    encoder: Encoder
    estimator: FittedEstimator
    inputs: InputTokens
    pool: Pool
    candidates: tuple[Candidate, ...]  # of the tables: the pool's, in its order
    fingerprint: str  # of what was learned
    guard: Guard | None = None  # what looks for queries unlike those of training; None: nobody does
    plain: bool = False  # texts are read plainly: by the encoder, which is a `Plain` then, and here

    def table(
        self,
        query_ids: Sequence[str],
        embeddings_QD: FloatArray,
        size_Q: npt.NDArray[Any],
        texts: Sequence[str] | None = None,
    ) -> RoutingTable:
        """The routing table of queries that were encoded.

        Args:
            query_ids: Q ids.
            embeddings_QD: Their embeddings.
            size_Q: Their length in UTF-8 bytes, all messages together.
            texts: What was encoded, for an estimator that reads it; None: it does with the embeddings.
        """
        if texts is None:
            estimate = self.estimator.predict(embeddings_QD)
        else:
            read = [plainly(text) for text in texts] if self.plain else texts
            estimate = predicted(self.estimator, embeddings_QD, read)
        columns_C = columns_of(self.estimator.candidates, self.candidates)
        far_Q = None if self.guard is None else self.guard.far(embeddings_QD)
        if self.guard is not None and far_Q is not None:
            estimate = self.guard.believed(estimate, far_Q)
        table = priced_table(
            self.pool,
            query_ids,
            estimate.accuracy[:, columns_C],
            estimate.output_tokens[:, columns_C],
            estimate.output_tokens_p95[:, columns_C],
            self.inputs.predict(self.candidates, size_Q.astype(np.float64)),
        )
        return table if self.guard is None or far_Q is None else self.guard.marked(table, far_Q)


@dataclass(frozen=True, eq=False)
class RouterFolder:
    """What `rtr-ray train` writes and every run reads; not yet bound to a pool."""

    encoder: Mapping[str, Any]  # the encoder's configuration
    encoder_identity: str
    estimator: FittedEstimator
    inputs: InputTokens
    behaviours: Mapping[str, str]  # candidate -> Pool.behaviour when its outcomes were recorded
    metrics: Mapping[str, Any] = field(default_factory=dict)
    held_out: HeldOut | None = None  # what forecasts stand on; no part of what was learned
    profiles: Profiles | None = None  # of its models and strategies; None: from before they were kept
    familiarity: Familiarity | None = None  # what queries were trained on; None: too few, or not kept

    def save(self, uri: str) -> None:
        """Write the folder; `router.json` last, so that a half-written folder is none."""
        store = open_store(uri)
        state = self.estimator.state()
        contiguous = {name: np.ascontiguousarray(array) for name, array in state.arrays.items()}
        store.write("estimator.safetensors", save_tensors(contiguous))
        if self.held_out is not None:
            self.held_out.save(store)
        if self.profiles is not None:
            store.write("profiles.safetensors", save_tensors(_named(self.profiles)))
        if self.familiarity is not None:
            self.familiarity.save(store)
        store.write("router.json", json.dumps(self._head(state), indent=2).encode())

    def _head(self, state: State) -> dict[str, Any]:
        path = f"{type(self.estimator).__module__}:{type(self.estimator).__qualname__}"
        return {
            "schema_version": SCHEMA_VERSION,
            "encoder": dict(self.encoder),
            "encoder_identity": self.encoder_identity,
            "estimator": next((kind for kind, where in FITTED.items() if where == path), path),
            "values": dict(state.values),
            "candidates": [str(candidate) for candidate in self.estimator.candidates],
            "behaviours": dict(self.behaviours),
            "input_tokens": {
                "overhead": dict(self.inputs.overhead),
                "per_byte": dict(self.inputs.per_byte),
            },
            "metrics": dict(self.metrics),
        }

    @classmethod
    def load(cls, uri: str) -> RouterFolder:
        """Read the folder.

        Raises:
            RouterError: If it is none, is incomplete, or was written by a newer version.
        """
        store = open_store(uri)
        text, tensors = store.read("router.json"), store.read("estimator.safetensors")
        if text is None or tensors is None:
            lacking = "router.json" if text is None else "estimator.safetensors"
            raise RouterError(
                f"{uri} is not a router folder: it has no {lacking}. Make one with rtr-ray train."
            )
        try:
            head = json.loads(text)
            arrays = load_tensors(tensors)
            version = head.get("schema_version")
        except Exception as error:
            raise _damaged(uri, error) from error
        if version != SCHEMA_VERSION:
            raise RouterError(
                f"The router folder {uri} has schema version {version}; "
                f"this rtr-ray reads version {SCHEMA_VERSION}. Train it again."
            )
        try:
            fitted = registry.load(head["estimator"], FITTED, "estimator")
            candidates = tuple(Candidate.parse(text) for text in head["candidates"])
            return cls(
                encoder=head["encoder"],
                encoder_identity=head["encoder_identity"],
                estimator=fitted.from_state(candidates, State(arrays, head["values"])),
                inputs=InputTokens(**head["input_tokens"]),
                behaviours=head["behaviours"],
                metrics=head["metrics"],
                held_out=HeldOut.load(store),
                profiles=_profiles(store.read("profiles.safetensors")),
                familiarity=Familiarity.load(store),
            )
        except RtrError:
            raise
        except Exception as error:  # an estimator from outside may stumble over a lack in any way
            raise _damaged(uri, error) from error

    @property
    def fingerprint(self) -> str:
        """Changes when anything that was learned does."""
        state = self.estimator.state()
        arrays = {
            name: fingerprint(np.ascontiguousarray(array).tobytes().hex())
            for name, array in state.arrays.items()
        }
        head = self._head(state)
        return fingerprint([arrays, {key: head[key] for key in head if key != "metrics"}])

    def bind(
        self,
        pool: Pool,
        encoder: Encoder | None = None,
        untrained: Literal["refuse", "by_profile"] = "refuse",
        caution: Caution | None = None,
    ) -> Router:
        """The router for a pool.

        Args:
            pool: Its candidates become the columns of the tables.
            encoder: Where the configuration asks for another one than the router was trained
                with; None: the router's own.
            untrained: What becomes of candidates that the router has no outcomes of.
            caution: What becomes of queries unlike those of training; None: nothing else.

        Raises:
            RouterError: If the encoder is another one, the router knows a model or strategy that
                the pool does not, a candidate was not trained on (and is not to be taken in by
                its profile), or behaves differently now.
        """
        encoder = encoder or registry.build(dict(self.encoder), ENCODERS, "encoder")
        if encoder.identity != self.encoder_identity:
            raise RouterError(
                f"The router was trained with the encoder '{self.encoder_identity}'; the configuration has "
                f"'{encoder.identity}'. Use the same encoder, or train again."
            )
        new = self.check(pool, untrained)
        estimator = self.estimator
        if new and isinstance(estimator, Extendable):
            estimator = estimator.extended(new, embed_profiles(pool, encoder, new))
        elif new:
            every = [*estimator.candidates, *new]
            estimator = by_profile(estimator, new, embed_profiles(pool, encoder, every), encoder.dim)
        guard = None
        if caution is not None and caution.level is not None:
            guard = self._guard(pool, estimator, caution)
        plain = caution is not None and caution.plainly
        return Router(
            Plain(encoder) if plain else encoder,
            estimator,
            self.inputs,
            pool,
            pool.candidates,
            self.fingerprint,
            guard,
            plain,
        )

    def _guard(self, pool: Pool, estimator: FittedEstimator, caution: Caution) -> Guard:
        self.check_caution(pool, caution)
        assert self.familiarity is not None
        usual = usual_of(estimator.predict(self.familiarity.landmarks[:_USUAL_QUERIES]))
        return Guard(self.familiarity, caution, usual)

    def check_caution(self, pool: Pool, caution: Caution) -> None:
        """What `bind` checks of it.

        Raises:
            RouterError: If the router does not know what its training queries were like.
            ConfigError: If the fallback is not a candidate.
        """
        caution.check(pool.candidates)
        if self.familiarity is None and caution.level is not None:
            raise RouterError(
                "The router does not know what its training queries were like: it was trained on too few, "
                "or by an older rtr-ray. Train it again, or leave ood out."
            )

    def check(self, pool: Pool, untrained: Literal["refuse", "by_profile"] = "refuse") -> list[Candidate]:
        """What `bind` checks, but for the encoder, which takes time to load.

        Returns:
            The candidates that the router has no outcomes of.
        """
        self._check_known(pool)
        new = [c for c in pool.candidates if c not in self.estimator.candidates]
        if new and untrained == "refuse":
            raise RouterError(
                f"The router has no outcomes of {', '.join(map(str, new))}. Collect some and train "
                "again, exclude them in the pool, or set router.untrained: by_profile."
            )
        return new

    def _check_known(self, pool: Pool) -> None:
        for candidate in self.estimator.candidates:
            for what, name, known in (
                ("model", candidate.model, pool.models),
                ("strategy", candidate.strategy, pool.strategies),
            ):
                if name not in known:
                    raise RouterError(
                        f"The router knows the {what} '{name}', which the pool does not list "
                        f"(it has {', '.join(known)}). List it (and exclude it, if it is not to be used), "
                        "or train again."
                    )
        for candidate in pool.candidates:
            trained = self.behaviours.get(str(candidate))
            if trained is not None and trained != pool.behaviour(candidate):
                raise RouterError(
                    f"{candidate} is not what the router was trained on: its source, prompt, sampling, "
                    "max_tokens or reading of the answer has changed. Undo the change, or collect and train "
                    "again."
                )


def _named(profiles: Profiles) -> dict[str, FloatArray]:
    """Both maps in one, by `model/` or `strategy/` and the name."""
    parts = (("model", profiles.models), ("strategy", profiles.strategies))
    return {
        f"{what}/{name}": np.ascontiguousarray(row_D) for what, rows in parts for name, row_D in rows.items()
    }


def _profiles(tensors: bytes | None) -> Profiles | None:
    if tensors is None:
        return None
    found: dict[str, dict[str, FloatArray]] = {"model": {}, "strategy": {}}
    for key, row_D in load_tensors(tensors).items():
        what, _, name = key.partition("/")
        found[what][name] = row_D
    return Profiles(found["model"], found["strategy"])


def _damaged(uri: str, error: Exception) -> RouterError:
    what = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
    return RouterError(f"The router folder {uri} is damaged ({what}). Train it again.")


def embed_profiles(pool: Pool, encoder: Encoder, candidates: Sequence[Candidate]) -> Profiles:
    """Embed the profile texts of all models and strategies among the candidates."""
    models = sorted({c.model for c in candidates})
    strategies = sorted({c.strategy for c in candidates})
    texts = [pool.models[m].profile for m in models] + [pool.strategies[s].profile for s in strategies]
    rows_ND = encoder.encode(texts)
    return Profiles(
        dict(zip(models, rows_ND[: len(models)], strict=True)),
        dict(zip(strategies, rows_ND[len(models) :], strict=True)),
    )


def train(
    outcomes: Outcomes,
    pool: Pool,
    encoder: Encoder,
    estimator: Estimator,
    embeddings_MD: FloatArray | None = None,
) -> RouterFolder:
    """Fit a router on recorded outcomes of a pool's candidates.

    Args:
        outcomes: The training part, with the pool's candidates as columns.
        embeddings_MD: Of the outcomes' queries, where they are there already.
    """
    if embeddings_MD is None:
        embeddings_MD = encoder.encode(outcomes.queries)
    profiles = embed_profiles(pool, encoder, outcomes.candidates)
    return RouterFolder(
        encoder=registry.spec_of(encoder, ENCODERS),
        encoder_identity=encoder.identity,
        estimator=estimator.fit(outcomes, embeddings_MD, profiles),
        inputs=InputTokens.fit(outcomes),
        behaviours={str(c): pool.behaviour(c) for c in outcomes.candidates},
        metrics={
            "estimator": registry.spec_of(estimator, KNOWN),
            "queries": len(outcomes.query_ids),
            "cells": int((~np.isnan(outcomes.accuracy)).sum()),
        },
        profiles=profiles,
        familiarity=Familiarity.of(embeddings_MD, related(outcomes)),
    )
