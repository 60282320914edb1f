"""Going on although the store is in trouble: what took hours to compute is not lost because a server restarts."""

import time
from collections.abc import Callable
from itertools import chain, repeat
from math import inf
from typing import TypeVar

import structlog

from nas_store import Store
from nas_store.errors import StoreError

_log = structlog.get_logger()
_T = TypeVar("_T")

_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
# After that the child ends and the search tells why it waits: a child that waits itself holds a GPU, and nobody sees
# it. What ends while it reads has lost nothing.
READING_SECONDS = 300.0
WRITING_SECONDS = 3600.0


def sleep(seconds: float) -> None:
    """Wait for some seconds."""
    time.sleep(seconds)


def patiently(call: Callable[[], _T], pause: Callable[[float], None] = sleep, seconds: float = inf) -> _T:
    """Return what a call to the store returns, however often the store has been in trouble before.

    Args:
        call: what is tried again.
        pause: waits for some seconds.
        seconds: how long is waited in all.

    Raises:
        StoreError: the store refuses us, or is still in trouble.
    """
    waited = 0.0
    for each in chain(_PAUSES_SECONDS, repeat(_PAUSES_SECONDS[-1])):
        try:
            return call()
        except StoreError as error:
            if not error.retryable or waited >= seconds:
                raise
            _log.warning("the store is in trouble: tried again", error=str(error))
        pause(each)
        waited += each
    raise AssertionError("there is always another pause")


class Patient:
    """A store whose trouble is waited out: five minutes to read, an hour to write what took hours to compute."""

    def __init__(self, store: Store, pause: Callable[[float], None] = sleep) -> None:
        """Wrap a store."""
        self._store, self._pause = store, pause

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        """See :class:`nas_store.Store`."""
        return patiently(lambda: self._store.get(key, limit=limit), self._pause, READING_SECONDS)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`nas_store.Store`."""
        return patiently(lambda: self._store.put_if_absent(key, data), self._pause, WRITING_SECONDS)

    def put(self, key: str, data: bytes) -> None:
        """See :class:`nas_store.Store`."""
        patiently(lambda: self._store.put(key, data), self._pause, WRITING_SECONDS)

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        """See :class:`nas_store.Store`."""
        return patiently(lambda: self._store.replace(key, data, allowed), self._pause, WRITING_SECONDS)

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        """See :class:`nas_store.Store`."""
        return patiently(lambda: self._store.copy(source, target, limit=limit), self._pause, WRITING_SECONDS)

    def digest(self, key: str, *, limit: int) -> str | None:
        """See :class:`nas_store.Store`."""
        return patiently(lambda: self._store.digest(key, limit=limit), self._pause, READING_SECONDS)

    def list(self, prefix: str) -> list[str]:
        """See :class:`nas_store.Store`."""
        return patiently(lambda: self._store.list(prefix), self._pause, READING_SECONDS)

    def uri(self, key: str) -> str:
        """See :class:`nas_store.Store`."""
        return self._store.uri(key)

    def probe(self) -> None:
        """See :class:`nas_store.Store`."""
        self._store.probe()
