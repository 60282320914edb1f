"""What a local run says of itself: ``status.json`` beside its log.

The log is the truth; the file is the quicker way to it, and knows what no log has: which children are at work, and what
they wait for. It says how many objects of the log it goes by. Where the log has another number (an older version has
written it, or the run was killed between the two), the status is made from the log, without what the policy has learnt.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from nas_api import names
from nas_api.base import Model
from nas_api.child import StoreLocation
from nas_api.experiment import NASExperimentStatus
from nas_cli.errors import Refusal
from nas_cli.folders import at_work
from nas_log.errors import LogDamaged
from nas_log.log import read_objects
from nas_store import Store, open_store
from nas_store.errors import StoreError

if TYPE_CHECKING:
    # It loads numpy, for which a reader of the file need not wait.
    from nas_controller.status import SearchStatus

STATUS = "status.json"


class _Published(Model):
    """The file."""

    objects: int
    """How many objects the log had."""
    status: NASExperimentStatus
    """What the cluster would show."""


class StatusFile:
    """Keeps a run's ``status.json`` current: a :class:`nas_controller.status.StatusSink`."""

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is written before the first status."""
        self._folder = folder
        self._store = open_store(StoreLocation(folder=str(folder)))
        self._objects = 0

    def publish(self, status: "SearchStatus") -> None:
        """See :class:`nas_controller.status.StatusSink`."""
        # A status is published after what it follows from was logged, by the thread that logs.
        while _has_object(self._folder, self._objects):
            self._objects += 1
        published = _Published(objects=self._objects, status=NASExperimentStatus(**dict(status)))
        # A full disk is for the log to complain of, which waits for room. Whoever reads sees that the file is behind.
        with suppress(StoreError):
            self._store.put(STATUS, published.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode())


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment."""

    status: NASExperimentStatus
    """As the cluster would show it; empty before the log's first record."""
    at_work: bool
    """Whether a process goes on with it."""

    @property
    def stage(self) -> str:
        """In a few words, whether it is over, at work, or can go on."""
        if self.status.outcome is not None:
            return f"{self.status.outcome.type}: {self.status.outcome.message}"
        return "Running" if self.at_work else "Stopped: the same `nas run` resumes it"


def read_run_status(folder: Path) -> RunStatus:
    """Return the status of the run in a folder.

    Raises:
        Refusal: its log cannot be read.
    """
    store = open_store(StoreLocation(folder=str(folder)))
    working = at_work(folder)
    try:
        status = _published(folder, store)
        if status is None:
            status = _folded(store)
    except (LogDamaged, StoreError) as error:
        raise Refusal(f"{folder} is not a readable run: {error}") from error
    changes: dict[str, object] = {}
    if status.best is not None:
        # The folder may have been moved since.
        changes["best"] = status.best.model_copy(update={"uri": store.uri(names.BEST_ARCHITECTURE)})
    if not working and status.samples is not None:
        changes |= {"samples": status.samples.model_copy(update={"running": 0, "queued": 0}), "problem": None}
    return RunStatus(status.model_copy(update=changes), working)


def _published(folder: Path, store: Store) -> NASExperimentStatus | None:
    """Return what ``status.json`` says; None where there is none, or the log says something else."""
    data = store.get(STATUS)
    if data is None:
        return None
    try:
        published = _Published.model_validate_json(data, extra="ignore")
    except ValidationError:
        return None
    last, following = published.objects - 1, published.objects
    return published.status if _has_object(folder, last) and not _has_object(folder, following) else None


def _has_object(folder: Path, sequence: int) -> bool:
    return (folder / names.log_key(sequence)).exists()


def _folded(store: Store) -> NASExperimentStatus:
    """Return what the log says."""
    from nas_controller.policies.random import RandomPolicy
    from nas_controller.state import fold
    from nas_controller.status import search_status

    records = (record for each in read_objects(store) for record in each.records)
    # One that learns nothing, whatever the run's own is: a status has only the policy's vitals of it.
    state = fold(records, RandomPolicy)
    if state is None:
        return NASExperimentStatus()
    status = search_status(state, running=0, best_uri=store.uri(names.BEST_ARCHITECTURE), problem=None)
    return NASExperimentStatus(**dict(status))
