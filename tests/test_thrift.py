"""Free memory is given back, though allocators would keep it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np, psutil, pyarrow as pa
from rtr_ray.thrift import thrifty

def held_mib():
    return psutil.Process().memory_info().rss / 2**20

def work():
    many = [np.ones(8_000) for _ in range(4_000)]  # 64 kB each: none has pages of its own
    return many[-1]  # lies behind all others, which therefore stay with the process

thriftily = thrifty(work)

before = held_mib()
last = {work}()
print(held_mib() - before, pa.default_memory_pool().backend_name)
"""


def more_mib(work: str) -> tuple[float, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{work}", work)], capture_output=True, text=True, check=True
    )
    mib, backend = done.stdout.split()
    return float(mib), backend


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc can give memory back")
def test_behind_thrifty_work_the_process_holds_what_it_uses_and_no_more():
    kept, given_back = more_mib("work"), more_mib("thriftily")
    assert kept[0] > 200, "without it the allocator keeps all of it: else this test shows nothing"
    assert given_back[0] < 50
    assert given_back[1] == "system"
