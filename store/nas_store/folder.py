"""A folder as a store: for ``nas run`` and for tests. Safe between processes on one file system."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from nas_api import names
from nas_store.errors import StoreUnreachable, StoreUnsuitable, TooLarge
from nas_store.keys import check_key

# Half-written objects; keys cannot begin with a dot, so it never clashes with one.
_INCOMING = ".incoming"


class FolderStore:
    """See :class:`nas_store.Store`. Objects are files; a crash leaves whole objects or none.

    An object is written aside, flushed to the disk, and then linked to its name: a link fails where
    something is, which is the conditional write.
    """

    def __init__(self, folder: str | Path) -> None:
        self._root = Path(folder).absolute()

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        """See :class:`nas_store.Store`."""
        path = self._path(key)
        with self._errors():
            try:
                if limit is not None and (size := path.stat().st_size) > limit:
                    raise TooLarge(f"{key} has {size} bytes, more than {limit}")
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`nas_store.Store`."""
        path = self._path(key)
        with self._errors(), self._written_aside(path, data) as aside:
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
            _flush_folder(path.parent)
        return True

    def put(self, key: str, data: bytes) -> None:
        """See :class:`nas_store.Store`."""
        path = self._path(key)
        with self._errors(), self._written_aside(path, data) as aside:
            aside.replace(path)
            _flush_folder(path.parent)

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        """See :class:`nas_store.Store`; a folder cannot compare."""
        if not allowed():
            return False
        self.put(key, data)
        return True

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        """See :class:`nas_store.Store`."""
        path = self._path(target)
        with self._errors(), self._opened(source, limit) as file:
            if file is None:
                return False
            with self._aside(path) as (aside, copy):
                shutil.copyfileobj(file, copy)
                _flush(copy)
                aside.replace(path)
                _flush_folder(path.parent)
        return True

    def digest(self, key: str, *, limit: int) -> str | None:
        """See :class:`nas_store.Store`."""
        with self._errors(), self._opened(key, limit) as file:
            return None if file is None else hashlib.file_digest(file, "sha256").hexdigest()

    def list(self, prefix: str) -> list[str]:
        """See :class:`nas_store.Store`."""
        # Only the deepest folder that the prefix names needs to be walked.
        top = self._root / prefix.rpartition("/")[0]
        found = []
        with self._errors():
            for folder, folders, files in os.walk(top, onerror=_raise_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in files:
                    key = (Path(folder) / name).relative_to(self._root).as_posix()
                    if key.startswith(prefix):
                        found.append(key)
        return sorted(found)

    def uri(self, key: str) -> str:
        """See :class:`nas_store.Store`."""
        return self._path(key).as_uri()

    def probe(self) -> None:
        """See :class:`nas_store.Store`."""
        self.put_if_absent(names.PROBE, b"first")
        if self.put_if_absent(names.PROBE, b"second"):
            raise StoreUnsuitable(
                f"the file system of {self._root} lets a hard link replace a file, so two searches could write"
                " the same log: use a folder on a local disk"
            )

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _opened(self, key: str, limit: int) -> Iterator[BufferedReader | None]:
        try:
            opened = self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            yield None
            return
        with opened as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise TooLarge(f"{key} has {size} bytes, more than {limit}")
            yield file

    @contextmanager
    def _written_aside(self, path: Path, data: bytes) -> Iterator[Path]:
        with self._aside(path) as (aside, file):
            file.write(data)
            _flush(file)
            yield aside

    @contextmanager
    def _aside(self, path: Path) -> Iterator[tuple[Path, BinaryIO]]:
        incoming = self._root / _INCOMING
        incoming.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = incoming / uuid4().hex
        try:
            with aside.open("wb") as file:
                yield aside, file
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnreachable(f"the folder {self._root} cannot be used: {error}") from error


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
