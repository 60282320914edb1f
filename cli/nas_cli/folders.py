"""Which folders hold local runs, and whether a process is at work there. Without torch, which ``local_run`` loads."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas_api import names
from nas_cli.errors import Refusal

RUNS = Path("nas-runs")
# Where the store keeps nothing: its keys cannot begin with a dot.
_LOCK = ".lock"


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a local run."""
    return (folder / names.RUN_MANIFEST).is_file()


def local_hint(name: str) -> str:
    """Return a hint at what is on this machine under this name: a local run, or a folder that is none; or nothing."""
    if is_run(RUNS / name):
        return f"; there is a local run of that name: give its folder, {RUNS / name}"
    return f"; the folder {name} holds no local run (no {names.RUN_MANIFEST})" if name and Path(name).is_dir() else ""


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which the system takes back from a process that dies; yield whether it was free.

    Raises:
        Refusal: nothing can be written into the folder.
    """
    try:
        opened = (folder / _LOCK).open("a")
    except OSError as error:
        raise Refusal(f"{folder} cannot be written to ({error.strerror}): choose another with --folder") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def at_work(folder: Path) -> bool:
    """Return whether a process holds the folder's lock. Several may ask at once, and none writes into the folder."""
    try:
        with (folder / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        # Nobody has been at work in this copy.
        return False
    except BlockingIOError:
        return True
    return False
