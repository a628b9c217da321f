"""What travels between the parent, the zygote and a program: fixed structs, nothing to parse, no pickle.

    parent  --control socket-->  zygote     RUN with three pipe ends, KILL
    zygote  --control socket-->  parent     hello once, then one REPORT per program
    parent  --standard input-->  program    a frame: the code, the check, then the program's own input
    program --stdout, stderr-->  parent     bytes, never interpreted

A program holds no end of the control socket, so no report can be forged.
"""

import struct

RUN = struct.Struct("<cQHBQdQQQ")
"""b"R", run id, slot, whether a check follows, then Limits: cpu_s, wall_s, memory, file_bytes, processes."""

KILL = struct.Struct("<cQ")
"""b"K", run id."""

REPORT = struct.Struct("<QBBidd")
"""Run id, whether the walls stood before the program started, whether its wall time ran out, the wait status,
CPU seconds, wall seconds; then, where the walls did not stand, the reason as text."""

FRAME = struct.Struct("<QQ")
"""Lengths of the code and of the check in bytes; both follow."""

READY = b"ready"
REFUSED = b"refused: "
MAX_PACKET = 8192


def frame(code: str, check: str | None, stdin: str) -> bytes:
    """All that a program reads from its standard input."""
    code_bytes, check_bytes = _encode(code), _encode(check or "")
    return FRAME.pack(len(code_bytes), len(check_bytes)) + code_bytes + check_bytes + _encode(stdin)


def _encode(text: str) -> bytes:
    # A model may write half a surrogate pair; that is the program's syntax error, not ours.
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """The inverse of what `frame` does to a text."""
    return data.decode("utf-8", "surrogatepass")
