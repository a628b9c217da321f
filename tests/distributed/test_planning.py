"""What becomes of a slice's rows: a plan part per candidate, in the order in which they are answered."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from rtr_ray.distributed.planning import plan_slice
from rtr_ray.parts import Version, table_part
from rtr_ray.policies.budget import FittedBudget
from rtr_ray.policies.fixed import FittedFixed
from rtr_ray.slices import Slice
from rtr_ray.storage import LocalStore, write_table
from tests.test_parts import LARGE, POOL, asked, block, router


def test_rows_of_several_tables_go_by_the_power_of_their_length_each_in_its_order(
    tmp_path: Path,
) -> None:
    store = LocalStore(str(tmp_path / "run"))
    for name, texts in (("a", ("easy", "hard", "hard")), ("b", ("hard", "easy"))):  # 20 tokens, or 90
        rows = [row | {"id": f"{name}{i}"} for i, row in enumerate(asked(*texts))]
        part, _ = table_part(block(tmp_path, *rows, id="id"), router())
        write_table(store, f"tables/{name}", part)
    found = plan_slice(store, Slice(0, ("tables/a", "tables/b")), POOL, Version(FittedFixed("large:cot")))
    ((key, (candidate, rows_planned)),) = found.parts.items()
    assert (candidate, rows_planned) == (LARGE, 5)
    written = pq.read_table(tmp_path / "run" / key)
    assert written["query_id"].to_pylist() == ["a1", "a2", "b0", "a0", "b1"]


def test_rows_that_a_broken_off_try_gave_to_nobody_are_not_there_twice(tmp_path: Path) -> None:
    store, one = LocalStore(str(tmp_path / "run")), Slice(0, ("tables/a",))
    part, _ = table_part(block(tmp_path, *asked("easy", "hard")), router())
    write_table(store, "tables/a", part)
    dear = plan_slice(store, one, POOL, Version(FittedBudget("usd", 1.0, 0.0, max_row_usd=1e-9)))
    assert (dear.unrouted, dear.parts) == (2, {})
    assert len(store.keys("results/")) == 1
    found = plan_slice(store, one, POOL, Version(FittedFixed("large:cot")))
    assert (found.unrouted, [rows for _, rows in found.parts.values()]) == (0, [2])
    assert store.keys("results/") == []
