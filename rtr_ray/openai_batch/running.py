"""A batch from its upload to its output files; what answers is somebody else's.

Everything can be done again from the beginning: a restart gives the runner the same corpora, and
writes the same lines. What was answered and paid before, the runner's own run folders know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from rtr_ray.errors import BudgetError, RtrError, StorageError
from rtr_ray.openai_batch.objects import Counts, budget_of
from rtr_ray.openai_batch.replies import reply_of
from rtr_ray.openai_batch.requests import BatchRequest, Problem, read_batch, write_corpora
from rtr_ray.openai_batch.store import BatchStore

Check = Callable[[BatchRequest], "BatchRequest | Problem"]
"""What becomes of a request before it is written into a corpus: its settings in the form that the
runner reads, or why it cannot be asked."""
_MANIFEST = "corpora.json"


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

        Raises:
            BudgetError: If that does not suffice, before anything is asked.
            RtrError: If it cannot go on; what it has answered it has given before.
        """
        ...

    def committed_usd(self, output: Path) -> Decimal:
        """What that run has spent, and what it may have spent where a count was lost; 0: it never began."""
        ...


def _as_it_is(request: BatchRequest) -> BatchRequest:
    return request


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One batch that is carried out."""

    store: BatchStore
    runner: Runner
    work: Path  # a folder for the corpora and runs of all batches
    keyed: bool = True  # False: there are no keys, and nobody's budget pays
    check: Check = _as_it_is
    most_usd: Callable[[BatchRequest], Decimal] | None = None  # what a checked request costs at most

    def carry_out(self, key_id: str, batch_id: str) -> dict[str, Any]:
        """Bring a batch to its end; gives its object. Call it again after a restart.

        Its budget is set aside from its key's when it begins, and settled when it ends: so batches and
        single requests share the key's budgets. A mixed file is run model by model, in the order in
        which they first occur; each may spend what the ones before have left. Where that does not
        suffice for one of them, its requests fail, and the batch only if nothing was answered.

        Raises:
            StorageError: If the database or a folder cannot be used; call it again when they can.
        """
        batch = self.store.retrieve(key_id, batch_id)
        try:
            if batch["status"] == "validating":
                batch = self._validate(key_id, batch)
            if batch["status"] == "in_progress":
                batch = self._answer(key_id, batch)
            if batch["status"] == "finalizing":
                batch = self._end(key_id, batch, "completed")
        except StorageError:
            raise
        except RtrError as error:
            batch = self.store.retrieve(key_id, batch_id)
            if batch["status"] not in ("cancelling", "cancelled"):
                code = "budget_exceeded" if isinstance(error, BudgetError) else "batch_failed"
                return self.fail(key_id, batch_id, code, error.message)
        if batch["status"] == "cancelling":
            batch = self._end(key_id, batch, "cancelled")
        return batch

    def fail(self, key_id: str, batch_id: str, code: str, message: str) -> dict[str, Any]:
        """End a batch that cannot go on, with what it has answered; gives its object."""
        batch = self.store.retrieve(key_id, batch_id)
        return self._end(key_id, batch, "failed", [Problem(None, code, message)])

    def _validate(self, key_id: str, batch: dict[str, Any]) -> dict[str, Any]:
        """Nothing is asked before the end of the file was seen, and all of it was fine."""
        total, problems, most_usd = 0, [], Decimal(0)
        for one in self._read(key_id, batch):
            if isinstance(one, Problem):
                problems.append(one)
                continue
            total += 1
            if self.keyed and self.most_usd is not None and not problems:
                most_usd += self.most_usd(one)
        if not problems:
            self._write_corpora(key_id, batch)
        if self.keyed and not problems:
            bound = None if self.most_usd is None else most_usd
            return self.store.allot(key_id, batch["id"], Counts(total), bound)
        status = "failed" if problems else "in_progress"
        return self.store.advance(key_id, batch["id"], status, Counts(total), problems)

    def _write_corpora(self, key_id: str, batch: dict[str, Any]) -> None:
        """One for each model, with a list of them, last: from then on nobody needs the input file."""
        folder = self._folder(batch)
        folder.mkdir(parents=True, exist_ok=True)
        names: dict[str, str] = {}

        def corpus_of(model: str) -> Any:
            names[model] = f"{len(names):04}.jsonl"
            return (folder / names[model]).open("wb")

        requests = (one for one in self._read(key_id, batch) if isinstance(one, BatchRequest))
        counts = write_corpora(requests, corpus_of)
        listed = [{"model": name, "corpus": names[name], "requests": counts[name]} for name in names]
        temporary = folder / f".{_MANIFEST}"
        temporary.write_text(json.dumps(listed))
        os.replace(temporary, folder / _MANIFEST)

    def _corpora(self, key_id: str, batch: dict[str, Any]) -> list[dict[str, Any]]:
        path = self._folder(batch) / _MANIFEST
        if not path.exists():  # of a batch that an older version has begun
            self._write_corpora(key_id, batch)
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found

    def _answer(self, key_id: str, batch: dict[str, Any]) -> dict[str, Any]:
        folder, listed = self._folder(batch), self._corpora(key_id, batch)
        total = sum(one["requests"] for one in listed)
        left = self._budget_usd(batch)
        with (folder / "output").open("wb") as output, (folder / "errors").open("wb") as errors:
            lines = _Lines(batch, output, errors)
            for one in listed:
                corpus = folder / one["corpus"]
                run_folder = corpus.with_suffix(".run")
                try:
                    for row in self.runner.run(one["model"], corpus, run_folder, left):
                        lines.write(row)
                except RtrError as error:
                    if isinstance(error, BudgetError) and lines.completed:
                        lines.fail(corpus, "skipped_budget", error.message)
                    else:
                        self.store.advance(key_id, batch["id"], counts=lines.counts(total))
                        raise
                if left is not None:
                    left = max(left - self.runner.committed_usd(run_folder), Decimal(0))
                batch = self.store.advance(key_id, batch["id"], counts=lines.counts(total))
                if batch["status"] != "in_progress":
                    return batch
            for one in listed:
                lines.fail(folder / one["corpus"], "failed", None)
        return self.store.advance(key_id, batch["id"], "finalizing", lines.counts(total))

    def _end(
        self, key_id: str, batch: dict[str, Any], status: str, problems: list[Problem] | None = None
    ) -> dict[str, Any]:
        """The status and the money in one transaction, so that neither is told without the other."""
        files, spent_usd = self._files(key_id, batch), self._committed_usd(batch)
        return self.store.advance(
            key_id, batch["id"], status, problems=problems or (), spent_usd=spent_usd, **files
        )

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
            for one in read_batch(lines, batch["endpoint"]):
                yield self.check(one) if isinstance(one, BatchRequest) else one

    def _folder(self, batch: dict[str, Any]) -> Path:
        return self.work / str(batch["id"])


class _Lines:
    """The lines of an output and an error file, each request once."""

    def __init__(self, batch: Mapping[str, Any], output: Any, errors: Any) -> None:
        self._batch, self._output, self._errors = batch, output, errors
        self._seen: set[str] = set()
        self.completed = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """The line of a results row."""
        if row["query_id"] in self._seen:
            return
        reply = reply_of(row, self._batch["id"], self._batch["in_progress_at"])
        (self._errors if reply.failed else self._output).write(reply.line())
        self.completed += not reply.failed
        self._seen.add(str(row["query_id"]))

    def fail(self, corpus: Path, status: str, error: str | None) -> None:
        """Lines for the requests of a corpus that have none."""
        with corpus.open("rb") as source:
            for line in source:
                self.write({"query_id": json.loads(line)["custom_id"], "status": status, "error": error})

    def counts(self, total: int) -> Counts:
        """How far the batch has come."""
        return Counts(total, self.completed, len(self._seen) - self.completed)
