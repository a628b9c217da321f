"""The few C functions that Python 3.11 does not offer, with errors as OSError."""

import ctypes
import os
import platform
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None, use_errno=True)  # calls that keep the interpreter's lock

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_SYS_CLONE = {"x86_64": 56, "aarch64": 220}


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call a C function; -1 becomes an OSError that names it."""
    converted = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = int(getattr(_libc, name)(*converted))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0) -> int:
    """Change how the kernel treats this process."""
    return call("prctl", option, value, 0, 0, 0)


def mount(
    source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None
) -> None:
    """Mount, or change a mount."""
    call("mount", source, target, kind, flags, data)


def can_fork_into_namespace() -> bool:
    """Whether `fork_into` knows this processor's call."""
    return platform.machine() in _SYS_CLONE


def fork_into(flags: int) -> int:
    """Fork, as `os.fork` does, with the child in new namespaces.

    `unshare(CLONE_NEWPID)` would move every later child of this process, and only once; clone moves one
    child. The process must have a single thread.
    """
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(
        _held.syscall(
            *map(ctypes.c_long, (_SYS_CLONE[platform.machine()], flags | signal.SIGCHLD, 0, 0, 0, 0))
        )
    )
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone: {os.strerror(number)}")
    return pid


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    none = (ctypes.c_uint32 * 6)()
    call("capset", ctypes.addressof(header), ctypes.addressof(none))
