"""What the results of a run come to, added up by Ray tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import ray

from rtr_ray.distributed.plan_parts import part_of
from rtr_ray.run_folder import RunFolder
from rtr_ray.storage import open_store, read_table
from rtr_ray.summary import COLUMNS, Tally
from rtr_ray.thrift import thrifty

_TOGETHER = 64  # parts of results that one task adds up


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def tally_parts(output: str, keys: Sequence[str]) -> tuple[Tally, Counter[str]]:
    """The tally of some results parts, and how many of their rows are settled, by plan part."""
    store, total, settled = open_store(output), Tally(), Counter[str]()
    for key in keys:
        tally = Tally.of(read_table(store, key, COLUMNS))
        total.add(tally)
        settled[part_of(key)] += sum(tally.rows.values()) - tally.rows["skipped_budget"]
    return total, settled


def count_results(folder: RunFolder) -> tuple[Tally, Counter[str]]:
    """The tally of a run's results and its settled rows by plan part, added up by Ray tasks."""
    keys = folder.results()
    batches = [keys[i : i + _TOGETHER] for i in range(0, len(keys), _TOGETHER)]
    total, settled = Tally(), Counter[str]()
    for tally, counted in ray.get([tally_parts.remote(folder.store.uri, batch) for batch in batches]):
        total.add(tally)
        settled.update(counted)
    return total, settled


def tally_results(folder: RunFolder) -> Tally:
    """The tally of the results of a run."""
    return count_results(folder)[0]
