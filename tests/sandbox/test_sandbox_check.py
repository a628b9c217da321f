"""A check runs on what a program defined, and no program can fake that it passed."""

import secrets

import pytest
from sandbox_world import Box

from rtr_ray.sandbox import Limits

ADD = "def add(a, b):\n    return a + b\n"


# name: (program, check)
RIGHT = {
    "calls": (ADD, "assert add(2, 3) == 5\nassert add('a', b='b') == 'ab'\nassert add([1], [2]) == [1, 2]"),
    "a check as a function": (ADD, """
def check(candidate):
    for n in range(50):
        assert candidate(n, n) == 2 * n
check(add)
"""),
    "plain data": ("""
def f(x):
    return {"k": [x, (1, 2.5)], "s": {1}, "f": frozenset({2}), "b": b"x", "n": None, "t": True}
""", """
assert f(1) == {"k": [1, (1, 2.5)], "s": {1}, "f": frozenset({2}), "b": b"x", "n": None, "t": True}
"""),
    "numbers and dates": ("""
from fractions import Fraction
from decimal import Decimal
import datetime
def f():
    return [Fraction(1, 3), Decimal("1.50"), 1 + 2j, range(3), float("inf"), 10**30]
def g():
    return datetime.date(2020, 1, 2), datetime.timedelta(5)
""", """
import fractions, decimal, datetime
assert f() == [fractions.Fraction(1, 3), decimal.Decimal("1.5"), 1 + 2j, range(3), float("inf"), 10**30]
assert g() == (datetime.date(2020, 1, 2), datetime.timedelta(5))
"""),
    "objects of its own": ("""
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def same(self, other): return other is self
""", """
s = Stack()
s.push(1)
s.push([2])
assert s.pop() == [2]
assert s.items == [1]
assert s.same(s) is True
"""),
    "generators": ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
    "exceptions": ("""
class Mine(KeyError): pass
def f(): raise Mine("x")
def g(): raise ValueError("negative")
""", """
for call, kind, text in ((f, KeyError, "'x'"), (g, ValueError, "negative")):
    try:
        call()
    except kind as error:
        assert text.strip("'") in str(error)
    else:
        assert False
"""),
    "names of builtins": ("def sum(a, b): return a * 10 + b\nLIMIT = 7", """
assert program.sum(1, 2) == 12
assert sum([1, 2]) == 3
assert LIMIT == 7
"""),
    "input and output": ("def f(): return 1\nprint('the program', input())", "print('the check', f())"),
    "an early end": ("import sys\ndef f(): return 1\nsys.exit()", "assert f() == 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes(box: Box, name: str) -> None:
    code, check = RIGHT[name]
    result = box.run(code, "in\n", check=check)
    assert result.status == "ok", result
    if name == "input and output":
        assert sorted(result.stdout.splitlines()) == ["the check 1", "the program in"]


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("def add(a, b): return a - b", "AssertionError"),
        ("def plus(a, b): return a + b", "NameError: name 'add' is not defined"),
        ("def add(a, b): raise ZeroDivisionError('x')", "ZeroDivisionError: x"),
        (ADD + "1 / 0", "ZeroDivisionError: division by zero"),
        (ADD + "import os\nos._exit(0)", "RuntimeError: the program ended before its check"),
        ("def add(a, b): return add(a, b)", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_wrong_program_does_not_pass(box: Box, code: str, last_line: str) -> None:
    result = box.run(code, check="assert add(2, 3) == 5")
    assert (result.status, result.error) == ("error", last_line)


EXPECTED = f"token-{secrets.token_hex(8)}"

CHEATS = {
    "ends with exit code 0": "import os; os._exit(0)",
    "ends with exit code 0 when called": "import os\ndef f(n): os._exit(0)",
    "leaves when called": "import sys\ndef f(n): sys.exit(0)",
    "leaves through an exception": "def f(n): raise SystemExit(0)",
    "ends the check's loop": "def f(n): raise StopIteration",
    "ends the check's loop later": "def f(n):\n    class Stop(StopIteration): pass\n    raise Stop",
    "raises what ends a generator": "def f(n): raise GeneratorExit",
    "prints what a check might": "print('ok', 'PASSED', 'OK (1 test)')\ndef f(n): print('ok')",
    "equals everything": """
class Same(int):
    def __eq__(self, other): return True
    __ne__ = lambda *_: False
    __bool__ = __contains__ = __eq__
    __hash__ = None
def f(n): return Same()
""",
    "hides what equals everything in a list": """
class Same:
    def __eq__(self, other): return True
def f(n): return [Same()]
""",
    "answers with a subclass of list": """
class Same(list):
    def __eq__(self, other): return True
def f(n): return Same([1])
""",
    "is true for all it is asked": """
class Yes:
    def __getattr__(self, name): return self
    def __call__(self, *_): return self
    def __bool__(self): return True
f = Yes()
""",
    "redefines the builtins": """
import builtins
all = any = len = isinstance = lambda *_: True
AssertionError = Exception = int
builtins.all = builtins.any = lambda *_: True
__builtins__ = {"all": lambda *_: True}
def f(n): return 0
""",
    "reads the expected value from the frames above": """
import gc, re, sys
def f(n):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [repr(frame.f_locals), repr(frame.f_code.co_consts)]
        frame = frame.f_back
    seen += [repr(thing)[:9999] for thing in gc.get_objects() if type(thing) in (dict, list, tuple)]
    for text in seen:
        if found := re.search("token-[0-9a-f]{16}", text):
            return found[0]
    return 0
""",
    "patches the answering": """
import sys
for name, module in list(sys.modules.items()):
    if "sandbox" in name:
        for attribute, value in list(vars(module).items()):
            if callable(value):
                try: setattr(module, attribute, lambda *_: 0)
                except Exception: pass
def f(n): return 0
""",
    "kills the check": """
import os, signal
def f(n):
    for pid in (1, os.getppid(), 0, -1):
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            try: os.kill(pid, number)
            except OSError: pass
    return 0
""",
    "writes to every descriptor": """
import os, pickle, struct
def f(n):
    for message in (("value", True), ("value", None), "ready", {"f": True}):
        data = pickle.dumps(message)
        for fd in range(3, 256):
            try: os.write(fd, struct.pack("<Q", len(data)) + data)
            except OSError: pass
    return 0
""",
    "answers with a pickle that runs code": """
import os, struct
def f(n):
    data = b"cos\\n_exit\\n(I0\\ntR."
    for fd in range(3, 256):
        try: os.write(fd, struct.pack("<Q", len(data)) + data)
        except OSError: pass
    os._exit(0)
""",
    "announces more than there is memory": """
import os, struct
def f(n):
    for fd in range(3, 256):
        try: os.write(fd, struct.pack("<Q", 1 << 60))
        except OSError: pass
    os._exit(0)
""",
    "ends by itself while it is asked": """
import os, threading
def f(n):
    threading.Timer(0.01, os._exit, (0,)).start()
    import time; time.sleep(100)
""",
}

CHECKS = [
    f"for value in map(f, [1, 2]):\n    assert value == '{EXPECTED}'",
    f"assert all([f(n)] == ['{EXPECTED}'] for n in [1])",
    "if not f(1):\n    raise AssertionError\nassert type(f(1)) is str",
]


@pytest.mark.parametrize("name", CHEATS)
def test_no_program_fakes_a_pass(box: Box, name: str) -> None:
    limits = Limits(cpu_s=5, wall_s=30.0)
    for result in box.gather(
        *(box.sandbox.run(CHEATS[name], check=check, limits=limits) for check in CHECKS)
    ):
        assert result.status != "ok", result
    assert box.run(ADD, check="assert add(2, 3) == 5").status == "ok"


LIARS = """
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return hash(5)
def f(): return Liar()
"""


@pytest.mark.parametrize(
    "question",
    ["f()", "f() == 5", "5 == f()", "not f() != 5", "f() in [5]", "5 in [f()]", "[f()] == [5]", "f() in {5}"],
)
def test_an_object_of_the_program_is_not_asked_whether_it_is_right(box: Box, question: str) -> None:
    result = box.run(LIARS, check=f"assert {question}")
    assert result.error == (
        "TypeError: the program returned an object that is no plain data; a check cannot compare it"
    )


def test_a_program_does_not_reach_into_its_check(box: Box) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
def f():
    check, reached = os.getppid(), []
    for name in ("mem", "maps", "environ", "fd/1"):
        try: reached.append(os.open(f"/proc/{check}/{name}", os.O_RDWR if name == "mem" else os.O_RDONLY))
        except OSError: pass
    room = ctypes.create_string_buffer(64)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(room), 64)
    for call in (libc.process_vm_readv, libc.process_vm_writev):
        if call(check, ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0) > 0: reached.append(call.__name__)
    if libc.ptrace(0x4206, check, 0, 0) == 0: reached.append("ptrace")
    return reached
"""
    result = box.run(code, check="assert f() == [], f()")
    assert result.status == "ok", result


def test_tests_that_are_just_appended_can_be_faked(box: Box) -> None:
    """So we know that the cheats above would be noticed."""
    for name in (
        "ends with exit code 0",
        "equals everything",
        "reads the expected value from the frames above",
    ):
        assert box.run(f"{CHEATS[name]}\n{CHECKS[0]}").status == "ok"


def test_a_program_neither_holds_up_nor_outlives_its_check(box: Box) -> None:
    slow = "import time\ndef f(): time.sleep(100)"
    lingering = slow + "\nimport threading\nthreading.Thread(target=f).start()\ndef g(): return 1"
    limits = Limits(wall_s=0.5)
    lingers = Limits(wall_s=60.0) if box.gets_no_threads else limits  # an error has all the time it needs
    unanswered, outlived = box.gather(
        box.sandbox.run(slow, check="f()", limits=limits),
        box.sandbox.run(lingering, check="assert g() == 1", limits=lingers),
    )
    assert unanswered.status == "timeout"
    assert outlived.status == ("error" if box.gets_no_threads else "timeout")
    assert box.only_it_is_left()
