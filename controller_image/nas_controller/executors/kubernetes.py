"""Children as Kubernetes Jobs: one POST each, one watch for all of them, and a closer look only in trouble."""

import math
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from nas_api import authority, names
from nas_api.child_job import child_job, template_field
from nas_api.experiment import NASExperiment
from nas_api.reasons import EXPLANATIONS, Reason
from nas_controller.executor import Admitted, Blocked, End, Ended, Event, Launch, Outdated, Queued, Running
from nas_controller.executors.agenda import Agenda
from nas_controller.executors.avoidance import Avoidance, keep_away
from nas_controller.executors.diagnosis import Diagnosis, diagnose, staying, trains, unreachable
from nas_controller.executors.job_end import job_end
from nas_controller.executors.leaving import leaving, longest_stay
from nas_controller.executors.refusal import may_be_taken, refusal
from nas_controller.executors.remains import outdated
from nas_controller.tenure import Tenure
from nas_kube.client import KubeClient
from nas_kube.clock import SYSTEM_CLOCK, Clock, wait_for
from nas_kube.errors import ApiError, ApiUnavailable, KubeError
from nas_kube.reading import (
    admission,
    age,
    belongs,
    completion_index,
    containers,
    controller,
    finished,
    longest_run,
    parallelism,
    priority_class,
    queue,
    samples,
    status,
    suspended,
    true_condition,
)
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import EVENTS, JOBS, PODS, WORKLOADS

_log = structlog.get_logger()

Object = dict[str, Any]

_LOOK_AFTER_SECONDS = 20.0
# The pause after a look doubles as long as looks tell nothing new: an image may take minutes to be pulled.
_LOOK_EVERY_SECONDS = 10.0
_LOOK_AT_LEAST_EVERY_SECONDS = 60.0
# Children that one look covers: what keeps hundreds from starting shows in a few of them.
_LOOKED_AT = 10
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
# What waits for something that is about to happen looks again so soon.
_SOON_SECONDS = 2.0
# A pod's deadline is its kubelet's to keep. Beyond it and the pod's grace a Job gets so much longer before it is ours.
_OVERDUE_SECONDS = 300.0


@dataclass(eq=False)
class _Child:
    """A launch that has not ended, as far as we know. Guarded by the executor's lock."""

    number: int
    launch: Launch | None
    """None for one that an earlier controller launched."""
    since: float
    """When it was launched or found, its Job was made, or let out of its queue, whatever came last. On the monotonic
    clock."""
    uid: str | None = None
    """Its Job's; None until the Job is known to exist."""
    pods: int = 1
    """As many as its Job has."""
    ready: bool = False
    """All of them run."""
    waits: Queued | None = None
    """What was posted of it last, as long as its Job is suspended."""
    blocked: Blocked | None = None
    """What was posted last of why it does not run, since it was launched or let out of its queue."""
    priority_class: str = ""
    """Its Job's."""
    samples: frozenset[int] = frozenset()
    """Whom it trains."""
    refusals: int = 0
    """How often its POST was refused or not answered."""
    unanswered: bool = False
    """The API server may have taken a POST of it and said nothing."""
    creating: bool = False
    """A POST of it is on its way."""
    room_by: float | None = None
    """When it no longer waits for pods of an earlier launch of its samples; None: it has not met any."""
    longest: float = math.inf
    """Seconds that its Job's pods may run; what is left beyond that is nobody's to end but ours."""
    ran_since: float = math.inf
    """When all of them were seen to run."""
    counted: bool = False
    """It was its Job's count of pods that are ready that said so."""
    lost_since: float | None = None
    """Since when that count says otherwise, as when a node does not answer."""
    finished: bool = False
    """Its Job has finished; what its pod says is being read."""
    given_up: bool = False
    """It was cancelled, or taken for gone: its Job is not to be."""


@dataclass(eq=False)
class _Deletion:
    """A Job that is to be deleted, for as long as it is not. Guarded by the executor's lock."""

    number: int
    uid: str | None
    samples: frozenset[int]
    """Whom it trains; empty where that is not known."""
    tries: int = 0
    surely: bool = False
    """Whether it may be somebody else's, who has taken our place a moment ago."""
    refusal: str = ""
    """Why the API server does not let us."""


class KubernetesExecutor:
    """See :class:`nas_controller.executor.Executor`. ``change`` takes over a newer manifest.

    API calls for each child: one POST, and nothing else but its share of one watch. A failed one costs a list
    of its pod, another attempt a list of the pods before it, a cancelled one a DELETE. Children that do not run after
    20 s are looked at, ten at a time, with one list of pods and one of events; those in a queue with one of Workloads,
    and only while none runs. Looks that tell nothing new become rarer, down to one a minute.
    """

    def __init__(
        self,
        client: KubeClient,
        experiment: NASExperiment,
        trainer_image: str,
        pool: futures.Executor,
        *,
        unrestricted: bool = False,
        tenure: Tenure | None = None,
        clock: Clock = SYSTEM_CLOCK,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Prepare; no call is made before ``start``.

        Args:
            client: the API.
            experiment: whose children these are; its namespace and uid never change.
            trainer_image: for manifests that name none.
            pool: makes the calls; it is shut down with this executor.
            unrestricted: whether templates may ask for more than stands on the list (``nas_api.authority``).
            tenure: says whether children still are ours to create and delete; None: they are.
            clock: whose time it is.
            jitter: draws the watch's pauses, see :class:`nas_kube.reflector.Reflector`.
        """
        self._client = client
        self._experiment = experiment
        self._image = trainer_image
        self._unrestricted = unrestricted
        self._namespace = experiment.metadata.namespace
        self._uid = experiment.metadata.uid
        self._lock = threading.Lock()
        self._children: dict[int, _Child] = {}
        self._found: set[int] | None = set()
        """What the first list holds, ended or not; None once ``start`` has told it."""
        self._post: Callable[[Event], None]
        self._pool = pool
        self._clock = clock
        self._closed = False
        self._tenure = tenure
        self._avoidance = Avoidance()
        """Guarded by the lock."""
        self._agenda = Agenda(clock)
        self._creations: set[_Child] = set()
        """Whose POST is on its way."""
        self._deletions: set[_Deletion] = set()
        self._settled = threading.Condition(self._lock)
        """Notified when one of these two has become smaller."""
        self._deleted: set[str] = set()
        """Uids of Jobs that we have deleted and that the watch may still tell of."""
        selector = f"{names.LABEL_EXPERIMENT_UID}={self._uid},{names.LABEL_ROLE}={names.ROLE_TRAINER}"
        self._reflector = Reflector(
            client,
            JOBS,
            self._namespace,
            self._on_job,
            label_selector=selector,
            on_list=self._before_list,
            clock=clock,
            jitter=jitter,
        )

    def change(self, experiment: NASExperiment) -> None:
        """Make Jobs from this manifest from now on; those that were refused are tried again at once."""
        self._experiment = experiment
        with self._lock:
            refused = [child for child in self._children.values() if child.uid is None and child.refusals]
        for child in refused:
            self._submit(self._create, child)

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """See :class:`nas_controller.executor.Executor`.

        Raises:
            ApiError: we may not list Jobs in this namespace.
        """
        self._post = post
        self._reflector.start()
        while not self._reflector.wait_synced(5.0):
            try:
                self._client.list(JOBS, self._namespace, label_selector=f"{names.LABEL_EXPERIMENT_UID}={self._uid}")
            except ApiUnavailable as error:
                _log.warning("waiting for the API server", error=str(error))
            except ApiError as error:
                if not error.retryable:
                    raise
        with self._lock:
            # Not those in _children: a finished one may have left them again by now.
            existing = frozenset(self._found or ())
            self._found = None
        self._agenda.start()
        self._look_after(_LOOK_EVERY_SECONDS)
        if existing:
            self._submit(self._tell_outdated)
        return existing

    def launch(self, launch: Launch) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        samples = frozenset(asked.sample for asked in launch.inputs)
        child = _Child(launch.number, launch, self._clock.monotonic(), samples=samples)
        with self._lock:
            self._children[launch.number] = child
        self._submit(self._create, child)

    def cancel(self, launch: int) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        with self._lock:
            child = self._children.get(launch)
            if child is None or child.finished:
                self._children.pop(launch, None)
                return
            deletion = self._give_up(child)
        self._submit(self._delete, deletion)

    def images(self, sample: int) -> dict[str, str]:
        """See :class:`nas_controller.executor.Executor`. Its pod's, and that of the controller."""
        found: dict[str, str] = {}
        for container, chosen in (
            (names.TRAINER_CONTAINER, f"{names.LABEL_SAMPLE}={sample}"),
            (names.CONTROLLER_CONTAINER, f"{names.LABEL_ROLE}={names.ROLE_CONTROLLER}"),
        ):
            selector = f"{names.LABEL_EXPERIMENT_UID}={self._uid},{chosen}"
            try:
                pods = self._client.list(PODS, self._namespace, label_selector=selector).items
            except KubeError as error:
                # What it would say is good to know, and nothing depends on it.
                _log.info("no look at images", error=str(error))
                continue
            # Others may bear the labels: a controller's pod is the experiment's, a child's that of one of its Jobs.
            ours = [pod for pod in pods if belongs(pod, self._uid) or self._is_of_a_child(pod)]
            ran = [item for pod in sorted(ours, key=age) for item in containers(pod) if item.name == container]
            if ran and ran[-1].image_id:
                found[container] = ran[-1].image_id
        return found

    def close(self) -> None:
        """See :class:`nas_controller.executor.Executor`. Waits up to 20 s for cancelled children's deletion."""
        with self._lock:
            wait_for(self._clock, self._settled, self._has_settled, 20.0)
        self._closed = True
        self._reflector.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._agenda.stop()

    def _has_settled(self) -> bool:
        """Return whether nothing of what was given up is left to delete, or may still come into being."""
        return not self._deletions and not any(child.given_up for child in self._creations)

    # ------------------------------------------------------------ the watch

    def _on_job(self, kind: EventType, job: Object) -> None:
        number = (job["metadata"].get("labels") or {}).get(names.LABEL_LAUNCH, "")
        if number.isdecimal() and self._is_ours(job, int(number)):
            self._take(int(number), kind, job)

    def _take(self, number: int, kind: EventType, job: Object) -> None:
        """Take what is known of a child's Job; called by the watch, and for a Job that is adopted."""
        uid = job["metadata"]["uid"]
        with self._lock:
            child, found = self._children.get(number), self._found
            if child is None and found is not None and number not in found and kind is not EventType.DELETED:
                found.add(number)
                child = self._children[number] = _Child(number, None, self._clock.monotonic())
            stray = self._stray(number, kind, job) if child is None else None
            # Besides: another Job of this name may be on its way out.
            taken = child is not None and not child.finished and child.uid in (None, uid)
            if child is not None and taken:
                child.uid, child.longest = uid, longest_run(job)
                child.samples = child.samples or samples(job)
                if kind is EventType.DELETED:
                    del self._children[number]
                elif finished(job):
                    child.finished = True
                else:
                    self._follow(child, job)
        if stray is not None:
            _log.warning("a Job that nobody waits for is deleted", launch=number)
            self._submit(self._delete, stray)
        if not taken:
            return
        if kind is EventType.DELETED:
            gone = Ended(number, End.VANISHED, "its Job was deleted")
            self._post(Ended(number, *job_end(job)) if finished(job) else gone)
        elif finished(job):
            self._submit(self._end, child, job)

    def _stray(self, number: int, kind: EventType, job: Object) -> _Deletion | None:
        """Return the deletion of a Job that trains for nobody; None where that is about to end anyway. With the lock.

        It was created for a launch that was given up meanwhile: by a POST that took effect after all, or by an older
        controller that has woken up.
        """
        uid = job["metadata"]["uid"]
        if kind is EventType.DELETED:
            self._deleted.discard(uid)
        if kind is EventType.DELETED or finished(job) or "deletionTimestamp" in job["metadata"]:
            return None
        if uid in self._deleted or any(each.number == number for each in self._deletions):
            return None
        return self._begin_deletion(_Deletion(number, uid, samples(job), surely=True))

    def _before_list(self) -> Callable[[Mapping[str, str]], None]:
        """Remember whose Jobs are or may be there: those that a list has not, which begins now, are gone."""
        with self._lock:
            made = {
                child: child.uid
                for child in self._children.values()
                if (child.uid is not None or child.unanswered) and child not in self._creations
            }
        return lambda found: self._miss(made, found)

    def _miss(self, made: Mapping[_Child, str | None], found: Mapping[str, str]) -> None:
        for child, before in made.items():
            uid = found.get(self._job_name(child.number))
            with self._lock:
                is_there = uid is not None and before in (None, uid)
                # It may have been created, or have ended, since the list began.
                is_news = child.uid != before or child.finished or child in self._creations
                if is_there or is_news or self._children.get(child.number) is not child:
                    continue
                # Of a POST without an answer a Job may come yet; it is nobody's then.
                del self._children[child.number]
                child.given_up = True
            self._post(Ended(child.number, End.VANISHED, "its Job is gone"))

    def _follow(self, child: _Child, job: Object) -> None:
        """Post whether the child of an unfinished Job waits in its queue, has left it, or runs, when that has changed.

        With the lock held, and so is whoever posts of a closer look: events of one child must not cross.
        """
        if suspended(job):
            if child.waits is None:
                # A pod that is on its way out may still count as ready.
                child.ready, child.priority_class, child.ran_since = False, priority_class(job), math.inf
                child.counted, child.lost_since = False, None
                child.waits = Queued(child.number, queue(job))
                self._post(child.waits)
            return
        if child.waits is not None:
            child.waits, child.blocked, child.since = None, None, self._clock.monotonic()
            self._post(Admitted(child.number))
        child.pods = parallelism(job)
        if status(job).get("ready", 0) < child.pods:
            if child.counted and child.lost_since is None:
                child.lost_since = self._clock.monotonic()
        elif not child.ready or child.lost_since is not None:
            child.counted = True
            self._runs(child)

    def _runs(self, child: _Child) -> None:
        """Post that a child runs, perhaps again. With the lock held."""
        if not child.ready:
            child.ran_since = self._clock.monotonic()
        child.ready, child.blocked, child.lost_since = True, None, None
        self._post(Running(child.number))

    def _is_ours(self, job: Object, number: int) -> bool:
        """Return whether a Job is our experiment's and has the name of a launch's: its labels alone say nothing."""
        return belongs(job, self._uid) and job["metadata"]["name"] == self._job_name(number)

    def _is_of_a_child(self, pod: Object) -> bool:
        """Return whether a Job with the name of a launch's controls a pod; the Job itself need not be known."""
        number = (pod["metadata"].get("labels") or {}).get(names.LABEL_LAUNCH, "")
        owner = controller(pod)
        return number.isdecimal() and (owner.get("kind"), owner.get("name")) == (
            "Job",
            self._job_name(int(number)),
        )

    def _job_name(self, number: int) -> str:
        return names.child_job(self._experiment.metadata.name, self._uid, number)

    def _end(self, child: _Child, job: Object, tries: int = 0) -> None:
        """Post how a finished Job's child ended, after a look at its pods if it failed."""
        pods: list[Object] = []
        if job_end(job)[0] is not End.SUCCEEDED:
            try:
                pods = _newest(_of(child, self._pods([child.number])))
            except KubeError as error:
                _log.info("no look at a failed child's pod", launch=child.number, error=str(error))
                if error.retryable:
                    # Without its pod, a child that was made to end looks like one that failed.
                    self._agenda.add(_pause(tries), lambda: self._submit(self._end, child, job, tries + 1))
                    return
        with self._lock:
            if self._children.get(child.number) is not child:
                return
            del self._children[child.number]
            self._avoidance.refused(pods, self._clock.monotonic())
        self._post(Ended(child.number, *job_end(job, pods)))

    def _end_overdue(self) -> None:
        """Give up children that run long beyond the deadline of their pods, as those of a dead node do for ever."""
        now = self._clock.monotonic()
        with self._lock:
            overdue = [
                child
                for child in self._children.values()
                if not child.finished and now >= child.ran_since + child.longest + _OVERDUE_SECONDS
            ]
            deletions = [self._give_up(child) for child in overdue]
        for child, deletion in zip(overdue, deletions, strict=True):
            said = (
                f"its Job runs {_OVERDUE_SECONDS / 60:.0f} minutes after the deadline of its pod, as it does when the"
                " pod's node is gone; it is deleted"
            )
            _log.warning("child overdue", launch=child.number, message=said)
            self._submit(self._delete, deletion)
            self._post(Ended(child.number, End.DISRUPTED, said))

    # ------------------------------------------------------------ creation and deletion

    def _create(self, child: _Child) -> None:
        """POST a child's Job; what is refused is tried again after a growing pause."""
        launch = child.launch
        if launch is None or not self._is_wanted(child):
            return
        field = template_field(self._experiment, final=launch.inputs[0].final is not None)
        try:
            job = child_job(self._experiment, launch.number, launch.inputs, self._image)
            # A template may have changed since the operator looked at it.
            authority.refuse(self._experiment.spec, "trainer", "finalTraining", unrestricted=self._unrestricted)
            with self._lock:
                avoided = self._avoidance.nodes(self._clock.monotonic())
            if avoided:
                keep_away(job, avoided)
        except ValueError as error:
            self._refused(child, (Reason.INVALID_TEMPLATE, str(error)))
            return
        except Exception as error:  # noqa: BLE001  The designed edge: a template has any shape that somebody gives it.
            said = f"{field}: no pod can be built from it ({type(error).__name__}: {error})"
            self._refused(child, (Reason.INVALID_TEMPLATE, said))
            return
        try:
            if not self._may_begin(child, launch):
                self._agenda.add(_SOON_SECONDS, lambda: self._submit(self._create, child))
                return
        except KubeError as error:
            self._refused(child, refusal(error, field, child.refusals + 1), error)
            return
        with self._creating(child):
            try:
                created = self._client.create(JOBS, self._namespace, job)
            except KubeError as error:
                if isinstance(error, ApiError) and error.status == 409 and error.reason == "AlreadyExists":
                    self._adopt(child, job["metadata"]["name"])
                else:
                    child.unanswered = child.unanswered or may_be_taken(error)
                    self._refused(child, refusal(error, field, child.refusals + 1), error)
            else:
                self._created(child, created)

    def _is_wanted(self, child: _Child) -> bool:
        with self._lock:
            return not child.given_up and child.uid is None and child not in self._creations

    def _may_begin(self, child: _Child, launch: Launch) -> bool:
        """Return whether a child's Job may be created now: it is ours to create, and nothing is in its way.

        No sample is trained twice at once: not while a Job of it is yet to be deleted, and not while a pod of one that
        is gone still ends, unless that takes longer than it may.

        Raises:
            KubeError: it is not known what is in the way.
        """
        with self._lock:
            before = next((each for each in self._deletions if each.samples & child.samples), None)
            if before is not None:
                if before.refusal:
                    self._block(child, (Reason.NOT_PERMITTED, before.refusal))
                return False
        followed = launch.again or launch.inputs[0].attempt > 1
        own = child.number if child.unanswered else None
        if followed and (pods := leaving(self._pods_of(launch), child.samples, own)):
            now = self._clock.monotonic()
            child.room_by = child.room_by or now + longest_stay(pods)
            if now < child.room_by:
                return False
            _log.warning("another pod of the same sample does not end", launch=child.number)
        return self._holds()

    def _pods_of(self, launch: Launch) -> list[Object]:
        """Return pods of a launch's samples, whatever launch they are of, and perhaps others."""
        selector = f"{names.LABEL_EXPERIMENT_UID}={self._uid},{names.LABEL_ROLE}={names.ROLE_TRAINER}"
        if self._experiment.spec.trainer.children_per_pod == 1:
            # Children that share a pod have no label for each.
            selector += f",{names.LABEL_SAMPLE}={launch.inputs[0].sample}"
        pods = self._client.list(PODS, self._namespace, label_selector=selector).items
        return [pod for pod in pods if self._is_of_a_child(pod)]

    def _holds(self, *, surely: bool = False) -> bool:
        """Return whether children are known to be ours."""
        return self._tenure is None or self._tenure.holds(surely=surely) is True

    @contextmanager
    def _creating(self, child: _Child) -> Iterator[None]:
        """Have the end of this executor wait for what becomes of a POST."""
        with self._lock:
            self._creations.add(child)
        try:
            yield
        finally:
            with self._lock:
                self._creations.discard(child)
                self._settled.notify_all()

    def _created(self, child: _Child, job: Object) -> None:
        uid = job["metadata"]["uid"]
        with self._lock:
            if child.uid is None:
                child.uid, child.longest = uid, longest_run(job)
                child.since = self._clock.monotonic()
            # The cancellation's DELETE may have come before our POST.
            late = self._begin_deletion(_Deletion(child.number, uid, child.samples)) if child.given_up else None
            if child.blocked is not None and child.waits is None and not child.ready:
                child.blocked = None
                self._post(Admitted(child.number))
        if late is not None:
            self._submit(self._delete, late)

    def _adopt(self, child: _Child, name: str) -> None:
        try:
            job = self._client.get(JOBS, self._namespace, name)
        except KubeError as error:
            # Gone again, or no answer: the next POST tells.
            self._refused(child, None, error)
            return
        if self._is_ours(job, child.number):
            self._created(child, job)
            self._take(child.number, EventType.MODIFIED, job)
            return
        with self._lock:
            self._children.pop(child.number, None)
        self._post(
            Ended(child.number, End.FAILED, f"Job {name} exists and does not belong to this experiment: delete it")
        )

    def _refused(self, child: _Child, told: Diagnosis | None, error: KubeError | None = None) -> None:
        """Try a POST again later.

        Args:
            child: whose it is.
            told: what people are told of it; None: nothing.
            error: the API server's answer, where it was asked.
        """
        with self._lock:
            if child.given_up:
                return
            child.refusals += 1
            tries = child.refusals
            if told is not None:
                self._block(child, told)
        asked = error.retry_after if isinstance(error, ApiError) else None
        pause = max(_pause(tries - 1), min(asked or 0.0, _LONGEST_PAUSE_SECONDS))
        _log.info("child not created", launch=child.number, error=told[1] if told else str(error), pause=pause)

        def again() -> None:
            # Unless a changed manifest was tried meanwhile, which goes on by itself.
            if child.refusals == tries:
                self._submit(self._create, child)

        self._agenda.add(pause, again)

    def _block(self, child: _Child, told: Diagnosis) -> bool:
        """Post why a child does not run; return whether that is news. With the lock held."""
        blocked = _blocked(child.number, *told)
        if blocked == child.blocked:
            return False
        child.blocked = blocked
        self._post(blocked)
        return True

    def _give_up(self, child: _Child) -> _Deletion:
        """Forget a child, and return the deletion of its Job. With the lock held."""
        del self._children[child.number]
        child.given_up = True
        return self._begin_deletion(_Deletion(child.number, child.uid, child.samples))

    def _begin_deletion(self, deletion: _Deletion) -> _Deletion:
        self._deletions.add(deletion)
        return deletion

    def _delete(self, deletion: _Deletion) -> None:
        """DELETE a Job; what is refused is tried again after a growing pause, for else it trains on unseen."""
        if self._tenure is not None and self._tenure.holds(surely=deletion.surely) is False:
            self._end_deletion(deletion)
            return
        name = self._job_name(deletion.number)
        try:
            self._client.delete(JOBS, self._namespace, name, uid=deletion.uid)
        except KubeError as error:
            if self._closed:
                _log.error("child not deleted", launch=deletion.number, error=str(error))
                self._end_deletion(deletion)
                return
            pause = _pause(deletion.tries)
            with self._lock:
                deletion.tries += 1
                deletion.refusal = "" if error.retryable else f"Job {name} cannot be deleted: {error}"
            _log.warning("child not deleted yet", launch=deletion.number, error=str(error), pause=pause)
            self._agenda.add(pause, lambda: self._submit(self._delete, deletion))
        else:
            self._end_deletion(deletion)

    def _end_deletion(self, deletion: _Deletion) -> None:
        with self._lock:
            self._deletions.discard(deletion)
            if deletion.uid is not None:
                self._deleted.add(deletion.uid)
            self._settled.notify_all()

    # ------------------------------------------------------------ a closer look

    def _tell_outdated(self) -> None:
        """Post which children an earlier controller has made from a manifest that was changed meanwhile."""
        try:
            launches = outdated(self._client, self._experiment, self._image)
        except KubeError as error:
            _log.info("not known which children are outdated", error=str(error))
            self._agenda.add(_LOOK_EVERY_SECONDS, lambda: self._submit(self._tell_outdated))
            return
        for launch in launches:
            self._post(Outdated(launch))

    def _look_after(self, pause: float) -> None:
        self._agenda.add(pause, lambda: self._submit(self._look, pause))

    def _look(self, pause: float) -> None:
        """Find out why children that should run do not, and look again in a while.

        Args:
            pause: seconds since the look before this one.
        """
        news = True
        try:
            self._end_overdue()
            news = self._tell_what_holds_up()
        finally:
            self._look_after(_LOOK_EVERY_SECONDS if news else min(2 * pause, _LOOK_AT_LEAST_EVERY_SECONDS))

    def _tell_what_holds_up(self) -> bool:
        """Post what keeps children from running; return False if there was something to look at and nothing new."""
        long_ago = self._clock.monotonic() - _LOOK_AFTER_SECONDS
        with self._lock:
            old = [
                child
                for child in sorted(self._children.values(), key=lambda child: child.number)
                if child.uid is not None and not child.ready and not child.finished and child.since <= long_ago
            ]
            lost = [
                child
                for child in self._children.values()
                if child.lost_since is not None and child.lost_since <= long_ago and not child.finished
            ]
            queued = [child for child in old if child.waits is not None]
            idle = [child for child in old if child.waits is None]
            none_runs = not any(child.ready for child in self._children.values())
        looks: list[bool] = []
        if lost:
            looks.append(self._look_at_lost(lost[:_LOOKED_AT]))
        if idle:
            looks.append(self._look_at_pods(idle[:_LOOKED_AT]))
        if queued and none_runs:
            looks.append(self._look_at_queue(queued[0]))
        return any(looks) or not looks

    def _look_at_lost(self, lost: list[_Child]) -> bool:
        """Find out on which nodes children have ceased to be ready; return whether anything is news."""
        try:
            pods = self._pods([child.number for child in lost])
        except KubeError as error:
            _log.info("no look at children that are not ready any more", error=str(error))
            return False
        news = False
        for child in lost:
            told = unreachable(_newest(_of(child, pods)))
            with self._lock:
                if told is not None and child.lost_since is not None and not child.finished:
                    news = self._block(child, told) or news
        return news

    def _look_at_queue(self, child: _Child) -> bool:
        """Find out why a child's queue does not let it in: it speaks for all. Return whether that is news."""
        waits = child.waits
        if waits is None or not waits.queue:
            return False
        selector = f"{names.LABEL_JOB_UID}={child.uid}"
        try:
            workloads = self._client.list(WORKLOADS, self._namespace, label_selector=selector).items
        except KubeError as error:
            if not (isinstance(error, ApiError) and error.status == 404):
                _log.info("no look at a queued child", launch=child.number, error=str(error))
                return False
            why = "the cluster has no Kueue, or one that is too old to tell (kueue.x-k8s.io/v1beta2)"
        else:
            why = next(map(admission, workloads), self._not_taken_up(child))
        told = Queued(child.number, waits.queue, why)
        with self._lock:
            if child.waits is None or child.waits == told or child.finished:
                return False
            child.waits = told
            self._post(told)
            return True

    def _not_taken_up(self, child: _Child) -> str:
        asked = f", and is there a WorkloadPriorityClass {child.priority_class}" if child.priority_class else ""
        return f"Kueue has not taken up its Job: does it manage namespace {self._namespace}{asked}?"

    def _look_at_pods(self, idle: list[_Child]) -> bool:
        """Find out why children that wait in no queue do not run; return whether anything is news."""
        try:
            pods = self._pods([child.number for child in idle])
            events = self._client.list(
                EVENTS, self._namespace, field_selector="regarding.kind=Job,reason=FailedCreate"
            ).items
        except KubeError as error:
            _log.info("no look at idle children", error=str(error))
            return False
        news = False
        for child in idle:
            about = [event for event in events if (event.get("regarding") or {}).get("uid") == child.uid]
            newest = _newest(_of(child, pods))
            # Those that train wait for these; with none of them, for pods that there are not yet.
            idle_pods = [pod for pod in newest if not trains(pod)]
            # What a lost node said last stands: that the containers are ready. The pod is not.
            stays = staying(newest) or unreachable(pod for pod in newest if true_condition(pod, "ContainersReady"))
            if stays is None and len(newest) == child.pods and not idle_pods:
                # A user's own trainer is an init container, so that its Job is not ready before the end.
                with self._lock:
                    if child.waits is None and not child.ready:
                        self._runs(child)
                        news = True
            elif (found := stays or diagnose(idle_pods, about)) is not None:
                with self._lock:
                    # It may have begun since the look.
                    if child.waits is None and not child.ready:
                        if stays is not None:
                            # Its node may never come back: it is given up like one that was seen to run.
                            child.ran_since = min(child.ran_since, self._clock.monotonic())
                        news = self._block(child, found) or news
        return news

    def _pods(self, numbers: list[int]) -> list[Object]:
        chosen = ",".join(map(str, numbers))
        return self._client.list(
            PODS,
            self._namespace,
            label_selector=f"{names.LABEL_EXPERIMENT_UID}={self._uid},{names.LABEL_LAUNCH} in ({chosen})",
        ).items

    def _submit(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            future = self._pool.submit(call, *arguments)
        except RuntimeError:
            # The pool is shut down: this process is about to end, and its successor does the call.
            _log.debug("not done any more", call=call.__name__)
            return
        child = next((item for item in arguments if isinstance(item, _Child)), None)
        future.add_done_callback(lambda done: self._report_unforeseen(done, child))

    def _report_unforeseen(self, future: "futures.Future[None]", child: _Child | None) -> None:
        """An error that nobody foresaw must not leave the search waiting for a child without end."""
        if future.cancelled() or (error := future.exception()) is None:
            return
        _log.error("a call about children failed", exc_info=error)
        if child is not None:
            with self._lock:
                self._children.pop(child.number, None)
            self._post(Ended(child.number, End.FAILED, f"the controller failed: {error!r}"))


def _pause(tries: int) -> float:
    """Return how many seconds to wait after a call that has failed so many times before, and now again."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 10), _LONGEST_PAUSE_SECONDS)


def _blocked(number: int, reason: Reason, cause: str) -> Blocked:
    """Return what to tell people: the cause in the words of whoever refused, and the cure."""
    return Blocked(number, reason, f"{cause.rstrip('.')}. {EXPLANATIONS[reason].cure}")


def _of(child: _Child, pods: list[Object]) -> list[Object]:
    """Return the pods that a child's Job has made: others may bear its labels."""
    return [pod for pod in pods if belongs(pod, child.uid or "")]


def _newest(pods: list[Object]) -> list[Object]:
    """Return the newest of a Job's pods, of each number that has one where there are several."""
    return list({completion_index(pod): pod for pod in sorted(pods, key=age)}.values())
