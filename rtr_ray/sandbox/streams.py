"""The parent's ends of one program's standard input, output and error."""

import asyncio
import contextlib
import os
from collections.abc import Callable

_CHUNK = 1 << 16


class Streams:
    """Feeds a program its input and collects what it writes, up to a number of bytes; blocks nothing."""

    def __init__(self, data: bytes, most_bytes: int, on_overflow: Callable[[], None]) -> None:
        self.overflowed = False
        self._loop = asyncio.get_running_loop()
        self._unsent = memoryview(data)
        self._room = most_bytes
        self._on_overflow = on_overflow
        self._open: list[int] = []
        try:
            stdin, self._stdin = self._pipe()
            self._stdout, stdout = self._pipe()
            self._stderr, stderr = self._pipe()
        except OSError:
            self.close()
            raise
        self.theirs = (stdin, stdout, stderr)
        for ours in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(ours, False)
        self._read = {self._stdout: bytearray(), self._stderr: bytearray()}

    @property
    def stdout(self) -> str:
        return self._read[self._stdout].decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self._read[self._stderr][-4096:].decode("utf-8", "replace")

    def attach(self) -> None:
        """The program has its ends: close ours of these, and begin to listen and to feed."""
        for fd in self.theirs:
            self._close(fd)
        for fd in self._read:
            self._loop.add_reader(fd, self._take, fd)
        self._feed()
        if self._unsent:
            self._loop.add_writer(self._stdin, self._feed)

    def finish(self) -> None:
        """The program has ended: read what is left in the pipes, and close them."""
        for fd in self._read:
            while fd in self._open and self._take(fd):
                pass
        self.close()

    def close(self) -> None:
        """Close every descriptor that is still open."""
        for fd in tuple(self._open):
            self._close(fd)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open += ends
        return ends

    def _feed(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._stdin, self._unsent[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # it closed its input, or ended: then it does not want the rest
            self._unsent = self._unsent[:0]
        self._close(self._stdin)

    def _take(self, fd: int) -> bool:
        """Read once; returns whether there may be more."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        self._read[fd] += data[: self._room]
        self._room -= len(data)
        if self._room < 0 and not self.overflowed:
            self.overflowed = True
            self._on_overflow()
        if not data or self.overflowed:
            for done in (self._stdout, self._stderr) if self.overflowed else (fd,):
                self._close(done)
            return False
        return True

    def _close(self, fd: int) -> None:
        if fd not in self._open:
            return
        self._open.remove(fd)
        if fd in (self._stdout, self._stderr):
            self._loop.remove_reader(fd)
        elif fd == self._stdin:
            self._loop.remove_writer(fd)
        with contextlib.suppress(OSError):
            os.close(fd)
