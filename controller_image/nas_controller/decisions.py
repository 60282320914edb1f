"""What to do next, as pure functions of the state and of what has just been observed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from nas_api.base import duration
from nas_api.child import Result, StoreLocation
from nas_api.experiment import LONGEST_MESSAGE, EarlyStoppingSpec, FinalTrainingSpec, NASExperiment
from nas_api.harmless import harmless
from nas_api.reasons import LostReason, Reason
from nas_api.reward import reward
from nas_api.stopping import Rung, StopRule
from nas_api.trainer_input import trainer_input
from nas_controller.executor import End, Launch
from nas_controller.final_stage import FinalStage
from nas_controller.state import Core, KnownResult
from nas_log.records import Finished, Lost, Observed, SearchEnded
from nas_store.errors import TooLarge

_LONGEST_MESSAGE = 1000
_STORE_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


@dataclass(frozen=True)
class Retry:
    """The sample gets another attempt; ``failures`` of its attempts count against ``trainer.attempts``."""

    failures: int
    alone: bool = False
    """Whether it is launched with no other sample, so that its next end is its own."""


@dataclass(frozen=True)
class AwaitCure:
    """The environment is at fault: the sample gets another attempt, later, and nothing is counted."""

    reason: Reason
    message: str
    failures: int
    """As many as before; see ``Retry``."""


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
    End.NO_CUDA: Reason.NO_CUDA,
    # The controller has just read the store: something stands between it and the trainer's node.
    End.STORAGE_UNREACHABLE: Reason.STORE_UNREACHABLE,
}


def judge(
    core: Core,
    sample: int,
    end: End,
    message: str,
    data: bytes | TooLarge | None,
    attempts: int,
    stopping: EarlyStoppingSpec | None = None,
    *,
    files: Mapping[str, str] | None = None,
    progressed: bool = False,
) -> Verdict:
    """Return what the end of a launch means for one of its open samples.

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
        files: of the final training's test: SHA-256 in hex of what it has left, by file name.
        progressed: whether the newest attempt has saved a checkpoint of its own.
    """
    if isinstance(data, TooLarge):
        return Lost(sample=sample, reason=LostReason.INVALID_RESULT, message=str(data))
    if data is not None:
        return _judge_result(core, sample, data, stopping, files)
    current = core.open[sample]
    failures = current.failures
    message = harmless(message)[:_LONGEST_MESSAGE]
    if end in (End.DISRUPTED, End.VANISHED):
        return Retry(failures)
    if end is End.DEADLINE_EXCEEDED and current.final is not None and progressed:
        # The deadline is one pod's, and the training may take several.
        return Retry(failures)
    if end in _CURABLE:
        return AwaitCure(_CURABLE[end], f"the trainer of sample {sample} says: {message or end}", failures)
    if current.together > 1:
        # Which of them it was, the end does not say.
        return Retry(failures, alone=True)
    if end in _LOST:
        return Lost(sample=sample, reason=_LOST[end], message=message)
    if end is End.SUCCEEDED:
        message = "the trainer ended successfully but wrote no result"
    if failures + 1 < attempts:
        return Retry(failures + 1)
    return Lost(sample=sample, reason=LostReason.TRAINER_FAILED, message=message)


def _judge_result(
    core: Core, sample: int, data: bytes, stopping: EarlyStoppingSpec | None, files: Mapping[str, str] | None
) -> Observed | Lost:
    metric = core.objective.metric
    try:
        result = Result.parse(data, sample=sample, digest=core.open[sample].architecture.digest, metric=metric)
    except (ValueError, RecursionError) as error:
        # RecursionError: JSON nested beyond reason. What is refused may be quoted.
        message = harmless(str(error))[:_LONGEST_MESSAGE]
        return Lost(sample=sample, reason=LostReason.INVALID_RESULT, message=message)
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
        files=dict(files) if files else None,
    )


def reused(core: Core) -> list[Observed]:
    """Return the observations of open samples whose architecture's result has become known without them."""
    if not core.reuses:
        return []
    return [
        _reuse(core, sample, core.known[current.identity])
        for sample, current in core.open.items()
        if current.launch is None and current.final is None and current.identity in core.known
    ]


def _reuse(core: Core, sample: int, known: KnownResult) -> Observed:
    metrics = {} if known.metric is None else {core.objective.metric: known.metric}
    return Observed(
        sample=sample,
        metrics=metrics,
        diverged=known.metric is None,
        reward=known.reward,
        reused=known.sample,
        stopped=core.stopped.get(known.sample),
    )


def first_launches(core: Core) -> list[int]:
    """Return the open samples that have no launch yet and are to get one, in their order.

    Where duplicates are reused, one of those with an equal architecture is launched at a time; the others wait for it.
    """
    new = [sample for sample, current in core.open.items() if current.launch is None]
    if not new or not core.reuses or core.final is not None:
        return new
    in_flight = {current.identity for current in core.open.values() if current.launch is not None}
    firsts = {core.open[sample].identity: sample for sample in reversed(new)}
    return [sample for sample in new if firsts[(own := core.open[sample].identity)] == sample and own not in in_flight]


def packs(core: Core, due: Mapping[int, Retry], together: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield what is to be launched: samples that share a launch, and how many of their attempts have failed.

    Args:
        core: the state; it may be changed by these launches while they are taken.
        due: open samples that get another attempt.
        together: how many samples a launch may have.
    """
    # A record of a launch says the same of all its samples: only those with the same past share one.
    alike: dict[tuple[int, int, int | None], list[int]] = {(0, 0, None): first_launches(core)}
    for sample, retry in sorted(due.items()):
        current = core.open[sample]
        # Who was tried alone stays alone: in company again, the next end would tell nothing.
        alone = retry.alone or current.together == 1
        past = (current.attempt, retry.failures, sample if alone else None)
        alike.setdefault(past, []).append(sample)
    for (_, failures, _), samples in alike.items():
        for start in range(0, len(samples), together):
            yield tuple(samples[start : start + together]), failures


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


def children(
    core: Core, experiment: NASExperiment, location: StoreLocation, launch: int, samples: tuple[int, ...]
) -> Launch:
    """Return a launch with all that its children are told.

    Args:
        core: the state; it has the launch's record.
        experiment: the manifest.
        location: where results go, as children are told it.
        launch: its number.
        samples: the open samples that share it.
    """
    inputs = []
    for sample in samples:
        own = core.open[sample]
        inputs.append(trainer_input(experiment, location, sample, own.attempt, own.architecture, own.final, own.stop))
    return Launch(launch, tuple(inputs))


def store_pause(failures: int) -> float:
    """Return how many seconds a store is left alone that has failed so many times before, and now again."""
    return _STORE_PAUSES_SECONDS[min(failures, len(_STORE_PAUSES_SECONDS) - 1)]


def deadline(core: Core) -> datetime | None:
    """Return the moment after which nothing more is proposed, where the budget has a duration."""
    if core.budget is None or core.budget.duration is None:
        return None
    limit: timedelta = duration(core.budget.duration)
    return core.started + limit


def may_propose(core: Core, now: datetime, together: int) -> int:
    """Return how many samples, or final trainings, may be begun at this moment.

    A sample that waits for the result of an equal one takes room, too: a policy that proposes nothing else any more is
    to see that result before it goes on.

    Args:
        core: the state.
        now: the time.
        together: how many samples a launch may have: a new one is begun when there is room for all of them.
    """
    if core.final is not None:
        return max(0, min(core.parallelism - len(core.open), core.final.room()))
    limit = deadline(core)
    if core.budget is None or core.outcome is not None or (limit is not None and now >= limit):
        return 0
    left = core.budget.samples - core.proposed
    room = min(core.parallelism - len(core.open), left)
    begun = len(first_launches(core)) % together
    # Never more than an idle search has room for: nothing waits for ever.
    return room if room > 0 and (begun or room >= min(together, core.parallelism, left)) else 0


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
    return Finished(outcome="Complete", reason=stage.reason, message=message[:LONGEST_MESSAGE])


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
