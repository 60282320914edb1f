"""Time as the search needs it, so that tests run on a clock of their own.

The threads beside the search have a port of theirs (``nas_kube.clock``); the machine's clock serves both, and so does
any other clock that is to drive a search together with its executor.
"""

from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Protocol, TypeVar

from nas_kube import clock

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


class SystemClock(clock.SystemClock):
    """The machine's own clock."""

    def now(self) -> datetime:
        """See :class:`Clock`."""
        return datetime.now(UTC)

    def get(self, queue: SimpleQueue[T], seconds: float | None) -> T:
        """See :class:`Clock`."""
        return queue.get(timeout=seconds)


SYSTEM_CLOCK = SystemClock()
