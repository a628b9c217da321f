"""From a configuration to a chooser: a router folder, and a policy that is frozen for single requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rtr_ray import registry
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.base import Encoder
from rtr_ray.errors import ConfigError
from rtr_ray.familiarity import Caution
from rtr_ray.online.routing import Chooser
from rtr_ray.parts import Version
from rtr_ray.policies import KNOWN as POLICIES
from rtr_ray.policies.base import FittedPolicy, Grounded, Policy, fit
from rtr_ray.policies.fixed import Fixed
from rtr_ray.policies.score import FittedScore, Score
from rtr_ray.pool import Pool
from rtr_ray.router import Plain, RouterFolder
from rtr_ray.run_folder import RunFolder
from rtr_ray.storage import open_store
from rtr_ray.types import Candidate, RoutingTable
from rtr_ray.versions import saved


def load_chooser(
    router: str,
    policy: Mapping[str, Any],
    pool: Pool,
    encoder: Mapping[str, Any] | None = None,
    known: Encoder | None = None,
    untrained: Any = "refuse",
    caution: Caution | None = None,
) -> Chooser:
    """The chooser of a router folder and a policy.

    Args:
        router: The folder.
        policy: `kind` and its fields; or `run`: a run folder, whose newest plan's policy is taken with
            what the run has learned of its own predictions.
        encoder: Fields that stand over the router's own: device, dtype.
        known: An encoder that is loaded already: taken where it is the router's.
        untrained: As `RouterFolder.bind` has it.
        caution: The same.

    Raises:
        RouterError: If the folder is none, or does not fit the pool.
        ConfigError: If the policy cannot be frozen without a corpus.
    """
    folder = RouterFolder.load(router)
    if isinstance(known, Plain):
        known = known.inner
    if known is None or known.identity != folder.encoder_identity:
        spec = dict(folder.encoder)
        known = registry.build(
            spec | {k: v for k, v in (encoder or {}).items() if k in spec}, ENCODERS, "encoder"
        )
    bound = folder.bind(pool, known, untrained, caution)
    held_out = None if folder.held_out is None else folder.held_out.table(pool)
    unit = _unit(policy, held_out)
    if "run" in policy:
        version = _newest(policy)
        return Chooser(bound, version.policy, unit, version.corrections)
    return Chooser(bound, frozen(policy, pool, held_out), unit)


def _unit(policy: Mapping[str, Any], held_out: RoutingTable | None) -> float | None:
    """The dollars that count as one for a request's own lambda."""
    given = policy.get("normaliser_usd")
    if given is not None or held_out is None:
        return given
    fitted = fit(Score(0.5), [held_out])
    assert isinstance(fitted, FittedScore)
    return fitted.normaliser_usd


def _newest(policy: Mapping[str, Any]) -> Version:
    uri = str(policy["run"])
    versions = saved(RunFolder(open_store(uri)))
    if not versions:
        raise ConfigError(f"policy.run is {uri}, which holds no plan. Name the output of a job that ran.")
    return versions[max(versions)]


def frozen(policy: Mapping[str, Any], pool: Pool, held_out: RoutingTable | None) -> FittedPolicy:
    """A policy for single requests.

    Args:
        policy: `kind` and its fields.
        pool: What it chooses among.
        held_out: Of the router, for the unit of dollars; None: it has none.

    Raises:
        ConfigError: If it cannot be frozen without a corpus.
    """
    recipe: Policy = registry.build(
        {"kind": "score", **policy} if "lam" in policy and "kind" not in policy else dict(policy),
        POLICIES,
        "policy",
    )
    if isinstance(recipe, Grounded):
        recipe = recipe.on(pool)
    if isinstance(recipe, Fixed) and Candidate.parse(recipe.candidate) not in pool.candidates:
        raise ConfigError(
            f"The policy is fixed to {recipe.candidate}. The pool has {', '.join(map(str, pool.candidates))}."
        )
    if isinstance(recipe, Fixed) or (isinstance(recipe, Score) and recipe.normaliser_usd is not None):
        return recipe.freeze(None)
    if not isinstance(recipe, Score):
        raise ConfigError(
            f"The policy '{recipe.kind}' divides an amount among the rows of a corpus, and a request has "
            "none. Give policy.run: the folder of a run whose plan it takes over, or kind: score."
        )
    if held_out is None:
        raise ConfigError(
            "The router was trained without held-out predictions, so that a lambda has no unit. Give "
            "policy.normaliser_usd."
        )
    return fit(recipe, [held_out])
