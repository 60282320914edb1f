"""Children as Kubernetes Jobs: one POST and one DELETE each, one watch for all, and a closer look only in trouble."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures

import structlog

from nas_api import names
from nas_api.experiment import NASExperiment
from nas_controller.executor import Admitted, End, Ended, Event, Launch, Outdated, Queued
from nas_controller.executors.agenda import Agenda
from nas_controller.executors.avoidance import Avoidance
from nas_controller.executors.calls import Calls, pause
from nas_controller.executors.children import Child, Children, newest_pods
from nas_controller.executors.closer_look import CloserLook
from nas_controller.executors.creation import Creation
from nas_controller.executors.deletion import Deletion, Deletions
from nas_controller.executors.job_end import job_end
from nas_controller.executors.ownership import Ownership
from nas_controller.executors.remains import outdated
from nas_controller.tenure import Tenure
from nas_kube.client import KubeClient
from nas_kube.clock import SYSTEM_CLOCK, Clock, wait_for
from nas_kube.errors import ApiError, ApiUnavailable, KubeError
from nas_kube.reading import (
    Object,
    age,
    belongs,
    containers,
    finished,
    longest_run,
    parallelism,
    priority_class,
    queue,
    samples,
    status,
    suspended,
)
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import JOBS, PODS

_log = structlog.get_logger()

# The pause after a look doubles as long as looks tell nothing new: an image may take minutes to be pulled.
_LOOK_EVERY_SECONDS = 10.0
_LOOK_AT_LEAST_EVERY_SECONDS = 60.0
# A pod's deadline is its kubelet's to keep. Beyond it and the pod's grace a Job gets so much longer before it is ours;
# so much has a node to begin with a pod, too.
_OVERDUE_SECONDS = 300.0


class KubernetesExecutor:
    """See :class:`nas_controller.executor.Executor`. ``change`` takes over a newer manifest.

    API calls for each child: one POST, one DELETE when its Job's time to live is over, and nothing else but its
    share of one watch. A failed one costs a list of its pod, another attempt a list of the pods before it. Children
    that do not run after 20 s are looked at, ten at a time, with one list of pods and one of events; those in a queue
    with one of Workloads, and only while none runs. Looks that tell nothing new become rarer, down to one a minute.
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
        meta = experiment.metadata
        self._ownership = Ownership(meta.namespace, meta.name, meta.uid)
        self._pool = pool
        self._clock = clock
        self._children = Children(clock)
        self._found: set[int] | None = set()
        """What the first list holds, ended or not; None once ``start`` has told it."""
        self._avoidance = Avoidance()
        """Guarded by the children's lock, as is whatever else changes here."""
        self._agenda = Agenda(clock)
        self._calls = Calls(pool, self._agenda, self._children)
        self._deletions = Deletions(client, self._ownership, self._children, self._calls, tenure)
        self._creation = Creation(
            client,
            experiment,
            trainer_image,
            self._ownership,
            self._children,
            self._calls,
            self._deletions,
            on_adopted=lambda number, job: self._take(number, EventType.MODIFIED, job),
            avoidance=self._avoidance,
            unrestricted=unrestricted,
            tenure=tenure,
            clock=clock,
        )
        self._closer_look = CloserLook(client, self._ownership, self._children, clock)
        self._reflector = Reflector(
            client,
            JOBS,
            meta.namespace,
            self._on_job,
            label_selector=self._ownership.trainers(),
            on_list=self._before_list,
            clock=clock,
            jitter=jitter,
        )

    def change(self, experiment: NASExperiment) -> None:
        """Make Jobs from this manifest from now on; those that were refused are tried again at once."""
        self._experiment = experiment
        self._creation.change(experiment)

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """See :class:`nas_controller.executor.Executor`.

        Raises:
            ApiError: we may not list Jobs in this namespace.
        """
        self._children.post = post
        self._reflector.start()
        while not self._reflector.wait_synced(5.0):
            try:
                self._client.list(JOBS, self._ownership.namespace, label_selector=self._ownership.labels())
            except ApiUnavailable as error:
                _log.warning("waiting for the API server", error=str(error))
            except ApiError as error:
                if not error.retryable:
                    raise
        with self._children.lock:
            # Not those in _children: a finished one may have left them again by now.
            existing = frozenset(self._found or ())
            self._found = None
        self._agenda.start()
        self._look_after(_LOOK_EVERY_SECONDS)
        if existing:
            self._calls.submit(self._tell_outdated)
        return existing

    def launch(self, launch: Launch) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        samples = frozenset(asked.sample for asked in launch.inputs)
        with self._children.lock:
            child = self._children.add(launch.number, launch, samples)
        self._calls.submit(self._creation.create, child)

    def cancel(self, launch: int) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        with self._children.lock:
            child = self._children.by_launch.get(launch)
            if child is None or child.finished:
                self._children.by_launch.pop(launch, None)
                return
            deletion = self._deletions.give_up(child)
        self._calls.submit(self._deletions.delete, deletion)

    def images(self, sample: int) -> dict[str, str]:
        """See :class:`nas_controller.executor.Executor`. Its pod's, and that of the controller."""
        found: dict[str, str] = {}
        for container, chosen in (
            (names.TRAINER_CONTAINER, f"{names.LABEL_SAMPLE}={sample}"),
            (names.CONTROLLER_CONTAINER, f"{names.LABEL_ROLE}={names.ROLE_CONTROLLER}"),
        ):
            selector = f"{self._ownership.labels()},{chosen}"
            try:
                pods = self._client.list(PODS, self._ownership.namespace, label_selector=selector).items
            except KubeError as error:
                # What it would say is good to know, and nothing depends on it.
                _log.info("no look at images", error=str(error))
                continue
            # Others may bear the labels: a controller's pod is the experiment's, a child's that of one of its Jobs.
            ours = [pod for pod in pods if belongs(pod, self._ownership.uid) or self._ownership.is_of_a_child(pod)]
            ran = [item for pod in sorted(ours, key=age) for item in containers(pod) if item.name == container]
            if ran and ran[-1].image_id:
                found[container] = ran[-1].image_id
        return found

    def close(self) -> None:
        """See :class:`nas_controller.executor.Executor`. Waits up to 20 s for cancelled children's deletion."""
        with self._children.lock:
            wait_for(self._clock, self._children.settled, self._has_settled, 20.0)
        self._deletions.close()
        self._reflector.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._agenda.stop()

    def _has_settled(self) -> bool:
        """Return whether nothing of what was given up is left to delete, or may still come into being."""
        return not self._deletions.are_pending() and not self._creation.any_given_up()

    # ------------------------------------------------------------ the watch

    def _on_job(self, kind: EventType, job: Object) -> None:
        number = (job["metadata"].get("labels") or {}).get(names.LABEL_LAUNCH, "")
        if number.isdecimal() and self._ownership.is_ours(job, int(number)):
            self._take(int(number), kind, job)

    def _take(self, number: int, kind: EventType, job: Object) -> None:
        """Take what is known of a child's Job; called by the watch, and for a Job that is adopted."""
        uid = job["metadata"]["uid"]
        with self._children.lock:
            child, found = self._children.by_launch.get(number), self._found
            if child is None and found is not None and number not in found and kind is not EventType.DELETED:
                found.add(number)
                child = self._children.add(number, None)
            stray = self._stray(number, kind, job) if child is None else None
            # Besides: another Job of this name may be on its way out.
            taken = child is not None and not child.finished and child.uid in (None, uid)
            if child is not None and taken:
                child.uid, child.longest = uid, longest_run(job)
                child.samples = child.samples or samples(job)
                if kind is EventType.DELETED:
                    del self._children.by_launch[number]
                elif finished(job):
                    child.finished = True
                else:
                    self._follow(child, job)
        if stray is not None:
            _log.warning("a Job that nobody waits for is deleted", launch=number)
            self._calls.submit(self._deletions.delete, stray)
        if not taken:
            return
        if kind is EventType.DELETED:
            gone = Ended(number, End.VANISHED, "its Job was deleted")
            self._children.post(Ended(number, *job_end(job)) if finished(job) else gone)
        elif finished(job):
            self._calls.submit(self._end, child, job)

    def _stray(self, number: int, kind: EventType, job: Object) -> Deletion | None:
        """Return the deletion of a Job that trains for nobody; None where that is about to end anyway. With the lock.

        It was created for a launch that was given up meanwhile: by a POST that took effect after all, or by an older
        controller that has woken up.
        """
        uid = job["metadata"]["uid"]
        if kind is EventType.DELETED:
            self._deletions.gone(uid)
        if kind is EventType.DELETED or finished(job) or "deletionTimestamp" in job["metadata"]:
            return None
        if self._deletions.covers(number, uid):
            return None
        return self._deletions.begin(Deletion(number, uid, samples(job), surely=True))

    def _before_list(self) -> Callable[[Mapping[str, str]], None]:
        """Remember whose Jobs are or may be there: those that a list has not, which begins now, are gone."""
        with self._children.lock:
            made = {
                child: child.uid
                for child in self._children.all()
                if (child.uid is not None or child.unanswered) and not self._creation.is_under_way(child)
            }
        return lambda found: self._miss(made, found)

    def _miss(self, made: Mapping[Child, str | None], found: Mapping[str, str]) -> None:
        for child, before in made.items():
            uid = found.get(self._ownership.job_name(child.number))
            with self._children.lock:
                is_there = uid is not None and before in (None, uid)
                # It may have been created, or have ended, since the list began.
                is_news = child.uid != before or child.finished or self._creation.is_under_way(child)
                if is_there or is_news or not self._children.knows(child):
                    continue
                # Of a POST without an answer a Job may come yet; it is nobody's then.
                self._children.give_up(child)
            self._children.post(Ended(child.number, End.VANISHED, "its Job is gone"))

    def _follow(self, child: Child, job: Object) -> None:
        """Post whether the child of an unfinished Job waits in its queue, has left it, or runs, when that has changed.

        With the lock held, and so is whoever posts of a closer look: events of one child must not cross.
        """
        if suspended(job):
            if child.waits is None:
                # A pod that is on its way out may still count as ready.
                child.ready, child.priority_class, child.ran_since = False, priority_class(job), math.inf
                child.counted, child.lost_since = False, None
                child.strand(None)
                child.waits = Queued(child.number, queue(job))
                self._children.post(child.waits)
            return
        if child.waits is not None:
            child.waits, child.blocked, child.since = None, None, self._clock.monotonic()
            self._children.post(Admitted(child.number))
        child.pods = parallelism(job)
        if status(job).get("ready", 0) < child.pods:
            if child.counted and child.lost_since is None:
                child.lost_since = self._clock.monotonic()
        elif not child.ready or child.lost_since is not None:
            child.counted = True
            self._children.runs(child)

    def _end(self, child: Child, job: Object, tries: int = 0) -> None:
        """Post how a finished Job's child ended, after a look at its pods if it failed."""
        pods: Sequence[Object] = ()
        if job_end(job)[0] is not End.SUCCEEDED:
            try:
                pods = newest_pods(child, self._closer_look.pods([child]))
            except KubeError as error:
                _log.info("no look at a failed child's pod", launch=child.number, error=str(error))
                if error.retryable:
                    # Without its pod, a child that was made to end looks like one that failed.
                    self._calls.later(pause(tries), self._end, child, job, tries + 1)
                    return
        with self._children.lock:
            if not self._children.knows(child):
                return
            del self._children.by_launch[child.number]
            self._avoidance.refused(pods, self._clock.monotonic())
        self._children.post(Ended(child.number, *job_end(job, pods)))
        self._deletions.clean_up_after(child.number, job)

    def _end_overdue(self) -> None:
        """Give up children that a dead node holds for ever: beyond their pods' deadline, or before they have begun."""
        now = self._clock.monotonic()
        with self._children.lock:
            overdue = [
                (child, said, self._deletions.give_up(child))
                for child in list(self._children.all())
                if not child.finished and (said := _overdue(child, now))
            ]
        for child, said, deletion in overdue:
            _log.warning("child overdue", launch=child.number, message=said)
            self._calls.submit(self._deletions.delete, deletion)
            self._children.post(Ended(child.number, End.DISRUPTED, said))

    # ------------------------------------------------------------ a closer look

    def _tell_outdated(self) -> None:
        """Post which children an earlier controller has made from a manifest that was changed meanwhile."""
        try:
            launches = outdated(self._client, self._experiment, self._image)
        except KubeError as error:
            _log.info("not known which children are outdated", error=str(error))
            self._calls.later(_LOOK_EVERY_SECONDS, self._tell_outdated)
            return
        for launch in launches:
            self._children.post(Outdated(launch))

    def _look_after(self, seconds: float) -> None:
        self._calls.later(seconds, self._look, seconds)

    def _look(self, before: float) -> None:
        """Find out why children that should run do not, and look again in a while.

        Args:
            before: seconds since the look before this one.
        """
        news = True
        try:
            news = self._closer_look.tell_what_holds_up()
            self._end_overdue()
        finally:
            self._look_after(_LOOK_EVERY_SECONDS if news else min(2 * before, _LOOK_AT_LEAST_EVERY_SECONDS))


def _overdue(child: Child, now: float) -> str:
    """Return why a child is not waited for any longer; empty: it is."""
    minutes = f"{_OVERDUE_SECONDS / 60:.0f} minutes"
    if now >= child.ran_since + child.longest + _OVERDUE_SECONDS:
        said = f"its Job runs {minutes} after the deadline of its pod, as it does when the pod's node is gone"
    elif child.stranded_for >= _OVERDUE_SECONDS:
        said = (
            f"its pod has neither begun nor ended for {minutes} on the node that it is bound to, as when that is away"
        )
    else:
        return ""
    return f"{said}; it is deleted"
