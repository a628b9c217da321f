"""Candidates come to a trained router, or leave it, and nothing is trained again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rtr_ray import registry
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import ConfigError, DataError, RouterError
from rtr_ray.estimators.base import Profiles
from rtr_ray.estimators.extended import by_outcomes, by_profile, without
from rtr_ray.outcomes import pivot, read_long, split_rows
from rtr_ray.pool import Pool
from rtr_ray.router import InputTokens, RouterFolder, embed_profiles
from rtr_ray.types import Candidate, Outcomes


@dataclass(frozen=True, slots=True)
class Newcomers:
    """What a person says of new models and strategies."""

    models: Mapping[str, str] = field(default_factory=dict)  # id -> profile text
    strategies: Mapping[str, str] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()  # none: every pair with a new part

    def beside(self, known: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that are new: those that are named, or each pair with a new part.

        A known strategy comes with the numbers of samples that it has; a new one draws one.

        Raises:
            ConfigError: If a name is taken, or a candidate has a part that nobody describes.
        """
        models, strategies = {c.model for c in known}, {c.strategy for c in known}
        for what, new, there in (
            ("model", self.models, models),
            ("strategy", self.strategies, strategies),
        ):
            if taken := sorted(set(new) & there):
                raise ConfigError(
                    f"The router knows the {what} {', '.join(taken)} already. Give a new one another name."
                )
        if self.candidates:
            for candidate in self.candidates:
                if candidate.model not in models | set(self.models) or (
                    candidate.strategy not in strategies | set(self.strategies)
                ):
                    raise ConfigError(
                        f"{candidate} is to be added, and its model or strategy has no profile. Describe it "
                        "under models or strategies."
                    )
            return list(self.candidates)
        samples: dict[str, set[int]] = {name: {1} for name in self.strategies}
        for candidate in known:
            samples.setdefault(candidate.strategy, set()).add(candidate.samples)
        return [
            Candidate(model, strategy, count)
            for model in [*dict.fromkeys(c.model for c in known), *self.models]
            for strategy, counts in samples.items()
            for count in sorted(counts)
            if model in self.models or strategy in self.strategies
        ]


@dataclass(frozen=True, slots=True)
class Extension:
    """A router folder with other candidates, and what was done."""

    folder: RouterFolder
    added: Mapping[Candidate, int]  # and how many labelled queries each was learned from
    removed: tuple[Candidate, ...]


def extend(
    folder: RouterFolder,
    newcomers: Newcomers,
    pool: Pool | None = None,
    outcomes_uri: str | None = None,
    removed: Sequence[Candidate] = (),
    encoder: Encoder | None = None,
) -> Extension:
    """Take candidates out of a router, and others in.

    What is left predicts the same as before, bit for bit. A new candidate is predicted by its
    profile text; where it has outcomes, what is its own is learned from them. Removed ones go first.

    Args:
        folder: The router.
        newcomers: Which are new; none: those of the pool that the router does not know.
        pool: Describes what `newcomers` does not.
        outcomes_uri: Of new candidates; rows of split `test`, of others and out of distribution are
            not looked at.
        removed: Which go.
        encoder: None: the router's own, loaded.

    Raises:
        ConfigError: If nothing is to be done.
        RouterError, DataError: If a candidate is known already, or not described, or has no outcomes.
    """
    if removed:
        kept = without(folder.estimator, removed)
        behaviours = {name: one for name, one in folder.behaviours.items() if name not in map(str, removed)}
        folder = replace(folder, estimator=kept, behaviours=behaviours)
    known = folder.estimator.candidates
    new = newcomers.beside(known)
    if not new and pool is not None:
        new = [candidate for candidate in pool.candidates if candidate not in (*known, *removed)]
    if not new:
        if outcomes_uri is not None or not removed:
            raise ConfigError(
                "Nothing is to be added. Name new models or strategies (--profile), or a pool that has "
                "candidates which the router does not know (--pool)."
            )
        return Extension(_noted(folder, {}, removed), {}, tuple(removed))
    encoder = encoder or registry.build(dict(folder.encoder), ENCODERS, "encoder")
    profiles = _profiles(folder, newcomers, pool, [*known, *new], encoder)
    extended = by_profile(folder.estimator, new, profiles, encoder.dim)
    inputs, added = folder.inputs, dict.fromkeys(new, 0)
    if outcomes_uri is not None:
        outcomes = _outcomes(outcomes_uri, new)
        extended = by_outcomes(extended, outcomes, encoder.encode(outcomes.queries))
        inputs = _joined(inputs, InputTokens.fit(outcomes))
        counts_C = (~np.isnan(outcomes.accuracy)).sum(axis=0)
        added |= {c: int(count) for c, count in zip(outcomes.candidates, counts_C, strict=True)}
    behaviours = dict(folder.behaviours)
    if pool is not None:
        behaviours |= {str(c): pool.behaviour(c) for c in new if c in pool.candidates}
    folder = replace(
        folder, estimator=extended, inputs=inputs, behaviours=behaviours, profiles=profiles
    )  # held-out predictions stay those of the candidates that were trained
    return Extension(_noted(folder, added, removed), added, tuple(removed))


def _noted(
    folder: RouterFolder, added: Mapping[Candidate, int], removed: Sequence[Candidate]
) -> RouterFolder:
    notes = [
        *folder.metrics.get("extensions", []),
        {"added": {str(c): count for c, count in added.items()}, "removed": [str(c) for c in removed]},
    ]
    return replace(folder, metrics={**folder.metrics, "extensions": notes})


def _joined(one: InputTokens, other: InputTokens) -> InputTokens:
    return InputTokens({**one.overhead, **other.overhead}, {**one.per_byte, **other.per_byte})


def _profiles(
    folder: RouterFolder,
    newcomers: Newcomers,
    pool: Pool | None,
    candidates: Sequence[Candidate],
    encoder: Encoder,
) -> Profiles:
    """Of all models and strategies: as the router keeps them, of the newcomers, or of the pool."""
    if encoder.identity != folder.encoder_identity:
        raise RouterError(
            f"The router was trained with the encoder '{folder.encoder_identity}', and '{encoder.identity}' "
            "was given. Use the same encoder."
        )
    kept = folder.profiles or Profiles({}, {})
    models, strategies = dict(kept.models), dict(kept.strategies)
    if pool is not None:
        described = [c for c in candidates if c.model in pool.models and c.strategy in pool.strategies]
        of_pool = embed_profiles(pool, encoder, described) if described else Profiles({}, {})
        models, strategies = {**of_pool.models, **models}, {**of_pool.strategies, **strategies}
    for texts, into in ((newcomers.models, models), (newcomers.strategies, strategies)):
        if texts:
            into.update(zip(texts, encoder.encode(list(texts.values())), strict=True))
    return Profiles(models, strategies)


def _outcomes(uri: str, new: Sequence[Candidate]) -> Outcomes:
    long = split_rows(read_long(uri), "train")
    if not len(long):
        raise DataError(f"{uri} has no row of split 'train' outside of those marked as ood.")
    there = pivot(long).candidates
    wanted = [candidate for candidate in new if candidate in there]
    if not wanted:
        raise DataError(
            f"{uri} has outcomes of {', '.join(map(str, there))}, and none of {', '.join(map(str, new))}, "
            "which is to be added."
        )
    return pivot(long, wanted)
