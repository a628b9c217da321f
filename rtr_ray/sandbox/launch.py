"""Starts the launcher and zygote of one sandbox, and ends them."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rtr_ray.errors import SandboxError
from rtr_ray.sandbox import wire
from rtr_ray.sandbox.types import Isolation

# The child imports its rooms from packages that are empty shells: `rtr_ray/__init__.py` would load numpy.
_BOOT = """
import sys, types
for name, path in (("rtr_ray", sys.argv.pop(1)), ("rtr_ray.sandbox", sys.argv.pop(1))):
    package = types.ModuleType(name)
    package.__path__ = [path]
    sys.modules[name] = package
from rtr_ray.sandbox.zygote import main
main()
"""

# What `-I` does, but for one variable that it would ignore: with a fixed hash seed the same program visits
# a set of strings in the same order each time. The zygote clears both variables before any program starts.
_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "TZ": "UTC0"}

_START_S = 60.0  # a machine under load took 2 s
_END_S = 10.0


class Launched:
    """One launcher process with its zygote, and this end of the control socket."""

    def __init__(self, isolation: Isolation) -> None:
        """Start it; blocks until the zygote is ready (about 0.2 s).

        Raises:
            SandboxError: This machine does not give one of the walls; the message says which.
        """
        if sys.platform != "linux":
            raise SandboxError(f"programs can be isolated on Linux only, and this is {sys.platform}")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = Path(__file__).parent
        boot = [str(package.parent), str(package)]
        arguments = [str(os.getpid()), isolation.mode, "filter" if isolation.seccomp else "bare"]
        try:
            self._process = subprocess.Popen(
                [sys.executable, *_FLAGS, "-c", _BOOT, *boot, *arguments],
                env=_ENVIRONMENT,
                cwd="/",
                # Not by pass_fds, which keeps its number: what closes them later looks no higher than 255.
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self.control.close()
            raise SandboxError(f"The sandbox's Python {sys.executable!r} does not start: {error}") from error
        finally:
            theirs.close()
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        self.control.settimeout(_START_S)
        try:
            hello = self.control.recv(wire.MAX_PACKET)
        except TimeoutError:
            hello = wire.REFUSED + f"it did not start within {_START_S:.0f} s".encode()
        except OSError:
            hello = b""
        try:
            if hello != wire.READY:
                self.end()
                raise SandboxError(
                    hello.removeprefix(wire.REFUSED).decode(errors="replace") or self._last_words()
                )
        finally:
            self._stderr.close()
        self.control.setblocking(False)

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return int(self._process.pid)

    def start_program(self, packet: bytes, fds: Sequence[int]) -> None:
        """Ask the zygote to fork a program with these descriptors as its standard input, output and error.

        Raises:
            OSError: The zygote is gone.
        """
        socket.send_fds(self.control, [packet], fds)

    def kill_program(self, run_id: int) -> None:
        """Ask the zygote to kill a program, if it still runs."""
        with contextlib.suppress(OSError):  # the zygote is gone, and the program with it
            self.control.send(wire.KILL.pack(b"K", run_id))

    def kill(self) -> None:
        """Have the kernel kill the zygote and every program, whatever state they are in."""
        self._process.kill()

    def _last_words(self) -> str:
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its process ended at once"

    def end(self) -> None:
        """End the zygote and every program; returns when the launcher is gone."""
        self.control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # someone stopped the zygote
            self._process.kill()
            self._process.wait()
