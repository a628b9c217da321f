"""What becomes of a slice's rows: a plan part per candidate, in the order in which they are answered."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from rtr_ray.distributed.planning import plan_slice
from rtr_ray.parts import Version, table_part
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
