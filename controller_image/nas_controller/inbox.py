"""What other threads tell the search's thread, and how that one waits."""

from collections import deque
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from nas_controller.clock import Clock

M = TypeVar("M")


class Stopped(Exception):
    """``stop`` was called."""


class Inbox(Generic[M]):
    """Messages from any thread for one. ``put`` and ``stop`` may be called from a signal handler as well."""

    def __init__(self, clock: Clock) -> None:
        """Begin empty; ``clock`` is whose time it is."""
        self._clock = clock
        # Its put may be called from a signal handler, unlike Queue's. None only wakes whoever waits.
        self._queue: SimpleQueue[M | None] = SimpleQueue()
        self._kept: deque[M | None] = deque()
        self._stopped = False

    def put(self, message: M) -> None:
        """Leave a message."""
        self._queue.put(message)

    def stop(self) -> None:
        """Make every other method raise Stopped from now on."""
        self._stopped = True
        self._queue.put(None)

    def check(self) -> None:
        """Do nothing.

        Raises:
            Stopped: ``stop`` was called.
        """
        if self._stopped:
            raise Stopped

    def receive(self, seconds: float | None) -> list[M]:
        """Return all messages that are there, waiting for the first one at most so long (None: for ever).

        Raises:
            Stopped: ``stop`` was called.
        """
        messages = list(self._kept)
        self._kept.clear()
        try:
            if not messages:
                messages.append(self._clock.get(self._queue, seconds))
            while True:
                messages.append(self._queue.get_nowait())
        except Empty:
            pass
        self.check()
        return [message for message in messages if message is not None]

    def waiting(self) -> list[M]:
        """Return the messages that are there, and leave them.

        Raises:
            Stopped: ``stop`` was called.
        """
        try:
            while True:
                self._kept.append(self._queue.get_nowait())
        except Empty:
            pass
        self.check()
        return [message for message in self._kept if message is not None]

    def pause(self, seconds: float) -> None:
        """Wait, but not for messages: they are kept.

        Raises:
            Stopped: ``stop`` was called.
        """
        end = self._clock.monotonic() + seconds
        while (left := end - self._clock.monotonic()) > 0:
            try:
                message = self._clock.get(self._queue, left)
            except Empty:
                break
            self.check()
            self._kept.append(message)
