"""The process that programs are forked from: clean, small, with nothing in its memory that is worth reading.

    parent -> launcher -> zygote -> program
                                 -> program

The launcher only waits, and ends when the parent or the zygote does; the zygote forks, counts seconds,
kills, and reports. It never holds a program's code, input or output: these go through pipes from the parent
to the program.
"""

import _socket
import contextlib
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from rtr_ray.sandbox import checker, program, wire
from rtr_ray.sandbox.jail import Walls, die_with_parent
from rtr_ray.sandbox.types import Limits

_PARENT_CHECK_S = 1.0


def main() -> NoReturn:
    """Be the launcher.

    Its standard input is the control socket; its arguments are the parent's pid, the mode, and `filter` or
    `bare`.
    """
    parent, mode, filtering = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    control = _socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)
    os.environ.clear()
    try:
        program.preload()
        walls = Walls.raise_up(namespaces=mode == "namespaces", filtering=filtering == "filter")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            die_with_parent()
            walls.move_in()
            zygote = Zygote(control, walls)
            control.send(wire.READY)
            zygote.serve()
    except BaseException as error:
        with contextlib.suppress(OSError):
            control.send(wire.REFUSED + str(error).encode())
        os._exit(1)
    control.close()
    # The end of the control socket tells the zygote that the parent is gone, unless a child of the parent
    # inherited that end: then this does.
    while os.getppid() == parent and os.waitpid(pid, os.WNOHANG) == (0, 0):
        signal.sigtimedwait({signal.SIGCHLD}, _PARENT_CHECK_S)
    os._exit(0)


@dataclass(slots=True)
class _Running:
    run_id: int
    slot: int
    started: float
    deadline: float
    ready_fd: int
    out_of_time: bool = False


class Zygote:
    """Forks one program per request and reports how it ended."""

    def __init__(self, control: _socket.socket, walls: Walls) -> None:
        self._control = control
        self._walls = walls
        self._running: dict[int, _Running] = {}  # by pid

    def serve(self) -> NoReturn:
        """Work until the parent closes its end; then end, and with this process every program."""
        wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self._control.fileno(), select.POLLIN)
        while True:
            ready = dict(poll.poll(self._milliseconds_to_deadline()))
            if wakeup in ready:
                os.read(wakeup, 4096)
            self._reap()
            self._kill_overdue()
            if self._control.fileno() in ready:
                self._obey()

    def _obey(self) -> None:
        packet, ancillary, _, _ = self._control.recvmsg(wire.MAX_PACKET, _socket.CMSG_SPACE(3 * 4))
        if not packet:
            for pid in self._running:
                self._kill(pid)
            os._exit(0)
        if packet[:1] == b"K":
            _, run_id = wire.KILL.unpack(packet)
            for pid, running in self._running.items():
                if running.run_id == run_id:
                    self._kill(pid)
            return
        fds = [fd for _, _, data in ancillary for fd in memoryview(data).cast("i")]
        try:
            self._start(packet, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _start(self, packet: bytes, fds: list[int]) -> None:
        _, run_id, slot, with_check, cpu_s, wall_s, memory, files, processes = wire.RUN.unpack(packet)
        limits = Limits(
            cpu_s=cpu_s, wall_s=wall_s, memory_bytes=memory, file_bytes=files, processes=processes
        )
        started = time.monotonic()
        ready_fd, say_ready_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            pid = self._walls.fork()
        except OSError as error:
            os.close(ready_fd)
            self._control.send(wire.REPORT.pack(run_id, False, False, 0, 0.0, 0.0) + str(error).encode())
            return
        else:
            if pid == 0:
                _become_program(self._walls, slot, limits, fds, say_ready_fd, bool(with_check))
            self._running[pid] = _Running(run_id, slot, started, started + wall_s, ready_fd)
        finally:
            os.close(say_ready_fd)

    def _reap(self) -> None:
        while True:
            try:
                pid, wait_status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            running = self._running.pop(pid, None)
            if running is None:
                continue
            self._walls.clear(running.slot)
            self._report(running, wait_status, usage.ru_utime + usage.ru_stime)

    def _report(self, running: _Running, wait_status: int, cpu_s: float) -> None:
        wall_s = time.monotonic() - running.started
        try:
            said = os.read(running.ready_fd, 4096)
        except BlockingIOError:
            said = b""
        os.close(running.ready_fd)
        stood = said == wire.READY
        reason = b"" if stood else said or b"the program's process ended before its walls stood"
        packet = wire.REPORT.pack(running.run_id, stood, running.out_of_time, wait_status, cpu_s, wall_s)
        self._control.send(packet + reason)

    def _milliseconds_to_deadline(self) -> float | None:
        waiting = [running.deadline for running in self._running.values() if not running.out_of_time]
        if not waiting:
            return None
        return max(0.0, min(waiting) - time.monotonic()) * 1000 + 1

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for pid, running in self._running.items():
            if running.deadline <= now and not running.out_of_time:
                running.out_of_time = True
                self._kill(pid)

    def _kill(self, pid: int) -> None:
        _signal(os.kill, pid)  # process 1 of its namespace: with it the kernel kills all others there
        if not self._walls.namespaces:
            _signal(os.killpg, pid)


def _signal(send: object, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(pid, signal.SIGKILL)  # type: ignore[operator]


def _become_program(
    walls: Walls, slot: int, limits: Limits, fds: list[int], say_ready_fd: int, with_check: bool
) -> NoReturn:
    try:
        program.forget_signals()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        walls.enter(slot, limits)
        channel = checker.fork_program(walls, limits) if with_check else None
        walls.lock(limits, keep_fds=[say_ready_fd] if channel is None else [say_ready_fd, channel])
        program.settle()
        os.write(say_ready_fd, wire.READY)
        os.close(say_ready_fd)
    except BaseException as error:
        os.write(say_ready_fd, str(error).encode() or b"unknown")
        os._exit(1)
    try:
        code_length, check_length = wire.FRAME.unpack(program.read_exactly(0, wire.FRAME.size))
        code = program.read_exactly(0, code_length)
        check = program.read_exactly(0, check_length)
        if channel is None:
            program.run(wire.decode(code))
        checker.run(channel, wire.decode(code), wire.decode(check))
    finally:
        os._exit(1)
