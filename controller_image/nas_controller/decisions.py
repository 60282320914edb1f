"""What to do next, as pure functions of the state and of what has just been observed."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from nas_api.base import duration
from nas_api.child import Result
from nas_api.experiment import EarlyStoppingSpec, FinalTrainingSpec
from nas_api.reasons import LostReason, Reason
from nas_api.reward import reward
from nas_api.stopping import Rung, StopRule
from nas_controller.executor import End
from nas_controller.final_stage import FinalStage
from nas_controller.records import Finished, Lost, Observed, SearchEnded
from nas_controller.state import Core, KnownResult
from nas_store.errors import TooLarge

_LONGEST_MESSAGE = 1000
_LONGEST_END = 4096
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Retry:
    """The sample gets another attempt; ``failures`` of its attempts count against ``trainer.attempts``."""

    failures: int


@dataclass(frozen=True)
class AwaitCure:
    """The environment is at fault: the sample gets another attempt, later, and nothing is counted."""

    reason: Reason
    message: str


Verdict = Observed | Lost | Retry | AwaitCure

_LOST = {
    End.INVALID_INPUT: LostReason.INVALID_ARCHITECTURE,
    End.OUT_OF_MEMORY: LostReason.OUT_OF_MEMORY,
    End.DEADLINE_EXCEEDED: LostReason.DEADLINE_EXCEEDED,
}
_CURABLE = {
    End.DATASET_UNAVAILABLE: Reason.DATASET_UNAVAILABLE,
    # What the trainer may not do with the bucket, the controller just did: its own credentials are at fault.
    End.STORAGE_REFUSED: Reason.CREDENTIALS_REFUSED,
}


def judge(
    core: Core,
    sample: int,
    end: End,
    message: str,
    data: bytes | TooLarge | None,
    attempts: int,
    stopping: EarlyStoppingSpec | None = None,
) -> Verdict:
    """Return what the end of a child means for its open sample.

    A result object decides whatever the end says: it may come from an earlier attempt, or the child may have
    been killed just after it wrote.

    Args:
        core: the state.
        sample: an open sample.
        end: how its newest launch ended.
        message: the child's last words.
        data: the sample's result object, None when there is none, or that it is too large to be read.
        attempts: ``trainer.attempts``.
        stopping: ``trainer.earlyStopping``.
    """
    if isinstance(data, TooLarge):
        return Lost(sample=sample, reason=LostReason.INVALID_RESULT, message=str(data))
    if data is not None:
        return _judge_result(core, sample, data, stopping)
    failures = core.open[sample].failures
    message = message[:_LONGEST_MESSAGE]
    if end in (End.DISRUPTED, End.VANISHED):
        return Retry(failures)
    if end in _LOST:
        return Lost(sample=sample, reason=_LOST[end], message=message)
    if end in _CURABLE:
        return AwaitCure(_CURABLE[end], f"the trainer of sample {sample} says: {message or end}")
    if end is End.SUCCEEDED:
        message = "the trainer ended with success but wrote no result"
    if failures + 1 < attempts:
        return Retry(failures + 1)
    return Lost(sample=sample, reason=LostReason.TRAINER_FAILED, message=message)


def _judge_result(core: Core, sample: int, data: bytes, stopping: EarlyStoppingSpec | None) -> Observed | Lost:
    metric = core.objective.metric
    try:
        result = Result.parse(data, sample=sample, digest=core.open[sample].architecture.digest, metric=metric)
    except (ValueError, RecursionError) as error:
        # RecursionError: JSON nested beyond reason.
        return Lost(sample=sample, reason=LostReason.INVALID_RESULT, message=str(error)[:_LONGEST_MESSAGE])
    try:
        diverged = result.diverged(metric)
        # The lowest reward, so that the policy learns to avoid what diverges.
        value = (
            min(0.0, core.lowest_reward or 0.0)
            if diverged
            else reward(core.objective, result.metrics[metric], result.values)
        )
    except (ValueError, ArithmeticError) as error:
        # ArithmeticError: a finite metric whose reward is not.
        look = f". The trainer's output: {result.look}" if result.look else ""
        message = str(error)[: _LONGEST_MESSAGE - len(look)] + look
        return Lost(sample=sample, reason=LostReason.INVALID_RESULT, message=message)
    return Observed(
        sample=sample,
        metrics=result.metrics,
        diverged=diverged,
        reward=value,
        seconds=result.seconds,
        parameters=result.parameters,
        # A diverged training's reward is the lowest as it is.
        stopped=None if diverged else result.stopped,
        rung=None
        if stopping is None or core.final is not None
        else Rung.of(result.history, stopping.epoch, core.objective.goal),
    )


def reuse(core: Core, sample: int, known: KnownResult) -> Observed:
    """Return the observation of an open sample whose architecture's result is known."""
    metrics = {} if known.metric is None else {core.objective.metric: known.metric}
    return Observed(
        sample=sample,
        metrics=metrics,
        diverged=known.metric is None,
        reward=known.reward,
        reused=known.sample,
        stopped=core.stopped.get(known.sample),
    )


def stop_rule(core: Core, stopping: EarlyStoppingSpec | None) -> StopRule | None:
    """Return what ends children early that are launched now; None: nothing.

    Args:
        core: the state.
        stopping: ``trainer.earlyStopping``.
    """
    if stopping is None or core.final is not None:
        return None
    # The epoch may have been changed in the course of the search.
    metrics = [rung.metric for rung in core.rungs if rung.epoch == stopping.epoch]
    return StopRule.among(metrics, stopping, core.objective.goal)


@dataclass(frozen=True)
class Trouble:
    """The environment keeps children from working; samples wait, and are tried again after a growing pause."""

    reason: Reason
    message: str
    pause: float
    """Seconds between the newest failure of a new try and the next try."""
    retry_at: float
    """When the waiting samples are launched again, on the monotonic clock."""
    first_launch: int
    """Launches from this number on are new tries: how they end says whether the trouble is over."""

    @property
    def over_at(self) -> float:
        """When the trouble counts as over if no new try has failed by then."""
        return self.retry_at + _LONGEST_PAUSE_SECONDS


def troubled(trouble: Trouble | None, verdict: AwaitCure, launch: int, launched: int, now: float) -> Trouble:
    """Return the trouble after one more child met it.

    Args:
        trouble: what was known before.
        verdict: what the child said.
        launch: the child's launch.
        launched: launches so far.
        now: the monotonic clock, in seconds.
    """
    if trouble is None:
        pause = _FIRST_PAUSE_SECONDS
    elif launch < trouble.first_launch:
        # A sibling of those that failed before the pause tells nothing new.
        return replace(trouble, reason=verdict.reason, message=verdict.message)
    else:
        pause = min(2 * trouble.pause, _LONGEST_PAUSE_SECONDS)
    return Trouble(verdict.reason, verdict.message, pause, now + pause, launched)


def deadline(core: Core) -> datetime | None:
    """Return the moment after which nothing more is proposed, where the budget has a duration."""
    if core.budget is None or core.budget.duration is None:
        return None
    limit: timedelta = duration(core.budget.duration)
    return core.started + limit


def may_propose(core: Core, now: datetime) -> int:
    """Return how many samples, or final trainings, may be begun at this moment."""
    if core.final is not None:
        return max(0, min(core.parallelism - len(core.open), core.final.room()))
    limit = deadline(core)
    if core.budget is None or core.outcome is not None or (limit is not None and now >= limit):
        return 0
    return max(0, min(core.parallelism - len(core.open), core.budget.samples - core.proposed))


def conclusion(core: Core, now: datetime, final_training: FinalTrainingSpec | None) -> Finished | SearchEnded | None:
    """Return the record that ends the experiment or its search, if that has come to its end.

    Budget and duration are the search's alone, and so are its failures: a final training that fails costs nothing
    but its own result.
    """
    if core.final is not None:
        return _final_conclusion(core, core.final)
    end = _search_conclusion(core, now)
    if end is None or end.outcome == "Failed" or final_training is None or not core.leaders:
        return end
    return SearchEnded(reason=end.reason, message=end.message, final_training=final_training)


def _final_conclusion(core: Core, stage: FinalStage) -> Finished | None:
    if core.outcome is not None or core.open or not stage.over:
        return None
    message = f"{stage.message}; {stage.summary(core.objective.metric)}"
    return Finished(outcome="Complete", reason=stage.reason, message=message[:_LONGEST_END])


def _search_conclusion(core: Core, now: datetime) -> Finished | None:
    budget, done = core.budget, core.observed + core.lost
    if budget is None or core.outcome is not None:
        return None
    if core.consecutive_lost >= budget.consecutive_failures:
        return Finished(
            outcome="Failed",
            reason=Reason.CONSECUTIVE_FAILURES,
            message=f"{core.consecutive_lost} samples in a row were lost; the last one was {core.last_loss}",
        )
    if core.open:
        return None
    counts = f"{core.observed} samples observed, {core.lost} lost"
    if done >= budget.samples:
        return Finished(outcome="Complete", reason=Reason.SAMPLES_SPENT, message=counts)
    limit = deadline(core)
    if limit is not None and now >= limit:
        return Finished(outcome="Complete", reason=Reason.DURATION_SPENT, message=f"{counts} within {budget.duration}")
    return None
