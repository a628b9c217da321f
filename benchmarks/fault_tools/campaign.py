"""Runs cases one after the other: the job's own command, faults at their moments, the same command again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.fault_tools import victims
from benchmarks.fault_tools.audit import Findings, audit, in_flight
from benchmarks.fault_tools.case import Bench, Case, Fault
from benchmarks.fault_tools.cluster import ROOT
from benchmarks.fault_tools.meter import Reading
from benchmarks.fault_tools.s3 import BUCKET, S3

COMMAND = (sys.executable, "-c", "from rtr_ray.cli import main; main()", "run", "--config")
DONE = (0, 3)  # completed, and done as far as the budget went
_SESSION_S = {"fake": 300.0, "vllm": 900.0}  # then it hangs, and is killed; a busy machine takes minutes
_CASE_S = {"fake": 300.0, "vllm": 900.0}  # then it is not started again
_TMPFS_BYTES = 4 << 20


class Cluster(Protocol):
    """Where jobs run, as the campaign sees it."""

    @property
    def address(self) -> str:
        """What a job is told."""
        ...

    @property
    def environment(self) -> dict[str, str]:
        """Of a job's driver."""
        ...

    @property
    def nodes(self) -> int:
        """How many may be killed."""
        ...

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on it."""
        ...

    def kill_node(self, number: int) -> int:
        """End a node; another takes its place."""
        ...


@dataclass(slots=True)
class Site:
    """Where the campaign takes place."""

    folder: Path
    cluster: Cluster
    s3: S3 | None = None
    wait_for_engines: Callable[[str], None] = lambda engines: None
    variables: Mapping[str, str] = field(default_factory=dict)  # of the driver and of the job's workers
    patience_s: float | None = None  # after so long a case is not started again

    @property
    def meters(self) -> Path:
        """Where the engines write."""
        return self.folder / "meters"


@dataclass(slots=True)
class _Run:
    """One case under way."""

    site: Site
    case: Case
    bench: Bench
    found: Findings
    reading: Reading
    luck: random.Random
    pending: deque[Fault]
    exposed: list[set[str]] = field(default_factory=list)
    undo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    seen: float | None = None  # when a process that a fault waits for was first there
    log: Path = Path()

    def go(self) -> Findings:
        """Sessions until the run has ended."""
        started = time.monotonic()
        patience_s = _CASE_S[self.case.engines] if self.site.patience_s is None else self.site.patience_s
        while True:
            code = self._session()
            self.found.exit_codes.append(code)
            self._left()  # actors of a driver that was killed go on asking until Ray has ended them
            self.exposed.append(in_flight(self.bench, self.reading))
            self.found.completed = code in DONE
            if self.found.completed:
                break
            said = _told(self.log)
            self.found.said.append(said)
            self.found.raw_errors += code > 0 and not said.startswith("error:")
            if time.monotonic() - started > patience_s:
                break
            time.sleep(1.0)
        for _, undo in self.undo:
            undo()
        self.found.missed = bool(self.pending)
        self.reading.quiet()
        audit(self.found, self.bench, self.reading, self.exposed)
        self.found.processes_left = self._left()
        self.found.seconds = round(time.monotonic() - started, 1)
        return self.found

    def _session(self) -> int:
        self.found.sessions += 1
        self.log = self.bench.folder / f"session-{self.found.sessions}.log"
        environment = {**self.site.cluster.environment, **self.site.variables}
        if self.site.variables:  # workers of this job get them, too; the variable is that of submitted jobs
            environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(
                {"runtime_env": {"env_vars": dict(self.site.variables)}}
            )
        with open(self.log, "wb") as log:
            driver = subprocess.Popen(
                [*COMMAND, str(self.bench.job)],
                env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.seen = None
        try:
            self._watch(driver)
        except BaseException:
            driver.kill()
            raise
        return driver.wait()

    def _watch(self, driver: subprocess.Popen[bytes]) -> None:
        """Faults at their moments, until the session has ended."""
        began = time.monotonic()
        while driver.poll() is None:
            now = time.monotonic()
            self._end_outages(now)
            self._next_fault(driver, now - began)
            if now - began > _SESSION_S[self.case.engines]:
                self.found.events.append("hung")
                driver.kill()
            time.sleep(0.05)

    def _next_fault(self, driver: subprocess.Popen[bytes], running_s: float) -> None:
        if not self.pending or not self._is_due(self.pending[0], running_s):
            return
        if self._strike(self.pending[0], driver):
            self.found.events.append(f"{self.pending[0].victim} {running_s:.1f}s")
            self.pending.popleft()
            self.seen = None
            if driver.poll() is None:
                self.exposed.append(in_flight(self.bench, self.reading))

    def _is_due(self, fault: Fault, running_s: float) -> bool:
        if fault.share is not None:
            return self.reading.paid_count() >= fault.share * self.case.rows
        if fault.victim == "encoder":  # counts from when there is one
            if not self._victims("encoder"):
                return False
            self.seen = running_s if self.seen is None else self.seen
            running_s -= self.seen
        return running_s >= (fault.after_s or 0.0)

    def _victims(self, victim: str) -> list[int]:
        hints = self.bench.encoders if victim == "encoder" else None
        found = victims.find(victim, self.site.cluster.processes(), hints)
        if victim == "replica":
            mine = f"ServeReplica:{self.bench.apps}-"
            found = [pid for pid in found if mine in victims.title(psutil.Process(pid))]
        return found

    def _strike(self, fault: Fault, driver: subprocess.Popen[bytes]) -> bool:
        """Do it; tells whether there was something to do it to."""
        if fault.victim == "driver":
            driver.kill()
            driver.wait()
        elif fault.victim == "node":
            self.site.cluster.kill_node(self.luck.randrange(self.site.cluster.nodes))
        elif fault.victim == "s3":
            self._break_s3(fault)
            return True
        elif fault.victim == "disk":
            self._fill_disk(fault)
            self.found.disks_filled += 1
            return True
        else:
            with contextlib.suppress(psutil.Error):
                there = self._victims(fault.victim)
                if not there or not victims.kill(self.luck.choice(there)):
                    return False
        self.found.kills += 1
        return True

    def _break_s3(self, fault: Fault) -> None:
        s3 = self.site.s3
        assert s3 is not None
        before = s3.injected.total()
        s3.strength = fault.strength

        def heal() -> None:
            s3.strength = 0.0
            self.found.s3_faults += s3.injected.total() - before

        self.undo.append((time.monotonic() + fault.lasts_s, heal))

    def _fill_disk(self, fault: Fault) -> None:
        """A file beside the run folder takes all but some bytes of its disk."""
        filler = Path(self.bench.output).parent / "filler"
        free = os.statvfs(filler.parent)
        size = max(0, free.f_bavail * free.f_frsize - int(fault.strength))
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            file.write(b"\0" * size)
        self.undo.append((time.monotonic() + fault.lasts_s, lambda: filler.unlink(missing_ok=True)))

    def _end_outages(self, now: float) -> None:
        for one in [one for one in self.undo if one[0] <= now]:
            self.undo.remove(one)
            one[1]()

    def _left(self) -> int:
        """How many actors of the run are there some time after its end."""
        deadline = time.monotonic() + 60
        while True:
            processes = self.site.cluster.processes()
            left = sum(len(victims.find(name, processes)) for name in victims.OURS)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.3)


def run_case(site: Site, case: Case) -> Findings:
    """One case, from its files to its audit."""
    site.wait_for_engines(case.engines)
    folder = site.folder / case.name
    with _place(folder, case.place) as output:
        corpus = str(folder / "corpus.parquet")
        if case.place == "s3":
            corpus = f"s3://{BUCKET}/{case.name}/corpus.parquet"
        bench = Bench(case, folder, case.engines, site.cluster.address, output, corpus)
        bench.write()
        found = Findings(case.name, case.kind, case.engines)
        reading = Reading(site.meters / case.name)
        luck = random.Random(case.seed)
        return _Run(site, case, bench, found, reading, luck, deque(case.faults)).go()


@contextlib.contextmanager
def _place(folder: Path, place: str) -> Iterator[str]:
    """Where the run folder of a case is to be."""
    folder.mkdir(parents=True, exist_ok=True)
    if place == "s3":
        yield f"s3://{BUCKET}/{folder.name}/run"
    elif place == "local":
        yield str(folder / "run")
    else:
        disk = folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", str(disk)], check=True)
        try:
            yield str(disk / "run")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def tmpfs_works(folder: Path) -> bool:
    """Whether small disks can be had here: that takes root."""
    disk = folder / "try"
    disk.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=65536", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return False
    subprocess.run(["umount", str(disk)], check=True)
    return True


def _told(log: Path) -> str:
    """How a session said that it ended: its one sentence, else its last line."""
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    sentence = [number for number, line in enumerate(said) if line.startswith("error:")]
    return " ".join(said[sentence[-1] :] if sentence else said[-1:])[:400]
