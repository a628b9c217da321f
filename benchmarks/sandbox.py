"""What isolation costs: programs per second and added milliseconds, by way of running them.

    python benchmarks/sandbox.py --programs 300

prints the table of docs/sandbox.md. All rows run the same tiny programs, one row after the other, twice; the
better of the two counts, since other work on the machine only ever slows a row down.
"""

import argparse
import asyncio
import contextlib
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from rtr_ray.errors import SandboxError
from rtr_ray.sandbox import PRELOADED, Isolation, Sandbox

Run = Callable[[str], Awaitable[str]]

CODE = "def solution():\n    eggs = {n}\n    return eggs * 12 + 7\n\nprint(solution())\n"


async def in_this_process(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


async def _new_interpreter(code: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", code, stdout=subprocess.PIPE, env={}
    )
    printed, _ = await process.communicate()
    return printed.decode()


async def _new_interpreter_with_modules(code: str) -> str:
    return await _new_interpreter("\n".join(f"import {name}" for name in PRELOADED) + "\n" + code)


async def _new_sandbox(code: str) -> str:
    async with Sandbox(Isolation("namespaces", seccomp=True), concurrency=1) as sandbox:
        return (await sandbox.run(code)).stdout


async def measure(run: Run, programs: int, concurrency: int) -> tuple[float, float]:
    """Median milliseconds of one program alone, and programs per second with `concurrency` at a time."""
    alone_s = []
    for n in range(max(5, programs // 5)):
        started = time.perf_counter()
        assert await run(CODE.format(n=n)) == f"{n * 12 + 7}\n"
        alone_s.append(time.perf_counter() - started)
    gate = asyncio.Semaphore(concurrency)

    async def one(n: int) -> None:
        async with gate:
            assert await run(CODE.format(n=n)) == f"{n * 12 + 7}\n"

    started = time.perf_counter()
    await asyncio.gather(*map(one, range(programs)))
    return statistics.median(alone_s) * 1000, programs / (time.perf_counter() - started)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    print(f"{options.programs} programs, {options.concurrency} at a time; user {os.geteuid()}")
    print(f"{'way':<58}{'ms alone':>10}{'programs/s':>12}")

    async def row(name: str, run: Run, share: int = 1) -> None:
        tries = [await measure(run, options.programs // share, options.concurrency) for _ in range(2)]
        print(
            f"{name:<58}{min(ms for ms, _ in tries):>10.1f}{max(rate for _, rate in tries):>12.0f}",
            flush=True,
        )

    await row("exec() in this process: no isolation at all", in_this_process)
    await row("a new interpreter each, no isolation", _new_interpreter, share=3)
    await row("a new interpreter each with our modules, no isolation", _new_interpreter_with_modules, share=6)
    await row("a new sandbox each (launcher, zygote, program)", _new_sandbox, share=10)
    for isolation in (
        Isolation("namespaces", seccomp=True),
        Isolation("namespaces", seccomp=False),
        Isolation("seccomp", seccomp=True),
        Isolation("rlimits-only", seccomp=False),
    ):
        name = f"zygote: {isolation.mode}" + (" + seccomp" if isolation == _STRONGEST else "")
        try:
            async with Sandbox(isolation, concurrency=options.concurrency) as sandbox:

                async def run(code: str, sandbox: Sandbox = sandbox) -> str:
                    return (await sandbox.run(code)).stdout

                await row(name, run)
                if isolation == _STRONGEST:

                    async def run_and_check(code: str, sandbox: Sandbox = sandbox) -> str:
                        return (await sandbox.run(code, check="assert solution() % 12 == 7")).stdout

                    await row(f"{name}, with a check", run_and_check, share=2)
        except SandboxError as error:
            print(f"{name:<58}{'not given here: ' + str(error)}")


_STRONGEST = Isolation("namespaces", seccomp=True)

if __name__ == "__main__":
    asyncio.run(main())
