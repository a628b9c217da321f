"""The first pass: the corpus becomes tables.

Splits of the corpus are shared out over encoder actors by Ray Data. An actor reads its split,
encodes and predicts, and writes one table part; only a few numbers per part come back, so that
neither the driver nor the object store ever holds texts.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from rtr_ray import registry
from rtr_ray.config import EncoderKeys
from rtr_ray.corpus import QUERY_ID, ROW_ERROR, Corpus, Split
from rtr_ray.encoders import KNOWN as ENCODERS
from rtr_ray.encoders.kept import KeptEncoder
from rtr_ray.errors import ExecutionError, RtrError
from rtr_ray.familiarity import Caution
from rtr_ray.held_out import distance_sketch, merge_sketches
from rtr_ray.parts import table_part
from rtr_ray.policies.base import Policy, Sketch, merged
from rtr_ray.pool import Pool
from rtr_ray.reading import read_split
from rtr_ray.router import Router, RouterFolder
from rtr_ray.run_folder import TABLES
from rtr_ray.schemas import stamp, stamped
from rtr_ray.storage import Store, open_store, read_metadata, read_table, several_at_once, write_table
from rtr_ray.thrift import thrifty
from rtr_ray.types import FloatArray

_AHEAD = 2  # blocks that are read while one is encoded
RESTARTS = "restarts/"
_MOST_DEATHS = 12  # of an actor without a finished split in between


@dataclass(frozen=True, slots=True)
class RoutingWork:
    """Everything that an encoder actor must know."""

    corpus: Corpus
    router: str  # folder
    pool: Pool
    untrained: Any
    policy: Policy
    output: str
    keys: EncoderKeys
    caution: Caution | None = None


@dataclass(frozen=True, slots=True)
class TablePart:
    """What is known of a table part without reading its rows."""

    key: str
    rows: int
    unusable: int
    sketch: Sketch
    worker: str
    kinds: Sketch | None = None  # of queries, see `held_out.distance_sketch`; None: the router cannot tell


class TableActor:
    """Reads splits, encodes, predicts, writes table parts."""

    def __init__(self, work: RoutingWork) -> None:
        self._work = work
        self._refused: RtrError | None = None
        try:
            self._open(work)
        except RtrError as error:  # Ray keeps only the text of what an actor's beginning raises
            self._refused = error

    def _open(self, work: RoutingWork) -> None:
        folder = RouterFolder.load(work.router)
        spec = dict(folder.encoder)
        if "device" in spec:
            spec |= {"device": work.keys.device, "dtype": work.keys.dtype}
        self._store = open_store(work.output)
        self._deaths = _Deaths.counted(self._store)
        self._rows = self._deaths.rows(work.keys.batch_rows)
        encoder = registry.build(spec, ENCODERS, "encoder")
        if work.keys.cache is not None:
            encoder = KeptEncoder(encoder, work.keys.cache)
        self._router: Router = folder.bind(work.pool, encoder, work.untrained, work.caution)
        self._centroids_KD = None if folder.held_out is None else folder.held_out.centroids

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One split in, what is known of its table part out."""
        if self._refused is not None:
            raise self._refused
        (split,) = batch["split"]
        part = self._write(split)
        self._deaths.survived(self._store)
        return {"part": [part]}

    @thrifty
    def _write(self, split: Split) -> TablePart:
        work, tables, sketches = self._work, [], []
        kinds: list[Sketch] = []

        def look(embeddings_QD: FloatArray) -> None:
            if self._centroids_KD is not None:
                kinds.append(distance_sketch(self._centroids_KD, embeddings_QD))

        blocks = read_split(work.corpus, split, self._rows)
        for block in _prefetched(blocks, _AHEAD):
            part, table = table_part(
                block, self._router, work.keys.keep_embeddings, look, work.corpus.settings
            )
            tables.append(part)
            sketches.append(work.policy.sketch(table))
        if not tables:
            return TablePart("", 0, 0, {}, _worker())
        whole = pa.concat_tables(tables)
        sketch = merged(work.policy, sketches) or {}
        usable = sum(error is None for error in whole[ROW_ERROR].to_pylist())
        found = TablePart(
            table_key(split),
            len(whole),
            len(whole) - usable,
            sketch,
            _worker(),
            merge_sketches(kinds) if kinds else None,
        )
        candidates = stamp(whole.schema.metadata, "candidates")
        facts = {
            "rows": found.rows,
            "unusable": found.unusable,
            "sketch": dict(sketch),
            "worker": found.worker,
            "kinds": found.kinds,
        }
        write_table(self._store, found.key, stamped(whole, candidates=candidates, facts=facts))
        return found


@dataclass(slots=True)
class _Deaths:
    """How often this actor was killed: for the memory it took, most likely. Each time it takes half the rows.

    Written down only by an actor that has come back.
    """

    key: str
    all: int = 0
    in_a_row: int = 0  # without a finished split in between

    @classmethod
    def counted(cls, store: Store) -> _Deaths:
        """Those of this actor so far, the one included that it has just come back from.

        Raises:
            ExecutionError: If it comes back in vain.
        """
        context = ray.get_runtime_context()
        found = cls(f"{RESTARTS}{context.get_actor_id()}.json")
        if context.was_current_actor_reconstructed:
            before = json.loads(store.read(found.key) or b"[0, 0]")
            found.all, found.in_a_row = before[0] + 1, before[1] + 1
            found._save(store)
        if found.in_a_row > _MOST_DEATHS:
            raise ExecutionError(
                f"An encoder actor was killed {found.in_a_row} times over the same rows, the last time few "
                "at once. Give it more memory, or find the row that is too large for it."
            )
        return found

    def rows(self, most: int) -> int:
        """How many to encode together."""
        return max(1, most >> self.all)

    def survived(self, store: Store) -> None:
        """A split is finished."""
        if self.in_a_row:
            self.in_a_row = 0
            self._save(store)

    def _save(self, store: Store) -> None:
        store.write(self.key, json.dumps([self.all, self.in_a_row]).encode())


def table_key(split: Split) -> str:
    """Where the table part of a split lies."""
    return f"{TABLES}{split.name}.parquet"


def _worker() -> str:
    return ray.get_runtime_context().get_actor_id() or ""


def _prefetched(blocks: Iterator[pa.Table], ahead: int) -> Iterator[pa.Table]:
    """The blocks, read by a thread of their own while earlier ones are encoded."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def read() -> None:
        try:
            for block in blocks:
                while not stop.is_set():
                    try:
                        ready.put((block, None), timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
            ready.put((None, None))
        except BaseException as error:  # raised again by whoever waits for the block
            ready.put((None, error))

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            block, error = ready.get()
            if error is not None:
                raise error
            if block is None:
                return
            yield block
    finally:
        stop.set()


def _written(store: Store, key: str) -> TablePart:
    return TablePart(key, **stamp(read_metadata(store, key).metadata, "facts"))


def write_tables(work: RoutingWork, splits: Sequence[Split]) -> Iterator[TablePart]:
    """Compute the table parts that are not there yet; those that are come first.

    Yields:
        What is known of each part, as it is written.
    """
    store = open_store(work.output)
    keys, there = [table_key(split) for split in splits], set(store.keys(TABLES))
    yield from several_at_once(lambda key: _written(store, key), [key for key in keys if key in there])
    missing = [split for split, key in zip(splits, keys, strict=True) if key not in there]
    if not missing:
        return
    actors = work.keys.actors
    if isinstance(actors, int):
        least = most = min(actors, len(missing))
    else:
        least, most = min(actors[0], len(missing)), min(actors[1], len(missing))
    dataset = ray.data.from_items([{"split": split} for split in missing], override_num_blocks=len(missing))
    parts = dataset.map_batches(
        TableActor,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=1),
        num_cpus=work.keys.num_cpus,
        num_gpus=work.keys.num_gpus or None,
    )
    for row in parts.iter_rows():
        part: TablePart = row["part"]
        if part.rows:
            yield part


@ray.remote(num_cpus=1, max_retries=5)
@thrifty
def find_duplicate(output: str, keys: Sequence[str], bucket: int, buckets: int) -> str | None:
    """An id that occurs twice among those that fall into a bucket; None where there is none."""
    import pandas as pd

    store = open_store(output)
    ids = []
    for key in keys:
        names = pd.Series(read_table(store, key, [QUERY_ID])[QUERY_ID].to_pylist(), dtype=object)
        ids.append(names[pd.util.hash_array(names.to_numpy(), categorize=False) % buckets == bucket])
    every = pd.concat(ids)
    twice = every[every.duplicated()]
    return None if twice.empty else str(twice.iloc[0])
