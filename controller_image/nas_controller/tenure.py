"""Whether this process still is the one that writes the log: what it has decided has effects only as long as it is.

A process that was paused wakes up in the middle of what it was about to do, perhaps long after another has taken its
place. The log refuses it (``nas_log.log``); the cluster and ``best/`` know nothing of that. So whoever is about to have
an effect asks here: whether anybody else has written the log's next object. Where little can go wrong in the seconds
that a successor needs to come into being, an append of our own as recent as that is answer enough.
"""

from collections.abc import Callable

import structlog

from nas_api import names
from nas_controller.clock import SYSTEM_CLOCK, Clock
from nas_store import Store
from nas_store.errors import StoreError, TooLarge

_log = structlog.get_logger()

# A successor is begun when our pod is gone or out of reach, starts, and reads the log.
_FRESH_SECONDS = 5.0


class Tenure:
    """Told of the log by the thread of the search, which alone may ask ``look``; any may ask ``holds``."""

    def __init__(self, store: Store, clock: Clock = SYSTEM_CLOCK, before: "Tenure | None" = None) -> None:
        """Begin without a log: nothing is ours before the first append.

        Args:
            store: where the log is.
            clock: whose time it is.
            before: of an earlier try of this process, which may know the log already.
        """
        self._store = store
        self._clock = clock
        self._on_end: Callable[[], None] = lambda: None
        self._next: int | None = None if before is None else before._next
        """The number of the log's next object; None while that is not known, or one of ours may have it already."""
        self._began_at = float("-inf")
        self._proven_at = float("-inf")
        self._over = False

    def on_end(self, call: Callable[[], None]) -> None:
        """Have a call made when it turns out that another process writes the log; from any thread, perhaps twice."""
        self._on_end = call

    def read(self, sequence: int) -> None:
        """Take note that the log was read up to the object of this number, or that it is empty (-1)."""
        self._next = sequence + 1

    def appending(self) -> None:
        """Take note that an append begins; whether the object is written is not known before ``appended``."""
        self._next, self._began_at = None, self._clock.monotonic()

    def appended(self, sequence: int) -> None:
        """Take note that the append that began last has written the object of this number."""
        # Of when it began: the process may have been paused since.
        self._next, self._proven_at = sequence + 1, self._began_at

    def end(self) -> None:
        """Take note that another process writes the log."""
        self._over = True

    def look(self) -> bool:
        """Return whether the log still ends where we know it to; nothing may be waiting to be appended.

        Raises:
            StoreError: the store cannot be read.
        """
        return not self._over and (self._next is None or not self._is_overtaken(self._next))

    def holds(self, *, surely: bool = False) -> bool | None:
        """Return whether effects are still ours to have; None: nobody can tell now.

        Args:
            surely: ask the store in any case, for what is somebody else's as soon as there is one.
        """
        if self._over:
            return False
        now, following = self._clock.monotonic(), self._next
        if not surely and now - self._proven_at <= _FRESH_SECONDS:
            return True
        if following is None:
            return None
        try:
            overtaken = self._is_overtaken(following)
        except StoreError as error:
            _log.info("not known who writes the log", error=str(error))
            return None
        if self._next != following:
            # What is there may be our own.
            return None
        if overtaken:
            _log.warning("another controller writes the log: children are not ours to create or delete any more")
            self.end()
            self._on_end()
            return False
        self._proven_at = max(self._proven_at, now)
        return True

    def _is_overtaken(self, following: int) -> bool:
        try:
            return self._store.get(names.log_key(following), limit=1) is not None
        except TooLarge:
            return True
