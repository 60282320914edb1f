"""Reads a log in a store from wherever a reader has come to, again and again while it grows."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from nas_api import names
from nas_api.child import MAX_RESULT_BYTES, Result
from nas_api.experiment import LogHead, ObjectiveSpec
from nas_log.errors import LogDamaged
from nas_log.log import read_object, read_objects
from nas_log.reader import Reader, Sample
from nas_log.records import Finished
from nas_store import Store
from nas_store.errors import TooLarge


@dataclass(frozen=True)
class Position:
    """How far a log has been read."""

    sequence: int
    """Number of the last object, -1 before the first."""
    digest: str
    """SHA-256 of its bytes in hex."""


BEGINNING = Position(-1, "")


class Follower(Reader):
    """Reads a log in a store, and goes on with it when it has grown."""

    def __init__(self, store: Store, after: Position = BEGINNING, anchor: LogHead | None = None) -> None:
        """Prepare; nothing is read yet.

        Args:
            store: where the log is.
            after: where an earlier follower has come to: what ended up to there is not handed over again. It is read
                again, because the samples that were open there are known from nowhere else.
            anchor: an object that the log must have; None: nobody knows of one.
        """
        super().__init__()
        self.position = after
        """The newest object all of whose samples have been handed over: with it another follower goes on."""
        self._store = store
        self._after = after
        self._anchor = anchor
        self._last = BEGINNING
        self._ended: deque[Sample] = deque()

    def read(self) -> Iterator[Sample]:
        """Yield each sample that has ended since, as long as there is something new; a read broken off goes on.

        Raises:
            LogDamaged: an object is missing, was changed, has a record that is not known here or cannot follow, or
                the log is another one than ``after`` is of; the message names the object.
            LogTampered: the log does not have the anchor.
            StoreError: the store cannot be read; the next read goes on where this one was.
        """
        yield from self._hand_over()
        after = self._after
        anchor, last = self._anchor, self._last
        due = anchor if anchor is not None and anchor.sequence > last.sequence else None
        for each in read_objects(self._store, last.sequence, last.digest, due):
            key = names.log_key(each.sequence)
            if each.sequence == after.sequence and each.digest != after.digest:
                raise LogDamaged(f"{key} is not the object that was read here before: begin at the log's beginning")
            try:
                ended = [*self.take(each.records)]
            except LogDamaged as error:
                raise LogDamaged(f"{key}: {error}") from error
            self._last = Position(each.sequence, each.digest)
            if each.sequence > after.sequence:
                self._ended.extend(ended)
                yield from self._hand_over()
        if self._last.sequence < after.sequence:
            key = names.log_key(after.sequence)
            raise LogDamaged(f"{key} was read here before and is missing; restore it from the bucket's versions")

    def _hand_over(self) -> Iterator[Sample]:
        while self._ended:
            yield self._ended.popleft()
        if self._last.sequence > self.position.sequence:
            self.position = self._last


def end_of_log(store: Store) -> Finished | None:
    """Return how an experiment has ended, from the newest object of its log alone; None: it has not.

    Raises:
        LogDamaged: that object was changed.
        StoreError: the store cannot be read.
    """
    keys = [key for key in store.list(names.LOG_PREFIX) if key.endswith(".json")]
    newest = read_object(store, len(keys) - 1) if keys else None
    records = [] if newest is None else newest.records
    return next((record for record in records if isinstance(record, Finished)), None)


def learning_curve(store: Store, sample: Sample, objective: ObjectiveSpec) -> tuple[float, ...]:
    """Return the objective's metric after each epoch of a sample's training; its original's where it was reused.

    Empty where there is no result, where it says nothing of epochs, or where it is one that the search refused.

    Raises:
        StoreError: the store cannot be read.
    """
    number = sample.number if sample.reused is None else sample.reused
    try:
        data = store.get(names.result_key(number), limit=MAX_RESULT_BYTES)
        if data is None:
            return ()
        digest = sample.architecture.digest
        return Result.parse(data, sample=number, digest=digest, metric=objective.metric).history
    except (TooLarge, ValueError, RecursionError):
        # RecursionError: JSON nested beyond reason.
        return ()
