"""Many at once, in an event loop that stays free; and nothing left behind, however it ends."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from sandbox_world import Box, children, descriptors, eventually, sandbox_processes

from rtr_ray.errors import SandboxError
from rtr_ray.sandbox import Limits, Sandbox, connection, launch, run_many

SLEEP = "import time; time.sleep(100)"
LONG = Limits(wall_s=120.0)


def halted(pid: int) -> bool:
    """Stop a process where it is; whether there was still one that goes on."""

    def state() -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        return eventually(lambda: state() in "TZ") and state() == "T"
    return False


def folders_left() -> set[Path]:
    places = map(Path, ("/dev/shm", "/tmp", "/var/tmp"))
    return {path for place in places for path in place.glob("rtr-ray-sandbox-*")}


@pytest.mark.parametrize("box", ["namespaces", "seccomp"], indirect=True)
def test_many_programs_run_while_the_event_loop_stays_free(box: Box) -> None:
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.002)
            beats += 1

    async def main() -> None:
        beating = asyncio.create_task(heart())
        results = await asyncio.gather(*(box.sandbox.run(f"print({n} ** 2)") for n in range(200)))
        assert [result.stdout for result in results] == [f"{n**2}\n" for n in range(200)]
        runs = [asyncio.create_task(box.sandbox.run(SLEEP, limits=LONG)) for _ in range(4)]
        _, zygote = box.processes()
        while len(children(zygote)) < 4:
            await asyncio.sleep(0.01)
        before = beats
        while beats - before < 20:
            await asyncio.sleep(0.002)
        assert not any(run.done() for run in runs)  # a loop that a program blocks beats when it has ended
        for one in (*runs, beating):
            one.cancel()
        await asyncio.gather(*runs, beating, return_exceptions=True)

    box.wait(main())


def test_as_many_programs_run_at_once_as_there_are_slots_and_no_more() -> None:
    before = set(sandbox_processes())

    async def main() -> None:
        async with Sandbox(concurrency=3) as sandbox:
            runs = [asyncio.create_task(sandbox.run(SLEEP, limits=LONG)) for _ in range(5)]
            assert sandbox.launcher_pid is not None
            (zygote,) = children(sandbox.launcher_pid)
            while len(children(zygote)) < 3:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert len(children(zygote)) == 3
            for run in runs:
                run.cancel()
            assert [type(result) for result in await asyncio.gather(*runs, return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 5

    asyncio.run(main())
    assert eventually(lambda: set(sandbox_processes()) <= before)


def test_cancelling_a_run_kills_its_program_and_frees_its_slot() -> None:
    async def main() -> None:
        async with Sandbox(concurrency=1) as sandbox:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await sandbox.run(SLEEP, limits=LONG)
                assert (await sandbox.run("print(1)")).stdout == "1\n"
            assert sandbox.launcher_pid is not None
            (zygote,) = children(sandbox.launcher_pid)
            assert eventually(lambda: children(zygote) == [])

    asyncio.run(main())


def test_closing_ends_the_programs_and_their_runs() -> None:
    async def main() -> list[int]:
        sandbox = Sandbox(concurrency=2)
        await sandbox.start()
        launcher = sandbox.launcher_pid
        assert launcher is not None
        (zygote,) = children(launcher)
        runs = [asyncio.create_task(sandbox.run(SLEEP, limits=LONG)) for _ in range(4)]
        while len(children(zygote)) < 2:
            await asyncio.sleep(0.01)
        ours = [launcher, zygote, *children(zygote)]
        await sandbox.aclose()
        await sandbox.aclose()
        for result in await asyncio.gather(*runs, return_exceptions=True):
            assert isinstance(result, SandboxError)
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.run("print(1)")
        return ours

    before = descriptors()
    ours = asyncio.run(main())
    assert eventually(lambda: not set(ours) & set(sandbox_processes()))
    assert descriptors() <= before


def test_a_sandbox_that_never_ran_closes_and_one_starts_by_itself() -> None:
    async def main() -> None:
        await Sandbox().aclose()
        sandbox = Sandbox()
        with pytest.raises(SandboxError, match="has not started"):
            _ = sandbox.isolation
        assert (await sandbox.run("print(1)")).stdout == "1\n"
        await sandbox.aclose()

    asyncio.run(main())


def test_a_zygote_that_dies_is_replaced_and_its_programs_run_again(box: Box) -> None:
    for victim in (0, 1):  # the launcher, the zygote

        async def main(victim: int = victim) -> None:
            before = box.processes()
            while True:  # until a program is caught before its end
                run = asyncio.create_task(
                    box.sandbox.run("import time; time.sleep(0.2); print('again')", limits=LONG)
                )
                while not run.done() and not (program := children(before[1])):
                    await asyncio.sleep(0.01)
                if not run.done() and halted(program[0]):
                    break
                assert (await run).stdout == "again\n"
            os.kill(before[victim], signal.SIGKILL)
            with contextlib.suppress(OSError):  # it is dead, or gets to know that it is to die
                os.kill(program[0], signal.SIGCONT)
            assert (await run).stdout == "again\n"
            assert not set(before) & set(box.processes())
            assert eventually(lambda: not set(program) & set(sandbox_processes()))

        box.wait(main())
    assert box.works()
    assert box.only_it_is_left()


def test_a_program_under_which_the_sandbox_dies_twice_is_lost(box: Box) -> None:
    async def main() -> None:
        run = asyncio.create_task(box.sandbox.run(SLEEP, limits=LONG))
        killed: set[int] = set()
        while not run.done():
            await asyncio.sleep(0.01)
            launcher = box.sandbox.launcher_pid
            if launcher and launcher not in killed and children(launcher) and children(children(launcher)[0]):
                killed.add(launcher)
                os.kill(children(launcher)[0], signal.SIGKILL)
        result = await run
        assert (result.status, result.exit_code, len(killed)) == ("lost", None, 2)

    box.wait(main())
    assert box.works()


def test_a_zygote_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Sandbox(concurrency=1) as sandbox:
            launcher = sandbox.launcher_pid
            assert launcher is not None
            (zygote,) = children(launcher)
            os.kill(zygote, signal.SIGSTOP)
            monkeypatch.setattr(connection, "_GRACE_S", -59.5)  # it counts as stuck after half a second
            run = asyncio.create_task(sandbox.run("print(1)", limits=Limits(wall_s=60.0)))
            while sandbox.launcher_pid == launcher and not run.done():
                await asyncio.sleep(0.01)
            monkeypatch.setattr(connection, "_GRACE_S", 30.0)  # another one has all the time it needs
            assert (await run).stdout == "1\n"
            assert eventually(lambda: not {launcher, zygote} & set(sandbox_processes()))

    asyncio.run(main())


def test_closing_does_not_wait_for_a_zygote_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_END_S", 0.5)

    async def main() -> set[int]:
        async with Sandbox(concurrency=1) as sandbox:
            launcher = sandbox.launcher_pid
            assert launcher is not None
            (zygote,) = children(launcher)
            os.kill(zygote, signal.SIGSTOP)
        return {launcher, zygote}

    gone = asyncio.run(main())
    assert eventually(lambda: not gone & set(sandbox_processes()))


PARENT = """
    import asyncio, os, sys, time
    from rtr_ray.sandbox import Limits, Sandbox

    async def main():
        async with Sandbox(sys.argv[1], concurrency=2) as sandbox:
            if sys.argv[2] == "forked" and os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            print("started", flush=True)
            await sandbox.run("import time; time.sleep(100)", limits=Limits(wall_s=120.0))

    asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["namespaces", "seccomp", "rlimits-only"])
@pytest.mark.parametrize("how", ["alone", "forked"])
def test_nothing_is_left_when_the_parent_is_killed(mode: str, how: str) -> None:
    before = folders_left()
    command = [sys.executable, "-c", textwrap.dedent(PARENT), mode, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        if not line:
            assert parent.stderr is not None
            pytest.skip(f"this machine gives no {mode}: {parent.stderr.read().decode().splitlines()[-1]}")
        assert eventually(lambda: len(sandbox_processes(parent.pid)) == 3)
        others = set(children(parent.pid))
        parent.kill()
        parent.wait()
        assert eventually(lambda: sandbox_processes(parent.pid) == [])
        for pid in others:  # the fork that holds the control socket
            if how == "forked":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: folders_left() <= before)


def test_a_parent_with_many_descriptors_passes_none_of_them_on(box: Box) -> None:
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(400)]
    sockets = socket.socketpair()
    for fd in (*held, *(end.fileno() for end in sockets)):
        os.set_inheritable(fd, True)
    code = "import os\nfor fd in range(3, 2000):\n    try: print(os.dup(fd), fd)\n    except OSError: pass"
    try:
        assert run_many([code], box.isolation)[0].stdout == ""
    finally:
        for fd in held:
            os.close(fd)
        for end in sockets:
            end.close()


def test_programs_run_from_code_without_an_event_loop_and_inside_one() -> None:
    async def inside() -> list[str]:
        return [result.stdout for result in run_many(["print(1)", "print(2)"], concurrency=2)]

    assert [result.stdout for result in run_many(f"print({n})" for n in range(20))] == [
        f"{n}\n" for n in range(20)
    ]
    assert asyncio.run(inside()) == ["1\n", "2\n"]


def test_a_sandbox_outlives_the_thread_that_started_it(box: Box) -> None:
    """The kernel can kill a process when the thread that started it ends; ours must not ask for that."""

    async def main() -> None:
        started: list[launch.Launched] = []
        thread = threading.Thread(target=lambda: started.append(launch.Launched(box.isolation)))
        thread.start()
        thread.join()
        open_connection = connection.Connection(started[0])
        await asyncio.sleep(0.2)
        program = connection.Program("print(1)", "", None, Limits())
        assert (await open_connection.start(program, 0).execution()).stdout == "1\n"
        await open_connection.close()

    asyncio.run(main())


def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        for seconds in (0.001, 0.1):
            async with Sandbox(concurrency=1) as wanted:
                sandbox = Sandbox(concurrency=1)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await sandbox.start()
                assert (await sandbox.run("print(1)")).stdout == "1\n"
                await sandbox.aclose()
                launcher = wanted.launcher_pid
                assert launcher is not None
                wanted_processes = {launcher, *children(launcher)}
                while not set(sandbox_processes()) - before <= wanted_processes:
                    await asyncio.sleep(0.01)

    before = set(sandbox_processes())
    asyncio.run(main())
    assert eventually(lambda: set(sandbox_processes()) <= before)
