"""Records what is decided, and orders the launches that follow from it. No effects: those come after the append."""

import structlog

from nas_api import names
from nas_api.experiment import NASExperimentSpec
from nas_controller import decisions
from nas_controller.clock import Clock
from nas_controller.executor import End
from nas_controller.journal import Journal
from nas_controller.launches import Launches
from nas_controller.results import Answer
from nas_controller.state import Core
from nas_log.records import FinalProposed, Launched, Lost, Observed, Reconfigured, SearchEnded

_log = structlog.get_logger()

# Samples that one object of the log may begin: with hundreds in flight the first ones need not wait for all.
_PROPOSALS_AT_ONCE = 64


class Decider:
    """Brings a journal and the launches forward. The spec is the manifest's, at the time of the call."""

    def __init__(self, journal: Journal, launches: Launches, clock: Clock) -> None:
        self._journal = journal
        self._launches = launches
        self._clock = clock

    def reconfigure(self, spec: NASExperimentSpec) -> None:
        """Record what has changed of the spec that decisions depend on."""
        if (self._core.parallelism, self._core.budget) != (spec.parallelism, spec.budget):
            self._journal.record(Reconfigured(parallelism=spec.parallelism, budget=spec.budget))

    def can_propose(self, spec: NASExperimentSpec) -> bool:
        """Return whether ``decide`` would begin another sample."""
        begins = not self._launches.suspended and not self._launches.in_trouble
        return begins and self._may_propose(spec)

    def decide(self, spec: NASExperimentSpec) -> None:
        """Begin what there is room for, launch what is due, and end what has come to its end."""
        self._reuse()
        self._conclude(spec)
        if self._core.outcome is not None or self._launches.suspended:
            return
        self._launches.try_again(self._clock.monotonic())
        if not self._launches.in_trouble:
            # Asked anew each time: a sample whose result is known takes no room, but is of the budget.
            together = self._together(spec)
            for _ in range(_PROPOSALS_AT_ONCE - _PROPOSALS_AT_ONCE % together):
                if not self._may_propose(spec):
                    break
                self._propose(spec)
        self._launch_due(spec)
        # The last sample may have had its result at once: no event would wake us for the end.
        self._conclude(spec)

    def settle(self, spec: NASExperimentSpec, answer: Answer) -> None:
        """Take what the store knows of a launch that has ended or was never seen."""
        asked = answer.question
        if asked.end is None and all(data is None for data in answer.results.values()):
            # Recorded, but its Job was never created, or is long gone.
            self._launches.never_created(asked.launch)
            return
        now = self._clock.monotonic()
        if None in answer.results.values() and self._launches.is_late(asked, now):
            return
        end = asked.end or End.VANISHED
        verdicts = {sample: self._judge(spec, sample, end, answer) for sample in answer.results}
        self._launches.settled(asked.launch, verdicts, self._core.launched, now)

    @property
    def _core(self) -> Core:
        return self._journal.state.core

    def _together(self, spec: NASExperimentSpec) -> int:
        """Return how many samples a launch may have; a final training is alone with the device."""
        return 1 if self._core.final is not None else spec.trainer.children_per_pod

    def _may_propose(self, spec: NASExperimentSpec) -> bool:
        return decisions.may_propose(self._core, self._clock.now(), self._together(spec)) > 0

    def _judge(self, spec: NASExperimentSpec, sample: int, end: End, answer: Answer) -> decisions.Verdict:
        """Return what a launch's end means for one of its samples; record it if it is that one's own end."""
        core, trainer, message = self._core, spec.trainer, answer.question.message
        verdict = decisions.judge(
            core,
            sample,
            end,
            message,
            answer.results[sample],
            trainer.attempts,
            trainer.early_stopping,
            files=answer.files.get(sample),
            progressed=names.checkpoint_key(sample, core.open[sample].attempt) in answer.checkpoints,
        )
        match verdict:
            case Observed() | Lost():
                _log.info("sample done", sample=sample, record=verdict.type, **_summary(verdict))
                self._journal.record(verdict)
            case decisions.Retry():
                _log.info("another attempt", sample=sample, end=end, message=message, **vars(verdict))
            case decisions.AwaitCure():
                _log.warning("waiting for a cure", sample=sample, reason=verdict.reason, message=verdict.message)
        return verdict

    def _reuse(self) -> None:
        """Observe the samples whose architecture's result is known by now."""
        for observed in decisions.reused(self._core):
            _log.info("sample reused", sample=observed.sample, of=observed.reused, reward=observed.reward)
            self._journal.record(observed)

    def _conclude(self, spec: NASExperimentSpec) -> None:
        """Record the end of the search, or of the experiment, if it has come."""
        end = decisions.conclusion(self._core, self._clock.now(), spec.final_training)
        if end is None:
            return
        if isinstance(end, SearchEnded):
            _log.info("final training begins", reason=end.reason, message=end.message)
        else:
            self._launches.end_all()
            _log.info("search ends", outcome=end.outcome, reason=end.reason, message=end.message)
        self._journal.record(end)

    def _propose(self, spec: NASExperimentSpec) -> None:
        core = self._core
        if core.final is None:
            self._journal.record(self._journal.state.propose())
            self._reuse()
        else:
            architecture, run = core.final.next(spec.trainer.optimizer)
            self._journal.record(FinalProposed(sample=core.next_sample, architecture=architecture, run=run))

    def _launch_due(self, spec: NASExperimentSpec) -> None:
        """Record a launch for all samples that are to have one."""
        core = self._core
        stop = decisions.stop_rule(core, spec.trainer.early_stopping)
        for samples, failures in list(decisions.packs(core, self._launches.due, self._together(spec))):
            attempt = core.open[samples[0]].attempt + 1
            launch = core.launched
            self._journal.record(
                Launched(launch=launch, samples=samples, attempt=attempt, failures=failures, stop=stop)
            )
            self._launches.launch(launch, samples)


def _summary(record: Observed | Lost) -> dict[str, object]:
    if isinstance(record, Observed):
        stopped = {} if record.stopped is None else {"stopped": f"after {record.stopped.epoch} of {record.stopped.of}"}
        return {"reward": record.reward, "metrics": record.metrics, **stopped}
    return {"reason": record.reason, "message": record.message}
