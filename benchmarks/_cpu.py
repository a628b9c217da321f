"""Who uses the processor: CPU seconds by kind of process, looked at while something runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from benchmarks._looking import EVERY_S


@dataclass(slots=True)
class CpuWatch:
    """CPU seconds of the processes of this machine, each under the first name that its title holds.

    Args:
        kinds: What a title holds -> the name of such processes. Others are passed over.
    """

    kinds: Mapping[str, str]
    _looks: list[tuple[float, dict[int, tuple[str, float]]]] = field(default_factory=list)

    def look(self) -> None:
        """Add up what each process has used so far."""
        found = {}
        for process in psutil.process_iter(["cmdline", "cpu_times"]):
            title = " ".join(process.info["cmdline"] or [])
            kind = next((name for key, name in self.kinds.items() if key in title), None)
            if kind is not None and process.info["cpu_times"] is not None:
                times = process.info["cpu_times"]
                found[process.pid] = kind, times.user + times.system
        self._looks.append((time.monotonic(), found))

    def cores(self, last_s: float) -> dict[str, float]:
        """How much of a core each kind used in the last seconds, largest first."""
        end_s, last = self._looks[-1]
        begin_s, first = next(look for look in self._looks if look[0] >= end_s - last_s - EVERY_S)
        used: dict[str, float] = defaultdict(float)
        for pid, (kind, seconds) in last.items():
            used[kind] += seconds - first.get(pid, (kind, 0.0))[1]
        took_s = max(end_s - begin_s, EVERY_S)
        return {kind: seconds / took_s for kind, seconds in sorted(used.items(), key=lambda one: -one[1])}
