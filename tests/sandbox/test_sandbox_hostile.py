"""Nothing that a program does reaches the machine, the parent or another program."""

import errno
import os
import platform
import secrets

import pytest
from greedy_programs import GREEDY, HALF_A_SECOND, NEVER_END, OUTPUT
from hostile_programs import ESCAPES, MEMORY_SCAN, PRELUDE
from sandbox_world import ISOLATIONS, SLOTS, Box, World, descriptors

from rtr_ray.sandbox import Limits

PLENTY = Limits(cpu_s=20, wall_s=60.0)


X86_ONLY = {"calls the kernel in ways that Python does not", "calls the kernel by its x32 numbers"}


TRIED = [
    (isolation, name)
    for name, escape in ESCAPES.items()
    for isolation in sorted(escape.held_by | escape.gets_through)
    if platform.machine() == "x86_64" or name not in X86_ONLY
]


@pytest.mark.parametrize(("box", "name"), TRIED, indirect=["box"])
def test_no_program_gets_out(box: Box, world: World, name: str) -> None:
    escape = ESCAPES[name]
    launcher, zygote = box.processes()
    result = box.run(PRELUDE + escape.code, world.described(launcher=launcher, zygote=zygote), limits=PLENTY)
    traces = world.traces()
    if box.name in escape.gets_through:
        assert "ESCAPED" in result.stdout, "this attack finds no wall here, and yet it was not noticed"
        return
    assert result.status in escape.statuses, result
    assert "ESCAPED" not in result.stdout + result.stderr
    assert world.secret not in result.stdout + result.stderr
    assert traces == []
    assert box.processes() == (launcher, zygote)
    assert box.works()
    assert box.only_it_is_left()


@pytest.mark.parametrize("box", ISOLATIONS, indirect=True)
@pytest.mark.parametrize("name", GREEDY)
def test_no_program_takes_more_than_its_share(box: Box, name: str) -> None:
    greedy = GREEDY[name]
    before = box.processes()
    result = box.run(greedy.code, limits=greedy.limits)
    assert result.status in greedy.statuses, result
    if "limit held" in greedy.code:
        assert result.stdout.strip() == "limit held"
    if greedy.statuses == OUTPUT:
        assert len(result.stdout) <= greedy.limits.output_bytes
    if "bytes" in greedy.code and result.status == "error":
        assert "MemoryError" in result.stderr
    assert box.processes() == before
    assert box.works()
    assert box.only_it_is_left(everywhere=True)


@pytest.mark.parametrize("box", ["namespaces", "seccomp"], indirect=True)
def test_processor_time_has_a_limit_of_its_own(box: Box) -> None:
    result = box.run("while True: pass", limits=Limits(cpu_s=1, wall_s=60.0))
    assert result.status == "timeout"
    assert 0.5 < result.cpu_s < 2.0


@pytest.mark.parametrize("box", ISOLATIONS, indirect=True)
def test_programs_that_never_end_are_ended(box: Box) -> None:
    before = box.processes()
    limits = dict.fromkeys(NEVER_END, HALF_A_SECOND)
    if box.gets_no_threads:
        limits["leaves a thread running"] = PLENTY  # for its error
    results = box.gather(*(box.sandbox.run(NEVER_END[name], limits=limits[name]) for name in NEVER_END))
    statuses = {name: result.status for name, result in zip(NEVER_END, results, strict=True)}
    if box.gets_no_threads:
        assert statuses.pop("leaves a thread running") == "error"
    assert set(statuses.values()) == {"timeout"}, statuses
    assert box.processes() == before
    assert box.works()
    assert box.only_it_is_left(everywhere=True)


def test_a_program_finds_nothing_of_the_one_before(box: Box) -> None:
    leave = "import os, builtins\nopen('left', 'w').write('x')\nbuiltins.left = 1\nos.umask(0)"
    look = "import os, builtins\nprint(os.listdir('.'), hasattr(builtins, 'left'), os.umask(0))"
    if box.name == "seccomp":  # no files at all there
        leave, look = (
            leave.replace("open", "len"),
            look.replace("os.listdir('.')", "[]").replace("os.umask(0)", "63"),
        )
    box.gather(*(box.sandbox.run(leave) for _ in range(SLOTS)))
    found = box.gather(*(box.sandbox.run(look) for _ in range(SLOTS)))
    assert {result.stdout for result in found} == {"[] False 63\n"}


@pytest.mark.parametrize("box", ISOLATIONS, indirect=True)
def test_no_memory_of_another_program_is_left_in_a_new_one(box: Box) -> None:
    token = f"token-{secrets.token_hex(8)}"
    box.gather(*(box.sandbox.run(f"x = input()\nprint(x, '{token}')", token) for _ in range(SLOTS)))
    assert box.run(MEMORY_SCAN, limits=PLENTY).stdout == "True True 0\n"


@pytest.mark.parametrize("box", ["namespaces", "namespaces-bare", "seccomp"], indirect=True)
def test_programs_do_not_see_each_other(box: Box, world: World) -> None:
    attack = """
for pid in range(2, 40_000):
    answer = libc.kill(pid, 0) and ctypes.get_errno()
    if pid != os.getpid() and answer != world["answer"]:
        print("ESCAPED", pid, answer)
print("looked")
"""
    codes = ["import time; time.sleep(0.5); print('looked')", PRELUDE + attack, PRELUDE + attack]
    # No such process; or, by the filter, no answer to that question.
    stdin = world.described(answer=errno.EPERM if box.isolation.seccomp else errno.ESRCH)
    for result in box.gather(*(box.sandbox.run(code, stdin, limits=PLENTY) for code in codes)):
        assert result.stdout == "looked\n", result


def test_the_zygote_holds_no_more_descriptors_after_many_programs(box: Box) -> None:
    _, zygote = box.processes()
    before = len(os.listdir(f"/proc/{zygote}/fd")) if os.access(f"/proc/{zygote}/fd", os.R_OK) else 0
    mine = descriptors()
    codes = ["print(1)", "1 / 0", "import os; os._exit(3)", "while True: print('x' * 9999)"] * 8
    box.gather(*map(box.sandbox.run, codes))
    assert descriptors() <= mine
    if before:
        assert len(os.listdir(f"/proc/{zygote}/fd")) == before
