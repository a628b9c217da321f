"""All of these tests again as a user without rights: a second run of this folder, started by root."""

import os
import re

import pytest
from ordinary_user import OrdinaryRun


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as an ordinary user already")
def test_all_of_this_holds_for_an_ordinary_user(ordinary_run: OrdinaryRun | None) -> None:
    assert ordinary_run is not None
    if ordinary_run.impossible:
        pytest.skip(ordinary_run.impossible)
    exit_code, printed = ordinary_run.finish()
    assert exit_code == 0, printed
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None, printed
    assert int(passed[1]) > 100, f"too few of them ran:\n{printed}"
