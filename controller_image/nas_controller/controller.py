"""The controller of one experiment: it searches as often as it takes, and says on the experiment what is in the way."""

import threading
from enum import IntEnum
from typing import Any

import structlog
from pydantic import ValidationError

from nas_api.child import StoreLocation
from nas_api.child_job import s3_location
from nas_api.experiment import LONGEST_MESSAGE, LogHead, NASExperiment, Outcome, Problem
from nas_api.reasons import Reason
from nas_controller.errors import EarlierMissing, EarlierUnsuitable, SearchChanged
from nas_controller.executors.kubernetes import KubernetesExecutor
from nas_controller.executors.remains import end_unfinished
from nas_controller.instruments import ChangingExecutor, Instruments
from nas_controller.kubernetes_status import KubernetesSink, Loss
from nas_controller.machine import Machine
from nas_controller.policies.factory import make_policy
from nas_controller.search import Exit, Search
from nas_controller.status import SearchStatus, StatusSink
from nas_controller.tenure import Tenure
from nas_kube.client import KubeClient
from nas_kube.clock import wait_for
from nas_kube.errors import ApiError, KubeError
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import EXPERIMENTS
from nas_log.errors import Fenced, LogDamaged, LogTampered
from nas_log.records import Platform
from nas_store.errors import CredentialsRefused, StoreError

_log = structlog.get_logger()

_PAUSES_SECONDS = (5.0, 10.0, 20.0, 30.0)
# Long enough for the status to be written and for the operator to see it.
_REFUSED_SECONDS = 20.0
_NO_INSTRUMENTS = Instruments()
_MACHINE = Machine()
_FATAL = {
    SearchChanged: Reason.SEARCH_CHANGED,
    EarlierUnsuitable: Reason.EXPERIMENT_UNSUITABLE,
}


class ControllerExit(IntEnum):
    """How the controller's process ends. The codes tell a story in ``kubectl describe`` and decide nothing."""

    DONE = 0
    """The search has ended and its outcome is in the status, or the experiment is gone."""
    REFUSED = 1
    """The store refuses our credentials: they came with the pod, so only a fresh pod can have better ones; or there is
    no API server to talk to."""
    FENCED = 3
    """Another controller goes on with this search."""
    TERMINATED = 143
    """SIGTERM: everything is in the log, so there is nothing to do first."""


class Controller:
    """Searches for one experiment until its search has ended, whatever comes between."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        uid: str,
        trainer_image: str,
        instruments: Instruments = _NO_INSTRUMENTS,
        *,
        unrestricted: bool = False,
        platform: Platform | None = None,
        machine: Machine = _MACHINE,
    ) -> None:
        """Prepare; ``run`` does everything.

        Args:
            client: the API.
            namespace: the experiment's.
            name: the experiment's.
            uid: the experiment's; another experiment of that name is none of ours.
            trainer_image: for manifests that name none.
            instruments: put around the parts of each search.
            unrestricted: whether templates may ask for more than stands on the list (``nas_api.authority``).
            platform: what this process runs on, for the log.
            machine: gives time, threads, chance and the way to the store.
        """
        self._client = client
        self._machine = machine
        self._clock = machine.clock
        self._namespace, self._name, self._uid = namespace, name, uid
        self._image = trainer_image
        self._instruments = instruments
        self._unrestricted = unrestricted
        self._platform = platform
        self._lock = threading.Lock()
        self._experiment: NASExperiment | None = None
        self._search: Search | None = None
        self._executor: ChangingExecutor | None = None
        self._written: KubernetesSink | None = None
        self._tenure: Tenure | None = None
        """Of the newest try to search; None before the first."""
        self._anchor: LogHead | None = None
        """Of the newest status: the log's head, which no one who writes to the bucket can change."""
        self._seen = False
        self._loss: Loss | None = None
        self._changed = threading.Condition()
        """Guards the next one."""
        self._woken = False

    def run(self) -> ControllerExit:
        """Return the exit code once there is nothing more to do."""
        reflector = Reflector(
            self._client,
            EXPERIMENTS,
            self._namespace,
            self._on_experiment,
            field_selector=f"metadata.name={self._name}",
            clock=self._clock,
            jitter=self._machine.jitter,
        )
        reflector.start()
        try:
            while not reflector.wait_synced(30.0):
                _log.warning("waiting for the API server")
            if not self._seen:
                self._on_loss(Loss.GONE)
            return self._run()
        except Fenced as error:
            _log.warning("fenced: another controller goes on with this experiment", error=str(error))
            return ControllerExit.FENCED
        finally:
            reflector.stop()

    def _run(self) -> ControllerExit:
        tries = 0
        while True:
            # Only what changes from here on ends a pause early: the first sight of the experiment must not.
            self._sleep(0.0)
            experiment = self._experiment
            if self._loss is not None:
                return ControllerExit.FENCED if self._loss is Loss.SUPERSEDED else ControllerExit.DONE
            if experiment is None:
                # Not readable by this version: the watch tells when that changes.
                self._sleep(_PAUSES_SECONDS[-1])
                continue
            if self._written is None:
                self._written = KubernetesSink(self._client, experiment, self._on_loss, clock=self._clock)
                sink = self._instruments.sink(self._written)
            try:
                why = self._search_once(experiment, sink)
            except (SearchChanged, EarlierUnsuitable) as error:
                reason = _FATAL[type(error)]
                outcome = Outcome(type="Failed", reason=reason, message=str(error)[:LONGEST_MESSAGE])
                before = SearchStatus() if experiment.status is None else SearchStatus.of(experiment.status)
                sink.publish(before.model_copy(update={"problem": None, "outcome": outcome}))
                why = Exit.FINISHED
            except (StoreError, LogDamaged, EarlierMissing, ApiError) as error:
                problem = _problem(error)
                _log.warning("cannot search", reason=problem.reason, error=problem.message)
                # To end them needs no log, and somebody wants their nodes.
                rests = (self._experiment or experiment).spec.suspend and self._end_remains(experiment)
                sink.publish_problem(problem, rests=rests)
                if isinstance(error, CredentialsRefused):
                    self._sleep(_REFUSED_SECONDS)
                    return ControllerExit.DONE if self._loss is Loss.GONE else ControllerExit.REFUSED
                self._sleep(_PAUSES_SECONDS[min(tries, len(_PAUSES_SECONDS) - 1)])
                tries += 1
                continue
            if why is Exit.FINISHED:
                # Whoever ended the search may have died before all children were ended.
                self._end_remains(experiment)
                # As long as it takes: the operator knows the end from the status only.
                self._written.flush()
                _log.info("done", outcome_written=self._loss is None)
                return ControllerExit.DONE
            if self._loss is not Loss.GONE:
                return ControllerExit.FENCED

    def _search_once(self, experiment: NASExperiment, sink: StatusSink) -> Exit:
        """Search until the end or until something is in the way."""
        location = StoreLocation(s3=s3_location(experiment))
        store = self._instruments.store(self._machine.store(location))
        self._tenure = tenure = Tenure(store, self._clock, self._tenure)
        store.probe()
        jobs = KubernetesExecutor(
            self._client,
            experiment,
            self._image,
            self._machine.pool("jobs"),
            unrestricted=self._unrestricted,
            clock=self._clock,
            jitter=self._machine.jitter,
            tenure=tenure,
        )
        executor = self._instruments.executor(jobs, experiment)
        search = Search(
            experiment,
            store=store,
            location=location,
            executor=executor,
            sink=sink,
            pool=self._machine.pool("results"),
            make_policy=self._instruments.policy(make_policy),
            clock=self._clock,
            snapshot_every=self._machine.snapshot_every,
            anchor=self._anchor,
            platform=self._platform,
            tenure=tenure,
        )
        with self._lock:
            self._search, self._executor = search, executor
            newest = self._experiment
            lost = self._loss
        try:
            if lost is not None:
                return Exit.STOPPED
            if newest is not None and newest is not experiment:
                # It changed while the store was probed.
                executor.change(newest)
                search.change(newest)
            with self._machine.report(store, lambda: self._experiment or experiment):
                return search.run()
        finally:
            with self._lock:
                self._search = self._executor = None
            executor.close()

    def _end_remains(self, experiment: NASExperiment) -> bool:
        """End children that no search waits for; return whether none is left.

        Raises:
            Fenced: another controller is at work, and knows better.
        """
        for pause in (*_PAUSES_SECONDS, None):
            try:
                end_unfinished(self._client, experiment, self._tenure)
            except KubeError as error:
                _log.warning("children not ended", error=str(error))
                if pause is None or not error.retryable or self._loss is not None:
                    # The operator starts another controller as long as there are any.
                    return False
                self._sleep(pause)
            else:
                return True
        raise AssertionError("the last try returns")

    def _on_experiment(self, kind: EventType, raw: dict[str, Any]) -> None:
        """Take a change of our experiment, from the watch's thread."""
        self._seen = True
        metadata = raw["metadata"]
        if kind is EventType.DELETED or metadata["uid"] != self._uid or metadata.get("deletionTimestamp"):
            # A namesake, too, means that ours is gone.
            self._on_loss(Loss.GONE)
            return
        if self._written is not None:
            self._written.saw(metadata["resourceVersion"])
        self._anchor = _anchor(raw)
        before = self._experiment
        if before is not None and before.metadata.generation == metadata.get("generation"):
            # Only the status has changed.
            return
        try:
            experiment = NASExperiment.model_validate(raw, extra="ignore")
        except ValidationError as error:
            _log.warning("the spec does not fit this version; the last one that did stays", error=str(error))
            return
        with self._lock:
            self._experiment = experiment
            if self._search is not None and self._executor is not None:
                # The executor first: a launch that the search makes anew must be made from the new template.
                self._executor.change(experiment)
                self._search.change(experiment)
        self._wake()

    def _on_loss(self, loss: Loss) -> None:
        with self._lock:
            self._loss = loss
            if self._search is not None and loss is Loss.SUPERSEDED:
                self._search.superseded()
            elif self._search is not None:
                self._search.stop()
        self._wake()

    def _sleep(self, seconds: float) -> None:
        """Wait, but not beyond a change of the experiment."""
        with self._changed:
            wait_for(self._clock, self._changed, lambda: self._woken, seconds)
            self._woken = False

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()


def _anchor(raw: dict[str, Any]) -> LogHead | None:
    """Return the head of the log that a status has; None: it has none, as of an older version or a restored cluster."""
    try:
        return LogHead.model_validate((raw.get("status") or {}).get("log"), extra="ignore")
    except ValidationError:
        return None


def _problem(error: StoreError | LogDamaged | EarlierMissing | ApiError) -> Problem:
    if isinstance(error, StoreError):
        reason = error.reason
    elif isinstance(error, LogTampered):
        reason = Reason.LOG_TAMPERED
    elif isinstance(error, LogDamaged):
        reason = Reason.LOG_DAMAGED
    elif isinstance(error, EarlierMissing):
        reason = Reason.WAITING_FOR_EXPERIMENT
    else:
        reason = Reason.NOT_PERMITTED
    return Problem(reason=reason, message=str(error)[:LONGEST_MESSAGE])
