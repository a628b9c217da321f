"""Ways of doing the same, timed in turns: other work on the machine then slows each of them down alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each turn."""

    turns_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle one."""
        return statistics.median(self.turns_s)

    @property
    def best_s(self) -> float:
        """The least disturbed one."""
        return min(self.turns_s)

    def scaled(self, factor: float) -> Timing:
        """What so many times the work would have taken."""
        return Timing(tuple(factor * turn_s for turn_s in self.turns_s))

    def over(self, other: Timing) -> tuple[float, float]:
        """How many times as long as the other: the median over the rounds, and by the best turns."""
        rounds = [mine_s / its_s for mine_s, its_s in zip(self.turns_s, other.turns_s, strict=True)]
        return statistics.median(rounds), self.best_s / other.best_s


def in_turns(
    ways: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Time each way `repeats` times, one after the other; every second round goes backwards.

    Args:
        ways: Name -> what to do; each is done once beforehand, which compiles and warms up.
        repeats: Rounds.
        clock: Seconds; those of the wall, or of the CPU.
    """
    for way in ways.values():
        way()
    turns: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            started_s = clock()
            ways[name]()
            turns[name].append(clock() - started_s)
    return {name: Timing(tuple(seconds)) for name, seconds in turns.items()}
