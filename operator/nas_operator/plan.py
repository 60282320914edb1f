"""What should be done for one experiment, decided from what is: no clock, no API.

The reconciler carries out the actions in their order and looks again, until a plan has none. An action that the
API server refuses comes back as ``Observed.refusal``, and the next plan says so in the status.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import ValidationError

from nas_api import names
from nas_api.experiment import NASExperiment, Outcome
from nas_api.reasons import EXPLANATIONS, ConditionType, Reason, queue_words
from nas_kube import reading
from nas_kube.reading import conditions, true_condition
from nas_operator import builders
from nas_operator.builders import Object, Trial
from nas_operator.conditions import Condition, Event, Standing, condition, events, standing, status, told
from nas_operator.network import endpoint_refusal, network_policies, tracker_refusal
from nas_operator.observed import QUICK, STARTED_LATE, ControllerPod, Observed, pod_index, recorded_pod, starts_late
from nas_operator.settings import Settings

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
_SUSPENDING = timedelta(seconds=5)
_REFUSED_FOLLOWER = timedelta(seconds=60)
# Controllers in a row that may end soon without having ended the children that outlived their search: some cannot.
_ORPHAN_TRIES = 5
# What the status may still say although the operator that found it is gone.
_TRIED_AGAIN = frozenset(
    {Reason.INVALID_TEMPLATE, Reason.QUOTA_EXCEEDED, Reason.NOT_PERMITTED, Reason.API_SERVER_TROUBLE}
)


@dataclass(frozen=True)
class EnsureAccess:
    """See that the controller's ServiceAccount (None: the user's own), Role and RoleBindings are there, and what its
    pods and its children's may reach."""

    service_account: Object | None
    role: Object
    role_bindings: tuple[Object, ...]
    network_policies: tuple[Object, ...] = ()


@dataclass(frozen=True)
class EnsureService:
    """See that the Service is there by which the pods of one child find each other."""

    body: Object


@dataclass(frozen=True)
class Try:
    """Ask the API server whether it would accept these objects."""

    trials: tuple[Trial, ...]
    quota_counts: bool
    """Whether a full quota is in the way; not while a controller runs, whose own children may fill it."""


@dataclass(frozen=True)
class CreatePod:
    """Make a controller pod."""

    body: Object


@dataclass(frozen=True)
class DeletePod:
    """Remove a controller pod."""

    name: str
    uid: str


@dataclass(frozen=True)
class EnsureFollower:
    """See that the follower's Job is there and built from the present spec."""

    body: Object


@dataclass(frozen=True)
class RemoveFollower:
    """See that no follower's Job is there."""

    name: str


Action = EnsureAccess | EnsureService | Try | CreatePod | DeletePod | EnsureFollower | RemoveFollower


@dataclass(frozen=True)
class Plan:
    """What to do, what to write, what to tell, and when to look again."""

    status: Object
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    """Told once the status is written."""
    told_with_actions: tuple[Event, ...] = ()
    """Told once the actions are done."""
    requeue_after: timedelta | None = None
    key: str = ""
    """Names what the actions ask for, so that a refusal is not met by asking again at once."""


@dataclass(frozen=True)
class _Steps:
    """The actions that bring a controller about, or what keeps us from them."""

    actions: tuple[Action, ...] = ()
    problem: Condition | None = None
    events: tuple[Event, ...] = ()
    requeue_after: timedelta | None = None
    key: str = ""


def pause(failures: int) -> timedelta:
    """Return how long to wait after the last of so many quick failures in a row before the next controller."""
    if failures == 0:
        return timedelta(0)
    return timedelta(seconds=min(_FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10), _LONGEST_PAUSE_SECONDS))


def plan(observed: Observed, now: datetime, settings: Settings) -> Plan:
    """Return what should be done for an experiment.

    Args:
        observed: everything that was found.
        now: the time, in UTC.
        settings: the operator's.
    """
    raw = observed.raw
    try:
        experiment = NASExperiment.model_validate(raw, extra="ignore")
    except ValidationError as error:
        if (outcome := _outcome(raw)) is not None:
            # What was searched, nothing takes away.
            return _plan(observed, _finished(outcome), now)
        return _plan(observed, standing("Waiting", condition(False, Reason.INVALID_SPEC, _fields(error))), now)
    if experiment.status is not None and experiment.status.outcome is not None:
        stands, steps = _finished(experiment.status.outcome), _end_orphans(observed, experiment, now, settings)
    elif experiment.spec.suspend:
        stands, steps = _suspend(observed, experiment, now, settings)
    else:
        stands, steps = _run(observed, experiment, now, settings)
    # Last: whatever is wrong with a tracker, the search has what it needs.
    follower = _follower(observed, experiment, now, settings)
    again = steps.requeue_after
    if follower.requeue_after is not None:
        again = _sooner(again, follower.requeue_after)
    steps = replace(steps, actions=(*steps.actions, *follower.actions), requeue_after=again)
    return _plan(observed, replace(stands, tracking=follower.problem), now, steps)


def unreadable(observed: Observed, error: Exception, now: datetime, again: timedelta) -> Plan:
    """Return what to say of an experiment that no plan can be made for, and to look at it again after a while."""
    said = condition(False, Reason.UNREADABLE, f"The operator cannot make a plan of it ({_words(error)})")
    outcome = _outcome(observed.raw)
    stands = standing("Waiting", said) if outcome is None else _finished(outcome)
    return replace(_plan(observed, stands, now), requeue_after=again)


def _outcome(raw: Object) -> Outcome | None:
    """Return how a search has ended, as its status alone says."""
    try:
        return Outcome.model_validate(reading.status(raw).get("outcome"), extra="ignore")
    except ValidationError:
        return None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _finished(outcome: Outcome) -> Standing:
    """The log has the last word; the pod stays for its logs, and goes with the experiment."""
    over = told(False, outcome.reason, outcome.message)
    end = told(True, outcome.reason, outcome.message)
    if outcome.type == "Complete":
        return standing("Complete", over, complete=end)
    return standing("Failed", over, failed=end)


def _end_orphans(observed: Observed, experiment: NASExperiment, now: datetime, settings: Settings) -> _Steps:
    """Return the steps to a controller that ends the children which outlived their search.

    Whoever ended it may have died before it had ended them, or have been paused and have made more.
    """
    newest = observed.pods[-1] if observed.pods else None
    tried = newest.failures if newest is not None else 0
    if not observed.children or any(pod.live for pod in observed.pods) or tried >= _ORPHAN_TRIES:
        return _Steps()
    steps = _controller(observed, experiment, now, settings)
    # What there is to say is how the search ended.
    return replace(steps, problem=None, events=())


def _suspend(
    observed: Observed, experiment: NASExperiment, now: datetime, settings: Settings
) -> tuple[Standing, _Steps]:
    """The controller ends the children; once none is left, it goes too."""
    live = [pod for pod in observed.pods if pod.live]
    samples = experiment.status.samples if experiment.status is not None else None
    running = samples.running if samples is not None else 0
    children = observed.children or 0
    if children == 0 and (running == 0 or not live):
        stands = standing(
            "Suspended",
            condition(False, Reason.SUSPENDED_BY_USER),
            suspended=condition(True, Reason.SUSPENDED_BY_USER),
        )
        return stands, _Steps(tuple(DeletePod(pod.name, pod.uid) for pod in live))
    # Children without a controller: one is needed to end them.
    steps = _controller(observed, experiment, now, settings)
    waiting = condition(False, Reason.NOT_SUSPENDED, f"The controller is ending {max(children, running)} children.")
    going = Condition(True, Reason.SUSPENDED_BY_USER.value, waiting.message)
    problem = steps.problem or _problem(observed, experiment, now)
    if problem is not None:
        return standing("Waiting", problem, suspended=waiting), steps
    again = _sooner(steps.requeue_after, _SUSPENDING)
    steps = _Steps(steps.actions, None, steps.events, again, steps.key)
    return standing("Searching", going, suspended=waiting), steps


def _run(observed: Observed, experiment: NASExperiment, now: datetime, settings: Settings) -> tuple[Standing, _Steps]:
    steps = _controller(observed, experiment, now, settings)
    problem = steps.problem or _problem(observed, experiment, now)
    if problem is not None:
        return standing("Waiting", problem), steps
    begun = experiment.status is not None and experiment.status.epoch is not None
    if begun and any(pod.running for pod in observed.pods):
        final = experiment.status is not None and experiment.status.final is not None
        reason = Reason.FINAL_TRAINING if final else Reason.SEARCHING
        progressing = condition(True, reason, _queue(experiment, EXPLANATIONS[reason].meaning))
    elif _was_suspended(observed.raw):
        progressing = condition(True, Reason.RESUMED)
    else:
        progressing = condition(True, Reason.CONTROLLER_STARTING)
    return standing("Searching" if begun else "Pending", progressing), steps


def _queue(experiment: NASExperiment, meaning: str) -> str:
    """Return what a reason means, and how many children wait in their queue."""
    samples = experiment.status.samples if experiment.status is not None else None
    if samples is None or not samples.queued:
        return meaning
    words = queue_words(samples.queued, samples.running, experiment.spec.trainer.queue or "")
    return f"{meaning.removesuffix('.')}; {words}."


def _controller(observed: Observed, experiment: NASExperiment, now: datetime, settings: Settings) -> _Steps:
    """Return the steps to exactly one live controller pod that is built from the present spec."""
    recorded = pod_index(observed.raw, recorded_pod(observed.raw) or "")
    living = [pod for pod in observed.pods if pod.live]
    # One below the number in the status comes from an operator that did not know it yet: it gives way.
    live = [pod for pod in living if pod.index >= recorded][-1:]
    ended = [pod for pod in observed.pods if pod.ended is not None and not pod.terminating]
    # Only the newest of each kind is of use: one that works, one whose log tells why it ended.
    surplus = ended[:-1] + [pod for pod in living if pod not in live]
    tidy = tuple(DeletePod(pod.name, pod.uid) for pod in surplus)
    stale = [pod for pod in live if pod.inputs != builders.inputs(experiment)]
    newest = observed.pods[-1] if observed.pods else None
    failures = newest.failures if newest is not None else 0
    index = 1 + max([pod.index for pod in observed.pods] + [recorded])
    try:
        trials = builders.trials(experiment, settings)
        body = builders.controller_pod(experiment, index, failures, settings)
    except ValueError as error:
        return _Steps(tidy, condition(False, Reason.INVALID_TEMPLATE, str(error)))
    except Exception as error:  # noqa: BLE001  The designed edge: a template has any shape that somebody gives it.
        said = f"No pod can be built from the templates in spec.trainer, finalTraining and controller ({_words(error)})"
        return _Steps(tidy, condition(False, Reason.INVALID_TEMPLATE, said))
    needed = not live or bool(stale)
    if needed and (unfit := endpoint_refusal(experiment, settings)) is not None:
        return _Steps(tidy, condition(False, Reason.ENDPOINT_REFUSED, unfit))
    key = builders.digest([trial.body for trial in trials])
    refusal = observed.refusal if observed.refusal is not None and observed.refusal.key == key else None
    problem = condition(False, refusal.reason, refusal.detail) if refusal is not None else None
    if refusal is not None and now < refusal.retry_at:
        return _Steps(tidy, problem, requeue_after=refusal.retry_at - now, key=key)
    actions: list[Action] = list(tidy)
    # First, because a trial pod is refused as long as its ServiceAccount is not there.
    if not observed.access:
        account, role = builders.service_account(experiment), builders.role(experiment)
        policies = network_policies(experiment, settings)
        actions.append(EnsureAccess(account, role, builders.role_bindings(experiment), policies))
    service = builders.trainer_service(experiment)
    if service is not None and not observed.service:
        actions.append(EnsureService(service))
    doubted = _changed(experiment) or refusal is not None or _reason(observed.raw) in _TRIED_AGAIN
    if (needed or doubted) and key not in observed.accepted:
        actions.append(Try(trials, quota_counts=not live))
    if not needed:
        return _Steps(tuple(actions), problem, key=key)
    if newest is not None and newest.ended is not None:
        wait = newest.ended + pause(failures) - now
        if wait > timedelta(0):
            return _Steps(tuple(actions), problem, requeue_after=wait, key=key)
    actions += [DeletePod(pod.name, pod.uid) for pod in stale]
    actions.append(CreatePod(body))
    replaced: tuple[Event, ...] = ()
    before = _pod_name(observed)
    if before is not None and not _was_suspended(observed.raw):
        note = f"{before} was replaced by {body['metadata']['name']}: {_why(newest, bool(stale))}."
        replaced = (Event("Normal", "ControllerReplaced", "Replace", note, f"controller-{index}"),)
    return _Steps(tuple(actions), problem, replaced, key=key)


def _follower(observed: Observed, experiment: NASExperiment, now: datetime, settings: Settings) -> _Steps:
    """Return the steps to a follower, or to none; ``problem`` is what there is to say of it, None where none is
    wanted."""
    before = conditions(observed.raw).get(ConditionType.TRACKING)
    if experiment.spec.tracking is None:
        remains = before is not None or observed.follower is not None
        name = names.follower_job(experiment.metadata.name, experiment.metadata.uid)
        return _Steps((RemoveFollower(name),) if remains and observed.followed is not None else ())
    if (unfit := tracker_refusal(experiment, settings)) is not None:
        return _Steps(problem=condition(False, Reason.ENDPOINT_REFUSED, unfit))
    wanted = builders.follower_inputs(experiment)
    try:
        body = builders.follower_job(experiment, settings)
    except ValueError as error:
        return _Steps(problem=condition(False, Reason.INVALID_TEMPLATE, str(error)))
    except Exception as error:  # noqa: BLE001  As above.
        said = f"No Job can be built from spec.tracking.template ({_words(error)})"
        return _Steps(problem=condition(False, Reason.INVALID_TEMPLATE, said))
    pod = observed.follower if observed.follower is not None and observed.follower.inputs == wanted else None
    if pod is not None and pod.done:
        return _Steps(problem=told(True, Reason.CAUGHT_UP, pod.last_words))
    if before is not None and before.get("reason") == Reason.CAUGHT_UP and not _changed(experiment):
        # Its pod may have been cleared away.
        return _Steps(problem=told(True, Reason.CAUGHT_UP, before.get("message", "")))
    actions = (EnsureFollower(body),) if observed.followed != wanted else ()
    if observed.follower_refusal and observed.followed == wanted:
        refused = f"The follower's Job was refused: {observed.follower_refusal}"
        return _Steps(actions, condition(False, Reason.FOLLOWER_FAILED, refused), requeue_after=_REFUSED_FOLLOWER)
    if pod is None or (pod.finding is None and pod.since is None and not pod.failed):
        return _Steps(actions, condition(False, Reason.FOLLOWER_STARTING))
    if pod.finding is not None:
        return _Steps(actions, condition(False, pod.finding.reason, pod.finding.detail))
    # One that has just been started again may end as the one before.
    proven = pod.since is not None and now - pod.since >= QUICK
    if pod.failed and not proven:
        again = pod.since + QUICK - now if pod.since is not None else None
        return _Steps(actions, condition(False, Reason.FOLLOWER_FAILED, pod.last_words), requeue_after=again)
    return _Steps(actions, condition(True, Reason.FOLLOWING))


def _changed(experiment: NASExperiment) -> bool:
    """Return whether the spec is newer than what was last acted on."""
    seen = experiment.status.observed_generation if experiment.status is not None else 0
    return experiment.metadata.generation != seen


def _why(pod: ControllerPod | None, stale: bool) -> str:
    if stale:
        return "its settings changed"
    if pod is None or pod.ended is None:
        return "it was deleted"
    return f"it ended before the search did ({pod.last_words})"


def _problem(observed: Observed, experiment: NASExperiment, now: datetime) -> Condition | None:
    """Return what keeps the search from going on, as far as the pods or the controller tell."""
    newest = observed.pods[-1] if observed.pods else None
    if newest is not None and newest.live and newest.finding is not None:
        return condition(False, newest.finding.reason, newest.finding.detail)
    if observed.mount_failure and starts_late(observed.pods, now) is not None:
        return condition(False, Reason.CONFIG_MISSING, f"The controller's pod cannot mount: {observed.mount_failure}")
    if experiment.status is not None and experiment.status.problem is not None:
        problem = experiment.status.problem
        return told(False, problem.reason, problem.message)
    failures = newest.failures or newest.quick_failures if newest is not None else 0
    settled = newest is not None and newest.running and now - newest.created >= QUICK
    if failures >= 2 and not settled:
        words = next((pod.last_words for pod in reversed(observed.pods) if pod.last_words), "")
        return condition(False, Reason.CONTROLLER_FAILED, f"The controller failed {failures} times in a row. {words}")
    return None


def _plan(observed: Observed, stands: Standing, now: datetime, steps: _Steps = _Steps()) -> Plan:
    requeue = steps.requeue_after
    newest = observed.pods[-1] if observed.pods else None
    if newest is not None and newest.live and newest.quick_failures and now - newest.created < QUICK:
        # Until then it may be one more quick failure.
        requeue = _sooner(requeue, newest.created + QUICK - now)
    if newest is not None and newest.live and not newest.running and newest.finding is None:
        # A missing volume shows in events alone, so nothing would make us look.
        late = newest.created + STARTED_LATE - now
        requeue = _sooner(requeue, late if late > timedelta(0) else STARTED_LATE)
    return Plan(
        status=status(observed.raw, stands, _pod_name(observed), now),
        actions=steps.actions,
        events=events(observed.raw, stands),
        told_with_actions=steps.events,
        requeue_after=requeue,
        key=steps.key,
    )


def _pod_name(observed: Observed) -> str | None:
    """Return the newest controller pod's name, known from the pods or from the status: numbers never fall."""
    recorded = recorded_pod(observed.raw)
    candidates = [pod.name for pod in observed.pods] + ([recorded] if recorded else [])
    return max(candidates, key=lambda name: pod_index(observed.raw, name), default=None)


def _was_suspended(raw: Object) -> bool:
    return true_condition(raw, ConditionType.SUSPENDED) is not None or _reason(raw) == Reason.RESUMED


def _reason(raw: Object) -> str | None:
    reason: str | None = conditions(raw).get(ConditionType.PROGRESSING, {}).get("reason")
    return reason


def _sooner(one: timedelta | None, other: timedelta) -> timedelta:
    return other if one is None else min(one, other)


def _fields(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)[:5]
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)
