"""The outcomes that ship inside: the questions that they were recorded on, and the file that they become.

python -m rtr_ray.embedded.shipped_outcomes questions route.parquet
rtr-ray collect --pool embedded --queries route.parquet --reference-column reference --grader numeric \
    --output outcomes
python -m rtr_ray.embedded.shipped_outcomes pack outcomes rtr_ray/embedded/outcomes.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rtr_ray.embedded.questions import draw
from rtr_ray.schemas import OUTCOMES

COUNT, SEED = 3000, 10_000


def questions(split: str, count: int, seed: int) -> pa.Table:
    """Questions of a split as a corpus: query, reference, family, level."""
    drawn = draw(split, count, seed)
    return pa.table(
        {
            "query": [question.query for question in drawn],
            "reference": [question.gold for question in drawn],
            "family": [question.family for question in drawn],
            "level": [question.level for question in drawn],
        }
    )


def pack(folder: Path, path: Path) -> None:
    """One file of all parts that `rtr-ray collect` wrote, in a fixed order."""
    parts = [pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))]
    order = [(name, "ascending") for name in ("query_id", "model", "strategy", "samples", "sample")]
    table = pa.concat_tables(part.select(OUTCOMES.names) for part in parts).sort_by(order)
    table = table.replace_schema_metadata(parts[0].schema.metadata)
    pq.write_table(table, path, compression="zstd", compression_level=19)
    print(f"{path}: {table.num_rows:,} rows, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Questions to record outcomes on, and their file.")
    commands = parser.add_subparsers(dest="command", required=True)
    written = commands.add_parser("questions", help="write the questions of the split `route`")
    written.add_argument("path", type=Path)
    packed = commands.add_parser("pack", help="make one file of a folder of outcomes")
    packed.add_argument("folder", type=Path)
    packed.add_argument("path", type=Path)
    options = parser.parse_args()
    if options.command == "questions":
        pq.write_table(questions("route", COUNT, SEED), options.path)
    else:
        pack(options.folder, options.path)


if __name__ == "__main__":
    main()
