"""Where figures were measured, and with what: stands in the JSON of every benchmark."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def surroundings(*packages: str) -> dict[str, Any]:
    """The machine, the versions of Python and of these packages, the commit (None outside of a checkout)."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": commit or None,
    }
