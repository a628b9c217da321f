"""One sandbox per isolation for the whole session, and the world around them."""

import asyncio
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file, whatever way pytest imports

from ordinary_user import OrdinaryRun
from sandbox_world import ISOLATIONS, Box, World, eventually, sandbox_processes

from rtr_ray.errors import SandboxError


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    secret = secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="sandbox-world-"))
    folder.chmod(0o777)
    planted = folder / "planted"
    planted.write_text(secret)
    planted.chmod(0o644)
    tcp = socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "unix"))
    (folder / "unix").chmod(0o777)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(b"\0" + secrets.token_hex(8).encode())
    for listener in (tcp, unix, abstract):
        listener.listen()
        listener.setblocking(False)
    os.environ["SANDBOX_TEST_SECRET"] = secret  # and so in the first environment of the sibling
    # it ends with this process, and not before, however long a session takes
    sibling = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    libc = ctypes.CDLL(None)
    shared = secrets.randbelow(1 << 30) + 1
    segment = libc.shmget(shared, 4096, 0o1000 | 0o666)  # IPC_CREAT
    yield World(secret, folder, planted, tcp, unix, abstract, sibling, shared)
    libc.shmctl(segment, 0, None)  # IPC_RMID
    del os.environ["SANDBOX_TEST_SECRET"]
    sibling.kill()
    sibling.communicate()
    for listener in (tcp, unix, abstract):
        listener.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def boxes(world: World) -> Iterator[Callable[[str], Box]]:
    """One sandbox per isolation for the whole session: what one program breaks, the next would notice."""
    made: dict[str, Box] = {}
    before = set(sandbox_processes())  # an endpoint of another test may have one, until it is collected
    with asyncio.Runner() as runner:

        def get(name: str) -> Box:
            if name not in made:
                box = Box(name, runner)
                try:
                    box.wait(box.sandbox.start())
                except SandboxError as error:
                    pytest.skip(f"this machine gives no {name}: {error}")
                made[name] = box
            return made[name]

        yield get
        for box in made.values():
            box.wait(box.sandbox.aclose())
    assert eventually(lambda: set(sandbox_processes()) <= before)


@pytest.fixture(params=[mode for mode in ISOLATIONS if mode != "namespaces-bare"])
def box(request: pytest.FixtureRequest, boxes: Callable[[str], Box]) -> Box:
    """One per mode; where it matters, a test asks for the namespaces without the filter as well."""
    return boxes(request.param)


@pytest.fixture(scope="session", autouse=True)
def ordinary_run(request: pytest.FixtureRequest) -> Iterator[OrdinaryRun | None]:
    """The second run, as an ordinary user, beside this one from its beginning: it takes as long."""
    wanted = any(item.name == "test_all_of_this_holds_for_an_ordinary_user" for item in request.session.items)
    if os.geteuid() != 0 or not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sandbox-tests-") as folder:
        run = OrdinaryRun(Path(folder))
        yield run
        run.stop()
