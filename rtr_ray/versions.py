"""The versions of a run's plan: by which policy and corrections which rows were chosen for."""

from __future__ import annotations

from rtr_ray import registry
from rtr_ray.corrections import Corrections
from rtr_ray.parts import Version
from rtr_ray.policies import FITTED
from rtr_ray.policies.base import FittedPolicy
from rtr_ray.run_folder import RunFolder

VERSIONS = "policies/"


def price_of(fitted: FittedPolicy) -> float | None:
    """The dual price of a policy that has one, in accuracy per dollar."""
    price: float | None = getattr(fitted, "price", None)
    return price


def save(folder: RunFolder, version: Version, budget_usd: float | None) -> None:
    """Write a version down, before anything is planned by it."""
    folder.write_json(
        f"{VERSIONS}{version.number:06d}.json",
        {
            "schema_version": 1,
            "number": version.number,
            "policy": registry.spec_of(version.policy, FITTED),
            "budget_usd": budget_usd,
            "dual_price": version.dual_price,
            "corrections": version.corrections.to_json(),
        },
    )


def saved(folder: RunFolder) -> dict[int, Version]:
    """The versions of a run so far."""
    found = {}
    for key in folder.store.keys(VERSIONS):
        one = folder.read_json(key)
        assert one is not None
        fitted: FittedPolicy = registry.build(one["policy"], FITTED, "policy")
        corrections = Corrections.from_json(one["corrections"])
        found[one["number"]] = Version(fitted, one["number"], corrections, one["dual_price"])
    return found
