"""Calls that are to be made later, by one thread."""

import heapq
import itertools
import threading
from collections.abc import Callable

from nas_kube.clock import Clock


class Agenda:
    """Makes calls when they are due; they must return soon. Safe to use from several threads."""

    def __init__(self, clock: Clock) -> None:
        """Prepare; nothing is called before ``start``."""
        self._clock = clock
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to make calls."""
        self._thread = self._clock.start("agenda", self._run)

    def add(self, seconds: float, call: Callable[[], None]) -> None:
        """Have a call made after some seconds; of those that are due together the one that was added first."""
        with self._changed:
            heapq.heappush(self._due, (self._clock.monotonic() + seconds, next(self._numbers), call))
            self._changed.notify()

    def stop(self) -> None:
        """Make no more calls."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (left := self._seconds_left()) != 0:
                    self._clock.wait(self._changed, left)
                if self._stopped:
                    return
                call = heapq.heappop(self._due)[2]
            call()

    def _seconds_left(self) -> float | None:
        """Return how long there is nothing to do; None: until something is added."""
        return max(0.0, self._due[0][0] - self._clock.monotonic()) if self._due else None
