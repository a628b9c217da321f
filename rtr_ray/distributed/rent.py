"""What self-hosted engines cost while they are up: replica-seconds times dollars per GPU and hour.

Start-up and idle time included: a machine is paid for by the hour, whatever it does. Endpoints and
engines that a job is attached to are somebody else's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from rtr_ray.pool import USD_QUANTUM, Deployment
from rtr_ray.run_folder import RunFolder

RENT = "rent.json"
_LOOK_S = 2.0
_SAVE_S = 15.0
_HOUR_S = Decimal(3600)


def rent_usd(deployment: Deployment, replica_s: float) -> Decimal | None:
    """Dollars of so many replica-seconds; None where nobody said what a GPU costs.

    A replica without a GPU counts as one.
    """
    if deployment.gpu_usd_per_hour is None:
        return None
    gpus = Decimal(str(deployment.num_gpus or 1))
    usd = Decimal(str(round(replica_s, 3))) * gpus * deployment.gpu_usd_per_hour / _HOUR_S
    return usd.quantize(USD_QUANTUM)


@dataclass(slots=True)
class Rent:
    """Adds up replica-seconds, over all sessions of a run.

    Attributes:
        replicas: Tells how many replicas each deployment has just now, by its id.
    """

    folder: RunFolder
    deployments: Mapping[str, Deployment]
    replicas: Callable[[], Mapping[str, int]]
    seconds: dict[str, float] = field(default_factory=dict)  # replica-seconds by deployment
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        """What earlier sessions have written down is part of it, also where none starts an engine again."""
        found = self.folder.read_json(RENT) or {}
        self.seconds = dict(found.get("replica_seconds", {}))

    def start(self) -> None:
        """Begin to look, now and then."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    @property
    def usd(self) -> Decimal | None:
        """So far; None where a deployment that ran has no price."""
        parts = [
            rent_usd(self.deployments[name], seconds) for name, seconds in self.seconds.items() if seconds
        ]
        known = [part for part in parts if part is not None]
        return sum(known, Decimal(0)) if len(known) == len(parts) else None

    def _run(self) -> None:
        last, saved, before = time.monotonic(), 0.0, dict[str, int]()
        while True:
            ended = self._stop.wait(_LOOK_S)
            now = time.monotonic()
            # what was there a moment ago is paid until now, and also where nobody could look
            for name, count in before.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + count * (now - last)
            last = now
            with contextlib.suppress(Exception):  # Serve may be gone, or busy
                before = dict(self.replicas())
            if ended or now - saved >= _SAVE_S:
                saved = now
                with contextlib.suppress(Exception):  # the disk may be full; the next one may fit
                    self._save()
            if ended:
                return

    def _save(self) -> None:
        if any(self.seconds.values()):
            rounded = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
            self.folder.write_json(RENT, {"schema_version": 1, "replica_seconds": rounded})

    def stop(self) -> None:
        """Look once more, and write it down."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
