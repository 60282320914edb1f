"""Calls of the API on the threads of a pool, at once or later, and the pauses between tries."""

from collections.abc import Callable
from concurrent import futures
from typing import Any

import structlog

from nas_controller.executors.agenda import Agenda
from nas_controller.executors.children import Child, Children

_log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 1.0


class Calls:
    """Makes calls; one about a child that fails in a way that nobody foresaw is this child's end."""

    def __init__(self, pool: futures.Executor, agenda: Agenda, children: Children) -> None:
        """Prepare.

        Args:
            pool: makes the calls.
            agenda: has those that are to be made later; it does not wait for them.
            children: whom calls are about.
        """
        self._pool = pool
        self._agenda = agenda
        self._children = children

    def submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have a call made soon."""
        try:
            future = self._pool.submit(call, *arguments)
        except RuntimeError:
            # The pool is shut down: this process is about to end, and its successor does the call.
            _log.debug("not done any more", call=call.__name__)
            return
        child = next((item for item in arguments if isinstance(item, Child)), None)
        future.add_done_callback(lambda done: self._report_unforeseen(done, child))

    def later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Have a call made after some seconds."""
        self._agenda.add(seconds, lambda: self.submit(call, *arguments))

    def _report_unforeseen(self, future: "futures.Future[None]", child: Child | None) -> None:
        """An error that nobody foresaw must not leave the search waiting for a child without end."""
        if future.cancelled() or (error := future.exception()) is None:
            return
        _log.error("a call about children failed", exc_info=error)
        if child is not None:
            self._children.fail(child, f"the controller failed: {error!r}")


def pause(tries: int) -> float:
    """Return how many seconds to wait after a call that has failed so many times before, and now again."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 10), LONGEST_PAUSE_SECONDS)
