"""A real local S3 server, and before it a proxy that answers as a bucket does on a bad day."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# One request at a time: the real S3 decides conditional puts atomically, moto checks and then writes.
_SERVER = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
print(server.port, flush=True)
server.serve_forever()
"""
FAULTS = ("500", "503", "cut before", "cut after", "cut within")
_REPLIES = {
    "500": ("500 Internal Server Error", "InternalError", "We encountered an internal error."),
    "503": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "403 to writes": ("403 Forbidden", "AccessDenied", "Access Denied"),  # never passes: no kind of FAULTS
}
BUCKET = "faults"


class S3:
    """The server and the proxy before it.

    Attributes:
        injected: How many requests went wrong, by kind.
        strength: The share of requests that go wrong from now on; 0: none.
        kinds: How they do.
    """

    def __init__(self, seed: int = 0, upstream: str | None = None) -> None:
        """A proxy before a server of its own, or before one at http://127.0.0.1:PORT that is there."""
        self.injected: Counter[str] = Counter()
        self.strength = 0.0
        self.kinds: Sequence[str] = FAULTS
        self.port = 0
        self._luck = random.Random(seed)
        self._server: subprocess.Popen[str] | None = None
        self._upstream = int(upstream.rpartition(":")[2]) if upstream else 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._up = threading.Event()

    def __enter__(self) -> S3:
        if not self._upstream:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert self._server.stdout is not None
            self._upstream = int(self._server.stdout.readline())
        self._thread.start()
        if not self._up.wait(30):
            raise RuntimeError("The proxy before the S3 server did not start.")
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def variables(self, through_proxy: bool = True) -> Mapping[str, str]:
        """The usual AWS variables."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port if through_proxy else self._upstream}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 20)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        self._loop.run_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request; then the connection is closed, as the reply says."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await _body(head, reader, writer)
            fault = self._luck.choice(self.kinds) if self._luck.random() < self.strength else None
            if fault == "403 to writes" and head.startswith((b"GET", b"HEAD")):
                fault = None
            if fault is not None:
                self.injected[fault] += 1
            if fault in _REPLIES:
                writer.write(_reply(*_REPLIES[fault]))
                await writer.drain()
            elif fault != "cut before":
                reply = await self._forward(head, body)
                if fault is None:
                    writer.write(reply)
                elif fault == "cut within":
                    writer.write(_first_half(reply))
                await writer.drain()
        if writer.transport is not None and self.strength > 0:
            writer.transport.abort()  # a reset, not a polite end
        with contextlib.suppress(OSError):
            writer.close()

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        lines = [
            line
            for line in head.rstrip(b"\r\n").split(b"\r\n")
            if not line.lower().startswith((b"connection:", b"expect:"))
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
        await writer.drain()
        reply = await reader.read(-1)
        writer.close()
        first, _, rest = reply.partition(b"\r\n")
        if b"\r\nconnection: close" not in reply.partition(b"\r\n\r\n")[0].lower():
            return first + b"\r\nConnection: close\r\n" + rest
        return reply


async def _body(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if fields.get(b"expect", b"").lower() == b"100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        whole = b""
        while True:
            size = await reader.readline()
            whole += size
            count = int(size.split(b";")[0], 16)
            if count == 0:
                break
            whole += await reader.readexactly(count + 2)
        while (line := await reader.readline()) != b"\r\n":
            whole += line
        return whole + b"\r\n"
    return await reader.readexactly(int(fields.get(b"content-length", b"0")))


def _first_half(reply: bytes) -> bytes:
    """A reply that breaks off: in its body, or in its first line where it has none.

    Not among its headers: Python's HTTP client takes what is left for the whole.
    """
    head, gap, body = reply.partition(b"\r\n\r\n")
    return head + gap + body[: len(body) // 2] if body else reply[:5]


def _reply(status: str, code: str, message: str) -> bytes:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + text
