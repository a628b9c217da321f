"""Folders, local or in an S3 bucket, in which objects are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rtr_ray.errors import StorageError

Asked = TypeVar("Asked")
Found = TypeVar("Found")
_AT_ONCE = 16  # objects that are read at the same time
_LOOKED_AT = 256  # objects that are waited for together


class Store(Protocol):
    """A folder. Keys are paths below it, with '/' between their parts."""

    @property
    def uri(self) -> str:
        """Where it is."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put an object there, whole; replaces an older one."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put an object there if there is none; tells whether it did."""
        ...

    def read(self, key: str) -> bytes | None:
        """The object, None where there is none."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...

    def open(self, key: str) -> pa.NativeFile:
        """The object, to be read from."""
        ...

    def move_aside(self) -> str | None:
        """Rename the whole folder; gives its new name, None where there was nothing."""
        ...


def open_store(uri: str) -> Store:
    """The store of a local path or `s3://bucket/prefix`. Creates nothing.

    Raises:
        StorageError: If the scheme is another one.
    """
    scheme, there, rest = uri.partition("://")
    if not there or scheme == "file":
        return LocalStore(str(Path(rest or uri).absolute()))
    if scheme == "s3" and rest.partition("/")[0]:
        return S3Store(uri.rstrip("/"))
    raise StorageError(f"'{uri}' is neither a local path nor s3://bucket/prefix.")


def read_table(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet object, or some of its columns.

    Raises:
        StorageError: If it cannot be read, or is none: cut in the middle, say.
    """
    with _whole(store, key), store.open(key) as file:
        return pq.read_table(file, columns=None if columns is None else list(columns))


def read_metadata(store: Store, key: str) -> pq.FileMetaData:
    """The footer of a Parquet object.

    Raises:
        StorageError: As `read_table`.
    """
    with _whole(store, key), store.open(key) as file:
        return pq.ParquetFile(file).metadata


def several_at_once(work: Callable[[Asked], Found], items: Sequence[Asked]) -> Iterator[Found]:
    """What comes of the items, in their order, several at the same time: a bucket takes its time for each.

    The first is worked on alone: what all share, such as a client, is made when it is first asked for.

    Args:
        work: Reads one; may raise, and is not asked for many more then.
        items: To be read.
    """
    yield from map(work, items[:1])
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(items) - 1))) as threads:
        for begin in range(1, len(items), _LOOKED_AT):  # none far ahead of who asks
            yield from threads.map(work, items[begin : begin + _LOOKED_AT])


@contextlib.contextmanager
def _whole(store: Store, key: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except pa.ArrowInvalid as error:
        raise StorageError(
            f"{store.uri}/{key} is damaged ({str(error).splitlines()[0][:150].rstrip('. ')}). Restore it; or "
            "remove it, and what was in it is done again, and paid for again if it was answers."
        ) from error
    except OSError as error:  # in the middle of reading, from a bucket that is busy
        raise StorageError(
            f"Cannot read {store.uri}/{key}: {str(error).splitlines()[0][:300].rstrip('. ')}. The same "
            "command goes on where this one stopped."
        ) from error


def write_table(store: Store, key: str, table: pa.Table, row_group_rows: int = 65_536) -> None:
    """Write a Parquet object, whole."""
    store.write(key, parquet(table, row_group_rows))


def parquet(table: pa.Table, row_group_rows: int = 65_536) -> bytes:
    """What `write_table` writes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _aside(name: str) -> str:
    return f"{name}.{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:4]}"


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder on this machine, or on a file system that all nodes share."""

    uri: str

    def _path(self, key: str) -> Path:
        return Path(self.uri) / key

    def write(self, key: str, data: bytes) -> None:
        """Write beside it, then rename."""
        with self._temporary(key, data) as temporary:
            os.replace(temporary, self._path(key))

    def create(self, key: str, data: bytes) -> bool:
        """Write beside it, then link: of two writers at once, one succeeds."""
        with self._temporary(key, data) as temporary:
            try:
                os.link(temporary, self._path(key))
            except FileExistsError:
                return False
            return True

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[Path]:
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        except OSError as error:
            blocked = isinstance(error, FileExistsError)
            reason = "a file lies where a folder is needed" if blocked else error.strerror
            raise StorageError(
                f"Cannot write {path}: {reason}. Give an output folder that can be written to."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def read(self, key: str) -> bytes | None:
        """The file's bytes."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"Cannot read {self._path(key)}: {error.strerror}.") from error

    def keys(self, prefix: str = "") -> list[str]:
        """Files only; unfinished ones (their name begins with a dot) are not seen."""
        root = Path(self.uri)
        folder = root / prefix.rpartition("/")[0]
        found = []

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise StorageError(f"Cannot list {folder}: {error.strerror}.") from error

        for where, _, names in os.walk(folder, onerror=refuse):
            inside = Path(where).relative_to(root)
            found += [(inside / name).as_posix() for name in names if not name.startswith(".")]
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove the file."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"Cannot delete {self._path(key)}: {error.strerror}.") from error

    def open(self, key: str) -> pa.NativeFile:
        """Memory-mapped nowhere: a plain file."""
        try:
            return pa.OSFile(str(self._path(key)), "rb")
        except OSError as error:
            raise StorageError(f"Cannot read {self._path(key)}: {os.strerror(error.errno or 0)}.") from error

    def move_aside(self) -> str | None:
        """Rename the folder."""
        folder = Path(self.uri)
        if not folder.exists():
            return None
        aside = folder.with_name(_aside(folder.name))
        try:
            folder.rename(aside)
        except OSError as error:
            raise StorageError(f"Cannot move {folder} aside: {error.strerror}.") from error
        return str(aside)


_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")


@dataclass(frozen=True, slots=True)
class S3Store:
    """A prefix in a bucket. Credentials, region and endpoint come from the usual AWS variables."""

    uri: str

    @property
    def _bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def _prefix(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[2].strip("/")

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def write(self, key: str, data: bytes) -> None:
        """One PUT."""
        with _explained(f"write s3://{self._bucket}/{self._key(key)}"):
            s3_client().put_object(Bucket=self._bucket, Key=self._key(key), Body=data)

    def create(self, key: str, data: bytes) -> bool:
        """One conditional PUT."""
        client = s3_client()
        with _explained(f"write s3://{self._bucket}/{self._key(key)}"):
            try:
                client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
            except client.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in _CONFLICTS:
                    return False
                raise
        return True

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """One conditional PUT: only over the object that has the tag; tells whether it did."""
        client = s3_client()
        with _explained(f"write s3://{self._bucket}/{self._key(key)}"):
            try:
                client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, IfMatch=tag)
            except client.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in (*_CONFLICTS, "NoSuchKey"):
                    return False
                raise
        return True

    def read(self, key: str) -> bytes | None:
        """One GET."""
        found = self.tagged(key)
        return None if found is None else found[0]

    def tagged(self, key: str) -> tuple[bytes, str] | None:
        """One GET: the object, and its entity tag."""
        client = s3_client()
        with _explained(f"read s3://{self._bucket}/{self._key(key)}"):
            try:
                found = client.get_object(Bucket=self._bucket, Key=self._key(key))
                return found["Body"].read(), found["ETag"]
            except client.exceptions.NoSuchKey:
                return None

    def keys(self, prefix: str = "") -> list[str]:
        """Paged; 1,000 keys a request."""
        root = self._key("")
        with _explained(f"list {self.uri}"):
            pages = (
                s3_client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self._bucket, Prefix=root + prefix)
            )
            return sorted(
                entry["Key"].removeprefix(root) for page in pages for entry in page.get("Contents", ())
            )

    def delete(self, key: str) -> None:
        """One DELETE."""
        with _explained(f"delete s3://{self._bucket}/{self._key(key)}"):
            s3_client().delete_object(Bucket=self._bucket, Key=self._key(key))

    def open(self, key: str) -> pa.NativeFile:
        """Ranged GETs."""
        with _explained(f"read s3://{self._bucket}/{self._key(key)}"):
            return s3_filesystem().open_input_file(f"{self._bucket}/{self._key(key)}")

    def move_aside(self) -> str | None:
        """Copy every object, then delete it: a bucket cannot rename."""
        keys = self.keys()
        if not keys:
            return None
        if not self._prefix:
            raise StorageError(f"{self.uri} is a whole bucket, which cannot be moved; give a prefix in it.")
        aside = S3Store(_aside(self.uri))
        client = s3_client()
        with _explained(f"move {self.uri} aside"):
            for key in keys:
                client.copy_object(
                    Bucket=self._bucket,
                    Key=aside._key(key),
                    CopySource={"Bucket": self._bucket, "Key": self._key(key)},
                )
            for key in sorted(keys, key=_deleted_when):
                self.delete(key)
        return aside.uri


def _deleted_when(key: str) -> tuple[bool, bool]:
    """What lies in folders first, then what says of it what was spent; at last the lock, which is hidden."""
    return "/" not in key, key.startswith(".")


@lru_cache(maxsize=1)
def s3_client() -> Any:
    """A boto3 client; AWS_ENDPOINT_URL and the rest are boto3's own business."""
    try:
        import boto3
    except ImportError as error:
        raise StorageError("s3:// needs boto3: pip install 'rtr-ray[s3]'.") from error
    return boto3.client("s3")


@lru_cache(maxsize=1)
def s3_filesystem() -> pafs.S3FileSystem:
    """The same place for pyarrow, which does not read AWS_ENDPOINT_URL by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {}
    if endpoint:
        parsed = urlparse(endpoint)
        options = {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pafs.S3FileSystem(**options, **({"region": region} if region else {}))


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("botocore", "boto3")):
            raise
        known = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        reason = (known or type(error).__name__).splitlines()[0][:300].rstrip(". ")
        raise StorageError(
            f"Cannot {what}: {reason}. Check the bucket's name, AWS_ENDPOINT_URL, the region and the "
            "credentials."
        ) from error
