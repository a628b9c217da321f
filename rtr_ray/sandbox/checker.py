"""Runs a check on a program, in a process that the program cannot reach.

A test that runs in the program's own process proves nothing: the program may end the process with exit code
0, return an object that equals everything, redefine `all`, or read the expected values, or any nonce, from
the frame above. So the program (P) and its check (C) are two processes that share only a channel:

    C calls a function of the program  ->  P computes  ->  plain data comes back, rebuilt from builtin types

and C alone decides how the execution ends. What the program returns that is no plain data (an object of its
own class, a generator) stays in P; C holds a `Remote` to it, on which one may call methods and get
attributes, but which refuses to be compared or to be true or false: the program must not answer that
question.
"""

import _socket
import builtins
import datetime
import decimal
import fractions
import io
import itertools
import os
import pickle
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rtr_ray.sandbox import program
from rtr_ray.sandbox.jail import Walls
from rtr_ray.sandbox.types import Limits

_LENGTH = struct.Struct("<Q")
_MOST_ITEMS = 1_000_000  # of a generator that a check iterates over

_PICKLED = (type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset)
# Other plain data travels as (type, arguments): a pickle that may name classes could also change them.
_REBUILT: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    complex: lambda value: (value.real, value.imag),
    range: lambda value: (value.start, value.stop, value.step),
    fractions.Fraction: lambda value: (value.numerator, value.denominator),
    decimal.Decimal: lambda value: (str(value),),
    datetime.date: lambda value: (value.year, value.month, value.day),
    datetime.timedelta: lambda value: (value.days, value.seconds, value.microseconds),
}
_BY_NAME = {kind.__name__: kind for kind in _REBUILT}
# Raised in a check's call these would end a loop of the check in silence, and with it the rest of its tests.
_NOT_PASSED_ON = (StopIteration, StopAsyncIteration)


class Channel:
    """Messages between the two processes. Neither end trusts what it reads: no class is looked up by name."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._held: list[object] = []

    def send(self, message: object) -> None:
        buffer = io.BytesIO()
        _Writer(buffer, self).dump(message)
        view = memoryview(_LENGTH.pack(buffer.tell()) + buffer.getvalue())
        while view:
            view = view[os.write(self.fd, view) :]

    def receive(self) -> Any:
        (length,) = _LENGTH.unpack(program.read_exactly(self.fd, _LENGTH.size))
        return _Reader(io.BytesIO(program.read_exactly(self.fd, length)), self).load()

    def ask(self, *question: object) -> Any:
        """Send and wait for the answer; what the other end raised is raised here."""
        self.send(question)
        kind, *answer = self.receive()
        if kind == "value":
            return answer[0]
        raise _exception(*answer)

    def held(self, number: int) -> object:
        """The object of this process that the other end calls by this number."""
        return self._held[number]

    def hold(self, value: object) -> int:
        """Give an object of this process a number, by which the other end may call it."""
        self._held.append(value)
        return len(self._held) - 1


class _Writer(pickle.Pickler):
    def __init__(self, data: io.BytesIO, channel: Channel) -> None:
        super().__init__(data, protocol=5)
        self._channel = channel

    def persistent_id(self, value: object) -> object:
        kind = type(value)
        if kind in _PICKLED:
            return None
        if kind is Remote:
            return ("held", object.__getattribute__(value, "_Remote__number"))
        if kind in _REBUILT:
            return (kind.__name__, *_REBUILT[kind](value))
        return ("remote", self._channel.hold(value))


class _Reader(pickle.Unpickler):
    def __init__(self, data: io.BytesIO, channel: Channel) -> None:
        super().__init__(data)
        self._channel = channel

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError("a message names a class")

    def persistent_load(self, described: Any) -> object:
        kind, *arguments = described
        if kind == "remote":
            return Remote(self._channel, arguments[0])
        if kind == "held":
            return self._channel.held(arguments[0])
        return _BY_NAME[kind](*arguments)


class Remote:
    """An object that stays in the program's process."""

    __slots__ = ("__channel", "__number")

    __channel: Channel
    __number: int

    def __init__(self, channel: Channel, number: int) -> None:
        object.__setattr__(self, "_Remote__channel", channel)
        object.__setattr__(self, "_Remote__number", number)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self.__channel.ask("call", self.__number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__channel.ask("get", self.__number, name)

    def __iter__(self) -> Iterator[Any]:
        items = self.__channel.ask("items", self.__number)
        return iter(items) if type(items) is list else self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("the program returned an object that is no plain data; a check cannot compare it")

    __setattr__ = __eq__ = __ne__ = __bool__ = __hash__ = _refuse


def _exception(name: object, text: object) -> Exception:
    """The builtin exception that the program raised, or the builtin one that it derives from."""
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NOT_PASSED_ON):
        try:
            return kind(str(text))
        except TypeError:  # those that want more than a text
            pass
    return RuntimeError(f"{name}: {text}")


def fork_program(walls: Walls, limits: Limits) -> int:
    """Fork the program's process; returns this end of the channel, once the walls stand around the other."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    if os.fork() == 0:
        channel = Channel(theirs.fileno())
        try:
            walls.lock(limits, keep_fds=[channel.fd])
            program.settle()
            channel.send("ready")
        except BaseException as error:
            channel.send(str(error))
            os._exit(1)
        _serve(channel)
    theirs.close()
    channel = Channel(ours.detach())
    said = channel.receive()
    if said != "ready":
        raise OSError(said)
    return channel.fd


def _serve(channel: Channel) -> NoReturn:
    """Be the program: run its code, then answer the check's calls until the check ends."""
    namespace = program.main_module()
    exit_code = program.execute(channel.receive(), namespace)
    if exit_code != 0:
        program.leave(exit_code)
    names = {name: value for name, value in namespace.items() if not isinstance(value, types.ModuleType)}
    channel.send({"program": sys.modules["__main__"], **names})
    while True:
        try:
            question = channel.receive()
        except EOFError:
            program.leave(0)
        try:
            channel.send(("value", _answer(channel, *question)))
        except BaseException as error:
            builtin = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            channel.send(("raise", builtin.__name__, str(error)[:1000]))


def _answer(channel: Channel, verb: str, number: int, *arguments: Any) -> object:
    target = channel.held(number)
    if verb == "call":
        args, kwargs = arguments
        return target(*args, **kwargs)  # type: ignore[operator]
    if verb == "get":
        return getattr(target, arguments[0])
    return list(itertools.islice(target, _MOST_ITEMS))  # type: ignore[call-overload]


def run(channel_fd: int, code: str, check: str) -> NoReturn:
    """Be the check: send the program its code, wait for its end, then run the check on what it defined."""
    channel = Channel(channel_fd)
    sys.stdin = io.StringIO()
    os.close(0)  # what follows on the pipe is the program's
    exit_code, message = 1, ""
    try:
        channel.send(code)
        # Filtered at this end: the check's `all` and `__builtins__` are Python's, whatever the program has.
        names = {
            name: value
            for name, value in channel.receive().items()
            if type(name) is str and not name.startswith("__") and not hasattr(builtins, name)
        }
        exit_code = program.execute(check, {**names, "__name__": "__check__"}, "<check>")
    except (EOFError, OSError):
        message = "RuntimeError: the program ended before its check\n"
    except Exception as error:
        message = f"RuntimeError: the program answered no check: {type(error).__name__}\n"
    os.close(channel_fd)
    _, wait_status = os.waitpid(-1, 0)
    if not os.waitstatus_to_exitcode(wait_status) > 0:  # else it has said itself what is wrong
        sys.stderr.write(message)
    program.leave(exit_code)
