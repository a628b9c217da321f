"""How long a plan's answers take to generate, deployment by deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rtr_ray.errors import ConfigError
from rtr_ray.forecast import Interval, Sums
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate


@dataclass(frozen=True, slots=True)
class Makespan:
    """How long a plan's answers take to generate."""

    deployments_s: Mapping[str, float | None]  # None: nobody has measured its speed
    makespan_s: Interval  # of the slowest; unknown where the speed of one is


def makespan(
    expected: Mapping[Candidate, Sums],
    pool: Pool,
    tokens_per_s: Mapping[str, float],
    replicas: Mapping[str, int],
    output_tokens: Interval | None = None,
) -> Makespan:
    """Predicted output tokens / (measured tokens per second x replicas), by deployment.

    Deployments work side by side, so that the slowest decides; models that share one add up.

    Args:
        expected: The plan's sums by candidate.
        pool: Says which deployment a candidate runs on.
        tokens_per_s: deployment -> output tokens per second of one replica under full load.
        replicas: deployment -> how many there will be; its `max_replicas` where absent.
        output_tokens: Of the forecast: all times are multiplied by how much it differs from the
            plan's own sum, and its interval carries over.

    Raises:
        ConfigError: If a speed or a number of replicas is not positive.
    """
    tokens: dict[str, float] = {}
    for candidate, sums in expected.items():
        name = pool.deployment(candidate).id
        tokens[name] = tokens.get(name, 0.0) + sums.output_tokens
    for what, given in (("speed", tokens_per_s), ("number of replicas", replicas)):
        for name, value in given.items():
            if not value > 0:
                raise ConfigError(f"The {what} of deployment '{name}' is {value}; it is positive.")
    total = sum(tokens.values())
    factor = output_tokens.expected / total if output_tokens and output_tokens.expected and total else 1.0
    seconds: dict[str, float | None] = {}
    for name, count in tokens.items():
        working = replicas.get(name, pool.deployments[name].max_replicas)
        speed = tokens_per_s.get(name)
        seconds[name] = 0.0 if not count else None if speed is None else factor * count / (speed * working)
    known = [value for value in seconds.values() if value is not None]
    if len(known) < len(seconds):
        return Makespan(seconds, Interval(None))
    slowest = max(known, default=0.0)
    if output_tokens is None or not output_tokens.expected:
        return Makespan(seconds, Interval(slowest))
    low, high = (
        None if end is None else slowest * end / output_tokens.expected
        for end in (output_tokens.low, output_tokens.high)
    )
    return Makespan(seconds, Interval(slowest, low, high, output_tokens.level))
