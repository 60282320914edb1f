"""Where things are kept: built binaries and images in the user's cache, clusters in the user's state folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
REPOSITORY = SOURCES.parent.parent
TOOLS = SOURCES / "tools"
MANIFESTS = SOURCES / "manifests"


def _xdg(variable: str, default: str) -> Path:
    """An XDG base folder; the specification says that a relative value is to be ignored."""
    value = os.environ.get(variable, "")
    base = Path(value) if value.startswith("/") else Path.home() / default
    return base / "nas-operator"


def cache_folder() -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache")


def binaries_folder() -> Path:
    return cache_folder() / "bin"


def images_folder() -> Path:
    return cache_folder() / "images"


def clusters_folder() -> Path:
    return _xdg("XDG_STATE_HOME", ".local/state") / "clusters"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, against other processes; the kernel lets go when this one dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
