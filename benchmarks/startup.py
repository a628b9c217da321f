"""What it takes to begin: imports, help, and the first answers of the demo.

    python benchmarks/startup.py
    python benchmarks/startup.py --demo      # minutes: until the first row is answered and durable

measures CPU seconds (of the process and its children, so that other work on the machine counts for little)
of `python -c pass`, `import numpy`, `import rtr_ray` and `rtr-ray --help`, in turns. With --demo, seconds of
the clock from the command `rtr-ray demo` to its first results part, and to its end. Writes
benchmarks/out/startup.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from benchmarks._turns import in_turns

PROGRAM = str(Path(sys.executable).parent / "rtr-ray")
TARGET_IMPORT_S, TARGET_HELP_S = 0.3, 0.6
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "numpy": [sys.executable, "-c", "import numpy"],
    "rtr_ray": [sys.executable, "-c", "import rtr_ray"],
    "help": [PROGRAM, "--help"],
}


def children_s() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def called(command: list[str]) -> None:
    """Run it to its end."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def measure(repeats: int) -> dict[str, Any]:
    """CPU seconds of each command, and what ours take beyond numpy."""
    ways = {name: (lambda command=command: called(command)) for name, command in COMMANDS.items()}
    timings = in_turns(ways, repeats, children_s)
    beyond = timings["rtr_ray"].median_s - timings["numpy"].median_s
    return {
        "cpu_s": {name: timing.median_s for name, timing in timings.items()},
        "best_cpu_s": {name: timing.best_s for name, timing in timings.items()},
        "import_beyond_numpy_s": beyond,
        "rtr_ray_over_numpy": timings["rtr_ray"].over(timings["numpy"])[0],
        "repeats": repeats,
    }


def measure_demo(questions: int, patience_s: float = 1800.0) -> dict[str, Any]:
    """Seconds until the demo's first answers are durable, and until it ends."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [PROGRAM, "demo", "--output", str(output), "--questions", str(questions)]
        began_s = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        first_s = None
        try:
            while process.poll() is None and time.monotonic() - began_s < patience_s:
                if first_s is None and any((output / "results").glob("*.parquet")):
                    first_s = time.monotonic() - began_s
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait()
        return {
            "questions": questions,
            "first_answers_s": first_s,
            "end_s": time.monotonic() - began_s,
            "exit_code": code,
        }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what it takes to begin.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--demo", action="store_true", help="also run the demo")
    parser.add_argument("--questions", type=int, default=200, help="of the demo")
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--out", type=Path, default=OUT / "startup.json")
    options = parser.parse_args()
    found = measure(1 if options.small else options.repeats)
    table = Table("command", "CPU s", "best", "target")
    targets = {"rtr_ray": f"numpy + {TARGET_IMPORT_S}", "help": f"{TARGET_HELP_S}"}
    for name, seconds in found["cpu_s"].items():
        table.add_row(
            " ".join(["rtr-ray" if one == PROGRAM else Path(one).name for one in COMMANDS[name]]),
            f"{seconds:.2f}",
            f"{found['best_cpu_s'][name]:.2f}",
            targets.get(name, ""),
        )
    console = Console()
    console.print(table)
    if options.demo:
        found["demo"] = measure_demo(options.questions)
        console.print(found["demo"])
    report(
        "startup",
        found["rtr_ray_over_numpy"],
        "CPU seconds of import numpy (import rtr_ray over it)",
        found,
        ("numpy", "typer", "ray"),
        options.out,
    )


if __name__ == "__main__":
    main()
