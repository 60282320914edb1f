"""The way back up: the newest snapshot, the log after it, and a new epoch.

On another platform than the one that wrote the log, the policy's state may differ in its last bits. That is told and
does no harm: proposals are taken from the records, and what comes is drawn from the state that is here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from nas_api.experiment import LogHead
from nas_controller import snapshots
from nas_controller.state import MakePolicy, SearchState, fold
from nas_log.log import Log, read_objects
from nas_log.records import Platform, Record, Started
from nas_store import Store

_log = structlog.get_logger()


@dataclass
class Recovered:
    """A log and its state."""

    log: Log
    state: SearchState | None
    """None when the log is empty."""
    snapshot_records: int
    """How many records the newest readable snapshot covers."""


def recover(
    store: Store, make_policy: MakePolicy, anchor: LogHead | None = None, platform: Platform | None = None
) -> Recovered:
    """Read the log and return its state.

    Args:
        store: where it is.
        make_policy: builds the policy in its state before the first sample.
        anchor: an object that the log must have; None: nobody knows of one.
        platform: what this process runs on; None: nobody has said.

    Raises:
        LogDamaged: an object is missing or was changed, or the records do not fit each other.
        LogTampered: the log does not have the anchor.
        StoreError: the store cannot be read.
    """
    state: SearchState | None = None
    sequence, digest, covered = -1, "", 0
    snapshot = snapshots.newest(store, make_policy, platform)
    if snapshot is not None:
        state, sequence, digest = snapshot
        covered = state.core.records

    def tail() -> Iterator[Record]:
        nonlocal sequence, digest
        for current in read_objects(store, sequence, digest, anchor):
            yield from current.records
            sequence, digest = current.sequence, current.digest

    for record in tail():
        state = fold((record,), make_policy, state)
        if state is not None and isinstance(record, Started):
            _compare(record, state, platform)
    return Recovered(Log(store, sequence, digest), state, covered)


def _compare(started: Started, state: SearchState, platform: Platform | None) -> None:
    """Tell where the policy's state is not, to the last bit, the one that a controller before had at this record."""
    if started.policy is None or started.policy == snapshots.policy_digest(state.policy):
        return
    _log.warning(
        "the policy's state differs in bits from that of an earlier controller: the search goes on from what is here",
        epoch=started.epoch,
        theirs=None if started.platform is None else started.platform.model_dump(),
        ours=None if platform is None else platform.model_dump(),
    )
