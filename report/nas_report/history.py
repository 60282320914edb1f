"""What a report needs of a log: one small row a sample, and the few facts of the whole search.

Rows hold choices, not architectures: 12,800 networks of 15 layers are 8 MB of numbers and a hundred of objects.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from nas_api.architecture import Architecture
from nas_api.decisions import Choices, Decision
from nas_api.experiment import BudgetSpec, ObjectiveSpec, SearcherSpec
from nas_api.search_space import SearchSpace, SearchSpaceSpec, search_space
from nas_api.stopping import Stopped, StopRule
from nas_log.errors import LogDamaged
from nas_log.records import (
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
)


class Fate(Enum):
    """What has become of a sample."""

    OPEN = "in flight"
    TRAINED = "trained"
    DIVERGED = "diverged"
    LOST = "lost"


@dataclass(slots=True)
class Sample:
    """One sample. Of an open one only the first three are known."""

    number: int
    choices: Choices
    random: bool
    """Whether it belongs to the random arm, which the policy does not learn from."""
    fate: Fate = Fate.OPEN
    reason: str = ""
    """Why it was lost."""
    launches: int = 0
    launched: datetime | None = None
    """When its newest attempt was launched."""
    reused: bool = False
    """Whether an equal architecture's result was taken, and nothing was trained."""
    rule: StopRule | None = None
    """The early stopping of its newest launch, which ends no sample of the random arm."""
    stopped: Stopped | None = None
    """Where its training was stopped early: metric and reward are underestimates."""
    hopeless: bool = False
    """Whether the rule ended it, or would have if it were not of the random arm."""
    reward: float = 0.0
    metric: float = 0.0
    """The objective's; meaningless unless trained."""
    cost: float = 0.0
    """What the Pareto front sets against the metric: the first penalty's metric, or parameters."""
    parameters: int = 0
    seconds: float = 0.0
    """Of its training, as the trainer measured them."""


@dataclass(slots=True)
class FinalTraining:
    """One training of the final stage (paper section 4.1)."""

    number: int
    run: FinalRun
    fate: Fate = Fate.OPEN
    reason: str = ""
    launched: datetime | None = None
    metric: float = 0.0
    """Of the validation set, or of the test set where the run says so; meaningless unless trained."""
    reward: float = 0.0
    """Likewise; what the trainings are ranked by."""
    seconds: float = 0.0


@dataclass
class History:
    """The fold of a log for reports; ``take`` goes on with it."""

    space: SearchSpace
    space_spec: SearchSpaceSpec
    searcher: SearcherSpec
    objective: ObjectiveSpec
    begin: datetime
    end: datetime
    """Of the newest record that has a time."""
    controllers: int = 1
    parallelism: int = 0
    budget: BudgetSpec | None = None
    finished: Finished | None = None
    samples: list[Sample] = field(default_factory=list)
    """The search's, in the order of their numbers, which begin at 0 unless it goes on with another's samples."""
    finals: list[FinalTraining] = field(default_factory=list)
    """Of the final stage, in the order of their numbers."""
    search_ended: bool = False
    warm_start: WarmStarted | None = None
    inherited: int = 0
    """Samples of an earlier experiment that the policy learnt first."""
    slot_seconds: float = 0.0
    """Parallelism times duration: what could have been trained in."""
    lost_seconds: float = 0.0
    """Between launch and loss of attempts that gave nothing."""
    shared_seconds: float = 0.0
    """How much longer the trainings of children that shared a pod were in all than the longest of each pod."""
    timed: bool = False
    """Whether the log says when things happened; those of older writers do not."""
    _decisions: tuple[Decision, ...] = ()
    _numbered: dict[int, Sample | FinalTraining] = field(default_factory=dict)
    _shares: dict[int, int] = field(default_factory=dict)
    """The launch of each open sample that was launched with others."""
    _longest: dict[int, float] = field(default_factory=dict)
    """The longest training so far, in seconds, of each launch of several samples."""

    @property
    def cost_name(self) -> str:
        """What ``Sample.cost`` is."""
        return self.objective.penalties[0].metric if self.objective.penalties else "parameters"

    @property
    def sign(self) -> int:
        """1 when more of the metric is better, else -1."""
        return 1 if self.objective.goal == "Maximize" else -1

    def trained(self) -> list[Sample]:
        """Return the samples with a finite result, in the order of their numbers."""
        return [sample for sample in self.samples if sample.fate is Fate.TRAINED]

    def count(self, fate: Fate) -> int:
        """Return how many samples have this fate."""
        return sum(sample.fate is fate for sample in self.samples)

    def architecture(self, sample: Sample) -> Architecture:
        """Return a sample's network."""
        architecture: Architecture = self.space.decode(sample.choices)
        return architecture

    def sample(self, number: int) -> Sample:
        """Return the search's sample of this number."""
        found = self._numbered[number]
        assert isinstance(found, Sample)
        return found

    def best(self, count: int) -> list[Sample]:
        """Return the trained samples of highest reward, each architecture once; the first of equals comes first.

        Those that were stopped early are not among them.
        """
        whole = [sample for sample in self.trained() if sample.stopped is None]
        ranked = sorted(whole, key=lambda sample: (-sample.reward, sample.number))
        first: dict[Choices, Sample] = {}
        for sample in ranked:
            first.setdefault(sample.choices, sample)
        return [*first.values()][:count]

    def decisions(self, sample: Sample) -> tuple[Decision, ...]:
        """Return what was decided; making the tuple anew for each sample would take seconds."""
        if len(self._decisions) != len(sample.choices):
            self._decisions = self.space.decisions(sample.number)
        return self._decisions

    def take(self, records: Iterable[Record]) -> None:
        """Go on with these records."""
        for record in records:
            self._moment(getattr(record, "moment", None))
            match record:
                case Started():
                    self.controllers = record.epoch
                case Reconfigured():
                    self.parallelism, self.budget = record.parallelism, record.budget
                case Proposed():
                    choices = self.space.encode(record.architecture)
                    sample = Sample(record.sample, choices, random=record.arm == "random")
                    self.samples.append(sample)
                    self._numbered[record.sample] = sample
                case FinalProposed():
                    final = FinalTraining(record.sample, record.run)
                    self.finals.append(final)
                    self._numbered[record.sample] = final
                case Launched():
                    for number in record.samples:
                        child = self._numbered[number]
                        child.launched = record.moment
                        if isinstance(child, Sample):
                            child.launches += 1
                            child.rule = record.stop
                        if len(record.samples) > 1:
                            self._shares[number] = record.launch
                        else:
                            self._shares.pop(number, None)
                case Observed():
                    child = self._numbered[record.sample]
                    child.fate = Fate.DIVERGED if record.diverged else Fate.TRAINED
                    child.metric = record.metrics.get(self.objective.metric, 0.0)
                    child.reward, child.seconds = record.reward, record.seconds
                    if isinstance(child, Sample):
                        self._observe(record, child)
                case Lost():
                    child = self._numbered[record.sample]
                    child.fate, child.reason = Fate.LOST, record.reason
                    if record.moment is not None and child.launched is not None:
                        self.lost_seconds += (record.moment - child.launched).total_seconds()
                case WarmStarted():
                    self.warm_start = record
                case Inherited():
                    self.inherited += 1
                case SearchEnded():
                    self.search_ended = True
                case Finished():
                    self.finished = record

    def _observe(self, record: Observed, sample: Sample) -> None:
        launch = self._shares.pop(record.sample, None)
        if launch is not None:
            longest = self._longest.get(launch, 0.0)
            self.shared_seconds += min(longest, record.seconds)
            self._longest[launch] = max(longest, record.seconds)
        sample.parameters = record.parameters
        sample.stopped = record.stopped
        rule, rung = sample.rule, record.rung
        # Launched before a change of the epoch, it has a rule of the one and a rung of the other.
        sample.hopeless = rule is not None and rung is not None and rung.epoch == rule.epoch and rule.ends(rung)
        parameters = float(record.parameters) if self.cost_name == "parameters" else 0.0
        sample.cost = record.metrics.get(self.cost_name, parameters)
        if record.reused is not None:
            original = self.sample(record.reused)
            sample.reused = True
            sample.cost, sample.parameters = original.cost, original.parameters

    def _moment(self, moment: datetime | None) -> None:
        if moment is None:
            return
        if moment > self.end:
            self.slot_seconds += self.parallelism * (moment - self.end).total_seconds()
            self.end = moment
        self.timed = True


def read(records: Iterable[Record]) -> History | None:
    """Return the history of a log, or None when there is none yet.

    Raises:
        LogDamaged: the log begins with something else than Started.
    """
    stream = iter(records)
    first = next(stream, None)
    if first is None:
        return None
    if not isinstance(first, Started):
        raise LogDamaged(f"the log begins with {first.type}, not with Started")
    history = History(
        space=search_space(first.search_space, first.architecture),
        space_spec=first.search_space,
        searcher=first.searcher,
        objective=first.objective,
        begin=first.moment,
        end=first.moment,
    )
    history.take(stream)
    return history
