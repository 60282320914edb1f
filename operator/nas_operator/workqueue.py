"""A queue of keys: each waits at most once, is worked on by one worker at a time, and comes back after errors."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0


class WorkQueue(Generic[K]):
    """Used from the event loop's thread only, but for ``depth``."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}

    def depth(self) -> int:
        """Return how many keys wait; from any thread."""
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Have a key worked on soon; one that is worked on now is worked on again afterwards."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Have a key worked on after a while, in place of any earlier such wish."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self._due, key)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def work(
        self, handle: Callable[[K], Awaitable[float | None]], failed: Callable[[K, Exception, float], None]
    ) -> None:
        """Work on keys forever.

        Args:
            handle: works on one key; returns after how many seconds to do so again, if at all.
            failed: told of an error, and of the pause in seconds before the key is tried again.
        """
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            try:
                seconds = await handle(key)
            except Exception as error:  # noqa: BLE001  The designed edge: one experiment's error stops no other's work.
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                longest = min(_FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10), _LONGEST_PAUSE_SECONDS)
                pause = random.uniform(longest / 2, longest)
                failed(key, error, pause)
                self.add_after(key, pause)
            else:
                self._failures.pop(key, None)
                if seconds is not None:
                    self.add_after(key, seconds)
            finally:
                self._working.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)
