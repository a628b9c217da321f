"""A batch from its upload to its output files; what answers is somebody else's.

Everything can be done again from the beginning: a restart reads the same file, gives the runner the
same corpora, and writes the same lines. What was answered and paid before, the runner's own run
folders know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from rtr_ray.errors import RtrError
from rtr_ray.openai_batch.objects import Counts, budget_of
from rtr_ray.openai_batch.replies import reply_of
from rtr_ray.openai_batch.requests import BatchRequest, Problem, read_batch, write_corpora
from rtr_ray.openai_batch.store import BatchStore


class Runner(Protocol):
    """Answers the rows of one corpus: a job of this project, say."""

    def run(
        self, model: str, corpus: Path, output: Path, budget_usd: Decimal | None
    ) -> Iterator[Mapping[str, Any]]:
        """The results rows (see `rtr_ray.schemas.RESULTS`), in any order; goes on where it stopped.

        Args:
            model: What the requests named: auto, auto:0.7, a model, or model:strategy.
            corpus: A file in the format openai_batch.
            output: The run folder; the same one after a restart.
            budget_usd: What these rows may spend, earlier sessions included; None: no bound.
        """
        ...

    def committed_usd(self, output: Path) -> Decimal:
        """What that run has spent, and what it may have spent where a count was lost; 0: it never began."""
        ...


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One batch that is carried out."""

    store: BatchStore
    runner: Runner
    work: Path  # a folder for the corpora and runs of all batches
    keyed: bool = True  # False: there are no keys, and nobody's budget pays

    def carry_out(self, key_id: str, batch_id: str) -> dict[str, Any]:
        """Bring a batch to its end; gives its object. Call it again after a restart.

        Its budget is set aside from its key's when it begins, and settled when it ends: so batches and
        single requests share the key's budgets. A mixed file is run model by model, in the order in
        which they first occur; each may spend what the ones before have left.
        """
        batch = self.store.retrieve(key_id, batch_id)
        try:
            if batch["status"] == "validating":
                batch = self._validate(key_id, batch)
            if batch["status"] == "in_progress":
                batch = self._answer(key_id, batch)
            if batch["status"] == "finalizing":
                batch = self._end(key_id, batch, "completed")
        except RtrError as error:
            batch = self.store.retrieve(key_id, batch_id)
            if batch["status"] not in ("cancelling", "cancelled"):
                problem = Problem(None, "batch_failed", error.message)
                spent_usd = self._committed_usd(batch)
                return self.store.advance(key_id, batch_id, "failed", problems=[problem], spent_usd=spent_usd)
        if batch["status"] == "cancelling":
            batch = self._end(key_id, batch, "cancelled")
        return batch

    def _validate(self, key_id: str, batch: dict[str, Any]) -> dict[str, Any]:
        """Nothing is asked before the end of the file was seen, and all of it was fine."""
        total, problems = 0, []
        for one in self._read(key_id, batch):
            total += isinstance(one, BatchRequest)
            problems += [one] if isinstance(one, Problem) else []
        if self.keyed and not problems:
            return self.store.allot(key_id, batch["id"], Counts(total))
        status = "failed" if problems else "in_progress"
        return self.store.advance(key_id, batch["id"], status, Counts(total), problems)

    def _answer(self, key_id: str, batch: dict[str, Any]) -> dict[str, Any]:
        folder = self._folder(batch)
        folder.mkdir(parents=True, exist_ok=True)
        requests = (one for one in self._read(key_id, batch) if isinstance(one, BatchRequest))
        names: dict[str, Path] = {}

        def corpus_of(model: str) -> Any:
            names[model] = folder / f"{len(names):04}.jsonl"
            return names[model].open("wb")

        total = sum(write_corpora(requests, corpus_of).values())
        left = self._budget_usd(batch)
        seen: set[str] = set()
        completed = 0
        with (folder / "output").open("wb") as output, (folder / "errors").open("wb") as errors:

            def write(row: Mapping[str, Any]) -> None:
                nonlocal completed
                reply = reply_of(row, batch["id"], batch["in_progress_at"])
                (errors if reply.failed else output).write(reply.line())
                completed += not reply.failed
                seen.add(str(row["query_id"]))

            for model, corpus in names.items():
                run_folder = corpus.with_suffix(".run")
                for row in self.runner.run(model, corpus, run_folder, left):
                    write(row)
                if left is not None:
                    left = max(left - self.runner.committed_usd(run_folder), Decimal(0))
                counts = Counts(total, completed, len(seen) - completed)
                batch = self.store.advance(key_id, batch["id"], counts=counts)
                if batch["status"] != "in_progress":
                    return batch
            if len(seen) < total:
                for one in self._read(key_id, batch):
                    if isinstance(one, BatchRequest) and one.custom_id not in seen:
                        write({"query_id": one.custom_id, "status": "failed"})
        counts = Counts(total, completed, total - completed)
        return self.store.advance(key_id, batch["id"], "finalizing", counts)

    def _end(self, key_id: str, batch: dict[str, Any], status: str) -> dict[str, Any]:
        """The status and the money in one transaction, so that neither is told without the other."""
        files, spent_usd = self._files(key_id, batch), self._committed_usd(batch)
        return self.store.advance(key_id, batch["id"], status, spent_usd=spent_usd, **files)

    def _budget_usd(self, batch: dict[str, Any]) -> Decimal | None:
        allotted = (batch.get("rtr") or {}).get("budget_usd")
        return budget_of(batch["metadata"] or {}) if allotted is None else Decimal(allotted)

    def _committed_usd(self, batch: dict[str, Any]) -> Decimal:
        runs = (corpus.with_suffix(".run") for corpus in self._folder(batch).glob("*.jsonl"))
        return sum((self.runner.committed_usd(run) for run in runs), Decimal(0))

    def _files(self, key_id: str, batch: dict[str, Any]) -> dict[str, Any]:
        """Keep what was written; a file without a line is not kept, as OpenAI has it."""
        found = {}
        for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
            path = self._folder(batch) / name
            if path.is_file() and path.stat().st_size:
                with path.open("rb") as source:
                    chunks = iter(lambda source=source: source.read(1 << 20), b"")  # type: ignore[misc]
                    made = self.store.add_file(key_id, f"{batch['id']}_{name}.jsonl", chunks, "batch_output")
                found[field] = str(made["id"])
        return found

    def _read(self, key_id: str, batch: dict[str, Any]) -> Iterator[BatchRequest | Problem]:
        with self.store.content(key_id, batch["input_file_id"]).open("rb") as lines:
            yield from read_batch(lines, batch["endpoint"])

    def _folder(self, batch: dict[str, Any]) -> Path:
        return self.work / str(batch["id"])
