"""Starts this folder's tests a second time, as a user without rights."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

NOBODY = 65534
ROOT = Path(__file__).parents[2]


class OrdinaryRun:
    """A copy of the code and its tests, and the process that runs them as nobody."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for part in ("rtr_ray", "tests/sandbox"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        self.impossible = ""
        self._output = folder / "output"
        python = self._python(folder)
        if python is None:
            self.impossible = (
                f"an unprivileged user can run neither {sys.executable} nor the system's Python with pytest"
            )
            return
        with self._output.open("w") as output:
            command = [python, "-m", "pytest", "tests/sandbox", "-q", "-p", "no:cacheprovider"]
            self._process = _start(command, folder, output)

    def finish(self) -> tuple[int, str]:
        """The exit code and all that was printed."""
        return self._process.wait(), self._output.read_text()

    def stop(self) -> None:
        """End it, if it still runs."""
        if not self.impossible:
            self._process.kill()
            self._process.wait()

    def _python(self, folder: Path) -> str | None:
        """This Python, or the system's of the same version where this one lies in root's home."""
        system = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
        for python in filter(None, (sys.executable, system)):
            try:
                if _start([python, "-c", "import pytest"], folder, subprocess.DEVNULL).wait() == 0:
                    return python
            except OSError:
                continue
        return None


def _start(command: list[str], folder: Path, output: "IO[str] | int") -> "subprocess.Popen[bytes]":
    paths = [str(folder), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdout=output,
        stderr=subprocess.STDOUT,
    )
