"""When the status is written next: by what has changed, and by a budget that the children bring. Pure.

Each write is a call to the API server, and of these the children's own Jobs should be most. By the clock alone slow
children would cost more of them than fast ones.
"""

from nas_controller.status import SearchStatus

# What belongs together goes in one write: a child's result and the launch of the next come soon after its end.
_SETTLE_SECONDS = 1.0
_SETTLE_WITHOUT_END_SECONDS = 5.0
_EVERY_SECONDS = 5.0
# Nobody looks at a status that is older, however few children have ended.
_STALE_SECONDS = 60.0
# Writes that a child brings when it ends, and how many are saved up.
_EACH_CHILD = 0.25
_MOST_SAVED = 6.0
# So many are left for the end of all children, which a suspension waits for.
_KEPT = 2.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class Pace:
    """Decides from what is wanted, what is written, and the clock's readings that it is given.

    An outcome is written at once; whatever else at most once in 5 s, and once it has settled. A new controller and a
    problem need nothing more. Progress is paid for: of n children that have ended in t seconds come at most
    6 + n / 4 + t / 60 writes, and it is never staler than a minute.
    """

    def __init__(self, written: SearchStatus) -> None:
        """Begin with what is written already."""
        self.wanted = self.written = written
        self._saved = _MOST_SAVED
        self._since = 0.0
        """When what is wanted began to differ from what is written."""
        self._tried_at = float("-inf")
        self._pause = 0.0
        """After a write that failed, until the next try."""

    def want(self, status: SearchStatus, now: float) -> None:
        """Take the newest status."""
        self._saved = min(_MOST_SAVED, self._saved + _EACH_CHILD * max(0, _ended(status) - _ended(self.wanted)))
        if self.wanted == self.written:
            self._since = now
        self.wanted = status

    def due(self) -> float | None:
        """Return from when on what is wanted is to be written; None: it is written."""
        if self.wanted == self.written:
            return None
        if self._pause:
            return self._tried_at + self._pause
        if self.wanted.outcome is not None:
            return self._since
        news = self._is_news(self.wanted)
        settle = _SETTLE_SECONDS if news or self._tells_an_end(self.wanted) else _SETTLE_WITHOUT_END_SECONDS
        spacing = _EVERY_SECONDS if news or self._is_paid(self.wanted) else _STALE_SECONDS
        return max(self._since + settle, self._tried_at + spacing)

    def wrote(self, status: SearchStatus, now: float) -> None:
        """Take note that a status, wanted a moment ago, was written by a call that began then."""
        if not self._is_news(status) and self._is_paid(status):
            self._saved -= 1.0
        self.written = status
        self._tried_at = self._since = now
        self._pause = 0.0

    def failed(self, now: float) -> float:
        """Take note that a write that began then has failed; return the pause before the next, in seconds."""
        self._tried_at = now
        self._pause = min(2 * self._pause or _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        return self._pause

    def _is_news(self, status: SearchStatus) -> bool:
        """Return whether a status says more than how far the search has come."""
        written = self.written
        return (status.epoch, status.problem, status.outcome) != (written.epoch, written.problem, written.outcome)

    def _is_paid(self, status: SearchStatus) -> bool:
        """Return whether enough is saved for a status that tells of progress."""
        running = status.samples is not None and status.samples.running > 0
        return self._saved >= 1.0 + (_KEPT if running else 0.0)

    def _tells_an_end(self, status: SearchStatus) -> bool:
        return _ended(status) > _ended(self.written)


def _ended(status: SearchStatus) -> int:
    """Return how many children have ended; what took an earlier result had none."""
    samples, final = status.samples, status.final
    search = 0 if samples is None else samples.observed - samples.reused + samples.lost + samples.retried
    return search if final is None else search + final.trained + final.lost
