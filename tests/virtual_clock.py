"""Clocks for tests: one whose time passes only when somebody waits, and one that is faster than the machine's."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from nas_kube.clock import SystemClock


class VirtualClock:
    """See :class:`nas_kube.clock.Clock`. One thread runs in the test's own, by ``run``, and waits without waiting.

    What else happens is told beforehand by ``at`` and is called while that thread waits.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._happens: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._runs: list[Callable[[], None]] = []

    def at(self, seconds: float, call: Callable[[], object]) -> None:
        """Have something happen at a time."""
        heapq.heappush(self._happens, (seconds, next(self._numbers), call))

    def run(self) -> None:
        """Run the thread that was started, until it ends."""
        (run,) = self._runs
        run()

    def monotonic(self) -> float:
        return self.now

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        until = float("inf") if seconds is None else self.now + seconds
        if self._happens and self._happens[0][0] <= until:
            at, _, call = heapq.heappop(self._happens)
            self.now = max(self.now, at)
            call()
        else:
            assert until < float("inf"), "it would wait for ever"
            self.now = until

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        self._runs.append(run)
        # It has ended by the time that anybody waits for it.
        return SystemClock().start(name, lambda: None)


class FasterClock(SystemClock):
    """The machine's clock, so many times as fast: for pauses of seconds that a test has no time for."""

    def __init__(self, times: float) -> None:
        self._times = times

    def monotonic(self) -> float:
        return time.monotonic() * self._times

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        condition.wait(None if seconds is None else seconds / self._times)
