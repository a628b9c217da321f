"""What a machine gives is tried, not assumed; where it gives too little, the sandbox refuses and says why."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from hostile_programs import PRELUDE
from sandbox_world import ISOLATIONS, Box, World

from rtr_ray.errors import ConfigError, SandboxError
from rtr_ray.sandbox import Execution, Isolation, Limits, inspection, probe, seccomp


def test_the_strongest_isolation_that_can_be_had_is_taken(box: Box) -> None:
    mode = box.isolation.mode
    asked_for = probe(mode)
    assert (asked_for.mode, asked_for.seccomp) == (mode, mode != "rlimits-only" and seccomp.supported())
    if mode == "namespaces":
        assert probe() == probe("auto") == asked_for


CONTAINERS = {
    "root that may not make namespaces": ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
    "root that may become nobody else": ["setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid"],
    "root of a container with one user": ["unshare", "--user", "--map-root-user"],
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_in_a_container_a_program_is_not_root_either(name: str) -> None:
    """One may be root with less than its rights; then a user namespace makes the difference."""
    code = "import os; print(os.getuid(), os.getpid())"
    script = f"from rtr_ray.sandbox import *; i = probe(); print(i.mode, run_many([{code!r}], i)[0].stdout)"
    tool = shutil.which(CONTAINERS[name][0])
    if tool is None or (os.geteuid() != 0 and "setpriv" in tool):
        pytest.skip("needs root" if tool else f"needs {CONTAINERS[name][0]}")
    with contextlib.suppress(SandboxError):
        probe("namespaces")
        command = [tool, *CONTAINERS[name][1:], sys.executable, "-c", script]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert printed.split() == ["namespaces", "1000", "1"]


@pytest.mark.parametrize("box", ISOLATIONS, indirect=True)
def test_the_inspection_notices_each_missing_wall(box: Box) -> None:
    with inspection.planted_input() as planted:
        result = box.run(inspection.PROGRAM, planted, limits=Limits(wall_s=60.0))
    strictest = Isolation("namespaces", seccomp=True)
    missing = {
        "namespaces": [],
        "namespaces-bare": ["makes processes", "opens a socket"],
        "seccomp": [],
        "rlimits-only": ["opens a socket", "reads a file of ours"],
    }[box.name]
    assert inspection.failures(box.isolation, result) == []
    found = inspection.failures(strictest, result)
    assert set(missing) <= set(found)
    assert found == [] or box.name in ("namespaces-bare", "rlimits-only")


def test_the_inspection_fails_where_its_program_fails() -> None:
    crashed = Execution("killed", "", "", -11, 0.1, 0.1)
    assert inspection.failures(Isolation("seccomp", seccomp=True), crashed) == ["ends with killed "]


# A machine whose kernel gives less: a filter that answers EPERM to what it does not give.
LESS = """
    import ctypes, struct, sys
    libc = ctypes.CDLL(None, use_errno=True)
    CLONE, UNSHARE, PRCTL, EPERM, ALLOW = 56, 272, 157, 0x00050001, 0x7FFF0000
    load = lambda offset: (0x20, 0, 0, offset)
    program = [load(0), (0x15, 0, 1, UNSHARE), (6, 0, 0, EPERM)]
    program += [(0x15, 0, 4, CLONE), load(16), (0x45, 0, 1, 0x7E020000), (6, 0, 0, EPERM), (6, 0, 0, ALLOW)]
    if "seccomp" in sys.argv[1]:
        program += [(0x15, 0, 4, PRCTL), load(16), (0x15, 0, 1, 22), (6, 0, 0, EPERM), (6, 0, 0, ALLOW)]
    program.append((6, 0, 0, ALLOW))
    code = b"".join(struct.pack("<HBBI", *one) for one in program)
    class Prog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Prog(len(program), code)), 0, 0) == 0

    import json
    from rtr_ray.errors import SandboxError
    from rtr_ray.sandbox import probe, run_many
    try:
        isolation = probe(sys.argv[2])
        result = run_many(["print(6 * 7)"], isolation)[0].stdout
        print(json.dumps([isolation.mode, isolation.reasons, result]))
    except SandboxError as error:
        print(json.dumps(["refused", [str(error)], ""]))
"""


def on_a_machine_without(what: str, mode: str) -> tuple[str, list[str], str]:
    if os.uname().machine != "x86_64":
        pytest.skip("the filter of this test is written for x86_64")
    command = [sys.executable, "-c", textwrap.dedent(LESS), what, mode]
    mode, reasons, result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return mode, reasons, result


def test_without_namespaces_the_filter_stands_alone() -> None:
    mode, reasons, result = on_a_machine_without("namespaces", "auto")
    assert (mode, result) == ("seccomp", "42\n")
    assert [reason.partition(":")[0] for reason in reasons] == ["namespaces with seccomp", "namespaces"]
    assert all("Operation not permitted" in reason for reason in reasons)


def test_without_either_programs_are_refused_with_the_reason() -> None:
    mode, (reason,), _ = on_a_machine_without("namespaces, seccomp", "auto")
    assert mode == "refused"
    assert "asked for mode 'auto'" in reason
    assert "unshare: Operation not permitted" in reason
    assert "prctl: Operation not permitted" in reason
    assert "`sandbox: rlimits-only`" in reason


def test_without_either_rlimits_only_works_if_it_is_asked_for() -> None:
    assert on_a_machine_without("namespaces, seccomp", "rlimits-only") == ("rlimits-only", [], "42\n")


def test_a_mode_that_is_asked_for_and_not_given_is_refused() -> None:
    mode, (reason,), _ = on_a_machine_without("namespaces", "namespaces")
    assert (mode, "asked for mode 'namespaces'" in reason) == ("refused", True)


def test_only_rlimits_only_lets_a_program_read_the_machines_files(box: Box, world: World) -> None:
    """The difference that the strong modes make: with one wall less, the same program succeeds."""
    result = box.run(PRELUDE + 'attempt(read, world["planted"])', world.described())
    assert (world.secret in result.stdout) == (box.name == "rlimits-only")


def test_an_isolation_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="contradicts itself"):
        Isolation("seccomp", seccomp=False)


def test_the_filters_jumps_stay_inside_it() -> None:
    if not seccomp.supported():
        pytest.skip("no table for this machine")
    for files in (True, False):
        program = seccomp.build(files=files, pid=1)
        count = len(program) // 8
        for index in range(count):
            code, if_true, if_false = (
                int.from_bytes(program[8 * index : 8 * index + 2], "little"),
                *program[8 * index + 2 : 8 * index + 4],
            )
            assert code == 6 or index + 1 + max(if_true, if_false) < count
