"""What a report draws: the facts that the log's reader tells, and one small row a sample.

Rows hold choices, not architectures: 12,800 networks of 15 layers are 8 MB of numbers and a hundred of objects.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from nas_api.architecture import Architecture
from nas_api.bounds import LARGEST, LARGEST_COUNT, LARGEST_REWARD, mean
from nas_api.decisions import Choices, Decision
from nas_api.stopping import Stopped, StopRule
from nas_log.errors import LogDamaged
from nas_log.reader import Facts, Reader, Sample
from nas_log.records import FinalRun, Record


class Fate(Enum):
    """What has become of a sample."""

    OPEN = "in flight"
    TRAINED = "trained"
    DIVERGED = "diverged"
    LOST = "lost"


_FATES = {"Open": Fate.OPEN, "Observed": Fate.TRAINED, "Diverged": Fate.DIVERGED, "Lost": Fate.LOST}


@dataclass(slots=True)
class Row:
    """One sample of the search. Of an open one only the first five are known."""

    number: int
    choices: Choices
    random: bool
    """Whether it belongs to the random arm, which the policy does not learn from."""
    launches: int = 0
    rule: StopRule | None = None
    """The early stopping of its newest launch, which ends no sample of the random arm."""
    fate: Fate = Fate.OPEN
    reason: str = ""
    """Why it was lost."""
    reused: bool = False
    """Whether an equal architecture's result was taken, and nothing was trained."""
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
    metric: float = 0.0
    """Of the validation set, or of the test set where the run says so; meaningless unless trained."""
    reward: float = 0.0
    """Likewise; what the trainings are ranked by."""
    seconds: float = 0.0


@dataclass(slots=True)
class FinalTrial:
    """The trainings of one network with the same settings: one, or one for each seed."""

    run: FinalRun
    """What they have in common."""
    trainings: list[FinalTraining] = field(default_factory=list)

    @property
    def metrics(self) -> list[float]:
        """Of those that were trained."""
        return [each.metric for each in self.trainings if each.fate is Fate.TRAINED]

    @property
    def reward(self) -> float:
        """The mean, in which those that diverged count; what trials are ranked by."""
        return mean([each.reward for each in self.trainings if each.fate in (Fate.TRAINED, Fate.DIVERGED)])


class History:
    """A search as a report draws it; ``add`` goes on with it."""

    def __init__(self, log: Reader) -> None:
        """Prepare.

        Args:
            log: what has told of the samples that are added; it has the facts and the open ones.
        """
        self.samples: list[Row] = []
        """The search's, in the order of their numbers, which begin at 0 unless it goes on with another's samples."""
        self.finals: list[FinalTraining] = []
        """Of the final stage, in the order of their numbers."""
        self.lost_seconds = 0.0
        """Between launch and loss of attempts that gave nothing."""
        self.shared_seconds = 0.0
        """How much longer the trainings of children that shared a pod were in all than the longest of each pod."""
        self._log = log
        self._ended: dict[int, Row | FinalTraining] = {}
        self._numbered: dict[int, Row | FinalTraining] = {}
        self._decisions: tuple[Decision, ...] = ()
        self._longest: dict[int, float] = {}
        """The longest training so far, in seconds, of each launch of several samples."""

    def final_trials(self) -> list[FinalTrial]:
        """Return the trainings of the final stage but the test, those with equal settings together."""
        trials: dict[str, FinalTrial] = {}
        for each in self.finals:
            if not each.run.settings.test:
                trial = trials.setdefault(each.run.model_dump_json(), FinalTrial(each.run))
                trial.trainings.append(each)
        return list(trials.values())

    @property
    def facts(self) -> Facts:
        """What the log tells of the whole search; there must be a log."""
        assert self._log.facts is not None
        return self._log.facts

    @property
    def cost_name(self) -> str:
        """What ``Row.cost`` is."""
        penalties = self.facts.objective.penalties
        return penalties[0].metric if penalties else "parameters"

    @property
    def sign(self) -> int:
        """1 when more of the metric is better, else -1."""
        return 1 if self.facts.objective.goal == "Maximize" else -1

    def trained(self) -> list[Row]:
        """Return the samples with a finite result, in the order of their numbers."""
        return [sample for sample in self.samples if sample.fate is Fate.TRAINED]

    def count(self, fate: Fate) -> int:
        """Return how many samples have this fate."""
        return sum(sample.fate is fate for sample in self.samples)

    def architecture(self, sample: Row) -> Architecture:
        """Return a sample's network."""
        architecture: Architecture = self.facts.space.decode(sample.choices)
        return architecture

    def sample(self, number: int) -> Row:
        """Return the search's sample of this number."""
        found = self._numbered[number]
        assert isinstance(found, Row)
        return found

    def best(self, count: int) -> list[Row]:
        """Return the trained samples of highest reward, each architecture once; the first of equals comes first.

        Those that were stopped early are not among them.
        """
        whole = [sample for sample in self.trained() if sample.stopped is None]
        ranked = sorted(whole, key=lambda sample: (-sample.reward, sample.number))
        first: dict[Choices, Row] = {}
        for sample in ranked:
            first.setdefault(sample.choices, sample)
        return [*first.values()][:count]

    def decisions(self, sample: Row) -> tuple[Decision, ...]:
        """Return what was decided; making the tuple anew for each sample would take seconds."""
        if len(self._decisions) != len(sample.choices):
            self._decisions = self.facts.space.decisions(sample.number)
            if len(self._decisions) != len(sample.choices):
                raise LogDamaged(f"the architecture of sample {sample.number} is not of its space")
        return self._decisions

    def add(self, ended: Iterable[Sample]) -> None:
        """Go on with samples that have ended, as the reader yields them; the open ones come from it.

        Raises:
            LogDamaged: a sample's architecture is not of the search's space.
        """
        for sample in ended:
            # What an earlier experiment has trained is no cost or result of this one.
            if sample.arm != "inherited":
                self._ended[sample.number] = self._row(sample)
                self._time(sample)
        rows = {**self._ended, **{number: self._row(sample) for number, sample in self._log.open.items()}}
        self._numbered = dict(sorted(rows.items()))
        self.samples = [row for row in self._numbered.values() if isinstance(row, Row)]
        self.finals = [row for row in self._numbered.values() if isinstance(row, FinalTraining)]

    def _row(self, sample: Sample) -> Row | FinalTraining:
        fate, metric = _FATES[sample.state], _drawn(sample.metrics.get(self.facts.objective.metric, 0.0))
        reward, seconds = _drawn(sample.reward or 0.0), _drawn(sample.seconds or 0.0, LARGEST)
        if sample.final is not None:
            return FinalTraining(sample.number, sample.final, fate, sample.reason, metric, reward, seconds)
        rule, rung = sample.launches[-1].stop if sample.launches else None, sample.rung
        return Row(
            number=sample.number,
            choices=self._choices(sample),
            random=sample.arm == "random",
            launches=len(sample.launches),
            rule=rule,
            fate=fate,
            reason=sample.reason,
            reused=sample.reused is not None,
            stopped=None if sample.stopped is None or sample.stopped.of > LARGEST_COUNT else sample.stopped,
            # Launched before a change of the epoch, it has a rule of the one and a rung of the other.
            hopeless=rule is not None and rung is not None and rung.epoch == rule.epoch and rule.ends(rung),
            reward=reward,
            metric=metric,
            cost=_drawn(sample.metrics.get(self.cost_name, 0.0)),
            parameters=min(sample.parameters or 0, LARGEST_COUNT),
            seconds=seconds,
        )

    def _choices(self, sample: Sample) -> Choices:
        try:
            return self.facts.space.encode(sample.architecture)
        except (ValueError, LookupError) as error:
            raise LogDamaged(f"the architecture of sample {sample.number} is not of its space: {error}") from error

    def _time(self, sample: Sample) -> None:
        if not sample.launches:
            return
        launched = sample.launches[-1]
        if sample.state == "Lost":
            if sample.ended is not None and launched.moment is not None:
                self.lost_seconds += (sample.ended - launched.moment).total_seconds()
        elif sample.final is None and len(launched.samples) > 1:
            longest, seconds = self._longest.get(launched.launch, 0.0), _drawn(sample.seconds or 0.0, LARGEST)
            self.shared_seconds += min(longest, seconds)
            self._longest[launched.launch] = max(longest, seconds)


def _drawn(value: float, largest: float = LARGEST_REWARD) -> float:
    """Return a number that can be drawn, whatever an older version has let into the log."""
    if math.isnan(value) or abs(value) < 1 / LARGEST_REWARD:
        return 0.0
    return max(-largest, min(largest, value))


def read(records: Iterable[Record]) -> History | None:
    """Return the history that a log's records tell, or None when there are none yet.

    Raises:
        LogDamaged: the records do not fit each other.
    """
    log = Reader()
    history = History(log)
    history.add(log.take(records))
    return history if log.facts is not None else None
