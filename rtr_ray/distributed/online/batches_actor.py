"""Who keeps files and carries batches out: one actor on the head node for all ingress replicas.

It has no state of its own: what was uploaded and how far a batch has come is in the SQLite file of the
keys (or, where there are none, in one of the endpoint's folder), what was answered and paid in run
folders. So where it dies, or the whole endpoint, the next one goes on with every batch that has not
ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorDiedError, RayError

from rtr_ray.config import ServeFile, load_pool
from rtr_ray.distributed.cluster import root
from rtr_ray.distributed.online.gates import keys_path
from rtr_ray.errors import RtrError, StorageError
from rtr_ray.online.batches import BatchOrder, checking, most_usd
from rtr_ray.online.problems import unavailable
from rtr_ray.openai_batch import BatchRun, BatchStore
from rtr_ray.pool import fingerprint

if TYPE_CHECKING:
    from rtr_ray.distributed.online.batch_runner import Progress

_LOG = logging.getLogger("ray.serve")
NAMESPACE = "rtr-ray-batches"
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node
_LOOK_S = 5.0  # between two looks for batches that somebody else has made
_LEAVE_S = 25.0  # for what has been sent to come in
_CALLS = 16


@dataclass(frozen=True, slots=True)
class BatchPlace:
    """Where an endpoint keeps its batches, and what answers them.

    Attributes:
        file: What the endpoint serves.
        application: Its name in Serve.
        database: The SQLite file.
        folder: For files, corpora and runs.
    """

    file: ServeFile
    application: str
    database: str
    folder: str

    @classmethod
    def of(cls, file: ServeFile, application: str) -> BatchPlace:
        """The place of an endpoint, absolute."""
        folder = Path(file.folder).absolute()
        return cls(
            file, application, keys_path(file) or str(folder / "batches.sqlite"), str(folder / "batches")
        )

    @property
    def name(self) -> str:
        """The name of its actor, in `NAMESPACE`."""
        return f"batches-{fingerprint([self.database, self.folder])}"


@dataclass(frozen=True, slots=True)
class _Running:
    """The batch that is carried out."""

    batch_id: str
    stopping: threading.Event  # set: no more is sent for it
    progress: Progress


class SharedBatches:
    """Files and batches of all keys, and the thread that carries batches out. `BatchesActor`, without Ray."""

    def __init__(self, place: BatchPlace) -> None:
        self._place = place
        folder = Path(place.folder)
        self._uploads, self._work_folder = folder / "uploads", folder / "work"
        keyed = place.file.keys is not None
        self._store = BatchStore(Path(place.database), folder / "files", may_create=not keyed)
        if not keyed:
            with contextlib.suppress(RtrError, OSError):  # whoever asks hears of it
                folder.mkdir(parents=True, exist_ok=True)
                self._store.unfinished()
        self._leaving, self._wake, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._running: _Running | None = None
        for left in self._uploads.glob("*"):  # of an ingress replica that died
            left.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._carry_out_all, daemon=True, name="batches")
        self._thread.start()

    # --- files ---

    def append(self, upload: str | None, part: bytes) -> str:
        """Take in a part of a file; gives the name by which the next one comes."""
        name = upload or uuid.uuid4().hex
        try:
            self._uploads.mkdir(parents=True, exist_ok=True)
            with (self._uploads / name).open("ab") as sink:
                sink.write(part)
        except OSError as error:
            raise StorageError(f"The file cannot be kept: {error.strerror}.") from error
        return name

    def drop(self, upload: str) -> None:
        """Forget what has come of a file."""
        (self._uploads / upload).unlink(missing_ok=True)

    def keep(self, key_id: str, upload: str, filename: str, purpose: str) -> dict[str, Any]:
        """The file has come; gives its object."""
        path = self._uploads / upload
        try:
            with path.open("rb") as source:
                return self._store.add_file(
                    key_id, filename, iter(lambda: source.read(1 << 20), b""), purpose
                )
        finally:
            path.unlink(missing_ok=True)

    def file(self, key_id: str, file_id: str) -> dict[str, Any]:
        """A file's object."""
        return self._store.file(key_id, file_id)

    def files(self, key_id: str, **page: Any) -> dict[str, Any]:
        """A page of files."""
        return self._store.files(key_id, **page)

    def delete_file(self, key_id: str, file_id: str) -> dict[str, Any]:
        """Forget a file."""
        return self._store.delete_file(key_id, file_id)

    def read(self, key_id: str, file_id: str, offset: int, size: int) -> bytes:
        """Some bytes of a file."""
        path = self._store.content(key_id, file_id)
        try:
            with path.open("rb") as source:
                source.seek(offset)
                return source.read(size)
        except OSError as error:
            raise StorageError(f"The file cannot be read: {error.strerror}.") from error

    # --- batches ---

    def create(self, key_id: str, asked: Mapping[str, Any], order: Mapping[str, Any]) -> dict[str, Any]:
        """A new batch; it is begun when those before have ended."""
        made = self._store.create(key_id, **asked, order=order)
        self._wake.set()
        return made

    def retrieve(self, key_id: str, batch_id: str) -> dict[str, Any]:
        """A batch's object."""
        return self._live(self._store.retrieve(key_id, batch_id))

    def page(self, key_id: str, **page: Any) -> dict[str, Any]:
        """A page of batches."""
        found = self._store.page(key_id, **page)
        return found | {"data": [self._live(one) for one in found["data"]]}

    def _live(self, batch: dict[str, Any]) -> dict[str, Any]:
        running = self._running
        if running is not None and running.batch_id == batch["id"]:
            batch["request_counts"] = running.progress.on(batch["request_counts"])
        return batch

    def cancel(self, key_id: str, batch_id: str) -> dict[str, Any]:
        """End a batch; what has been sent for it is waited for."""
        found = self._store.cancel(key_id, batch_id)
        with self._lock:
            if self._running is not None and self._running.batch_id == batch_id:
                self._running.stopping.set()
        self._wake.set()
        return found

    def ready(self) -> bool:
        """Whether it is there."""
        return self._thread.is_alive()

    def leave(self) -> bool:
        """Send nothing more, and stop; tells whether all that was sent has come in."""
        self._leaving.set()
        with self._lock:
            if self._running is not None:
                self._running.stopping.set()
        self._wake.set()
        self._thread.join(_LEAVE_S)
        return not self._thread.is_alive()

    # --- carrying them out ---

    def _carry_out_all(self) -> None:
        from rtr_ray.distributed.online.batch_runner import LeftError  # takes seconds to import

        while not self._leaving.is_set():
            self._wake.clear()
            try:
                for key_id, batch in self._store.unfinished():
                    if self._leaving.is_set():
                        return
                    self._carry_out(key_id, batch["id"])
            except LeftError:
                return
            except Exception as error:
                _LOG.error("batches cannot be looked at: %s", error)
            self._wake.wait(_LOOK_S)

    def _carry_out(self, key_id: str, batch_id: str) -> None:
        from rtr_ray.distributed.online.batch_runner import JobRunner, Progress

        file, stopping = self._place.file, threading.Event()
        pool, order = load_pool(file.pool), BatchOrder.from_json(self._store.order(batch_id))
        progress = Progress()
        run = BatchRun(
            self._store,
            JobRunner(file, pool, self._place.application, order, stopping, self._leaving, progress),
            self._work_folder,
            keyed=file.keys is not None,
            check=checking(pool, order),
            most_usd=partial(most_usd, pool),
        )
        with self._lock:
            self._running = _Running(batch_id, stopping, progress)
            if self._leaving.is_set():
                return
        try:
            found = run.carry_out(key_id, batch_id)
            _LOG.info("batch=%s status=%s counts=%s", batch_id, found["status"], found["request_counts"])
        except StorageError:
            raise  # the next look may find the file again
        except Exception:  # a mistake of ours must not keep the others waiting for ever
            _LOG.exception("the batch %s failed", batch_id)
            with contextlib.suppress(RtrError):
                run.fail(key_id, batch_id, "server_error", "Something went wrong here; the log says what.")
        finally:
            with self._lock:
                self._running = None


BatchesActor = ray.remote(num_cpus=0, max_restarts=-1)(SharedBatches)


def end_batches(file: ServeFile, application: str) -> None:
    """End the actor of an endpoint, with what has been sent waited for; its batches go on with the next."""
    with contextlib.suppress(ValueError):  # there is none
        actor = ray.get_actor(BatchPlace.of(file, application).name, namespace=NAMESPACE)
        with contextlib.suppress(Exception):
            ray.get(actor.leave.remote(), timeout=_LEAVE_S + 5)
        ray.kill(actor)


@dataclass(slots=True)
class RemoteBatches:
    """The actor as an ingress replica sees it; started if the cluster has none."""

    place: BatchPlace
    _actor: Any = None

    def start(self) -> None:
        """See to it that there is one, and does not wait for it."""
        actor: Any = BatchesActor
        self._actor = actor.options(
            name=self.place.name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_concurrency=_CALLS,
            resources={_HEAD: 0.001},
        ).remote(self.place)

    async def call(self, method: str, *args: Any, **more: Any) -> Any:
        """What a method of `SharedBatches` gives.

        Raises:
            RtrError: What it raises; a RequestError with status 503 where nobody is there.
        """
        try:
            if self._actor is None:
                self.start()
            return await getattr(self._actor, method).remote(*args, **more)
        except RayError as error:
            found = root(error)
            if isinstance(found, RtrError):
                raise found from None
            if isinstance(error, ActorDiedError):  # for good: the next call starts another one
                self._actor = None
            _LOG.error("the batches' owner failed: %s", type(error).__name__)
            raise unavailable("Files and batches cannot be looked at just now.") from None
