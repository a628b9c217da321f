"""What a program may use, what became of it, and what keeps it apart."""

from dataclasses import dataclass
from typing import Literal

from rtr_ray.errors import ConfigError

Mode = Literal["auto", "namespaces", "seccomp", "rlimits-only"]
Status = Literal["ok", "error", "timeout", "output_limit", "killed", "lost"]

MAX_SLOTS = 63
"""How many programs one sandbox runs at once, at most: each has its own user id, out of 64 per sandbox."""

_SMALLEST_MEMORY = 64 << 20  # the interpreter and its modules map about 25 MiB before the program does
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the machine one program may use. Beyond any of these it fails or is killed."""

    cpu_s: int = 2
    """Seconds of processor time, whole ones: the kernel counts no finer."""
    wall_s: float = 5.0
    """Seconds from start to end, sleeping included."""
    memory_bytes: int = 256 << 20
    """Address space, of which the interpreter itself takes about 25 MiB. Over it: `MemoryError`."""
    file_bytes: int = 1 << 20
    """The largest file, and where the program has its own folder also all its files together."""
    processes: int = 16
    """Threads at one time; without the filter, processes and threads. An ordinary user without namespaces
    gets no second one at all, since the kernel counts all that the user runs."""
    output_bytes: int = 64 << 10
    """Standard output and standard error together. Over it: killed, and what came before is kept."""

    def __post_init__(self) -> None:
        for name, least in (
            ("cpu_s", 1),
            ("wall_s", 0.01),
            ("memory_bytes", _SMALLEST_MEMORY),
            ("file_bytes", _PAGE),
            ("processes", 1),
            ("output_bytes", 1),
        ):
            found = getattr(self, name)
            if not least <= found < 2**31 << 20:
                raise ConfigError(f"Limits.{name}={found!r} is out of range. Give {least} or more.")
            if name != "wall_s" and not isinstance(found, int):
                raise ConfigError(f"Limits.{name}={found!r} is no whole number. Give {int(found)}.")


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of one program."""

    status: Status
    """`ok`: it ended by itself with exit code 0 (with a check: the check passed as well).
    `error`: an exception, or another exit code. `timeout`: over its CPU or wall time.
    `output_limit`: it wrote too much. `killed`: a signal ended it (a crash, out of memory).
    `lost`: the sandbox itself died under it, twice; says nothing about the program."""
    stdout: str
    stderr: str
    """The last 4 KiB."""
    exit_code: int | None
    """Negative: the number of the signal that ended it. None where the sandbox was lost."""
    wall_s: float
    cpu_s: float

    @property
    def error(self) -> str:
        """The last line of standard error, such as `ZeroDivisionError: division by zero`; empty if ok."""
        if self.status == "ok":
            return ""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True, slots=True)
class Isolation:
    """Which walls stand around a program. `probe()` says which ones this machine gives."""

    mode: Literal["namespaces", "seccomp", "rlimits-only"]
    seccomp: bool
    """Whether a system call filter stands as well; always true for the mode `seccomp`."""
    reasons: tuple[str, ...] = ()
    """Why a stronger isolation was not taken: one sentence each."""

    def __post_init__(self) -> None:
        if self.mode == "seccomp" and not self.seccomp:
            raise ConfigError("mode='seccomp' with seccomp=False contradicts itself. Say 'rlimits-only'.")
