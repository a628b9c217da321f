"""Runs programs through one zygote: pairs each request with its report."""

import asyncio
import itertools
import os
import struct
from typing import NamedTuple, Self

from rtr_ray.sandbox import wire
from rtr_ray.sandbox.launch import Launched
from rtr_ray.sandbox.streams import Streams
from rtr_ray.sandbox.types import Execution, Isolation, Limits, Status

_GRACE_S = 30.0  # how long after its wall time a program's report may come before the zygote counts as stuck


class Program(NamedTuple):
    """One thing to run."""

    code: str
    stdin: str
    check: str | None
    limits: Limits


class LostError(Exception):
    """The zygote is gone, and with it the program: nothing is known of how it would have ended."""


class RefusedError(Exception):
    """The program was not started, because one of its walls could not be raised."""


class _Report(NamedTuple):
    stood: bool
    out_of_time: bool
    exit_code: int
    cpu_s: float
    wall_s: float
    reason: str


class Connection:
    """The parent's side of one zygote."""

    def __init__(self, launched: Launched) -> None:
        self._launched = launched
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[_Report]] = {}
        self.lost = False
        self._loop.add_reader(launched.control.fileno(), self._hear)

    @classmethod
    async def open(cls, isolation: Isolation) -> Self:
        """Start a launcher and zygote.

        Raises:
            SandboxError: This machine does not give that isolation.
        """
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(None, Launched, isolation)
        try:
            return cls(await asyncio.shield(starting))
        except asyncio.CancelledError:
            starting.add_done_callback(_end_unwanted)
            raise

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return self._launched.pid

    def start(self, program: Program, slot: int) -> "Run":
        """Start a program.

        Raises:
            LostError: The zygote is gone.
        """
        return Run(self, program, slot)

    async def close(self) -> None:
        """End the zygote and all its programs, and wait until they are gone."""
        self._lose()
        await asyncio.to_thread(self._launched.end)

    def send(self, packet: bytes, streams: Streams, run_id: int) -> "asyncio.Future[_Report]":
        try:
            self._launched.start_program(packet, streams.theirs)
        except OSError as error:
            self._lose()
            raise LostError from error
        ended = self._waiting[run_id] = self._loop.create_future()
        return ended

    def next_id(self) -> int:
        return next(self._ids)

    def kill(self, run_id: int) -> None:
        if not self.lost:
            self._launched.kill_program(run_id)

    def give_up(self) -> None:
        """The zygote does not answer: kill it."""
        self._launched.kill()
        self._lose()

    def _hear(self) -> None:
        try:
            while True:
                packet = self._launched.control.recv(wire.MAX_PACKET)
                run_id, stood, out_of_time, wait_status, cpu_s, wall_s = wire.REPORT.unpack_from(packet)
                ended = self._waiting.pop(run_id)
                if not ended.done():
                    reason = packet[wire.REPORT.size :].decode(errors="replace")
                    code = os.waitstatus_to_exitcode(wait_status)
                    ended.set_result(_Report(bool(stood), bool(out_of_time), code, cpu_s, wall_s, reason))
        except BlockingIOError:
            return
        except (OSError, struct.error):  # closed, or its last words
            self._lose()

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._launched.control.fileno())
        for ended in self._waiting.values():
            if not ended.done():
                ended.set_exception(LostError())
        self._waiting.clear()


def _end_unwanted(started: asyncio.Future[Launched]) -> None:
    if started.exception() is None:
        started.get_loop().run_in_executor(None, started.result().end)


class Run:
    """One program on its way."""

    def __init__(self, connection: Connection, program: Program, slot: int) -> None:
        self._connection = connection
        self._limits = limits = program.limits
        self._id = connection.next_id()
        data = wire.frame(program.code, program.check, program.stdin)
        self._streams = Streams(data, limits.output_bytes, self.kill)
        packet = wire.RUN.pack(
            b"R",
            self._id,
            slot,
            program.check is not None,
            limits.cpu_s,
            limits.wall_s,
            limits.memory_bytes,
            limits.file_bytes,
            limits.processes,
        )
        try:
            self.ended = connection.send(packet, self._streams, self._id)
        except LostError:
            self._streams.close()
            raise
        self._streams.attach()

    def kill(self) -> None:
        """Kill the program; the report follows."""
        self._connection.kill(self._id)

    async def execution(self) -> Execution:
        """Wait for the program's end.

        Raises:
            LostError: The zygote is gone.
            RefusedError: One of the walls could not be raised.
        """
        try:
            async with asyncio.timeout(self._limits.wall_s + _GRACE_S):
                report = await asyncio.shield(self.ended)
        except TimeoutError:
            self._connection.give_up()
            raise LostError from None
        finally:
            self._streams.finish()
        if not report.stood and not report.out_of_time:
            raise RefusedError(report.reason)
        return Execution(
            status=self._status(report),
            stdout=self._streams.stdout,
            stderr=self._streams.stderr,
            exit_code=report.exit_code,
            wall_s=report.wall_s,
            cpu_s=report.cpu_s,
        )

    def _status(self, report: _Report) -> Status:
        if self._streams.overflowed:
            return "output_limit"
        if report.exit_code >= 0:
            return "error" if report.exit_code else "ok"
        # The kernel kills by a count of clock ticks, and reports an exact one: on a busy machine well below.
        if report.out_of_time or report.cpu_s > self._limits.cpu_s / 2:
            return "timeout"
        return "killed"
