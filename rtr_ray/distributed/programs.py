"""The sandbox of a job, as its file configures it: for program-aided answers, and for the grader `code`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from rtr_ray.config import SandboxKeys
from rtr_ray.grading import Code, Grader
from rtr_ray.sandbox import Limits, Sandbox


def sandbox_of(keys: SandboxKeys) -> Sandbox:
    """A sandbox with the configured mode and limits; it starts with the first program."""
    limits = Limits()
    limits = Limits(
        cpu_s=int(keys.cpu_s) if keys.cpu_s else limits.cpu_s,
        wall_s=keys.wall_s or limits.wall_s,
        memory_bytes=keys.memory_mib << 20 if keys.memory_mib else limits.memory_bytes,
    )
    return Sandbox(keys.mode, limits=limits)


def runner(sandbox: Sandbox) -> Callable[[str], Awaitable[str | None]]:
    """Runs a program and gives what it printed; None where it failed."""

    async def run_program(code: str) -> str | None:
        execution = await sandbox.run(code)
        return execution.stdout if execution.status == "ok" else None

    return run_program


def with_checker(grader: Grader, sandbox: Sandbox) -> Grader:
    """The grader, able to run programs if it must."""

    async def check_program(code: str, tests: str) -> bool:
        return (await sandbox.run(code, check=tests)).status == "ok"

    return replace(grader, check_program=check_program) if isinstance(grader, Code) else grader
