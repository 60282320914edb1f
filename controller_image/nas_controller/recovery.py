"""The way back up: the newest snapshot, the log after it, and a new epoch."""

from collections.abc import Iterator
from dataclasses import dataclass

from nas_api.experiment import LogHead
from nas_controller import snapshots
from nas_controller.state import MakePolicy, SearchState, fold
from nas_log.log import Log, read_objects
from nas_log.records import Record
from nas_store import Store


@dataclass
class Recovered:
    """A log and its state."""

    log: Log
    state: SearchState | None
    """None when the log is empty."""
    snapshot_records: int
    """How many records the newest readable snapshot covers."""


def recover(store: Store, make_policy: MakePolicy, anchor: LogHead | None = None) -> Recovered:
    """Read the log and return its state.

    Args:
        store: where it is.
        make_policy: builds the policy in its state before the first sample.
        anchor: an object that the log must have; None: nobody knows of one.

    Raises:
        LogDamaged: an object is missing or was changed, or the records do not fit each other.
        LogTampered: the log does not have the anchor.
        StoreError: the store cannot be read.
    """
    state: SearchState | None = None
    sequence, digest, covered = -1, "", 0
    snapshot = snapshots.newest(store, make_policy)
    if snapshot is not None:
        state, sequence, digest = snapshot
        covered = state.core.records

    def tail() -> Iterator[Record]:
        nonlocal sequence, digest
        for current in read_objects(store, sequence, digest, anchor):
            yield from current.records
            sequence, digest = current.sequence, current.digest

    state = fold(tail(), make_policy, state)
    return Recovered(Log(store, sequence, digest), state, covered)
