"""Looks from inside whether the walls stand, by trying to get through them with a harmless program."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

from rtr_ray.sandbox.types import Execution, Isolation

PROGRAM = """
import _socket, json, os, sys

planted, parent = json.load(sys.stdin)

def works(attempt, *arguments):
    try:
        attempt(*arguments)
    except OSError:
        return False
    return True

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def see_a_network():
    if all(name == "lo" for _, name in _socket.if_nameindex()):
        raise OSError("only lo")

print(json.dumps({
    "runs as root": 0 in (os.getuid(), os.geteuid(), os.getgid()),
    "has an environment": bool(os.environ),
    "holds a descriptor of ours": any(works(os.dup, fd) for fd in range(3, 300)),
    "reads a file of ours": works(open, planted),
    "reaches our process": os.getpid() != 1 and works(os.kill, parent, 0),
    "makes processes": works(fork),
    "sees a network": works(see_a_network),
    "opens a socket": works(_socket.socket),
}))
"""

_NEVER = {"has an environment", "holds a descriptor of ours"}
# With rlimits only, a program still runs as root in a container that knows no other user.
_HIDDEN = {"runs as root", "reads a file of ours", "reaches our process", "sees a network"}
_FILTERED = {"makes processes", "opens a socket"}


@contextlib.contextmanager
def planted_input() -> Iterator[str]:
    """What the inspection reads from its standard input: a file that all may read, and this process."""
    with tempfile.NamedTemporaryFile("w", prefix="rtr-ray-inspection-") as file:
        os.fchmod(file.fileno(), 0o644)
        yield json.dumps([file.name, os.getpid()])


def failures(isolation: Isolation, execution: Execution) -> list[str]:
    """What the inspection could do that it must not be able to do under this isolation."""
    if execution.status != "ok":
        return [f"ends with {execution.status} {execution.error}"]
    forbidden = set(_NEVER)
    if isolation.mode != "rlimits-only":
        forbidden |= _HIDDEN
    if isolation.seccomp:
        forbidden |= _FILTERED
    found = json.loads(execution.stdout)
    return sorted(name for name in forbidden if found[name])
