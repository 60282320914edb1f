"""The search itself: one thread that turns events into records, and records into effects.

The order that makes it safe to die anywhere: decide, append to the log, and only then launch, cancel or
tell. On the way back up: list the children, fetch results, and launch what is recorded but lost.
"""

from collections.abc import Callable
from enum import StrEnum

from nas_api.child import StoreLocation
from nas_api.experiment import NASExperiment, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.clock import Clock, SystemClock
from nas_controller.executor import Executor
from nas_controller.policies import Policy
from nas_controller.policies.factory import make_policy
from nas_controller.status import StatusSink
from nas_store import Store


class Ending(StrEnum):
    """Why ``Search.run`` returned."""

    FINISHED = "Finished"
    """The log has its Finished record; the last status that was published has the outcome."""
    STOPPED = "Stopped"
    """``stop`` was called; the same search goes on when it is run again."""
    FENCED = "Fenced"
    """Another process writes this log now, and this one must write nothing any more."""


class Search:
    """One search on one log. Build it, call ``run`` once, and call the other methods from any thread.

    The search owns neither store nor executor nor sink: its caller closes them after ``run`` has returned.
    """

    def __init__(
        self,
        experiment: NASExperiment,
        *,
        store: Store,
        location: StoreLocation,
        executor: Executor,
        sink: StatusSink,
        make_policy: Callable[[SearcherSpec, SearchSpace], Policy] = make_policy,
        clock: Clock | None = None,
        snapshot_every: int = 200,
        result_threads: int = 8,
    ) -> None:
        """Prepare a search; does no I/O.

        Args:
            experiment: the manifest; ``spec.storage`` is not read here.
            store: where the log, the results, the snapshots and ``best/`` are.
            location: the same place as children are told it.
            executor: runs the children; ``run`` calls its ``start``, ``launch`` and ``cancel``.
            sink: is told every change of the status.
            make_policy: builds the policy in its state before the first sample.
            clock: the time; the machine's own when None.
            snapshot_every: records between two snapshots of the learner.
            result_threads: results fetched from the store at once.
        """
        self._clock: Clock = clock or SystemClock()

    def run(self) -> Ending:
        """Recover from the log, search until the end, and return why it ended.

        Raises:
            StoreError: the log could not be read; nothing was done, and ``run`` of a new Search may succeed.
            LogDamaged: an object of the log is missing or was changed.
            SearchChanged: the log belongs to a search with another space, searcher or objective.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Make ``run`` return STOPPED soon. May be called from a signal handler. Children go on."""

    def change(self, experiment: NASExperiment) -> None:
        """Take over a newer spec: suspend, parallelism, budget and trainer count; the rest is immutable."""

    def superseded(self) -> None:
        """Make ``run`` return FENCED soon: somebody has learnt that another controller is at work."""
