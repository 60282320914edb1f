"""A dataset's files: on a volume, or in a bucket with an optional copy on the node.

A copy is made once for each node and content: children of a node wait for the one that downloads. It lies in a
folder named by a digest of what the server lists (names, sizes and ETags), so that a dataset that changes is another
copy, and every read is checked against the SHA-256 that was taken at the download. What is made of files
(``images.table``) is kept in the same way.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Protocol, TypeVar

from nas_api.child import S3Location, StoreLocation
from nas_store.errors import StoreError, StoreUnreachable

if TYPE_CHECKING:
    from nas_store.s3 import S3Store

_DIGESTS = "digests.json"
T = TypeVar("T")


class DatasetUnavailable(Exception):
    """The dataset is missing or broken; the message is one sentence that names the cure."""


class Files(Protocol):
    """The files below an address. Each method raises DatasetUnavailable, or StoreUnreachable for a silent server."""

    address: str
    """Without a slash at its end."""

    @property
    def server(self) -> str | None:
        """The URL of the S3 server; None on a volume, and for AWS."""

    def names(self) -> list[str]:
        """Return the paths of all files, relative to the address, sorted."""

    def versions(self) -> dict[str, list[int | str]]:
        """Return what changes whenever a file does, by path, sorted."""

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of some files, in their order."""

    def each(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the contents of some files, one at a time and never from a copy."""


def open_files(uri: str, store: StoreLocation, cache: str | None, field: str) -> Files:
    """Return the files at an address of a manifest. Does no I/O.

    Args:
        uri: an absolute path, or s3://bucket/prefix.
        store: where the experiment's objects are; a dataset in S3 is read from the same server.
        cache: folder for copies of what is in S3; None to read it from there every time.
        field: the manifest's field that the address is from, for messages.
    """
    if uri.startswith("s3://"):
        return _Bucket(uri.rstrip("/"), store, cache, field)
    return _Folder(uri.rstrip("/"), field)


def kept(cache: str, identity: str, sound: Callable[[Path], T | None], make: Callable[[Path], None]) -> T:
    """Return what a node keeps for all its children; the first one makes it while others wait.

    Args:
        cache: the node's folder.
        identity: of what is kept: another one is kept beside it.
        sound: reads it in a folder; None where it is not there, or damaged.
        make: writes it into an empty folder.

    Raises:
        DatasetUnavailable: the folder cannot be used.
    """
    try:
        return _kept(Path(cache), hashlib.sha256(identity.encode()).hexdigest(), sound, make)
    except OSError as error:
        raise DatasetUnavailable(
            f"trainer.datasetCache {cache} cannot be used ({error}): mount a volume with enough room there in"
            " trainer.template, writable for the pod's group"
        ) from error


def _kept(cache: Path, name: str, sound: Callable[[Path], T | None], make: Callable[[Path], None]) -> T:
    copy = cache / name
    found = sound(copy)
    if found is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    # The system drops the lock of whoever dies. The file is never removed, so that all lock the same one.
    with (cache / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = sound(copy)
        if found is None:
            shutil.rmtree(copy, ignore_errors=True)
            _make(copy, make)
            found = sound(copy)
    if found is None:
        raise OSError("what has just been written there is damaged")
    return found


def _make(copy: Path, make: Callable[[Path], None]) -> None:
    """Make a folder aside and rename it when it is whole."""
    aside = Path(mkdtemp(prefix=".incoming-", dir=copy.parent))
    try:
        make(aside)
        # Children of the node may run under other users of the volume's group.
        aside.chmod(0o755)
        aside.rename(copy)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Folder:
    """Files on a volume."""

    server = None

    def __init__(self, address: str, field: str) -> None:
        self.address = address
        self._cure = f"mount the volume that has it in trainer.template, or correct {field}"

    def names(self) -> list[str]:
        root = Path(self.address)
        if not root.is_dir():
            raise DatasetUnavailable(f"{self.address} is missing: {self._cure}")
        return sorted(
            (Path(folder) / name).relative_to(root).as_posix()
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
        )

    def versions(self) -> dict[str, list[int | str]]:
        return {name: self._version(Path(self.address) / name) for name in self.names()}

    def read(self, names: Sequence[str]) -> list[bytes]:
        return list(self.each(names))

    def each(self, names: Sequence[str]) -> Iterator[bytes]:
        for name in names:
            path = Path(self.address) / name
            with self._failures(path):
                data = path.read_bytes()
            yield data

    def _version(self, path: Path) -> list[int | str]:
        with self._failures(path):
            found = path.stat()
        return [found.st_size, found.st_mtime_ns]

    @contextmanager
    def _failures(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DatasetUnavailable(f"{path} cannot be read ({error.strerror}): {self._cure}") from error


class _Bucket:
    """Files in S3; with a cache, on the node."""

    def __init__(self, address: str, store: StoreLocation, cache: str | None, field: str) -> None:
        self.address = address
        self._store = store
        self._cache = cache
        self._field = field
        self._opened: S3Store | None = None

    def names(self) -> list[str]:
        with self._failures():
            return self._server().list("")

    @property
    def server(self) -> str | None:
        return self._location().endpoint

    def versions(self) -> dict[str, list[int | str]]:
        with self._failures():
            return {name: [each.size, each.etag] for name, each in self._server().listing("").items()}

    def read(self, names: Sequence[str]) -> list[bytes]:
        if self._cache is None:
            return list(self.each(names))
        versions = self.versions()
        missing = next((name for name in names if name not in versions), None)
        if missing is not None:
            raise DatasetUnavailable(f"{self.address}/{missing} is missing: correct {self._field}")
        wanted = {name: versions[name] for name in names}
        identity = json.dumps([self.server, self.address, wanted], sort_keys=True)
        return kept(
            self._cache,
            identity,
            lambda copy: _verified(copy, names),
            lambda folder: self._download(folder, {name: int(size) for name, (size, _) in wanted.items()}),
        )

    def each(self, names: Sequence[str]) -> Iterator[bytes]:
        return map(self._get, names)

    def _download(self, folder: Path, sizes: dict[str, int]) -> None:
        digests = {}
        for index, (name, size) in enumerate(sizes.items()):
            data = self._get(name)
            if len(data) != size:
                raise DatasetUnavailable(
                    f"{self.address}/{name} has {len(data):,} bytes, not {size:,} as its server says: was it just"
                    " replaced? Correct it there"
                )
            (folder / str(index)).write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()
        (folder / _DIGESTS).write_text(json.dumps(digests))

    def _get(self, name: str) -> bytes:
        with self._failures():
            data = self._server().get(name)
        if data is None:
            raise DatasetUnavailable(f"{self.address}/{name} is missing: correct {self._field}")
        return data

    def _location(self) -> S3Location:
        bucket, _, prefix = self.address.removeprefix("s3://").partition("/")
        prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        server = self._store.s3 or S3Location(bucket=bucket, prefix=prefix)
        return server.model_copy(update={"bucket": bucket, "prefix": prefix})

    def _server(self) -> "S3Store":
        if self._opened is None:
            # boto3 takes long to import, and most children need none.
            from nas_store.s3 import S3Store

            self._opened = S3Store(self._location())
        return self._opened

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except StoreUnreachable:
            # The same server as the experiment's: it is no worse with the dataset than with the result.
            raise
        except StoreError as error:
            raise DatasetUnavailable(
                f"{self.address} cannot be read ({error.reason}): let the trainers' keys read it, or correct"
                f" {self._field}"
            ) from error


def _verified(copy: Path, names: Sequence[str]) -> list[bytes] | None:
    """Return the contents of a copy, or None when there is none or a disk has damaged it."""
    try:
        digests = json.loads((copy / _DIGESTS).read_text())
        contents = [(copy / str(index)).read_bytes() for index in range(len(names))]
    except (FileNotFoundError, ValueError):
        return None
    found = [hashlib.sha256(data).hexdigest() for data in contents]
    return contents if found == [digests.get(name) for name in names] else None
