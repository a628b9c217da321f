"""Which gate an endpoint has: the one place that knows."""

from __future__ import annotations

from collections.abc import Callable

from rtr_ray.config import ServeFile
from rtr_ray.gate import Gate, OpenGate


def gate_of(file: ServeFile) -> Callable[[], Gate]:
    """What makes the gate of an ingress replica: an open one, as long as no keys are configured."""
    return OpenGate
