"""The one form in which benchmarks leave their figures: benchmarks/out/<name>.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._surroundings import surroundings

OUT = Path(__file__).parent / "out"
KEYS = ("name", "ratio", "baseline", "figures", "machine", "versions", "commit")


def report(
    name: str,
    ratio: float | None,
    baseline: str,
    figures: Mapping[str, Any],
    packages: Sequence[str] = (),
    path: Path | None = None,
) -> dict[str, Any]:
    """Write what a benchmark has found, and give it.

    Args:
        name: Of the benchmark.
        ratio: Ours over the baseline, from one run; None: nothing stood beside it this time.
        baseline: What the ratio is of, and to what, in words.
        figures: Everything else, settings included.
        packages: Whose versions matter.
        path: Where to write; None: `benchmarks/out/<name>.json`.
    """
    content = {"name": name, "ratio": ratio, "baseline": baseline, "figures": dict(figures)}
    content |= surroundings(*packages)
    where = path or OUT / f"{name}.json"
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return content
