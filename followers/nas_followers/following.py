"""From the log to somebody else's program: everything at least once, in batches, and after convergence exactly once.

Nothing here knows whose program it is. What is handed over twice must leave no trace there; what two followers did at
the same time is put right when everything is compared, once after a follower has caught up and once at the end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import structlog

from nas_api import names
from nas_api.experiment import DatasetSpec
from nas_followers.bookmarks import Bookmarks
from nas_followers.errors import FollowerError, Superseded
from nas_log.best import Best, BestIsReplaced, BestTampered, Evidence, read_best
from nas_log.errors import LogDamaged
from nas_log.follower import Follower, learning_curve
from nas_log.reader import Facts, Sample
from nas_store import Store

BATCH = 100
"""Samples that are handed over between two looks at the bookmarks."""

POLL_SECONDS = 5.0
"""Between two looks for something new; one costs a read of an object that is not there yet."""

# While a search goes on, a bookmark a minute: what is handed over since then is only looked up again after a restart.
_MARK_SECONDS = 60.0
# A follower that was superseded has the time; but should the other one be gone for good, somebody must go on.
_PATIENCE_SECONDS = 3600.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class Ended:
    """A sample that has ended."""

    sample: Sample
    curve: Callable[[], tuple[float, ...]]
    """Reads the objective's metric after each epoch; empty where nothing is known of epochs."""


class Destination(Protocol):
    """Where a search is handed over to. Every call may be repeated, by another process and at the same time.

    Each raises :class:`FollowerError` when the other side refuses or does not answer.
    """

    def look_up(self, facts: Facts) -> None:
        """Find what is there of this search; before anything else, and again before everything is compared."""

    def hand_over(self, facts: Facts, samples: Sequence[Ended]) -> None:
        """See to it that these samples are there, whole and once: what was found so costs nothing."""

    def finish(self, facts: Facts, best: Best | None) -> None:
        """Say how the search has ended, and hand over the best network."""


class Clock(Protocol):
    """Time that passes."""

    def now(self) -> float:
        """Return seconds since some moment."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""


def follow(store: Store, name: str, destination: Destination, clock: Clock, dataset: DatasetSpec | None = None) -> int:
    """Hand a search over until it has ended; return how many samples it has.

    Another follower of the same name that takes over ends the work of this one. What it has done since without knowing
    is put right: once the other one is done, this one compares everything again.

    Raises:
        Superseded: another follower has taken over, and is not done in an hour.
        FollowerError: the destination refuses or does not answer, or the log is damaged.
        StoreError: the store cannot be read.
    """
    while True:
        bookmarks = Bookmarks(store, name)
        _log.info("following", after=bookmarks.position.sequence)
        try:
            return _Following(store, bookmarks, destination, clock, dataset).run()
        except LogDamaged as error:
            raise FollowerError(
                f"the search's log cannot be read: {error}; to begin anew, remove {names.follower_prefix(name)}"
            ) from error
        except Superseded as error:
            _log.info("superseded", reason=str(error))
            given_up = clock.now() + _PATIENCE_SECONDS
            while not bookmarks.others_are_done():
                if clock.now() >= given_up:
                    raise
                clock.wait(POLL_SECONDS)


class _Following:
    def __init__(
        self,
        store: Store,
        bookmarks: Bookmarks,
        destination: Destination,
        clock: Clock,
        dataset: DatasetSpec | None,
    ) -> None:
        self._store, self._bookmarks, self._destination, self._clock = store, bookmarks, destination, clock
        self._dataset = dataset
        self._evidence = Evidence()
        """What the log says of the best network; whole once everything has been compared."""
        self._log = Follower(store, bookmarks.position)
        self._looked_up = False
        self._marked = clock.now()
        self._unmarked = 0
        """Samples handed over since the last bookmark."""

    def run(self) -> int:
        # Where another follower was before, it may not have ended as it thought.
        doubtful = self._bookmarks.inherited
        while True:
            for batch in _batches(self._log):
                self._hand_over(batch)
                self._unmarked += len(batch)
                self._mark()
            facts = self._log.facts
            if facts is not None and facts.finished is not None:
                samples = self._compare(facts)
                self._destination.finish(facts, self._best(facts))
                self._bookmarks.move(self._log.position, done=True)
                return samples
            if facts is not None and doubtful:
                self._compare(facts)
                doubtful = False
            self._await_more()

    def _hand_over(self, batch: Sequence[Sample], facts: Facts | None = None) -> None:
        facts = facts or self._log.facts
        assert facts is not None, "a sample comes after the record that begins the log"
        self._bookmarks.check()
        if not self._looked_up:
            self._destination.look_up(facts)
            self._looked_up = True
        curves = [partial(learning_curve, self._store, sample, facts.objective) for sample in batch]
        self._destination.hand_over(facts, [Ended(*each) for each in zip(batch, curves, strict=True)])

    def _compare(self, facts: Facts) -> int:
        """See to it that all that the log has is there once; return how many samples that are."""
        self._bookmarks.check()
        self._destination.look_up(facts)
        self._looked_up = True
        samples, self._evidence = 0, Evidence(finished=facts.finished is not None)
        for batch in _batches(Follower(self._store)):
            self._hand_over(batch, facts)
            samples += len(batch)
            for sample in batch:
                self._evidence.add(sample)
        return samples

    def _mark(self) -> None:
        due = self._unmarked >= BATCH or self._clock.now() - self._marked >= _MARK_SECONDS
        if self._unmarked and due:
            self._bookmarks.move(self._log.position)
            self._unmarked, self._marked = 0, self._clock.now()

    def _await_more(self) -> None:
        """Wait until the log has grown. Listing it, as reading does, costs more the longer it is."""
        while self._store.get(names.log_key(self._log.position.sequence + 1)) is None:
            self._clock.wait(POLL_SECONDS)
            self._mark()

    def _best(self, facts: Facts) -> Best | None:
        try:
            return read_best(self._store, facts.space_spec, self._dataset, lambda: self._evidence)
        except BestIsReplaced as error:
            raise FollowerError(f"{error}, although the search has ended: read again") from error
        except BestTampered as error:
            raise FollowerError(f"the best network is not handed over: {error}") from error


def _batches(log: Follower) -> Iterator[list[Sample]]:
    """Yield what has ended since; what was inherited belongs to the experiment that drew it."""
    samples = (sample for sample in log.read() if sample.arm != "inherited")
    while batch := list(islice(samples, BATCH)):
        yield batch
