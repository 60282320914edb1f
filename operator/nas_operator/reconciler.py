"""One look at one experiment: observe, plan, act, and write the status once at the end."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from nas_api import names
from nas_api.reasons import ConditionType, Reason
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError, KubeError
from nas_kube.reading import belongs, controller, finished, instant, status, true_condition
from nas_kube.resources import (
    CORE_EVENTS,
    EVENTS,
    EXPERIMENTS,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)
from nas_operator.cache import Cache, Key
from nas_operator.conditions import Event, differs, event_object
from nas_operator.kept import kept
from nas_operator.observed import (
    ControllerPod,
    Object,
    Observed,
    Refusal,
    owner_of,
    pod_index,
    recorded_pod,
    starts_late,
)
from nas_operator.plan import (
    Action,
    CreatePod,
    DeletePod,
    EnsureAccess,
    EnsureFollower,
    EnsureService,
    Plan,
    RemoveFollower,
    Try,
    plan,
    unreadable,
)
from nas_operator.settings import Settings

_log = structlog.get_logger()

# A plan whose actions succeed leads to one without any in two or three rounds.
_MOST_ROUNDS = 8
_ACCESS_HOLDS = timedelta(minutes=10)
_FOLLOWER_HOLDS = timedelta(minutes=10)
# A controller that was paused at the end of its search may wake up and create a child.
_ORPHANS_COME = timedelta(hours=1)
# One answer in trouble is nobody's business.
_TROUBLES_UNTOLD = 2
_SOON = timedelta(seconds=1)
_RETRY_SOON = timedelta(seconds=15)
_RETRY_LATER = timedelta(seconds=60)
_TRIAL_NAME = re.compile(r"nas-trial-[a-z0-9]+")


@dataclass
class _Memory:
    """What was learnt about one experiment and costs calls to learn again; lost at a restart without harm."""

    accepted: frozenset[str] = frozenset()
    refusal: Refusal | None = None
    troubles: int = 0
    """How often in a row the API server was in trouble when something was asked of it."""
    childless: bool = False
    """Whether the search has ended so long ago, and no child was left, that none is looked for any more."""
    gone_pod: str = ""
    """The newest controller pod that was looked for and is not there."""
    access_until: datetime = field(default_factory=lambda: datetime.fromtimestamp(0, UTC))
    followed: str | None = ""
    follower_refusal: str = ""
    followed_until: datetime = field(default_factory=lambda: datetime.fromtimestamp(0, UTC))
    service_until: datetime = field(default_factory=lambda: datetime.fromtimestamp(0, UTC))


class _Unsettled(Exception):
    """The rounds were used up: the plan's actions do not bring about what it wants."""


class _Taken(Exception):
    """The name of an object that we need is that of something else."""


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class Reconciler:
    """Carries out plans. ``reconcile`` may run in several threads at once, for different experiments."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        settings: Settings,
        *,
        reporter: str,
        unreadable: Callable[[Object, Exception], None] = lambda raw, error: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Use a client and what the watches said.

        Args:
            client: the API.
            cache: what the watches said.
            settings: the operator's.
            reporter: names this process in events.
            unreadable: told of each experiment that no plan can be made for.
            clock: whose time it is.
        """
        self._client = client
        self._cache = cache
        self._settings = settings
        self._reporter = reporter
        self._tell_unreadable = unreadable
        self._clock = clock
        self._memories: dict[str, _Memory] = {}

    def forget(self, uid: str) -> None:
        """Drop what is remembered of an experiment that is gone."""
        self._memories.pop(uid, None)

    def reconcile(self, key: Key) -> timedelta | None:
        """Bring one experiment where it should be; return when to look again, if nothing changes before.

        Raises:
            KubeError: the API is unavailable or refused something that no plan expects; try again later.
        """
        for _ in range(_MOST_ROUNDS):
            raw = self._cache.experiment(key)
            if raw is None or "deletionTimestamp" in raw["metadata"]:
                # What belongs to it goes with it, by the garbage collector.
                return None
            now = self._clock()
            memory = self._memories.setdefault(raw["metadata"]["uid"], _Memory())
            decided = self._decide(self._observe(raw, memory, now), now)
            if not decided.actions:
                return self._write(raw, decided, now)
            self._carry_out(raw, decided, memory, now)
        raise _Unsettled(f"{key[0]}/{key[1]} does not settle")

    def _decide(self, observed: Observed, now: datetime) -> Plan:
        try:
            return plan(observed, now, self._settings)
        except Exception as error:  # noqa: BLE001  The designed edge: what we did not foresee in an experiment is told.
            self._tell_unreadable(observed.raw, error)
            return unreadable(observed, error, now, _RETRY_LATER)

    def _observe(self, raw: Object, memory: _Memory, now: datetime) -> Observed:
        children = self._children(raw, memory, now)
        pods = self._pods(raw, memory)
        late = starts_late(pods, now)
        return Observed(
            raw=raw,
            pods=pods,
            access=now < memory.access_until,
            service=now < memory.service_until,
            accepted=memory.accepted,
            refusal=memory.refusal,
            children=children,
            follower=self._cache.follower(owner_of(raw)),
            followed=memory.followed if now < memory.followed_until else "",
            follower_refusal=memory.follower_refusal,
            mount_failure=self._mount_failure(raw["metadata"]["namespace"], late) if late is not None else "",
        )

    def _pods(self, raw: Object, memory: _Memory) -> tuple[ControllerPod, ...]:
        """Return the controller pods, the one that the status names among them if it is there.

        The watches of pods and of experiments run apart: another operator's status may be here before its pod
        is, and taking that pod for gone would make one too many.
        """
        pods = self._cache.pods(owner_of(raw))
        recorded = recorded_pod(raw)
        if (
            recorded is None
            or recorded == memory.gone_pod
            or any(pod.index >= pod_index(raw, recorded) for pod in pods)
        ):
            return pods
        try:
            self._cache.take_pod(self._client.get(PODS, raw["metadata"]["namespace"], recorded))
        except ApiError as error:
            if error.status != 404:
                raise
            memory.gone_pod = recorded
        return self._cache.pods(owner_of(raw))

    def _mount_failure(self, namespace: str, pod: ControllerPod) -> str:
        """Return what the kubelet last said about a volume: only an event tells that a ConfigMap is missing."""
        selector = f"involvedObject.uid={pod.uid},reason=FailedMount"
        try:
            events = self._client.list(CORE_EVENTS, namespace, field_selector=selector).items
        except ApiError as error:
            # Not knowing better is no reason to stop.
            _log.info("cannot read the pod's events", pod=pod.name, error=error.message)
            return ""
        newest = max(events, key=lambda event: event.get("lastTimestamp") or "", default={})
        message: str = newest.get("message", "")
        return message

    def _children(self, raw: Object, memory: _Memory, now: datetime) -> int | None:
        """Return how many children have not ended, where that matters."""
        if status(raw).get("outcome") is None:
            suspending = (raw.get("spec") or {}).get("suspend") and true_condition(raw, ConditionType.SUSPENDED) is None
            return self._unfinished_children(raw) if suspending else None
        if memory.childless:
            return None
        children = self._unfinished_children(raw)
        ended = [true_condition(raw, kind) for kind in (ConditionType.COMPLETE, ConditionType.FAILED)]
        since = [instant(each.get("lastTransitionTime")) for each in ended if each is not None]
        memory.childless = not children and any(at is not None and now - at > _ORPHANS_COME for at in since)
        return children

    def _unfinished_children(self, raw: Object) -> int:
        metadata = raw["metadata"]
        if "status" not in raw or "epoch" not in raw["status"]:
            return 0  # No controller has ever written its first record, and before that it makes no child.
        selector = f"{names.LABEL_EXPERIMENT_UID}={metadata['uid']},{names.LABEL_ROLE}={names.ROLE_TRAINER}"
        jobs = self._client.list(JOBS, metadata["namespace"], label_selector=selector).items
        ours = [job for job in jobs if belongs(job, metadata["uid"])]
        return sum(1 for job in ours if not finished(job) and "deletionTimestamp" not in job["metadata"])

    def _carry_out(self, raw: Object, decided: Plan, memory: _Memory, now: datetime) -> None:
        try:
            for action in decided.actions:
                self._act(raw["metadata"]["namespace"], action, decided.key, memory, now)
        except _Refused as refused:
            self._remember(refused.refusal, memory)
            return
        except ApiError as error:
            memory.troubles += 1
            of_follower = isinstance(action, EnsureFollower | RemoveFollower)
            if not error.retryable or of_follower or memory.troubles <= _TROUBLES_UNTOLD:
                raise
            # Whoever asks a webhook that is down gets this for ever, and nobody would hear of it.
            self._remember(Refusal(decided.key, Reason.API_SERVER_TROUBLE, str(error), now + _RETRY_SOON), memory)
            return
        except _Taken as taken:
            self._remember(Refusal(decided.key, Reason.NAME_TAKEN, str(taken), now + _RETRY_SOON), memory)
            return
        memory.troubles = 0
        if any(isinstance(action, EnsureAccess | EnsureService | Try | CreatePod) for action in decided.actions):
            memory.refusal = None
        self._tell(raw, decided.told_with_actions, now)

    def _remember(self, refusal: Refusal, memory: _Memory) -> None:
        _log.info("refused", reason=refusal.reason.value, detail=refusal.detail)
        memory.refusal = refusal

    def _act(self, namespace: str, action: Action, key: str, memory: _Memory, now: datetime) -> None:
        match action:
            case EnsureAccess():
                self._ensure_access(namespace, action, key, now)
                memory.access_until = now + _ACCESS_HOLDS
            case EnsureService():
                self._ensure_service(namespace, action, key, now)
                memory.service_until = now + _ACCESS_HOLDS
            case Try():
                for trial in action.trials:
                    try:
                        self._client.create(trial.resource, namespace, trial.body, dry_run=True)
                    except ApiError as error:
                        if error.quota and not action.quota_counts:
                            continue
                        raise _Refused(_refusal(error, trial.field, key, now)) from error
                memory.accepted = frozenset({key})
            case CreatePod():
                self._create_pod(namespace, action, key, now)
            case DeletePod():
                self._client.delete(PODS, namespace, action.name, uid=action.uid)
                self._cache.condemn_pod(action.uid)
                _log.info("controller pod deleted", pod=action.name)
            case EnsureFollower():
                memory.followed = action.body["metadata"]["annotations"][names.ANNOTATION_INPUTS]
                memory.follower_refusal, memory.followed_until = "", now + _FOLLOWER_HOLDS
                try:
                    self._ensure_follower(namespace, action.body)
                except ApiError as error:
                    refusal = _refusal(error, "spec.tracking.template", key, now)
                    memory.follower_refusal, memory.followed_until = refusal.detail, now + _RETRY_LATER
                except _Taken as taken:
                    memory.follower_refusal, memory.followed_until = str(taken), now + _RETRY_LATER
            case RemoveFollower():
                self._client.delete(JOBS, namespace, action.name)
                memory.followed, memory.followed_until = None, now + _FOLLOWER_HOLDS

    def _create_pod(self, namespace: str, action: CreatePod, key: str, now: datetime) -> None:
        name = action.body["metadata"]["name"]
        try:
            pod = self._client.create(PODS, namespace, action.body, field_manager=names.FIELD_MANAGER_OPERATOR)
            _log.info("controller pod created", pod=name)
        except ApiError as error:
            if error.status != 409:
                raise _Refused(_refusal(error, "spec.controller.template", key, now)) from error
            # Another operator, or ourselves before a lost answer: then it is the one that we want.
            pod = self._client.get(PODS, namespace, name)
            _see_that_it_is(pod, action.body)
        self._cache.take_pod(pod)

    def _ensure_follower(self, namespace: str, body: Object) -> None:
        """Make the follower's Job; one that is built from something else is replaced, for a Job does not change."""
        metadata = body["metadata"]
        found = self._ensure(JOBS, namespace, body)["metadata"]
        if (found.get("annotations") or {}).get(names.ANNOTATION_INPUTS) == metadata["annotations"][
            names.ANNOTATION_INPUTS
        ]:
            return
        self._client.delete(JOBS, namespace, metadata["name"], uid=found["uid"])
        self._client.create(JOBS, namespace, body, field_manager=names.FIELD_MANAGER_OPERATOR)
        _log.info("follower replaced", job=metadata["name"])

    def _ensure_access(self, namespace: str, action: EnsureAccess, key: str, now: datetime) -> None:
        try:
            if action.service_account is not None:
                self._ensure(SERVICE_ACCOUNTS, namespace, action.service_account)
            role = self._ensure(ROLES, namespace, action.role)
            if role.get("rules") != action.role["rules"]:
                self._client.patch(ROLES, namespace, action.role["metadata"]["name"], {"rules": action.role["rules"]})
            for wanted in action.role_bindings:
                binding = self._ensure(ROLE_BINDINGS, namespace, wanted)
                if binding.get("subjects") != wanted["subjects"]:
                    body = {"subjects": wanted["subjects"]}
                    self._client.patch(ROLE_BINDINGS, namespace, wanted["metadata"]["name"], body)
            for wanted in action.network_policies:
                policy = self._ensure(NETWORK_POLICIES, namespace, wanted)
                if policy.get("spec") != wanted["spec"]:
                    body = {"spec": {"ingress": None, **wanted["spec"]}}
                    self._client.patch(NETWORK_POLICIES, namespace, wanted["metadata"]["name"], body)
        except ApiError as error:
            raise _Refused(_refusal(error, "the controller's access", key, now)) from error

    def _ensure_service(self, namespace: str, action: EnsureService, key: str, now: datetime) -> None:
        try:
            self._ensure(SERVICES, namespace, action.body)
        except ApiError as error:
            raise _Refused(_refusal(error, "the Service of trainers with several pods", key, now)) from error

    def _ensure(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Return the object as it is, made if it was not there: looking first keeps a restart free of writes.

        Raises:
            ApiError: it can neither be looked at nor be made.
            _Taken: another object has its name.
        """
        found = self._found(resource, namespace, body)
        if found is None:
            try:
                return self._client.create(resource, namespace, body, field_manager=names.FIELD_MANAGER_OPERATOR)
            except ApiError as error:
                if error.status != 409:
                    raise
            found = self._client.get(resource, namespace, body["metadata"]["name"])  # Another operator was faster.
        _see_that_it_is(found, body)
        return found

    def _found(self, resource: Resource, namespace: str, body: Object) -> Object | None:
        try:
            return self._client.get(resource, namespace, body["metadata"]["name"])
        except ApiError as error:
            if error.status != 404:
                raise
        return None

    def _write(self, raw: Object, decided: Plan, now: datetime) -> timedelta | None:
        """Write the status if it differs; return when to look again."""
        if not differs(raw, decided.status):
            return decided.requeue_after
        metadata = raw["metadata"]
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            # With the version, what was decided on an older state of things, or on a namesake, is refused; the
            # uid alone would not do, because the API server does not look at it in an apply to a status.
            "metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
            "status": decided.status,
        }
        try:
            written = self._client.apply(
                EXPERIMENTS,
                metadata["namespace"],
                metadata["name"],
                body,
                field_manager=names.FIELD_MANAGER_OPERATOR,
                subresource="status",
            )
        except ApiError as error:
            if error.status == 404:
                return None
            if error.status == 409:
                return _SOON  # It has changed; the watch brings how.
            raise
        self._cache.take_experiment(kept(written))
        _log.info("status written", state=decided.status["state"], reason=decided.status["conditions"][0]["reason"])
        self._tell(raw, decided.events, now)
        return decided.requeue_after

    def _tell(self, raw: Object, events: tuple[Event, ...], now: datetime) -> None:
        for event in events:
            try:
                self._client.create(EVENTS, raw["metadata"]["namespace"], event_object(raw, event, self._reporter, now))
            except KubeError as error:
                # 409: it was told before. Otherwise an event is lost, and the conditions say the same.
                if not isinstance(error, ApiError) or error.status != 409:
                    _log.warning("event not told", event_reason=event.reason, error=str(error))


def _refusal(error: ApiError, field_path: str, key: str, now: datetime) -> Refusal:
    """Return what a refusal means.

    Raises:
        ApiError: it says nothing about what was asked for; the same call is to be repeated later.
    """
    if error.retryable or error.status in (404, 409, 410) or "is being terminated" in error.message:
        raise error
    said = _TRIAL_NAME.sub("nas-trial", error.message)
    if error.quota:
        return Refusal(key, Reason.QUOTA_EXCEEDED, said, now + _RETRY_SOON)
    if "error looking up service account" in error.message:
        return Refusal(key, Reason.CONFIG_MISSING, f"{field_path}: {said}", now + _RETRY_SOON)
    if error.status == 401 or (error.status == 403 and _lacks_permission(error.message)):
        return Refusal(key, Reason.NOT_PERMITTED, f"The operator may not do this: {said}", now + _RETRY_SOON)
    causes = "; ".join(f"{cause.field}: {cause.message}" for cause in error.causes if cause.field)
    return Refusal(key, Reason.INVALID_TEMPLATE, f"{field_path}: {causes or said}", now + _RETRY_LATER)


def _see_that_it_is(found: Object, wanted: Object) -> None:
    """Do nothing where an object is the one that we made or would have made.

    Raises:
        _Taken: it belongs to something else, or binds another role.
    """
    what = f"{wanted['kind']} {wanted['metadata']['name']}"
    if not belongs(found, controller(wanted)["uid"]):
        whose = "to {kind} {name}".format(**owner) if (owner := controller(found)) else "to nothing"
        raise _Taken(f"{what} is needed for this experiment, and the one that exists belongs {whose}")
    if found.get("roleRef") != wanted.get("roleRef"):
        ref = found.get("roleRef") or {}
        raise _Taken(f"{what} binds {ref.get('kind')} {ref.get('name')} and not {wanted['roleRef']['name']}")


def _lacks_permission(message: str) -> bool:
    return 'User "' in message or "attempting to grant RBAC permissions" in message
