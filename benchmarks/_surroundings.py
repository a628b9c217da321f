"""Where figures were measured, and with what: stands in the JSON of every benchmark."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "bf16")
"""What of a processor decides how fast an encoder is, as Linux calls it."""


def surroundings(*packages: str) -> dict[str, Any]:
    """The machine, the versions of Python and of these packages, the commit (None outside of a checkout)."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "features": features()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "commit": commit or None,
    }


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The processor's instructions that matter here; none where nobody can tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return []
    found = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    there = set(found.partition(":")[2].split())
    return [name for name in _TELLING if name in there]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
