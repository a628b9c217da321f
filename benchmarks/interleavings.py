"""Ledger and dispatch under many interleavings of everything that can go wrong (see tests/interleavings.py).

    python benchmarks/interleavings.py --sequences 100000

Each sequence is a run of its own, told apart by its seed, of which the first that breaks an invariant ends
this with its description. Prints how often what happened.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from os import cpu_count
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.interleavings import BrokenError, survive


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--processes", type=int, default=cpu_count())
    options = parser.parse_args()
    console, started, seen = Console(), time.monotonic(), Counter[str]()
    seeds = range(options.first, options.first + options.sequences)
    pieces = [seeds[i : i + 1000] for i in range(0, len(seeds), 1000)]
    with ProcessPoolExecutor(options.processes) as processes:
        try:
            for number, found in enumerate(processes.map(survive, pieces), 1):
                seen += found
                if number % 10 == 0:
                    console.print(f"{number * 1000:,} sequences, {time.monotonic() - started:.0f} s")
        except BrokenError as error:
            console.print(f"[red]{error}")
            processes.shutdown(cancel_futures=True)
            return 1
    console.print(
        f"{len(seeds):,} sequences in {time.monotonic() - started:.0f} s; no invariant was broken.\n"
        + ", ".join(f"{what}: {count:,}" for what, count in sorted(seen.items()))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
