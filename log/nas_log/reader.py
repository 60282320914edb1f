"""The one reading of a log: what it tells of the search as a whole, and of each sample once that has ended.

Two places know what records mean. The controller's fold makes the state from which a search goes on; this one tells
what has happened, and whatever shows a search renders it. Needs neither policies nor torch, and no store:
``follower`` brings it the objects of one.

Memory does not grow with the log, but for one row: the open samples are held, and a sample that has ended is handed
over and forgotten. Where equal architectures share one result, the metrics of each training that gave one are kept,
because a later sample may be said to have taken them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from math import nan
from typing import Literal, TypeVar, assert_never

from nas_api.architecture import Architecture
from nas_api.child import counted
from nas_api.experiment import BudgetSpec, ObjectiveSpec, SearcherSpec
from nas_api.search_space import SearchSpace, SearchSpaceSpec, arranged, search_space
from nas_api.stopping import Rung, Stopped
from nas_log.errors import LogDamaged
from nas_log.records import (
    Arm,
    FinalProposed,
    FinalRun,
    Finished,
    Inherited,
    Launched,
    Lost,
    Observed,
    Proposed,
    Reconfigured,
    Record,
    SearchEnded,
    Started,
    WarmStarted,
    misfit,
)

_T = TypeVar("_T")


@dataclass
class Facts:
    """What a log tells of the search as a whole, as far as it has been read."""

    space: SearchSpace
    space_spec: SearchSpaceSpec
    searcher: SearcherSpec
    objective: ObjectiveSpec
    begin: datetime
    end: datetime
    """Of the newest record that has a time."""
    controllers: int = 1
    """So many processes have written the log, one after the other."""
    parallelism: int = 0
    budget: BudgetSpec | None = None
    warm_start: WarmStarted | None = None
    inherited: int = 0
    """Samples of an earlier experiment that the policy learnt first."""
    drawn: int = 0
    """Samples of the search so far, open ones among them; final trainings are not."""
    search_ended: SearchEnded | None = None
    """From here on the best architectures are trained finally."""
    finished: Finished | None = None
    slot_seconds: float = 0.0
    """Parallelism times duration: what could have been trained in."""
    timed: bool = False
    """Whether the log says when things happened; those of older writers do not."""

    @property
    def next_sample(self) -> int:
        """The number that the search's next sample has or would have had."""
        return self.drawn + (0 if self.warm_start is None else self.warm_start.first_sample)


@dataclass(slots=True)
class Sample:
    """What a log tells of one sample: of the search, inherited by it, or a final training."""

    number: int
    architecture: Architecture
    """A user's own decisions are in the manifest's order."""
    arm: Arm | Literal["final", "inherited"]
    """Who wanted it: the policy, the random arm, the final stage, or an earlier experiment."""
    log_probability: float = nan
    """Sum over all decisions, under whoever drew it; NaN of a final training."""
    final: FinalRun | None = None
    """What makes it a final training; None: it is none."""
    launches: list[Launched] = field(default_factory=list)
    """Its attempts, the newest last: each with its number, its failures, its samples, its rule and its moment."""
    state: Literal["Open", "Observed", "Diverged", "Lost"] = "Open"
    metrics: dict[str, float] = field(default_factory=dict)
    """All that is known, ``parameters`` among it where counted; of a reused result what its original has."""
    reported: dict[str, float] = field(default_factory=dict)
    """The metrics as its own record has them: of a reused result only the objective's."""
    parameters: int | None = None
    """Weights of the network, its original's where reused; 0 where the trainer did not count them. None: no result."""
    reward: float | None = None
    seconds: float | None = None
    """Wall-clock time of the training; 0 where nothing was trained, None without a result here."""
    reused: int | None = None
    """The sample whose result this is, where nothing was trained."""
    stopped: Stopped | None = None
    """Where its training was stopped early: metrics and reward are underestimates."""
    rung: Rung | None = None
    """What it had at the epoch of early stopping."""
    files: dict[str, str] | None = None
    """Of the final training's test: SHA-256 in hex of its network's files, by name. None where the log has none."""
    reason: str = ""
    """Why it was lost."""
    message: str = ""
    """The same in words, where there are any."""
    ended: datetime | None = None
    """When it was observed or lost; None where the log does not say."""


class Reader:
    """Makes samples from records."""

    def __init__(self) -> None:
        self.facts: Facts | None = None
        """None before the first record."""
        self.open: dict[int, Sample] = {}
        """The samples that are proposed and neither observed nor lost, by number, in the order drawn."""
        self._trained: dict[int, tuple[dict[str, float], int]] = {}
        """Metrics and parameters of the trainings whose result may be reused."""

    def take(self, records: Iterable[Record]) -> Iterator[Sample]:
        """Go on with these records and yield each sample that ends, whole; those inherited come as they are named.

        Raises:
            LogDamaged: a record cannot follow those before it; the reader cannot go on.
        """
        for record in records:
            try:
                ended = self._take(record)
            except (ValueError, ArithmeticError, LookupError) as error:
                # Nothing of ours has written it: a model lets more pass than a search does.
                raise misfit(record) from error
            if ended is not None:
                yield ended

    def _take(self, record: Record) -> Sample | None:
        facts = self.facts
        if facts is None:
            self.facts = _begin(record)
            return None
        _pass_time(facts, getattr(record, "moment", None))
        match record:
            case Started():
                facts.controllers = record.epoch
            case Reconfigured():
                facts.parallelism, facts.budget = record.parallelism, record.budget
            case WarmStarted():
                facts.warm_start = record
            case Inherited():
                facts.inherited += 1
                return _inherited(facts, record)
            case Proposed():
                facts.drawn += 1
                architecture = arranged(facts.space, record.architecture)
                self.open[record.sample] = Sample(record.sample, architecture, record.arm, record.log_probability)
            case FinalProposed():
                architecture = arranged(facts.space, record.architecture)
                self.open[record.sample] = Sample(record.sample, architecture, "final", final=record.run)
            case Launched():
                for number in record.samples:
                    _known(self.open.get(number), record).launches.append(record)
            case Observed():
                return self._observe(facts, record)
            case Lost():
                sample = _known(self.open.pop(record.sample, None), record)
                sample.state, sample.ended = "Lost", record.moment
                sample.reason, sample.message = record.reason, record.message
                return sample
            case SearchEnded():
                facts.search_ended = record
            case Finished():
                facts.finished = record
            case unknown:
                assert_never(unknown)
        return None

    def _observe(self, facts: Facts, record: Observed) -> Sample:
        sample = _known(self.open.pop(record.sample, None), record)
        sample.state = "Diverged" if record.diverged else "Observed"
        sample.reported, sample.reward, sample.seconds = record.metrics, record.reward, record.seconds
        sample.reused, sample.stopped, sample.rung = record.reused, record.stopped, record.rung
        sample.ended, sample.files = record.moment, record.files
        if record.reused is None:
            sample.metrics, sample.parameters = counted(record.metrics, record.parameters), record.parameters
            if facts.searcher.duplicates == "Reuse":
                self._trained[record.sample] = sample.metrics, sample.parameters
        else:
            sample.metrics, sample.parameters = _known(self._trained.get(record.reused), record)
        return sample


def _begin(record: Record) -> Facts:
    if not isinstance(record, Started):
        raise LogDamaged(f"the log begins with {record.type}, not with Started")
    return Facts(
        space=search_space(record.search_space, record.architecture),
        space_spec=record.search_space,
        searcher=record.searcher,
        objective=record.objective,
        begin=record.moment,
        end=record.moment,
    )


def _pass_time(facts: Facts, moment: datetime | None) -> None:
    if moment is None:
        return
    if moment > facts.end:
        facts.slot_seconds += facts.parallelism * (moment - facts.end).total_seconds()
        facts.end = moment
    facts.timed = True


def _inherited(facts: Facts, record: Inherited) -> Sample:
    return Sample(
        record.sample,
        arranged(facts.space, record.architecture),
        "inherited",
        record.log_probability,
        state="Diverged" if record.diverged else "Observed",
        metrics=record.metrics,
        reported=record.metrics,
        reward=record.reward,
        stopped=record.stopped,
    )


def _known(found: _T | None, record: Record) -> _T:
    """Return what a record speaks of."""
    if found is None:
        raise misfit(record)
    return found
