"""Jobs that are to be: one POST for each child once nothing is in its way, and what follows from each answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from nas_api import authority, names
from nas_api.child import of_final_training
from nas_api.child_job import child_job, template_field
from nas_api.experiment import NASExperiment
from nas_api.reasons import Reason
from nas_controller.executor import Admitted, Launch
from nas_controller.executors.avoidance import Avoidance, keep_away
from nas_controller.executors.calls import LONGEST_PAUSE_SECONDS, Calls, pause
from nas_controller.executors.children import Child, Children
from nas_controller.executors.deletion import Deletion, Deletions
from nas_controller.executors.diagnosis import Diagnosis
from nas_controller.executors.leaving import leaving, longest_stay
from nas_controller.executors.ownership import Ownership
from nas_controller.executors.refusal import may_be_taken, refusal
from nas_controller.tenure import Tenure
from nas_kube.client import KubeClient
from nas_kube.clock import Clock
from nas_kube.errors import ApiError, KubeError
from nas_kube.reading import Object, longest_run
from nas_kube.resources import JOBS, PODS

_log = structlog.get_logger()

# What waits for something that is about to happen looks again so soon.
_SOON_SECONDS = 2.0


class Creation:
    """Creates Jobs, and tries again what was refused, after a growing pause or a change of the manifest."""

    def __init__(
        self,
        client: KubeClient,
        experiment: NASExperiment,
        image: str,
        ownership: Ownership,
        children: Children,
        calls: Calls,
        deletions: Deletions,
        *,
        on_adopted: Callable[[int, Object], None],
        avoidance: Avoidance,
        unrestricted: bool,
        tenure: Tenure | None,
        clock: Clock,
    ) -> None:
        """Prepare.

        Args:
            client: the API.
            experiment: what Jobs are made from.
            image: the trainer's, for manifests that name none.
            ownership: says which Jobs are the experiment's.
            children: whose Jobs these are; their lock guards what is here.
            calls: makes the calls.
            deletions: what stands in the way.
            on_adopted: is told of a Job that was there already, and of the launch that it is of.
            avoidance: the nodes to stay away from; guarded by the children's lock.
            unrestricted: whether templates may ask for more than stands on the list (``nas_api.authority``).
            tenure: says whether children still are ours to create; None: they are.
            clock: whose time it is.
        """
        self._client = client
        self._experiment = experiment
        self._image = image
        self._ownership = ownership
        self._children = children
        self._calls = calls
        self._deletions = deletions
        self._on_adopted = on_adopted
        self._avoidance = avoidance
        self._unrestricted = unrestricted
        self._tenure = tenure
        self._clock = clock
        self._under_way: set[Child] = set()
        """Whose POST is on its way."""

    def change(self, experiment: NASExperiment) -> None:
        """Make Jobs from this manifest from now on; those that were refused are tried again at once."""
        self._experiment = experiment
        with self._children.lock:
            refused = [child for child in self._children.all() if child.uid is None and child.refusals]
        for child in refused:
            self._calls.submit(self.create, child)

    def is_under_way(self, child: Child) -> bool:
        """Return whether a POST of a child is on its way. With the lock held."""
        return child in self._under_way

    def any_given_up(self) -> bool:
        """Return whether a Job may still come into being that is not to be. With the lock held."""
        return any(child.given_up for child in self._under_way)

    def create(self, child: Child) -> None:
        """POST a child's Job; what is refused is tried again after a growing pause."""
        launch = child.launch
        if launch is None or not self._is_wanted(child):
            return
        field = template_field(self._experiment, final=of_final_training(launch.inputs))
        if (job := self._build(child, launch, field)) is None:
            return
        try:
            if not self._may_begin(child, launch):
                self._calls.later(_SOON_SECONDS, self.create, child)
                return
        except KubeError as error:
            self._refused(child, refusal(error, field, child.refusals + 1), error)
            return
        with self._announced(child):
            try:
                created = self._client.create(JOBS, self._ownership.namespace, job)
            except KubeError as error:
                if isinstance(error, ApiError) and error.status == 409 and error.reason == "AlreadyExists":
                    self._adopt(child, job["metadata"]["name"])
                else:
                    child.unanswered = child.unanswered or may_be_taken(error)
                    self._refused(child, refusal(error, field, child.refusals + 1), error)
            else:
                self._created(child, created)

    def _is_wanted(self, child: Child) -> bool:
        with self._children.lock:
            return not child.given_up and child.uid is None and child not in self._under_way

    def _build(self, child: Child, launch: Launch, field: str) -> dict[str, Any] | None:
        """Return a child's Job; None, once that is told, where none can be made from the manifest.

        Args:
            child: whose it is.
            launch: what it is to do.
            field: where the template is that has the last say.
        """
        try:
            job = child_job(self._experiment, launch.number, launch.inputs, self._image)
            # A template may have changed since the operator looked at it.
            authority.refuse(self._experiment.spec, "trainer", "finalTraining", unrestricted=self._unrestricted)
            with self._children.lock:
                avoided = self._avoidance.nodes(self._clock.monotonic())
            if avoided:
                keep_away(job, avoided)
        except ValueError as error:
            self._refused(child, (Reason.INVALID_TEMPLATE, str(error)))
            return None
        except Exception as error:  # noqa: BLE001  The designed edge: a template has any shape that somebody gives it.
            said = f"{field}: no pod can be built from it ({type(error).__name__}: {error})"
            self._refused(child, (Reason.INVALID_TEMPLATE, said))
            return None
        return job

    def _may_begin(self, child: Child, launch: Launch) -> bool:
        """Return whether a child's Job may be created now: it is ours to create, and nothing is in its way.

        No sample is trained twice at once: not while a Job of it is yet to be deleted, and not while a pod of one that
        is gone still ends, unless that takes longer than it may.

        Raises:
            KubeError: it is not known what is in the way.
        """
        with self._children.lock:
            before = self._deletions.in_the_way(child.samples)
            if before is not None:
                if before.refusal:
                    self._children.block(child, (Reason.NOT_PERMITTED, before.refusal))
                return False
        followed = launch.again or launch.inputs[0].attempt > 1
        own = child.number if child.unanswered else None
        if followed and (pods := leaving(self._pods_of(launch), child.samples, own)):
            now = self._clock.monotonic()
            child.room_by = child.room_by or now + longest_stay(pods)
            if now < child.room_by:
                return False
            _log.warning("another pod of the same sample does not end", launch=child.number)
        return self._tenure is None or self._tenure.holds() is True

    def _pods_of(self, launch: Launch) -> list[Object]:
        """Return pods of a launch's samples, whatever launch they are of, and perhaps others."""
        selector = self._ownership.trainers()
        if self._experiment.spec.trainer.children_per_pod == 1:
            # Children that share a pod have no label for each.
            selector += f",{names.LABEL_SAMPLE}={launch.inputs[0].sample}"
        pods = self._client.list(PODS, self._ownership.namespace, label_selector=selector).items
        return [pod for pod in pods if self._ownership.is_of_a_child(pod)]

    @contextmanager
    def _announced(self, child: Child) -> Iterator[None]:
        """Have the end of the executor wait for what becomes of a POST."""
        with self._children.lock:
            self._under_way.add(child)
        try:
            yield
        finally:
            with self._children.lock:
                self._under_way.discard(child)
                self._children.settled.notify_all()

    def _created(self, child: Child, job: Object) -> None:
        uid = job["metadata"]["uid"]
        with self._children.lock:
            if child.uid is None:
                child.uid, child.longest = uid, longest_run(job)
                child.since = self._clock.monotonic()
            # The cancellation's DELETE may have come before our POST.
            late = self._deletions.begin(Deletion(child.number, uid, child.samples)) if child.given_up else None
            if child.blocked is not None and child.waits is None and not child.ready:
                child.blocked = None
                self._children.post(Admitted(child.number))
        if late is not None:
            self._calls.submit(self._deletions.delete, late)

    def _adopt(self, child: Child, name: str) -> None:
        try:
            job = self._client.get(JOBS, self._ownership.namespace, name)
        except KubeError as error:
            # Gone again, or no answer: the next POST tells.
            self._refused(child, None, error)
            return
        if self._ownership.is_ours(job, child.number):
            self._created(child, job)
            self._on_adopted(child.number, job)
            return
        self._children.fail(child, f"Job {name} exists and does not belong to this experiment: delete it")

    def _refused(self, child: Child, told: Diagnosis | None, error: KubeError | None = None) -> None:
        """Try a POST again later.

        Args:
            child: whose it is.
            told: what people are told of it; None: nothing.
            error: the API server's answer, where it was asked.
        """
        with self._children.lock:
            if child.given_up:
                return
            child.refusals += 1
            tries = child.refusals
            if told is not None:
                self._children.block(child, told)
        asked = error.retry_after if isinstance(error, ApiError) else None
        seconds = max(pause(tries - 1), min(asked or 0.0, LONGEST_PAUSE_SECONDS))
        _log.info("child not created", launch=child.number, error=told[1] if told else str(error), pause=seconds)
        self._calls.later(seconds, self._try_again, child, tries)

    def _try_again(self, child: Child, tries: int) -> None:
        # Unless a changed manifest was tried meanwhile, which goes on by itself.
        if child.refusals == tries:
            self.create(child)
