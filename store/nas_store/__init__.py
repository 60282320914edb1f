"""Where a search keeps everything: a small key-value store with a conditional write.

Two implementations share one contract: a folder (``nas_store.folder``) and S3 (``nas_store.s3``). The
conditional write is all that fencing needs: whoever writes a key first has it, and nobody else can.
"""

from collections.abc import Callable
from typing import Protocol

from nas_api.child import StoreLocation


class Store(Protocol):
    """Bytes by key; keys are relative to the experiment's prefix, with slashes, as in ``nas_api.names``.

    Methods may be called from any thread. Each raises :class:`nas_store.errors.StoreError` when the store
    cannot be used; after such an error a write may or may not have happened.
    """

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        """Return what is stored under a key, or None.

        Raises:
            TooLarge: there are more than ``limit`` bytes, which were not read.
        """

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store data unless something is there already; return whether this call is known to have stored it.

        False is no proof of another writer: a write whose answer was lost may be repeated and then finds
        itself. Who must know reads the key back.
        """

    def put(self, key: str, data: bytes) -> None:
        """Store data whatever was there: for checkpoints and ``best/`` only."""

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        """Store data whatever was there, unless it is not ``allowed``, which is asked right before; return whether.

        A store that can compare refuses what somebody else has overtaken between the question and the write, and asks
        again; where one cannot, a process that is stopped between the two writes once more when it wakes.
        """

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        """Store under one key what is under another, whatever was there; it takes no memory here.

        Returns whether there was anything to copy.

        Raises:
            TooLarge: there are more than ``limit`` bytes, which were not copied.
        """

    def digest(self, key: str, *, limit: int) -> str | None:
        """Return the SHA-256 in hex of what is stored under a key, or None; it is read piece by piece.

        Raises:
            TooLarge: there are more than ``limit`` bytes, which were not read.
        """

    def list(self, prefix: str) -> list[str]:
        """Return all keys that begin with a prefix, sorted."""

    def uri(self, key: str) -> str:
        """Return the address of a key for people and other programs."""

    def probe(self) -> None:
        """Check that the store can be read and written and honours the conditional write.

        Leaves one small object behind (``names.PROBE``).

        Raises:
            StoreError: it cannot or does not; the message names the field and the cure.
        """


def open_store(location: StoreLocation) -> Store:
    """Return the store at a location. Does no I/O; ``probe`` tells whether it works."""
    # boto3 takes long to import, and a folder does not need it.
    if location.s3 is not None:
        from nas_store.s3 import S3Store

        return S3Store(location.s3)
    from nas_store.folder import FolderStore

    if location.folder is None:
        raise ValueError("exactly one of folder and s3 must be set")
    return FolderStore(location.folder)
