"""How a search begins: its first records, the next epoch of one that goes on, and what it inherits."""

from collections.abc import Iterator
from itertools import islice

import structlog

from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import StoreLocation
from nas_api.experiment import NASExperimentSpec
from nas_controller import earlier
from nas_controller.clock import Clock
from nas_controller.earlier import FindEarlier
from nas_controller.errors import EarlierUnsuitable, SearchChanged
from nas_controller.journal import Journal
from nas_controller.state import Core
from nas_log.records import Started, WarmStarted

_log = structlog.get_logger()

# Samples of an earlier experiment in one object of the log.
_INHERITED_AT_ONCE = 200


class Beginning:
    """Records in a journal that has been recovered."""

    def __init__(self, journal: Journal, location: StoreLocation, find_earlier: FindEarlier, clock: Clock) -> None:
        """Prepare.

        Args:
            journal: where to.
            location: where this search's log is, as children are told it.
            find_earlier: finds the experiment that a warm start or a fixed architecture names.
            clock: the time.
        """
        self._journal = journal
        self._location = location
        self._find_earlier = find_earlier
        self._clock = clock

    def record(self, spec: NASExperimentSpec) -> bool:
        """Record the first epoch or the next; return False, with nothing recorded, when the search has ended before.

        Raises:
            SearchChanged: the log belongs to a search with another space, searcher or objective.
            EarlierMissing: the experiment to begin from has not left yet what is needed.
            EarlierUnsuitable: what it has left is of no use here.
            StoreError: its store cannot be read.
        """
        if self._journal.empty:
            architecture = self._fixed_architecture(spec)
            warm_start = self._warm_start(spec)
            self._journal.begin(self._started(spec, 1, architecture))
            if warm_start is not None:
                self._journal.record(warm_start)
            return True
        core = self._journal.state.core
        _check_same_search(core, spec, self._journal.uri)
        if core.outcome is not None:
            return False
        self._journal.record(self._started(spec, core.epoch + 1, core.architecture))
        return True

    def inherit(self, spec: NASExperimentSpec) -> Iterator[None]:
        """Record the samples of the earlier experiment that are not in the log yet; yield after each chunk of them.

        Raises:
            EarlierMissing: its log is gone.
            EarlierUnsuitable: its log cannot be read any more, or has fewer samples than when this search began.
            StoreError: its store cannot be read.
        """
        core = self._journal.state.core
        if core.to_inherit == 0 or core.warm_start is None:
            return
        found = self._find_earlier(self._location, core.warm_start.experiment, core.warm_start.uid)
        # It may have gone on since: only what was there at first is taken.
        samples = islice(
            earlier.inherited(found, spec.search_space, spec.objective), core.inherited, core.warm_start.samples
        )
        while core.to_inherit > 0:
            for record in islice(samples, _INHERITED_AT_ONCE):
                self._journal.record(record)
            if not self._journal.ahead:
                raise EarlierUnsuitable(
                    f"the log of the experiment {found.name} has lost {core.to_inherit} of {core.warm_start.samples}"
                    " samples since this search began: restore it from the bucket's versions"
                )
            yield
        _log.info("samples inherited", experiment=found.name, samples=core.inherited)

    def _started(self, spec: NASExperimentSpec, epoch: int, architecture: Architecture | None) -> Started:
        return Started(
            epoch=epoch,
            moment=self._clock.now(),
            search_space=spec.search_space,
            searcher=spec.searcher,
            objective=spec.objective,
            architecture=architecture,
        )

    def _fixed_architecture(self, spec: NASExperimentSpec) -> Architecture | None:
        """Return what ``searchSpace.fixed`` stands for; None for other spaces."""
        fixed = spec.search_space.fixed
        if fixed is None:
            return None
        found = self._find_earlier(self._location, fixed.experiment, fixed.uid)
        return earlier.found_architecture(found, fixed, spec.trainer.dataset)

    def _warm_start(self, spec: NASExperimentSpec) -> WarmStarted | None:
        """Return the record of a warm start, where one is asked for."""
        warm = spec.searcher.warm_start
        if warm is None:
            return None
        found = self._find_earlier(self._location, warm.experiment, warm.uid)
        extent = earlier.extent(found, spec.search_space, spec.objective)
        return WarmStarted(
            experiment=found.name,
            uid=found.uid,
            uri=found.store.uri(names.log_key(0)),
            samples=extent.samples,
            first_sample=extent.next_sample,
        )


def _check_same_search(core: Core, spec: NASExperimentSpec, uri: str) -> None:
    ours = {"searchSpace": spec.search_space, "searcher": spec.searcher, "objective": spec.objective}
    theirs = {"searchSpace": core.search_space, "searcher": core.searcher, "objective": core.objective}
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        raise SearchChanged(
            f"{' and '.join(f'spec.{name}' for name in different)} differ from those of the search whose log is at"
            f" {uri}: create a new experiment, or use another prefix"
        )
