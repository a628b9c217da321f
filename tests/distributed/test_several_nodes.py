"""More than one machine: encoders on one with a GPU, replicas on others, the driver on the head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest

from tests.distributed.conftest import ROOT
from tests.distributed.several_nodes import ROWS

pytestmark = pytest.mark.ray


def test_a_node_that_is_taken_away_costs_no_row_and_no_dollar_that_is_not_told(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="rtr-ray-") as folder:  # short: sockets lie below it
        variables = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": folder,  # or others on this machine would take this cluster for theirs
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.distributed.several_nodes", str(tmp_path)],
            env={**os.environ, **variables},
            cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["removed"], "no node was taken away: the test shows nothing"
    assert found["encoded_on_gpu_nodes_alone"]
    assert found["ledger_beside_driver"], "the ledger may go with a node that is not the driver's"
    assert found["rows"] == {"total": ROWS, "answered": ROWS, "failed": 0, "skipped_budget": 0}
    assert (found["notes"], found["most_results_of_a_row"]) == (ROWS, 1)
    assert found["sent_again"] > 0, "nothing was on its way to the node: the test shows nothing"
    spent, paid = Decimal(found["spent"]), Decimal(found["paid"])
    assert spent == Decimal(found["money"])
    # what was answered without our seeing it is covered by the worst case that is reported
    assert spent <= paid <= spent + Decimal(found["lost"])
