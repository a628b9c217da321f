"""Plan parts and their short names: apart from dispatch, since tasks need no Serve, slow to import."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rtr_ray.run_folder import RESULTS

MOVED = "moved/"


@dataclass(frozen=True, slots=True)
class Part:
    """A plan part that is to be answered."""

    key: str
    deployment: str
    rows: int


def part_name(key: str) -> str:
    """The short name of a plan part, which its results carry."""
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def part_of(key: str) -> str:
    """The short name of the plan part that a results part belongs to."""
    return key.removeprefix(RESULTS).partition("-")[0]
