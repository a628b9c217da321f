"""The system call filter: a list of what a Python program needs; all else answers EPERM.

A list of what is allowed, not of what is forbidden: a call that a later kernel invents is refused as well.
Calls are told apart by number and by plain arguments; a filter cannot read a path, so where no mount
namespace hides the machine's files, no call that takes a path is allowed at all.
"""

import ctypes
import errno
import functools
import platform
import struct
from collections.abc import Iterable

from rtr_ray.sandbox.libc import call

# name: (number on x86_64, number on aarch64); None where that machine has no such call
_ALWAYS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "close": (3, 57),
    "close_range": (436, 436), "lseek": (8, 62), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "fstat": (5, 80),
    "brk": (12, 214), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None), "getrlimit": (97, 163),
    "getrusage": (98, 165), "times": (100, 153), "uname": (63, 160),
    "sysinfo": (99, 179), "getcpu": (309, 168), "sched_yield": (24, 124),
    "time": (201, None), "gettimeofday": (96, 169), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "alarm": (37, None), "pause": (34, None),
    "setitimer": (38, 103), "getitimer": (36, 102),
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
    "wait4": (61, 260), "waitid": (247, 95),
}  # fmt: skip

_FILES: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "stat": (4, None), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "statfs": (137, 43), "fstatfs": (138, 44),
    "umask": (95, 166), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "truncate": (76, 45), "ftruncate": (77, 46), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "utimensat": (280, 88), "fsync": (74, 82), "fdatasync": (75, 83),
    "fallocate": (285, 47), "flock": (73, 32), "fadvise64": (221, 223),
}  # fmt: skip

_BY_ARGUMENT: dict[str, tuple[int, int]] = {
    "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261), "fcntl": (72, 25), "ioctl": (16, 29),
    "sched_getaffinity": (204, 123), "mmap": (9, 222), "mprotect": (10, 226),
    "clone": (56, 220), "clone3": (435, 435),
}  # fmt: skip

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH_*

# F_SETOWN and F_SETSIG are not among them: with these the kernel itself sends any signal to any process of
# the same user. Nor is TIOCSTI among the ioctls: it types into the parent's terminal.
_FCNTL = (*range(8), 1030, 1032)  # DUPFD, [GS]ETFD, [GS]ETFL, [GS]ETLK(W), DUPFD_CLOEXEC, GETPIPE_SZ
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
_PROT_EXEC = 4
_CLONE_THREAD = 0x10000
_CLONE_NEW_ANY = 0x7E020000

_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS; BPF_JMP|...|K; BPF_RET|K
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data

Instruction = tuple[int, int, int, int]


def _refuse(code: int) -> Instruction:
    return (_RET, 0, 0, 0x00050000 | code)


def _argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGS + 8 * index)  # the low half: each argument that we look at is a 32-bit one


def _one_of(index: int, values: Iterable[int]) -> list[Instruction]:
    rule = [_argument(index)]
    for value in values:
        rule += [(_JEQ, 0, 1, value), (_RET, 0, 0, _ALLOW)]
    return [*rule, _refuse(errno.EPERM)]


def _without(index: int, bits: int) -> list[Instruction]:
    return [_argument(index), (_JSET, 0, 1, bits), _refuse(errno.EPERM), (_RET, 0, 0, _ALLOW)]


def supported() -> bool:
    """Whether the filter knows this processor's system calls."""
    return platform.machine() in _MACHINES


@functools.lru_cache(maxsize=2)
def build(files: bool, pid: int) -> bytes:
    """Assemble the filter.

    Args:
        files: Whether calls that take a path are allowed: true only where the program sees no files but its
        own. pid: The one process that the program may signal: itself.

    Returns:
        An array of `struct sock_filter`.
    """
    column, arch = _MACHINES[platform.machine()]
    plain = [numbers[column] for numbers in (*_ALWAYS.values(), *(_FILES.values() if files else ()))]
    rules = {
        "kill": _one_of(0, [pid]),
        "tgkill": _one_of(0, [pid]),
        "prlimit64": _one_of(0, [0, pid]),
        "sched_getaffinity": _one_of(0, [0, pid]),
        "fcntl": _one_of(1, _FCNTL),
        "ioctl": _one_of(1, _IOCTL),
        "mmap": _without(2, _PROT_EXEC),
        "mprotect": _without(2, _PROT_EXEC),
        # A thread, never a process. clone3 hides its flags behind a pointer: ENOSYS makes the C library use
        # clone.
        "clone": [
            _argument(0),
            (_JSET, 0, 1, _CLONE_NEW_ANY),
            _refuse(errno.EPERM),
            (_JSET, 0, 1, _CLONE_THREAD),
            (_RET, 0, 0, _ALLOW),
            _refuse(errno.EPERM),
        ],
        "clone3": [_refuse(errno.ENOSYS)],
    }
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, arch),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        (_JGE, 0, 1, 0x40000000),  # the x32 numbers of an x86_64 kernel
        (_RET, 0, 0, _KILL_PROCESS),
    ]
    for number in plain:
        if number is not None:
            program += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ALLOW)]
    for name, rule in rules.items():
        program += [(_JEQ, 0, len(rule), _BY_ARGUMENT[name][column]), *rule]
    program.append(_refuse(errno.EPERM))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Put this process under the filter, for ever. It must have set no_new_privs before.

    Raises:
        OSError: The kernel has no filters, or one that stands already forbids a further one.
    """
    header = _SockFprog(len(program) // 8, program)
    call("prctl", 22, 2, ctypes.addressof(header), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
