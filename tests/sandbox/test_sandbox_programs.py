"""Honest programs run as they would anywhere."""

import json

import pytest
from sandbox_world import Box

from rtr_ray.errors import ConfigError
from rtr_ray.sandbox import PRELOADED, Execution, Limits, Sandbox

# name: (program, what it prints); each may read the four lines Ada, 1, 2, 3
PROGRAMS = {
    "nothing": ("", ""),
    "arithmetic": ("print(17 * 23, 7 // 2, 7 % 3, 2 ** 0.5)", "391 3 1 1.4142135623730951\n"),
    "big integers": ("print(2 ** 64, len(str(3 ** 20_000)))", "18446744073709551616 9543\n"),
    "a function": ("def solution():\n    return sum(n * n for n in range(10))\nprint(solution())", "285\n"),
    "recursion": ("def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\nprint(fib(15))", "610\n"),
    "deep recursion": ("def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\nprint(depth(900))", "900\n"),
    "deeper recursion": (
        "import sys\nsys.setrecursionlimit(20_000)\n"
        "def depth(n): return n and 1 + depth(n - 1)\nprint(depth(15_000))",
        "15000\n",
    ),
    "fractions": ("from fractions import Fraction as F\nprint(F(1, 3) + F(1, 6))", "1/2\n"),
    "decimals": (
        "from decimal import Decimal, getcontext\ngetcontext().prec = 30\nprint(Decimal(2).sqrt())",
        "1.41421356237309504880168872421\n",
    ),
    "dates": (
        "from datetime import date, timedelta\nprint(date(2024, 2, 28) + timedelta(2))",
        "2024-03-01\n",
    ),
    "dates from text": (
        "from datetime import datetime\nprint(datetime.strptime('3 May 2021', '%d %B %Y').weekday())",
        "0\n",
    ),
    "local time, which is UTC": ("import time\nprint(time.localtime(0).tm_hour)", "0\n"),
    "iteration": (
        "import itertools, functools, operator\n"
        "print(functools.reduce(operator.mul, range(1, 6)), len([*itertools.permutations('abcd')]))",
        "120 24\n",
    ),
    "collections": (
        "from collections import Counter\nprint(Counter('hello').most_common(1))",
        "[('l', 2)]\n",
    ),
    "statistics": (
        "import statistics, math\nprint(statistics.median([3, 1, 2]), math.comb(10, 3), math.isclose(1, 1))",
        "2 120 True\n",
    ),
    "texts": (
        "import re, json, heapq, bisect\nprint(re.findall(r'\\d+', 'a1b22'), json.dumps({'x': 1}))",
        "['1', '22'] {\"x\": 1}\n",
    ),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nprint(P(2), __name__)",
        "P(x=2) __main__\n",
    ),
    "an enum": (
        "import enum, typing\nclass C(enum.Enum): A = 1\nprint(C.A, typing.get_type_hints(C))",
        "C.A {}\n",
    ),
    "hashes": ("import hashlib\nprint(hashlib.sha256(b'x').hexdigest()[:8])", "2d711642\n"),
    "unicode": ("print('naïve Ω 🎲', '\\N{SNOWMAN}', '\\ud800')", "naïve Ω 🎲 ☃ \\ud800\n"),
    "an early end": ("import sys\nprint('shown')\nsys.exit()\nprint('not shown')", "shown\n"),
    "no environment": (
        "import os, sys\nprint(sys.argv, sys.path, os.environ)",
        "['<program>'] [] environ({})\n",
    ),
    "input by line": (
        "import sys\nprint('hello', input())\nprint(sum(map(int, sys.stdin)))",
        "hello Ada\n6\n",
    ),
    "input at once": ("import sys\nprint(sys.stdin.read().count('\\n'), open(0).read() == '')", "4 True\n"),
    "exit handlers": ("import atexit\natexit.register(print, 'last')\nprint('first')", "first\nlast\n"),
    "generators": ("def f(): yield from 'ab'\nprint(*f(), *(x for x in {'k': 1}), sep='')", "abk\n"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_prints_what_it_should(box: Box, name: str) -> None:
    code, printed = PROGRAMS[name]
    result = box.run(code, "Ada\n1\n2\n3\n")
    assert (result.status, result.stdout, result.stderr, result.exit_code) == ("ok", printed, "", 0)
    assert result.error == ""


@pytest.mark.parametrize(
    ("code", "last_line"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print(undefined)", "NameError: name 'undefined' is not defined"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sympy", "ModuleNotFoundError: No module named 'sympy'"),
        ("raise ValueError('Ω\\nsecond line')", "second line"),
        ("import sys\nsys.exit('no answer')", "no answer"),
        ("assert 1 == 2, 'they differ'", "AssertionError: they differ"),
        ("x = '\ud800'", "surrogates not allowed"),
        ("x = 1\0", "source code string cannot contain null bytes"),
        (
            "import threading\nthreading.local().x",
            "AttributeError: '_thread._local' object has no attribute 'x'",
        ),
    ],
)
def test_a_program_that_fails_says_why(box: Box, code: str, last_line: str) -> None:
    result = box.run(code)
    assert (result.status, result.exit_code) == ("error", 1)
    assert result.error.endswith(last_line), result


def test_a_traceback_shows_the_programs_lines_and_no_others(box: Box) -> None:
    result = box.run("def f(x):\n    return 1 / x\n\nf(0)")
    assert result.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<program>", line 4, in <module>',
        "    f(0)",
        '  File "<program>", line 2, in f',
        "    return 1 / x",
        "           ~~^~~",
        "ZeroDivisionError: division by zero",
    ]


def test_the_exit_code_is_the_programs(box: Box) -> None:
    assert [box.run(f"raise SystemExit({code})").exit_code for code in (0, 1, 7, 256)] == [0, 1, 7, 0]


def test_a_program_that_runs_again_prints_the_same(box: Box) -> None:
    code = "import random\nprint(random.random(), {'a', 'b', 'c', 'd', 'e', 'f'}, hash('x'))"
    assert len({box.run(code).stdout for _ in range(5)}) == 1


def test_every_preloaded_module_can_be_imported(box: Box) -> None:
    assert box.run("\n".join(f"import {name}" for name in PRELOADED) + "\nprint('all')").stdout == "all\n"


def test_a_program_may_use_files_of_its_own_where_it_has_a_folder(box: Box) -> None:
    code = "open('a', 'w').write('kept')\nprint(open('a').read(), __import__('os').listdir('.'))"
    result = box.run(code)
    if box.isolation.mode == "namespaces":
        assert result.stdout == "kept ['a']\n"
    else:
        assert result.status == "error"


def test_input_larger_than_a_pipe_arrives_whole(box: Box) -> None:
    stdin = json.dumps(list(range(100_000)))
    assert box.run("import json\nprint(sum(json.loads(input())))", stdin).stdout == "4999950000\n"


def test_input_that_a_program_does_not_read_does_no_harm(box: Box) -> None:
    assert box.run("print('done')", "x" * 1_000_000).stdout == "done\n"


def test_output_is_cut_at_its_limit_and_what_came_before_is_kept(box: Box) -> None:
    result = box.run("for n in range(10**9): print(n)", limits=Limits(output_bytes=10))
    assert (result.status, result.stdout) == ("output_limit", "0\n1\n2\n3\n4\n")
    at_the_limit = box.run("print('123456789')", limits=Limits(output_bytes=10))
    assert (at_the_limit.status, at_the_limit.stdout) == ("ok", "123456789\n")


def test_a_program_that_goes_on_after_too_much_output_is_killed(box: Box) -> None:
    code = "import time\ntry:\n    while True: print('x' * 1000)\nexcept OSError:\n    time.sleep(100)"
    result = box.run(code, limits=Limits(cpu_s=60, wall_s=120.0))
    assert (result.status, result.exit_code) == ("output_limit", -9)
    assert result.wall_s < 100


def test_threads_run_where_the_user_has_some_to_give(box: Box) -> None:
    code = "from concurrent.futures import ThreadPoolExecutor as T\nprint(sum(T(4).map(int, '123')))"
    result = box.run(code)
    assert result.stdout == ("" if box.gets_no_threads else "6\n")


def test_cpu_and_wall_time_are_reported(box: Box) -> None:
    result = box.run("import time\ntime.sleep(0.2)")
    assert result.wall_s >= 0.2
    assert 0 < result.cpu_s < result.wall_s - 0.1  # while it sleeps it takes none


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpu_s": 0},
        {"cpu_s": 1.5},
        {"wall_s": 0},
        {"memory_bytes": 1 << 20},
        {"file_bytes": 0},
        {"processes": 0},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="Limits"):
        Limits(**wrong)


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="Known modes: auto, namespaces, rlimits-only, seccomp"):
        Sandbox("docker")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 to 63"):
        Sandbox(concurrency=64)


def test_the_error_of_a_killed_program_is_empty_where_it_wrote_nothing() -> None:
    assert Execution("killed", "", "", -9, 0.1, 0.1).error == ""
