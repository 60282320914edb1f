"""The state of a search: the fold of its log. No clock, no input or output, no randomness of its own.

What is running in the cluster at this moment is not here: that is observed, not remembered (``search``).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import AwareDatetime

from nas_api.architecture import Architecture
from nas_api.experiment import BudgetSpec, Outcome, SearcherSpec
from nas_api.experiment import ObjectiveSpec as Objective
from nas_api.search_space import SearchSpace, SearchSpaceSpec, search_space
from nas_api.stopping import Rung, Stopped, StopRule
from nas_controller.control import Comparison, arm_of
from nas_controller.final_stage import MOST_FINALISTS, Finalist, FinalStage, Leader, ranked
from nas_controller.policies import Policy, Proposal
from nas_controller.policies.random import RandomPolicy
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

MakePolicy = Callable[[SearcherSpec, SearchSpace], Policy]

RUNGS = 100
"""So many of the newest children are compared with, where hopeless ones are stopped early."""
MEAN_OF = 20
"""Over how many samples the first and the last mean reward are taken."""


@dataclass
class OpenSample:
    """A sample that is proposed and neither observed nor lost."""

    architecture: Architecture
    identity: str
    """``identity`` of the architecture."""
    launch: int | None = None
    """Its newest launch."""
    together: int = 1
    """Samples of that launch."""
    attempt: int = 0
    failures: int = 0
    """Attempts that count against ``trainer.attempts``."""
    arm: Arm = "policy"
    """Who drew it."""
    final: FinalRun | None = None
    """What makes it a final training; None: a sample of the search."""
    stop: StopRule | None = None
    """What ends its newest attempt early."""


class KnownResult(NamedTuple):
    """What the first observed sample of an architecture gave: a row and not an object, for there may be many."""

    sample: int
    reward: float
    metric: float | None
    """None: it diverged."""


@dataclass
class BestSample:
    """The sample with the highest reward so far; the first of equals."""

    sample: int
    reward: float
    metric: float
    architecture: Architecture


@dataclass
class Core:
    """Everything but the policy: small (a row for each known or stopped one), and as JSON in each snapshot."""

    started: AwareDatetime
    search_space: SearchSpaceSpec
    searcher: SearcherSpec
    objective: Objective
    epoch: int
    parallelism: int = 0
    budget: BudgetSpec | None = None
    records: int = 0
    proposed: int = 0
    launched: int = 0
    retried: int = 0
    observed: int = 0
    lost: int = 0
    diverged: int = 0
    reused: int = 0
    consecutive_lost: int = 0
    last_loss: str = ""
    lowest_reward: float | None = None
    best: BestSample | None = None
    first_rewards: list[float] = field(default_factory=list)
    """Rewards of the first ``MEAN_OF`` observed samples that the policy drew."""
    last_rewards: list[float] = field(default_factory=list)
    """Rewards of the last ``MEAN_OF`` observed samples that the policy drew."""
    known: dict[str, KnownResult] = field(default_factory=dict)
    """By ``identity`` of the architecture; empty unless duplicates are reused."""
    stopped: dict[int, Stopped] = field(default_factory=dict)
    """Samples whose training was stopped early, and those that took such a result; by number."""
    rungs: list[Rung] = field(default_factory=list)
    """Of the last ``RUNGS`` children that have one, in the order in which they were observed."""
    leaders: list[Leader] = field(default_factory=list)
    """The best architectures so far, at most ``MOST_FINALISTS``, best first."""
    architecture: Architecture | None = None
    """What ``searchSpace.fixed`` stands for."""
    warm_start: WarmStarted | None = None
    """The record of the warm start; None without one."""
    inherited: int = 0
    """Samples taken over from the earlier experiment so far."""
    comparison: Comparison | None = None
    """The policy against the random arm; None without one."""
    final: FinalStage | None = None
    """The final training; None as long as the search goes on."""
    open: dict[int, OpenSample] = field(default_factory=dict)
    outcome: Outcome | None = None

    @property
    def next_sample(self) -> int:
        """The number of the next sample, or of the next final training."""
        first = 0 if self.warm_start is None else self.warm_start.first_sample
        return first + self.proposed + (0 if self.final is None else self.final.begun)

    @property
    def reuses(self) -> bool:
        """Whether equal architectures share one result; the one of a fixed space is there to be trained repeatedly."""
        return self.searcher.duplicates == "Reuse" and self.architecture is None

    @property
    def to_inherit(self) -> int:
        """How many samples of the earlier experiment are still to come."""
        return 0 if self.warm_start is None else self.warm_start.samples - self.inherited


class SearchState:
    """The fold: ``apply`` takes records in the log's order, live and in replay alike."""

    def __init__(self, core: Core, policy: Policy) -> None:
        self.core = core
        self.policy = policy
        self.space = search_space(core.search_space, core.architecture)
        self._random = RandomPolicy(core.searcher, self.space)

    @classmethod
    def begin(cls, started: Started, make_policy: MakePolicy) -> "SearchState":
        """Return the state after a log's first record."""
        core = Core(
            started=started.moment,
            search_space=started.search_space,
            searcher=started.searcher,
            objective=started.objective,
            epoch=started.epoch,
            records=1,
            architecture=started.architecture,
            comparison=None if started.searcher.control is None else Comparison(),
        )
        return cls(core, make_policy(started.searcher, search_space(started.search_space, started.architecture)))

    def propose(self) -> Proposed:
        """Return the next sample's record; changes nothing."""
        sample = self.core.next_sample
        arm = arm_of(self.core.searcher, sample)
        proposal = (self.policy if arm == "policy" else self._random).propose(sample)
        return Proposed(
            sample=sample,
            architecture=self.space.decode(proposal.choices),
            log_probability=proposal.log_probability,
            version=proposal.version,
            arm=arm,
        )

    def apply(self, record: Record) -> None:
        """Take one record.

        Raises:
            LogDamaged: the record cannot follow those before it.
        """
        core = self.core
        if core.outcome is not None and not isinstance(record, Started):
            raise LogDamaged(f"a {record.type} record follows Finished")
        match record:
            case Started():
                # Each counts on; whoever skipped one could lock all controllers after it out of the status.
                self._expect(record.epoch == core.epoch + 1, record)
                core.epoch = record.epoch
            case WarmStarted():
                self._expect(core.warm_start is None and core.proposed == 0, record)
                core.warm_start = record
            case Inherited():
                self._expect(core.to_inherit > 0 and math.isfinite(record.reward), record)
                self._inherit(record)
            case Reconfigured():
                core.parallelism, core.budget = record.parallelism, record.budget
            case Proposed():
                self._expect(record.sample == core.next_sample and core.final is None and not core.to_inherit, record)
                if record.arm == "policy":
                    choices = self.space.encode(record.architecture)
                    self.policy.proposed(record.sample, Proposal(choices, record.log_probability, record.version))
                core.open[record.sample] = OpenSample(
                    record.architecture, identity(record.architecture), arm=record.arm
                )
                core.proposed += 1
            case Launched():
                self._expect(record.launch == core.launched, record)
                for sample in record.samples:
                    self._expect(sample in core.open, record)
                    current = core.open[sample]
                    core.retried += current.launch is not None and current.final is None
                    current.launch, current.together = record.launch, len(record.samples)
                    current.attempt, current.failures = record.attempt, record.failures
                    # Stopped early, the arm would no longer be what the policy is compared with.
                    current.stop = record.stop if current.arm == "policy" else None
                core.launched += 1
            case Observed():
                self._expect(record.sample in core.open and math.isfinite(record.reward), record)
                metric = self._metric(record)
                self._expect(metric is None or math.isfinite(metric), record)
                current = core.open.pop(record.sample)
                if current.final is None:
                    self._observe(record, current, metric)
                else:
                    self._final_stage(record).observe(record.sample, current.final, metric, record.reward, record.files)
            case Lost():
                self._expect(record.sample in core.open, record)
                current = core.open.pop(record.sample)
                loss = f"sample {record.sample}: {record.reason}: {record.message}".rstrip(": ")
                if current.final is None:
                    core.lost += 1
                    core.consecutive_lost += 1
                    core.last_loss = loss
                    if current.arm == "policy":
                        self.policy.lost(record.sample)
                else:
                    self._final_stage(record).lose(current.final, loss)
            case SearchEnded():
                self._expect(core.final is None and not core.open, record)
                core.final = FinalStage(
                    record.final_training,
                    record.reason,
                    record.message,
                    [
                        Finalist(leader.sample, leader.reward, leader.architecture)
                        for leader in core.leaders[: record.final_training.top]
                    ],
                )
            case FinalProposed():
                self._expect(record.sample == core.next_sample, record)
                self._final_stage(record).begin(record.sample, record.run)
                core.open[record.sample] = OpenSample(
                    record.architecture, identity(record.architecture), final=record.run
                )
            case Finished():
                core.outcome = Outcome(type=record.outcome, reason=record.reason, message=record.message)
        core.records += 1

    def _inherit(self, record: Inherited) -> None:
        core = self.core
        core.inherited += 1
        if not record.diverged:
            core.lowest_reward = record.reward if core.lowest_reward is None else min(core.lowest_reward, record.reward)
        choices = self.space.encode(record.architecture)
        # Our policy had made no update when this was drawn, and what drew it may have had no probabilities.
        self.policy.proposed(record.sample, Proposal(choices, math.nan, version=0))
        self.policy.observed(record.sample, record.reward)

    def _observe(self, record: Observed, current: OpenSample, metric: float | None) -> None:
        core = self.core
        core.observed += 1
        core.diverged += record.diverged
        if record.stopped is not None:
            core.stopped[record.sample] = record.stopped
        if record.rung is not None:
            core.rungs = [*core.rungs[-RUNGS + 1 :], record.rung]
        if record.reused is None:
            core.consecutive_lost = 0
            if core.reuses:
                core.known.setdefault(current.identity, KnownResult(record.sample, record.reward, metric))
        else:
            core.reused += 1
        if metric is not None:
            self._rank(record, metric, current)
        if core.comparison is not None:
            core.comparison.add(current.arm, record.reward)
        if current.arm == "policy":
            if len(core.first_rewards) < MEAN_OF:
                core.first_rewards.append(record.reward)
            core.last_rewards = [*core.last_rewards[-MEAN_OF + 1 :], record.reward]
            self.policy.observed(record.sample, record.reward)

    def _rank(self, record: Observed, metric: float, current: OpenSample) -> None:
        """Compare a sample that did not diverge with those before it."""
        core = self.core
        lowest = core.lowest_reward
        core.lowest_reward = record.reward if lowest is None else min(lowest, record.reward)
        if record.stopped is not None:
            # Nobody knows what it would have become.
            return
        if core.best is None or record.reward > core.best.reward:
            core.best = BestSample(record.sample, record.reward, metric, current.architecture)
        if len(core.leaders) < MOST_FINALISTS or record.reward > core.leaders[-1].reward:
            leader = Leader(record.sample, record.reward, current.architecture, current.identity)
            core.leaders = ranked(core.leaders, leader)

    def _metric(self, record: Observed) -> float | None:
        """Return the objective's metric; None: the training diverged."""
        return None if record.diverged else record.metrics[self.core.objective.metric]

    def _final_stage(self, record: Record) -> FinalStage:
        if self.core.final is None:
            raise LogDamaged(f"a final {record.type} record comes before SearchEnded")
        return self.core.final

    @staticmethod
    def _expect(condition: bool, record: Record) -> None:
        if not condition:
            raise misfit(record)


def identity(architecture: Architecture) -> str:
    """Return what tells an architecture from all others, shorter than its digest: 128 bits of it in hex."""
    return architecture.digest[:32]


def fold(records: Iterable[Record], make_policy: MakePolicy, state: SearchState | None = None) -> SearchState | None:
    """Return the state after these records, or None when there are none.

    Args:
        records: in the log's order.
        make_policy: builds the policy in its state before the first sample.
        state: the state before these records (it is changed); None for the log's beginning.

    Raises:
        LogDamaged: the records do not fit each other.
    """
    for record in records:
        if state is None and not isinstance(record, Started):
            raise LogDamaged(f"the log begins with {record.type}, not with Started")
        try:
            if state is not None:
                state.apply(record)
            elif isinstance(record, Started):
                state = SearchState.begin(record, make_policy)
        except (ValueError, ArithmeticError, LookupError) as error:
            # Nothing of ours has written it: a model lets more pass than a search does.
            raise misfit(record) from error
    return state
