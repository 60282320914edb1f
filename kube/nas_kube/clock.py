"""Time and the threads that wait for it, as a port: tests and simulations run them on a time of their own."""

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What threads that wait need of the machine."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait until a condition, whose lock the caller holds, is notified; at most so long (None: for ever).

        It may return sooner, as ``threading.Condition.wait`` may.
        """

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """Run a function in a thread of its own, which holds up no end of the process."""


class SystemClock:
    """The machine's own clock and threads."""

    def monotonic(self) -> float:
        """See :class:`Clock`."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """See :class:`Clock`."""
        condition.wait(seconds)

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """See :class:`Clock`."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread


SYSTEM_CLOCK = SystemClock()


def wait_for(clock: Clock, condition: threading.Condition, true: Callable[[], bool], seconds: float | None) -> bool:
    """Wait until something is true, at most so long (None: for ever); return whether it is.

    Args:
        clock: whose time it is.
        condition: notified when it may have become true; the caller holds its lock.
        true: is asked with the lock held.
        seconds: the longest wait.
    """
    end = None if seconds is None else clock.monotonic() + seconds
    while not true():
        left = None if end is None else end - clock.monotonic()
        if left is not None and left <= 0:
            return False
        clock.wait(condition, left)
    return True
