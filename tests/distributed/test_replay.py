"""Recorded outcomes replayed through a whole run, with a router that is wrong about lengths."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.autopilot import DATA, PREFIX, Replay, missed
from benchmarks.simulation.engine import serving
from tests.distributed.conftest import Cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not DATA.is_file(), reason="the recorded outcomes are not part of the project"),
]


def test_answers_twice_as_long_as_believed_use_the_budget_and_no_more(
    tmp_path: Path, connected: Cluster
) -> None:
    replay = Replay.prepare(tmp_path, 1000)
    with serving(PREFIX, replay.sources, replay.meter):
        found = replay.run("x0.5", autopilot=True)
    assert missed([found]) == []
    assert found["spent_share"] == pytest.approx(found["metered_share"])
    assert found["rows"]["answered"] >= 990
    assert found["doubled"] == 0
    assert found["accuracy"] > 0.7  # the cheapest candidate has 0.56
