"""What a program finds when it starts, and how it ends."""

import atexit
import gc
import importlib
import io
import linecache
import os
import random
import signal
import sys
import threading
import traceback
import types
from os import _exit  # by value: a program may replace os._exit
from typing import NoReturn

PRELOADED = (
    "abc", "argparse", "array", "ast", "base64", "binascii", "bisect", "builtins", "calendar", "cmath",
    "codecs", "collections", "collections.abc", "concurrent.futures", "concurrent.futures.thread",
    "contextlib", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "errno", "fractions", "functools", "gc", "graphlib", "hashlib", "heapq", "hmac", "inspect", "io",
    "itertools", "json", "keyword", "locale", "logging", "math", "numbers", "operator", "os", "os.path",
    "pathlib", "pickle", "pprint", "queue", "random", "re", "sched", "secrets", "select", "signal",
    "statistics", "string", "struct", "sys", "textwrap", "threading", "time", "timeit", "token",
    "tokenize", "traceback", "types", "typing", "unicodedata", "unittest", "uuid", "warnings", "weakref",
    "zlib", "_strptime", "encodings.ascii", "encodings.cp1252", "encodings.hex_codec", "encodings.idna",
    "encodings.latin_1", "encodings.raw_unicode_escape", "encodings.rot_13", "encodings.unicode_escape",
    "encodings.utf_16", "encodings.utf_32",
)  # fmt: skip
"""What a program may import. It sees no files, so all else is a ModuleNotFoundError."""

NAME = "<program>"

_LONGEST_TRACEBACK = 4000


def preload() -> None:
    """Import everything that a program may import, and leave no way to import more."""
    # The built-in hashes do; OpenSSL's would triple the memory that every fork copies the tables of.
    sys.modules["_hashlib"] = None  # type: ignore[assignment]
    for name in PRELOADED:
        importlib.import_module(name)
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.argv[:] = [NAME]
    sys.set_int_max_str_digits(0)  # 2**20000 is an answer; its cost is bounded by the CPU limit
    gc.collect()
    gc.freeze()  # a collection in a program would touch, and so copy, every page of the zygote


def settle() -> None:
    """Make this process look like one that just started: its streams and its random numbers."""
    stdin = io.BufferedReader(io.FileIO(0, closefd=False))
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(stdin, "utf-8", "replace")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _writer(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _writer(2)  # type: ignore[misc]
    random.seed(0)  # the same program prints the same numbers, today and when a run resumes


def forget_signals() -> None:
    """Take back what the zygote does on signals."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_exactly(fd: int, count: int) -> bytes:
    """Read this many bytes, and not one more."""
    data = bytearray()
    while len(data) < count:
        part = os.read(fd, min(count - len(data), 1 << 20))
        if not part:
            raise EOFError(f"{count} bytes were announced and {len(data)} came")
        data += part
    return bytes(data)


def _writer(fd: int) -> io.TextIOWrapper:
    stream = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
    return io.TextIOWrapper(stream, "utf-8", "backslashreplace", line_buffering=fd == 2)


def execute(code: str, namespace: dict[str, object], name: str = NAME) -> int:
    """Run code to its end, its exceptions included; returns the exit code that Python itself would give."""
    lines = code.splitlines(keepends=True)
    linecache.cache[name] = (len(code), None, lines, name)  # so that its tracebacks can show them
    try:
        exec(compile(code, name, "exec", dont_inherit=True), namespace)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except BaseException as error:
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next  # without the frame of this function
        sys.stderr.write("".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:])
        return 1
    return 0


def main_module() -> dict[str, object]:
    """The namespace of a new `__main__`."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    return module.__dict__


def leave(exit_code: int) -> NoReturn:
    """End the process as the interpreter would, short of taking it apart."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        exit_code = exit_code or 1
    _exit(exit_code)


def run(code: str) -> NoReturn:
    """Be the program."""
    try:
        exit_code = execute(code, main_module())
    except BaseException:  # not even its traceback could be printed
        exit_code = 1
    leave(exit_code)
