"""What answers a batch: the batch job of this project, on the engines of the endpoint that took it."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from ray import serve

from rtr_ray.answers import read_program
from rtr_ray.config import JobFile, ServeFile
from rtr_ray.distributed.batch import run_job
from rtr_ray.errors import BudgetError, RtrError
from rtr_ray.job import Job
from rtr_ray.ledger import Record
from rtr_ray.online.batches import BatchOrder
from rtr_ray.pool import Pool
from rtr_ray.run_folder import LEDGER, RunFolder
from rtr_ray.screen import Screen, Stage
from rtr_ray.storage import open_store, read_table

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0  # between two looks whether the endpoint is there


class LeftError(BaseException):
    """The process ends, and the batch with it until somebody goes on with it."""


@dataclass(slots=True)
class Progress:
    """How far the jobs of a batch have come, while they run."""

    _before: Counter[str] = field(default_factory=Counter)  # of the jobs that have ended
    _now: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        """Another job begins."""
        self._before, self._now = self._before + self._now, Counter()

    def tell(self, rows: Mapping[str, int]) -> None:
        """So many rows of it are durable, by status."""
        self._now = Counter(rows)

    def on(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The counts of a batch object, as they are by now."""
        rows = self._before + self._now
        done = rows["answered"]
        live = {"completed": done, "failed": sum(rows.values()) - done}
        return {name: max(count, live.get(name, 0)) for name, count in counts.items()}


@dataclass(frozen=True, slots=True)
class JobRunner:
    """A `Runner` over `run_job`.

    Attributes:
        application: The name of the endpoint's application, whose engines answer.
        stopping: Set: what has been sent is waited for, and no more is sent.
        leaving: Set: the process ends, too.
    """

    file: ServeFile
    pool: Pool
    application: str
    order: BatchOrder
    stopping: threading.Event
    leaving: threading.Event
    progress: Progress = field(default_factory=Progress)

    def run(
        self, model: str, corpus: Path, output: Path, budget_usd: Decimal | None
    ) -> Iterator[Mapping[str, Any]]:
        """The results rows of a job over the corpus."""
        if budget_usd is not None and not budget_usd:
            yield from _skipped(corpus)
            return
        policies = self.order.policies(model, self.pool, budget_usd is not None)
        for number, policy in enumerate(policies):
            run_folder = output / str(number)  # another policy is another run
            failed: RtrError | None = None
            self.progress.begin()
            self.progress.tell(self._durable(run_folder))  # the batch may go on after a restart
            try:
                self._answer(policy, corpus, run_folder, budget_usd)
            except BudgetError as error:
                if number + 1 < len(policies):
                    continue
                failed = error
            except RtrError as error:
                failed = error
            yield from self._rows(run_folder)
            if failed is not None:
                raise failed
            return

    def _durable(self, run_folder: Path) -> Counter[str]:
        """Rows of a run that are durable, by status."""
        folder, found = RunFolder(open_store(str(run_folder))), Counter[str]()
        for key in folder.results():
            found.update(read_table(folder.store, key, ["status"])["status"].to_pylist())
        return found

    def committed_usd(self, output: Path) -> Decimal:
        """By the ledgers of its runs."""
        return sum((self._committed_usd(one) for one in sorted(output.glob("*"))), Decimal(0))

    def _committed_usd(self, run_folder: Path) -> Decimal:
        folder = RunFolder(open_store(str(run_folder)))
        costs = (read_table(folder.store, key, ["cost_usd"])["cost_usd"] for key in folder.results())
        spent_usd = sum((usd for cost in costs for usd in cost.to_pylist() if usd is not None), Decimal(0))
        saved = folder.read_json(LEDGER)
        return spent_usd if saved is None else max(spent_usd, Record.from_json(saved).committed_usd)

    def _answer(
        self, policy: Mapping[str, Any], corpus: Path, output: Path, budget_usd: Decimal | None
    ) -> None:
        """Run the job; it goes on where it was. An endpoint that is not there is waited for."""
        while True:
            if not self._found():
                return
            try:
                job = Job.check(self._job(policy, corpus, output, budget_usd))
                screen = _Quiet(self.progress)
                run_job(replace(job, pool=self._gentle(job.pool)), screen, stopping=self.stopping)
                return
            except KeyboardInterrupt:  # as a job ends that is told to stop
                if self.leaving.is_set():
                    raise LeftError from None
                return
            except BudgetError:
                raise
            except RtrError as error:
                if self._is_there():
                    raise
                _LOG.warning("the endpoint went away under a batch: %s", error.message)

    def _job(
        self, policy: Mapping[str, Any], corpus: Path, output: Path, budget_usd: Decimal | None
    ) -> JobFile:
        file = self.file
        return JobFile.model_validate(
            {
                "pool": file.pool,
                "router": {"path": self.order.router, "untrained": self.order.untrained},
                "corpus": {
                    "path": str(corpus), "format": "openai_batch", "columns": {"settings": "settings"},
                },
                "output": str(output),
                "policy": dict(policy),
                "budget_usd": budget_usd,
                "encoder": {"device": file.ingress.device, "dtype": file.ingress.dtype},
                "dispatch": {"chunk": 16},
                "sandbox": file.sandbox.model_dump(),
                "cluster": file.cluster.model_dump() | {"serve_app": self.application},
            }
        )  # fmt: skip

    def _gentle(self, pool: Pool) -> Pool:
        """A part of each engine's room, so that whoever waits for an answer has the rest."""
        share = self.file.batches.share
        deployments = {
            name: replace(one, max_in_flight=max(1, int(one.max_in_flight * share)))
            for name, one in pool.deployments.items()
        }
        return replace(pool, deployments=deployments)

    def _found(self) -> bool:
        """Wait for the endpoint; False where the batch is to end before it is there."""
        while not self._is_there() and not self.stopping.is_set():
            self.stopping.wait(_LOOK_S)
        if self.leaving.is_set():
            raise LeftError
        return not self.stopping.is_set()

    def _is_there(self) -> bool:
        with contextlib.suppress(Exception):  # no Serve, or its controller is restarting
            return self.application in serve.status().applications
        return False

    def _rows(self, run_folder: Path) -> Iterator[Mapping[str, Any]]:
        """The results, as a client is to see them."""
        folder = RunFolder(open_store(str(run_folder)))
        for key in folder.results():
            for row in read_table(folder.store, key).to_pylist():
                yield self._shown(row)

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """With the content that a single request would have got: see `rtr_ray.online.buffered`."""
        if row["status"] != "answered":
            return row
        strategy, samples = self.pool.strategies[row["strategy"]], row["all_samples"] or []
        kept = next((one for one in samples if one["answer"] == row["answer"]), None)
        if kept is not None:
            row |= {"response": kept["response"], "finish_reason": kept["finish_reason"]}
        if strategy.answer == "program":
            row["code"] = read_program(row["response"] or "")
            if row["answer"] is not None:
                row["response"] = row["answer"]
        return row


def _skipped(corpus: Path) -> Iterator[Mapping[str, Any]]:
    with corpus.open("rb") as lines:
        for line in lines:
            yield {
                "query_id": json.loads(line)["custom_id"],
                "status": "skipped_budget",
                "error": "Nothing is left of the batch's budget.",
            }


class _Quiet(Screen):
    """Nobody sits before it."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def say(self, text: str, style: str = "") -> None:
        """Into the log."""
        _LOG.info("%s", text)

    def tick(self, stage: Stage, now: bool = False) -> None:
        """Into the batch object."""
        if stage.name == "answer":
            self._progress.tell(stage.ended_as)
