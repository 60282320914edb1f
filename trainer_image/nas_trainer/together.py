"""Several pieces of work in one process, a thread each, that end together when the process is told to end.

Only the main thread hears signals, and work knows nothing of other work: what interrupts the thread that waits for all
is raised in each of them between two instructions, as a signal's handler would do it. So a training is the same code
alone and beside others. Needs no torch.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

_LONGEST_SLEEP_SECONDS = 1.0

Defer = Callable[[], None]
"""Makes an interruption wait: it is not raised any more in who has called this."""


def run_together(
    works: Sequence[Callable[[Defer], None]], interruption: type[BaseException]
) -> list[BaseException | None]:
    """Do all works at once, and return what each has raised; None for those that ended well.

    Args:
        works: each is given its ``Defer``.
        interruption: what may be raised in the calling thread while it waits, once. It is passed on to all works, and
            is then among what is returned; this function does not raise it.
    """
    ended: SimpleQueue[None] = SimpleQueue()
    threads = [_Thread(work, interruption, ended) for work in works]
    try:
        for thread in threads:
            thread.start()
        _wait(threads, ended)
    except interruption:
        for thread in threads:
            thread.interrupt()
        _wait(threads, ended)
    return [thread.raised for thread in threads]


def _wait(threads: "Sequence[_Thread]", ended: "SimpleQueue[None]") -> None:
    """Return when all have ended. Unlike Thread.join this may be interrupted, and begun again."""
    while not all(thread.over for thread in threads):
        # A signal that comes just before the thread sleeps is looked at only when it wakes.
        with suppress(Empty):
            ended.get(timeout=_LONGEST_SLEEP_SECONDS)


class _Thread(threading.Thread):
    """One piece of work; at first it may be interrupted."""

    def __init__(
        self, work: Callable[[Defer], None], interruption: type[BaseException], ended: "SimpleQueue[None]"
    ) -> None:
        super().__init__()
        self._work = work
        self._interruption = interruption
        self._ended = ended
        self._changing = threading.Lock()
        self._interruptible = True
        self.raised: BaseException | None = None
        self.over = False
        """Whether the work is done, or will never begin."""

    def run(self) -> None:
        """Work; whatever it raises is kept for whoever waits."""
        if self.over:
            return
        try:
            try:
                self._work(self._defer)
            finally:
                self._defer()
        except BaseException as error:  # noqa: BLE001  Judged by the caller, with those of the others.
            self.raised = error
        self.over = True
        self._ended.put(None)

    def interrupt(self) -> None:
        """Raise the interruption in this thread, unless it has deferred that."""
        with self._changing:
            if not self._interruptible:
                return
            self._interruptible = False
            if self.ident is None:
                self.raised, self.over = self._interruption(), True
                return
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(self._interruption))

    def _defer(self) -> None:
        with self._changing:
            self._interruptible = False
