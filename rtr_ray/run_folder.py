"""A run is a folder: what it is of, how far it has come, and where its parts lie.

run.json        from the first minute: schema version, status, stage, fingerprints
config.yaml     the configuration, resolved
tables/         one part per split of the corpus: its rows and their routing table
policy.json     the fitted policy
plan.json       what the plan expects, by candidate
plan/model=.../strategy=.../part-*.parquet
results/part-*.parquet
summary.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rtr_ray.errors import DataError, StorageError
from rtr_ray.storage import Store, open_store

SCHEMA_VERSION = 1
RUN, CONFIG, POLICY, PLAN, SUMMARY = "run.json", "config.yaml", "policy.json", "plan.json", "summary.json"
TABLES, RESULTS = "tables/part-", "results/part-"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's folder."""

    store: Store

    @classmethod
    def open(
        cls, uri: str, fingerprints: Mapping[str, str], config: str, fresh: bool = False
    ) -> tuple[RunFolder, str | None]:
        """Begin a run in a folder, or go on with the one that it holds.

        Args:
            uri: Local or `s3://`.
            fingerprints: Of everything that must be the same for the run to go on, by name.
            config: The resolved configuration, for the record.
            fresh: Move an older run aside first.

        Returns:
            The folder, and where the older run was moved to, if it was.

        Raises:
            DataError: If the folder holds another run; the difference is named.
            StorageError: If it cannot be written to.
        """
        store = open_store(uri)
        aside = store.move_aside() if fresh else None
        folder = cls(store)
        head = {
            "schema_version": SCHEMA_VERSION,
            "status": "running",
            "stage": "start",
            "fingerprints": dict(fingerprints),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if store.create(RUN, _json(head)):
            store.write(CONFIG, config.encode())
            return folder, aside
        found = folder.read_json(RUN) or {}
        if found.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{uri} holds a run of schema version {found.get('schema_version')}; this rtr-ray reads "
                f"version {SCHEMA_VERSION}. Take another output, or --fresh to move it aside."
            )
        before = found.get("fingerprints", {})
        for name, value in fingerprints.items():
            if before.get(name) != value:
                raise DataError(
                    f"{uri} holds another run: its {name} differs (it was {before.get(name)}, now {value}). "
                    "Take another output, or --fresh to move it aside."
                )
        folder.update(status="running", error=None)
        return folder, aside

    def read_json(self, key: str) -> dict[str, Any] | None:
        """A JSON object of the folder; None where there is none."""
        data = self.store.read(key)
        if data is None:
            return None
        try:
            value: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise StorageError(f"{self.store.uri}/{key} is damaged: {error}.") from error
        return value

    def write_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a JSON object, whole."""
        self.store.write(key, _json(value))

    def update(self, **values: Any) -> None:
        """Change some of what `run.json` says."""
        head = self.read_json(RUN) or {}
        head |= values | {"updated": datetime.now(UTC).isoformat(timespec="seconds")}
        self.write_json(RUN, head)

    def tables(self) -> list[str]:
        """The keys of the table parts that are there."""
        return self.store.keys(TABLES)

    def plans(self) -> list[str]:
        """The keys of the plan parts."""
        return self.store.keys("plan/")

    def results(self, name: str = "") -> list[str]:
        """The keys of the results parts, of one plan part or of all."""
        return self.store.keys(f"{RESULTS}{name}")


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, default=str) + "\n").encode()
