"""Programs that take more than their share, never end, or break what they can reach in their own process."""

from dataclasses import dataclass, field

from rtr_ray.sandbox import Limits


@dataclass(frozen=True)
class Greedy:
    """A program, and how it may end."""

    statuses: frozenset[str]
    code: str
    limits: Limits = field(default_factory=lambda: Limits(cpu_s=10, wall_s=60.0))


OK, ERROR, TIMEOUT, KILLED = (frozenset({status}) for status in ("ok", "error", "timeout", "killed"))
OUTPUT = frozenset({"output_limit"})
HALF_A_SECOND = Limits(cpu_s=1, wall_s=0.5)

# Each prints "limit held" if what it took stayed within the default limits.
# fmt: off
GREEDY: dict[str, Greedy] = {
    "allocates 10 GB": Greedy(ERROR, """
block = bytearray(10 << 30)
"""),
    "allocates bit by bit": Greedy(ERROR, """
blocks = []
while True:
    blocks.append(bytes(1 << 20))
"""),
    "maps memory without touching it": Greedy(OK, """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_long
mapped = 0
while libc.mmap(None, ctypes.c_long(1 << 24), 3, 0x22, -1, 0) != -1:
    mapped += 1 << 24
assert mapped <= 256 << 20
print("limit held")
"""),
    "unpacks a bomb": Greedy(ERROR, """
import zlib
packer = zlib.compressobj(1)
bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(80)) + packer.flush()
zlib.decompress(bomb)
""", Limits(cpu_s=10, wall_s=60.0, memory_bytes=64 << 20)),
    "recurses without end": Greedy(ERROR, """
def f(n): return f(n + 1)
f(0)
"""),
    "recurses without end or limit": Greedy(ERROR | KILLED | TIMEOUT, """
import sys
sys.setrecursionlimit(2**31 - 1)
def f(n): return f(n + 1)
f(0)
""", Limits(cpu_s=1, wall_s=60.0, memory_bytes=64 << 20)),
    "recurses in C without limit": Greedy(ERROR | KILLED, """
import sys, functools
sys.setrecursionlimit(2**31 - 1)
class A:
    def __getattr__(self, name): return getattr(self, name)
A().x
"""),
    "nests brackets for the parser": Greedy(ERROR | KILLED, """
eval("(" * 200_000 + ")" * 200_000)
"""),
    "starts threads without end": Greedy(OK, """
import threading, time
threading.stack_size(1 << 16)
started = 0
try:
    while started < 1000:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
assert started < 16, started
print("limit held")
""", Limits(cpu_s=10, wall_s=60.0, memory_bytes=16 << 30)),
    "leaves a daemon behind": Greedy(OK, """
import os, sys, time
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in (0, 1, 2):
                os.close(fd)
            time.sleep(1000)
        os._exit(0)
except OSError:
    pass
print("limit held")
"""),
    "leaves a daemon behind that holds its output open": Greedy(OK, """
import os, sys, time
try:
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
except OSError:
    pass
os.write(1, b"limit held")
os._exit(0)
"""),
    "fills its folder": Greedy(OK, """
import os
written = 0
try:
    for number in range(1000):
        with open(f"{number}", "wb", buffering=0) as file:
            for _ in range(1024):
                written += file.write(bytes(1024))
except OSError:
    pass
assert written <= 1 << 20, written
print("limit held")
"""),
    "makes files without end": Greedy(OK, """
made = 0
try:
    while True:
        open(f"{made}", "w").close()
        made += 1
except OSError:
    pass
assert made <= 64, made
print("limit held")
"""),
    "makes links and folders without end": Greedy(OK, """
import os
made = 0
for make in (lambda name: os.symlink("x" * 4000, name), os.mkdir, lambda name: os.link("0", name)):
    try:
        while True:
            make(f"{made}")
            made += 1
    except OSError:
        pass
assert made <= 64, made
print("limit held")
"""),
    "makes one huge file": Greedy(OK, """
import os
for make in (lambda fd: os.truncate(fd, 1 << 40), lambda fd: os.posix_fallocate(fd, 0, 1 << 30),
             lambda fd: os.pwrite(fd, b"x", 1 << 39)):
    try:
        make(os.open("huge", os.O_CREAT | os.O_RDWR))
        print("too much")
    except OSError:
        pass
print("limit held")
"""),
    "makes pipes without end": Greedy(OK, """
import os
made = 0
try:
    while True:
        os.pipe()
        made += 1
except OSError:
    pass
assert made <= 32, made
print("limit held")
"""),
    "floods its output": Greedy(OUTPUT, """
while True:
    print("x" * 1000)
"""),
    "floods its errors": Greedy(OUTPUT, """
import os
while True:
    os.write(2, b"x" * 100_000)
"""),
    "fails with a huge message": Greedy(ERROR, """
raise ValueError("x" * 10_000_000)
"""),
    "ends its process in the middle": Greedy(OK, """
import os, sys
print("limit held")
sys.stdout.flush()
os._exit(0)
print("not reached")
"""),
    "reads address 0": Greedy(KILLED, """
import ctypes
ctypes.string_at(0)
"""),
    "aborts": Greedy(KILLED, """
import os
os.abort()
"""),
    "kills itself": Greedy(OK | KILLED, """
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""),
    "closes all that it has": Greedy(ERROR, """
import os
os.closerange(0, 1000)
os._exit(5)
"""),
    "empties the interpreter": Greedy(OK | ERROR, """
import sys, builtins, gc
sys.modules.clear()
sys.stdout = sys.stderr = None
for name in list(vars(builtins)):
    if name != "delattr":
        delattr(builtins, name)
raise nothing
"""),
    "replaces what ends it": Greedy(OK | ERROR, """
import os, sys, threading, atexit
os._exit = sys.exit = threading._shutdown = atexit._run_exitfuncs = lambda *_: None
"""),
    "fails without a message": Greedy(ERROR, """
class Evil(BaseException):
    def __str__(self): raise self
    __repr__ = __getattribute__ = __str__
raise Evil
"""),
}
# fmt: on

NEVER_END: dict[str, str] = {
    "loops": "while True: pass",
    "loops in C": "10 ** 10 ** 10",
    "loops in a regular expression": "import re; re.match('(a+)+$', 'a' * 100 + 'b')",
    "sleeps": "import time; time.sleep(1000)",
    "catches every signal and every exception": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, lambda *_: None)
    except (OSError, ValueError): pass
while True:
    try: time.sleep(1000)
    except BaseException: pass
""",
    "stops itself": "import os, signal, time; os.kill(os.getpid(), signal.SIGSTOP); time.sleep(1000)",
    "waits for itself": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "loops at its exit": "import atexit\n@atexit.register\ndef f():\n    while True: pass",
    "leaves a thread running": "from threading import *; Timer(1000, print).start()",
    "closes its output and sleeps": "import os, time; os.closerange(0, 3); time.sleep(1000)",
    "forks without end": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "forks away without end": """
import os
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError: pass
""",
}
