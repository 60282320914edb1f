"""Time as a port, so that tests run on a clock of their own."""

import time
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """What the search needs of time."""

    def now(self) -> datetime:
        """Return the wall-clock time in UTC: for what is recorded and compared across processes."""

    def monotonic(self) -> float:
        """Return seconds that never go back: for pauses within this process."""

    def get(self, queue: SimpleQueue[T], seconds: float | None) -> T:
        """Return the queue's next item, waiting at most so long; None waits for ever.

        Raises:
            queue.Empty: the time is over.
        """


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """See :class:`Clock`."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """See :class:`Clock`."""
        return time.monotonic()

    def get(self, queue: SimpleQueue[T], seconds: float | None) -> T:
        """See :class:`Clock`."""
        return queue.get(timeout=seconds)
