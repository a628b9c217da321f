"""An engine that is gone for good ends the job, and one that comes back does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from rtr_ray.distributed.deployments import Deployments, Watch
from rtr_ray.errors import ExecutionError
from tests.fakes import pool_of


@dataclass
class Scripted:
    """Deployments that are ready, or are not, as the script says."""

    broken: list[bool]
    asked: int = field(default=0)

    def ready(self, group: Sequence[Any]) -> dict[str, bool]:
        broken = self.broken[min(self.asked, len(self.broken) - 1)]
        self.asked += 1
        if broken:
            raise ExecutionError("The deployment 'a' failed to start: no reason was given")
        return {"a": True}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    # the module's own name for it: every other thread of this process goes on reading the real one
    monkeypatch.setattr("rtr_ray.distributed.deployments.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def look_every_ten_seconds(watch: Watch, clock: list[float], times: int) -> None:
    for _ in range(times):
        clock[0] += 10
        watch.look()


def test_what_stays_broken_ends_the_job_with_its_reason(clock: list[float]) -> None:
    watch = Watch(Scripted([False, True]), [], patience_s=60)  # type: ignore[arg-type]
    look_every_ten_seconds(watch, clock, 7)
    with pytest.raises(ExecutionError, match="failed to start"):
        look_every_ten_seconds(watch, clock, 1)


def test_what_comes_back_in_time_ends_nothing(clock: list[float]) -> None:
    watch = Watch(Scripted([True] * 5 + [False] + [True] * 5 + [False]), [], patience_s=60)  # type: ignore[arg-type]
    look_every_ten_seconds(watch, clock, 20)


def test_an_application_that_somebody_took_down_is_named_after_a_minute(clock: list[float]) -> None:
    deployment = next(iter(pool_of(("small:cot",)).deployments.values()))
    ours = Deployments("mine")
    there = {ours.app_name(deployment): SimpleNamespace(status="RUNNING")}
    assert ours._is_ready(deployment, there)
    for known in ({}, there, {}):  # one that comes back in time is no matter
        for _ in range(6):
            clock[0] += 10
            assert ours._is_ready(deployment, known) == bool(known)
    clock[0] += 11
    with pytest.raises(ExecutionError, match=r"The application 'mine-.*' is gone: somebody took it down"):
        ours._is_ready(deployment, {})


def test_it_asks_now_and_then_only(clock: list[float]) -> None:
    scripted = Scripted([False])
    watch = Watch(scripted, [])  # type: ignore[arg-type]
    for _ in range(100):
        clock[0] += 0.5
        watch.look()
    assert scripted.asked <= 11
