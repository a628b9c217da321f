"""Runs programs that models wrote, isolated: see docs/sandbox.md for what that does and does not mean.

Sandbox     runs programs, many at once                              client.py
probe       says at start what this machine gives, or refuses        client.py, inspection.py
Limits, Execution, Isolation                                         types.py

In the parent       client -> connection -> launch, streams          one request, one report (wire)
In the child        zygote -> jail, seccomp, libc -> program, checker
"""

from rtr_ray.sandbox.client import Sandbox, probe, run_many
from rtr_ray.sandbox.program import PRELOADED
from rtr_ray.sandbox.types import Execution, Isolation, Limits, Mode, Status

__all__ = ["PRELOADED", "Execution", "Isolation", "Limits", "Mode", "Sandbox", "Status", "probe", "run_many"]
