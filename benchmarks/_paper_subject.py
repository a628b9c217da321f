"""A table of outcomes, one split of it, and what routers make of it: what benchmarks/paper.py looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rtr_ray import registry
from rtr_ray.config import load_pool
from rtr_ray.embedded.questions import draw
from rtr_ray.embedded.shipped_outcomes import COUNT, SEED
from rtr_ray.estimators import KNOWN
from rtr_ray.estimators.base import Profiles
from rtr_ray.quality.curves import Curve
from rtr_ray.quality.evaluate import Table, columns
from rtr_ray.quality.trial import Part, Scored, Trial
from rtr_ray.router import embed_profiles
from rtr_ray.types import Candidate, FloatArray

ROUTERS = ("prior", "knn", "linear", "rtr", "auto")
PROFILES = {
    "gpt-35-turbo": "gpt-3.5-turbo, a fast and cheap chat model; weak at long reasoning.",
    "gpt-4": "GPT-4, a strong and dear chat model; good at reasoning, law, medicine and mathematics.",
    "vanilla": "The answer alone, in a few tokens.",
    "cot": "Chain of thought: step by step, then the answer.",
    "cod": "Concise chain of thought: short steps, then the answer.",
    "composite": "Persona, recitation, chain of thought and self-criticism; long answers.",
}


@dataclass(frozen=True)
class Subject:
    """A table of outcomes, one split of it, and what routers make of it."""

    name: str
    trial: Trial
    routers: Sequence[str] = ROUTERS

    @classmethod
    def read(cls, name: str, path: Path, encoder: Any, routers: Sequence[str]) -> Subject:
        """Read, encode, divide."""
        table = Table.read(str(path), encoder)
        if name == "embedded":
            families = {q.query: q.family for q in draw("route", COUNT, SEED)}
            names = tuple(families[query] for query in table.whole.queries)
            table = replace(table, whole=replace(table.whole, datasets=names))
            _, train_M, test_M = next(iter(table.splits(1)))
        else:
            train_M, test_M = table.train_M & ~table.ood_M, table.test_M & ~table.ood_M
        parts = {"test": table.part(test_M)}
        if table.ood_M.any():
            parts["ood"] = table.part(table.ood_M)
        candidates = table.whole.candidates
        profiles = _profiles(name, candidates, encoder)
        trial = Trial(table.whole.rows(train_M), table.embeddings[train_M], parts, profiles)
        return cls(name, trial, routers)

    @cached_property
    def routed(self) -> dict[str, dict[str, Scored]]:
        """Every router on every part."""
        return {name: self.route(name) for name in self.routers}

    def route(self, name: str) -> dict[str, Scored]:
        """One router, fitted on the training questions."""
        return self.trial.routed(name, registry.build({"kind": name}, KNOWN, "estimator"))

    def only(self, keep: Callable[[Candidate], bool]) -> Subject:
        """The same with some of the candidates."""
        kept = np.flatnonzero([keep(c) for c in self.trial.train.candidates])
        parts = {
            name: Part(
                columns(part.outcomes, kept),
                part.halves and (columns(part.halves[0], kept), columns(part.halves[1], kept)),
                part.embeddings,
            )
            for name, part in self.trial.parts.items()
        }
        train = columns(self.trial.train, kept)
        return replace(self, trial=Trial(train, self.trial.train_embeddings, parts, self.trial.profiles))


def _profiles(name: str, candidates: Sequence[Candidate], encoder: Any) -> Profiles:
    if name == "embedded":
        return embed_profiles(load_pool("embedded"), encoder, candidates)
    models, strategies = (sorted({getattr(c, key) for c in candidates}) for key in ("model", "strategy"))
    rows = encoder.encode([PROFILES[one] for one in (*models, *strategies)])
    return Profiles(
        dict(zip(models, rows, strict=False)), dict(zip(strategies, rows[len(models) :], strict=True))
    )


def means(scored: Scored) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(L,) mean cost, accuracy and output tokens at each lambda."""
    return tuple(np.nanmean(a, axis=0) for a in (scored.cost, scored.accuracy, scored.output_tokens))


def curve_of(scored: Scored) -> Curve:
    """The hull of a router's points."""
    cost_L, accuracy_L, _ = means(scored)
    return Curve.over(cost_L, accuracy_L)


def height(subject: Subject, part: str, curve: Curve) -> float:
    """AIQ: the mean height over the cost range of all candidates."""
    cost_C = np.nanmean(subject.trial.parts[part].costs, axis=0)
    return curve.height(float(cost_C.min()), float(cost_C.max()))


def hull(subject: Subject, part: str) -> Curve:
    """The best mixtures that look at no query."""
    return curve_of(subject.trial.fixed(subject.trial.parts[part]))
