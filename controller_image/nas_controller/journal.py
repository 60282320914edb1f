"""The log of a search with the state that follows from it: one step ahead of the log until ``append`` is called."""

import hashlib

import structlog

from nas_api import names
from nas_api.experiment import LogHead
from nas_controller import snapshots
from nas_controller.clock import Clock
from nas_controller.recovery import recover
from nas_controller.state import MakePolicy, SearchState
from nas_log.log import Log
from nas_log.records import Finished, Launched, Lost, Observed, Platform, Record, SearchEnded, Started
from nas_store import Store
from nas_store.errors import StoreError

_log = structlog.get_logger()


class Journal:
    """Call ``recover`` first, and ``begin`` where it is empty then; everything else needs a state."""

    state: SearchState
    empty: bool
    """Whether ``recover`` has found no log."""

    def __init__(
        self,
        store: Store,
        make_policy: MakePolicy,
        clock: Clock,
        snapshot_every: int,
        platform: Platform | None = None,
    ) -> None:
        """Prepare; does no I/O.

        Args:
            store: where log and snapshots are.
            make_policy: builds the policy in its state before the first sample.
            clock: whose time records carry.
            snapshot_every: records between two snapshots.
            platform: what this process runs on, for the log; None: the log says nothing of it.
        """
        self._store = store
        self._make_policy = make_policy
        self._clock = clock
        self._snapshot_every = snapshot_every
        self._platform = platform
        self._log: Log
        self._batch: list[Record] = []
        self._covered = 0
        """How many records the newest snapshot covers."""
        self._snapshot: str | None = None
        """SHA-256 in hex of a snapshot of all that is in the log, which the next object is to vouch for."""

    def recover(self, anchor: LogHead | None = None) -> None:
        """Read the log; what was recorded and not appended is forgotten.

        Args:
            anchor: an object that the log must have; None: nobody knows of one.

        Raises:
            LogDamaged: an object of the log is missing or was changed.
            LogTampered: the log does not have the anchor.
            StoreError: the store cannot be read.
        """
        recovered = recover(self._store, self._make_policy, anchor, self._platform)
        self._log, self._covered = recovered.log, recovered.snapshot_records
        self._batch, self._snapshot = [], None
        self.empty = recovered.state is None
        if recovered.state is not None:
            self.state = recovered.state

    @property
    def uri(self) -> str:
        """Where the log is, for people."""
        return self._store.uri(names.log_key(0))

    def begin(self, started: Started) -> None:
        """Record the first of all records."""
        self.state = SearchState.begin(started, self._make_policy)
        self._batch = [self._placed(started)]

    def record(self, record: Record) -> None:
        """Fold a record and have it appended. Nobody sees the state before it is in the log."""
        if isinstance(record, Launched | Observed | Lost | SearchEnded | Finished):
            record = record.model_copy(update={"moment": self._clock.now()})
        elif isinstance(record, Started):
            record = self._placed(record)
        self.state.apply(record)
        self._batch.append(record)

    def _placed(self, started: Started) -> Started:
        """Return the record with what this process runs on, and the policy's state there, where that is known."""
        if self._platform is None:
            return started
        policy = snapshots.policy_digest(self.state.policy)
        return started.model_copy(update={"platform": self._platform, "policy": policy})

    @property
    def head(self) -> LogHead | None:
        """The newest object of the log; None: there is none."""
        return None if self._log.sequence < 0 else LogHead(sequence=self._log.sequence, digest=self._log.digest)

    @property
    def ahead(self) -> bool:
        """Whether there are records that are not in the log yet."""
        return bool(self._batch)

    def append(self) -> None:
        """Write what was recorded as one object; after a StoreError it may be called again.

        Raises:
            Fenced: another process writes the log.
            StoreError: it is not known whether the object was written.
        """
        self._log.append(self._batch, self._snapshot)
        self._batch, self._snapshot = [], None

    def snapshot(self) -> None:
        """Write a snapshot when it is time; the state must be exactly what the log says."""
        records = self.state.core.records
        if records - self._covered < self._snapshot_every:
            return
        self._covered = records
        data = snapshots.encode(self.state, self._log.digest, self._platform)
        try:
            self._store.put_if_absent(names.snapshot_key(self._log.sequence), data)
        except StoreError as error:
            # The log has everything; only the next start takes longer.
            _log.warning("no snapshot", error=str(error))
        else:
            # Of ours, whatever is there.
            self._snapshot = hashlib.sha256(data).hexdigest()
