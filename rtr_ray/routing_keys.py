"""What a person may write of late candidates, of labels that tell most, and of safety; read by `config`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rtr_ray.yaml_door import Door


class OodKeys(Door):
    """What becomes of queries unlike those that the router was trained on."""

    level: float = Field(0.99, gt=0, lt=1, description="a quantile of the training queries' distances")
    fallback: str = Field("prior", description="prior, or model:strategy")


class ActiveKeys(Door):
    """How the next labels are chosen."""

    rule: str = Field("tempered", description="tempered, decision, contest, variance, thrifty, cells or rows")
    rounds: int = Field(8, ge=1, description="how often what is known is looked at again")
    first_rows: int = Field(12, ge=1, description="whole rows before anything else")
    queries: int = Field(20_000, ge=1, description="how many of the queries are looked at")
    encoder: str | dict[str, Any] = Field(
        "sentence-transformers/all-mpnet-base-v2", description="a sentence-transformers model, or its kind"
    )


class ProfileKeys(Door):
    """A new model or strategy, as far as a router looks at it."""

    profile: str = Field(description="a sentence or two that the router reads about it", min_length=1)


class NewcomerFile(Door):
    """What `rtr-ray extend --profile` reads."""

    models: dict[str, ProfileKeys] = Field(default_factory=dict, description="name -> profile")
    strategies: dict[str, ProfileKeys] = Field(default_factory=dict, description="name -> profile")
    candidates: list[str] = Field(
        default_factory=list, description="a list of model:strategy; none: every pair with a new part"
    )


class ShareCapKeys(Door):
    """What share of a key's routed requests may go to dear candidates."""

    share: float = Field(ge=0, le=1, description="of the last `window` requests of a key, 0 to 1")
    window: int = Field(100, ge=1, description="requests that are looked back on, by each replica")
    times: float = Field(4.0, gt=0, description="dear: so many times what the median candidate may cost")
