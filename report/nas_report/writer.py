"""Keeps ``report/report.html`` in the store current while a search goes on, in a thread of its own.

It reads the log as any other reader would and shares nothing with the search, so that no search ever waits for its
report, and whatever happens to a report happens to nothing else.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType

import structlog

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_log.errors import LogDamaged
from nas_log.follower import Follower
from nas_report.history import History
from nas_report.page import render
from nas_store import Store
from nas_store.errors import StoreError

_log = structlog.get_logger()

_FIRST_SECONDS = 60.0
_EVERY_SECONDS = 300.0
# A report that takes long to make comes the more seldom: it may have one in so many seconds of this process.
_SHARE = 30
# How long the end of a search is held up at most, so that its last report is one of the whole.
_LAST_SECONDS = 60.0


class ReportWriter:
    """A context in which a search runs; when it is left, the last report is written."""

    def __init__(self, store: Store, experiment: Callable[[], NASExperiment]) -> None:
        """Prepare; the thread starts with the context.

        Args:
            store: where the search's log is, and where the report goes.
            experiment: returns the newest manifest.
        """
        self._store = store
        self._experiment = experiment
        self._over = threading.Event()
        # A daemon: a store that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._log = Follower(store)
        self._history = History(self._log)
        self._written = self._log.position

    def __enter__(self) -> "ReportWriter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if kind is None:
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        pause = _FIRST_SECONDS
        while not self._over.wait(pause):
            pause = max(_EVERY_SECONDS, _SHARE * self._write())
        self._write()

    def _write(self) -> float:
        """Write a report of what the log has now, unless there is nothing new; return the seconds that it took."""
        begin = time.monotonic()
        try:
            self._history.add(self._log.read())
            if self._log.facts is not None and self._log.position != self._written:
                page = render(self._history, self._experiment(), datetime.now(UTC))
                self._store.put(names.REPORT, page.encode())
                self._written = self._log.position
        except (StoreError, LogDamaged) as error:
            # The next report tries again, and `nas report` makes one from the log at any time.
            _log.warning("report not written", error=str(error))
        return time.monotonic() - begin
