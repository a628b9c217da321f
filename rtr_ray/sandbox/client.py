"""The sandbox as the rest of the project sees it."""

import asyncio
import functools
import os
import sys
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self, TypeVar

from rtr_ray.errors import ConfigError, SandboxError
from rtr_ray.sandbox import inspection
from rtr_ray.sandbox.connection import Connection, LostError, Program, RefusedError
from rtr_ray.sandbox.types import MAX_SLOTS, Execution, Isolation, Limits, Mode

_CANDIDATES: dict[str, tuple[Isolation, ...]] = {
    "namespaces": (Isolation("namespaces", seccomp=True), Isolation("namespaces", seccomp=False)),
    "seccomp": (Isolation("seccomp", seccomp=True),),
    "rlimits-only": (Isolation("rlimits-only", seccomp=False),),
}
_CANDIDATES["auto"] = _CANDIDATES["namespaces"] + _CANDIDATES["seccomp"]

T = TypeVar("T")

_INSPECTION_LIMITS = Limits(cpu_s=10, wall_s=30.0)
_PAUSES_S = (0.1, 0.5, 2.0)  # before trying again, where the kernel had no room for another namespace
_TIMES_LOST = 2  # how often a program may run that takes the sandbox, and so the others, down with it


class Sandbox:
    """Runs programs that nobody has read, many at once, each isolated from the machine and from the others.

    Use it as an async context manager, or call `aclose()`. It starts on first use, and starts again if its
    processes die. It belongs to one event loop.

    Example:
        >>> async def main() -> str:
        ...     async with Sandbox() as sandbox:
        ...         return (await sandbox.run("print(6 * 7)")).stdout
        >>> asyncio.run(main())
        '42\\n'
    """

    def __init__(
        self, mode: Mode | Isolation = "auto", *, limits: Limits | None = None, concurrency: int | None = None
    ) -> None:
        """Say what to use; nothing starts yet.

        Args:
            mode: `auto` takes the strongest isolation that this machine gives, but never `rlimits-only`.
                A result of `probe()` is taken as it is, without another inspection.
            limits: For every program that does not bring its own.
            concurrency: Programs at one time, 1 to 63; the others wait. None: one for each processor.

        Raises:
            ConfigError: No such mode, or concurrency out of range.
        """
        if not isinstance(mode, Isolation) and mode not in _CANDIDATES:
            known = ", ".join(sorted(_CANDIDATES))
            raise ConfigError(f"Unknown sandbox mode {mode!r}. Known modes: {known}.")
        if concurrency is None:
            processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
            concurrency = min(MAX_SLOTS, processors)
        if not 1 <= concurrency <= MAX_SLOTS:
            raise ConfigError(f"concurrency={concurrency} is out of range. Give 1 to {MAX_SLOTS}.")
        self._mode: Mode = "auto" if isinstance(mode, Isolation) else mode
        self._limits = limits or Limits()
        self._isolation = mode if isinstance(mode, Isolation) else None
        self._connection: Connection | None = None
        self._closed = False
        self._starting = asyncio.Lock()
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(concurrency):
            self._slots.put_nowait(slot)

    @property
    def isolation(self) -> Isolation:
        """The walls that stand, once started."""
        if self._isolation is None:
            raise SandboxError(
                "The sandbox has not started, so its isolation is unknown. Await start() first."
            )
        return self._isolation

    @property
    def launcher_pid(self) -> int | None:
        """The process under which all others of the sandbox are; None while there is none."""
        return self._connection.pid if self._connection is not None and not self._connection.lost else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Start the sandbox's processes; `run` does it as well.

        Raises:
            SandboxError: This machine cannot isolate a program as configured; the message says what to do.
        """
        await self._open_connection()

    async def aclose(self) -> None:
        """End every program and the sandbox's processes, and wait until they are gone."""
        self._closed = True
        async with self._starting:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()

    async def run(
        self, code: str, stdin: str = "", *, check: str | None = None, limits: Limits | None = None
    ) -> Execution:
        """Run a Python program and say what became of it.

        With a `check`, that code runs after the program in a process of its own, which the program cannot
        reach: the functions and plain values that the program defined are there by name, calls go over to
        the program, and what comes back is plain data. The status is `ok` only if the check ran to its end.
        A program cannot fake that; it can when tests are just appended to its code. What is named like a
        builtin is there as `program.<name>`. Import in the check what the check itself uses: it would
        otherwise take the program's.

        Args:
            code: The program's text. It may import only the modules in `PRELOADED`.
            stdin: What it reads from its standard input.
            check: Such as `assert add(2, 3) == 5`.
            limits: In place of the sandbox's.

        Returns:
            How it ended and what it wrote. Nothing that a program does raises here.

        Raises:
            SandboxError: The sandbox cannot start, or was closed, or the kernel has no room for one more.
        """
        program = Program(code, stdin, check, limits or self._limits)
        slot = await self._slots.get()
        ended: asyncio.Future[Any] | None = None
        lost = refused = 0
        try:
            while True:
                connection = await self._open_connection()
                try:
                    run = connection.start(program, slot)
                    ended = run.ended
                    return await run.execution()
                except LostError:
                    lost += 1
                    if lost == _TIMES_LOST:
                        return Execution("lost", "", "", None, 0.0, 0.0)
                except RefusedError as error:
                    if refused == len(_PAUSES_S):
                        raise SandboxError(
                            f"A program was to run isolated by {self.isolation.mode}, and its walls did not "
                            f"stand, {refused + 1} times: {error}. Lower the sandbox's concurrency, or raise "
                            "the machine's limits on processes and namespaces."
                        ) from error
                    await asyncio.sleep(_PAUSES_S[refused])
                    refused += 1
                except asyncio.CancelledError:
                    if ended is not None:
                        run.kill()
                    raise
        finally:
            # A slot is a user id: its next program starts when this one is dead, not when nobody waits.
            if ended is None or ended.done():
                self._slots.put_nowait(slot)
            else:
                ended.add_done_callback(functools.partial(self._free, slot))

    def _free(self, slot: int, ended: "asyncio.Future[Any]") -> None:
        ended.exception()  # of a sandbox that died: nobody waits for this program any more
        self._slots.put_nowait(slot)

    async def _open_connection(self) -> Connection:
        async with self._starting:
            if self._closed:
                raise SandboxError("A program was to run in a sandbox that is closed. Make a new Sandbox.")
            if self._connection is not None and self._connection.lost:
                gone, self._connection = self._connection, None
                await gone.close()
            if self._connection is None:
                if self._isolation is not None:
                    self._connection = await Connection.open(self._isolation)
                else:
                    self._connection, self._isolation = await _choose(self._mode)
            return self._connection


async def _choose(mode: Mode) -> tuple[Connection, Isolation]:
    """Take the first isolation that this machine gives, tried for real."""
    reasons: list[str] = []
    for isolation in _CANDIDATES[mode]:
        try:
            connection = await Connection.open(isolation)
        except SandboxError as error:
            reasons.append(f"{_described(isolation)}: {error}")
            continue
        try:
            with inspection.planted_input() as planted:
                program = Program(inspection.PROGRAM, planted, None, _INSPECTION_LIMITS)
                wrong = inspection.failures(isolation, await connection.start(program, 0).execution())
        except (LostError, RefusedError) as error:
            wrong = [str(error) or "the sandbox's process died"]
        except BaseException:
            await connection.close()
            raise
        if not wrong:
            return connection, replace(isolation, reasons=tuple(reasons))
        await connection.close()
        reasons.append(f"{_described(isolation)}: a program in it {', '.join(wrong)}")
    raise SandboxError(
        f"The sandbox was asked for mode {mode!r}, and this machine does not give it ({'; '.join(reasons)}). "
        "Allow user namespaces or seccomp here, leave out candidates that run programs (PAL), or, only if "
        "you trust what the models write, configure `sandbox: rlimits-only`."
    )


def _described(isolation: Isolation) -> str:
    return isolation.mode + (" with seccomp" if isolation.mode == "namespaces" and isolation.seccomp else "")


def probe(mode: Mode = "auto") -> Isolation:
    """Find out, by trying, which isolation this machine gives; for use at start, before any model is paid.

    A harmless program runs in it and tries to read a file, to reach our process, to open a socket and more.

    Raises:
        SandboxError: It does not give the mode asked for. `auto` never falls back to `rlimits-only`.
        ConfigError: No such mode.
    """

    async def start() -> Isolation:
        async with Sandbox(mode, concurrency=1) as sandbox:
            return sandbox.isolation

    return _in_own_loop(start())


def run_many(
    codes: Iterable[str],
    mode: Mode | Isolation = "auto",
    *,
    limits: Limits | None = None,
    concurrency: int | None = None,
) -> list[Execution]:
    """Run programs from code that has no event loop; results come in the order of the programs."""

    async def run_all() -> list[Execution]:
        async with Sandbox(mode, limits=limits, concurrency=concurrency) as sandbox:
            return list(await asyncio.gather(*map(sandbox.run, codes)))

    return _in_own_loop(run_all())


def _in_own_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end in a thread with a loop of its own: a caller may be inside a running loop."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
