"""The search's part of the status, written to the API server: by server-side apply, and seldom."""

import re
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import structlog

from nas_api import names
from nas_api.experiment import LONGEST_MESSAGE, NASExperiment, Problem
from nas_controller.pace import Pace
from nas_controller.status import SearchStatus
from nas_kube.client import KubeClient
from nas_kube.clock import SYSTEM_CLOCK, Clock, wait_for
from nas_kube.errors import ApiError, KubeError
from nas_kube.resources import EXPERIMENTS

_log = structlog.get_logger()

# What the API server says of a field that the resource's definition does not have.
_UNDECLARED = re.compile(r"\.status\.([\w.]+): field not declared in schema")


class Loss(StrEnum):
    """Why this process may not write the status any more."""

    GONE = "Gone"
    """The experiment is deleted, or another one has its name."""
    SUPERSEDED = "Superseded"
    """A controller with a higher epoch has written."""


class KubernetesSink:
    """A :class:`~nas_controller.status.StatusSink` with a thread of its own.

    Writes only what has changed, when its pace says so; an outcome at once. Every write carries the epoch, so that
    the API server itself refuses a controller that has been replaced, and the object's version, because an apply
    to a status does not look at the uid: without it a namesake created after ours could be hit.
    """

    def __init__(
        self,
        client: KubeClient,
        experiment: NASExperiment,
        on_loss: Callable[[Loss], None],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare; nothing is written before ``publish``.

        Args:
            client: the API.
            experiment: whose status; what it says already is not written again.
            on_loss: called once, from the sink's thread.
            clock: whose time it is.
        """
        self._client = client
        self._meta = experiment.metadata
        self._version: str | None = None
        self._left_out: set[str] = set()
        """Fields that the cluster's definition does not have, as paths: it is older than we, as after a rollback."""
        self._on_loss = on_loss
        self._clock = clock
        self._changed = threading.Condition()
        """Guards the next three."""
        status = experiment.status
        self._pace = Pace(SearchStatus() if status is None else SearchStatus.of(status))
        self._lost: Loss | None = None
        self._closed = False
        self._thread = clock.start("status", self._run)

    def publish(self, status: SearchStatus) -> None:
        """See :class:`~nas_controller.status.StatusSink`."""
        with self._changed:
            self._want(status)

    def publish_problem(self, problem: Problem, *, rests: bool = False) -> None:
        """Say what keeps the search from starting, and whether no child is left.

        Everything else stays as the last controller wrote it.
        """
        with self._changed:
            wanted = self._pace.wanted
            update: dict[str, Any] = {"problem": problem}
            if rests and wanted.samples is not None:
                update["samples"] = wanted.samples.model_copy(update={"running": 0, "queued": 0})
            self._want(wanted.model_copy(update=update))

    def saw(self, version: str) -> None:
        """Take the version of our experiment that its watch tells of: the next write is made at it.

        It may be older than that of our own last write, of which the watch then tells next. A write between the two
        costs a refusal, as does any by somebody else that the watch has not told of yet.
        """
        self._version = version

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until the newest status is written or cannot be any more; None waits as long as it takes.

        Returns whether it is written.
        """
        with self._changed:
            wait_for(self._clock, self._changed, lambda: self._written() or self._lost is not None, seconds)
            return self._written()

    def close(self) -> None:
        """End the thread; what is not written stays unwritten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5.0)

    def _want(self, status: SearchStatus) -> None:
        self._pace.want(status, self._clock.monotonic())
        self._changed.notify_all()

    def _written(self) -> bool:
        return self._pace.wanted == self._pace.written

    def _run(self) -> None:
        while (status := self._next()) is not None:
            began = self._clock.monotonic()
            try:
                self._write(status)
            except KubeError as error:
                loss = _loss(error)
                if loss is not None:
                    _log.info("the status is not ours to write any more", loss=loss, error=str(error))
                    with self._changed:
                        self._lost = loss
                        self._changed.notify_all()
                    self._on_loss(loss)
                    return
                # Refused for another reason or not answered: the next try has the newest status.
                with self._changed:
                    pause = self._pace.failed(began)
                _log.warning("status not written", error=str(error), pause=pause)
            else:
                with self._changed:
                    self._pace.wrote(status, began)
                    self._changed.notify_all()

    def _next(self) -> SearchStatus | None:
        """Return what is to be written once it is time; None: nothing any more."""
        with self._changed:
            while not self._closed:
                due, now = self._pace.due(), self._clock.monotonic()
                if due is not None and due <= now:
                    return self._pace.wanted
                self._clock.wait(self._changed, None if due is None else due - now)
        return None

    def _write(self, status: SearchStatus) -> None:
        """Apply a status to our experiment and no other.

        Raises:
            KubeError: it is not written.
            _Gone: our experiment is not there any more.
        """
        meta = self._meta
        while True:
            if (version := self._version) is None:
                current = self._client.get(EXPERIMENTS, meta.namespace, meta.name)["metadata"]
                if current["uid"] != meta.uid:
                    raise _Gone
                version = current["resourceVersion"]
            body: dict[str, Any] = {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {
                    "name": meta.name,
                    "namespace": meta.namespace,
                    "uid": meta.uid,
                    "resourceVersion": version,
                },
                "status": self._document(status),
            }
            try:
                written = self._client.apply(
                    EXPERIMENTS,
                    meta.namespace,
                    meta.name,
                    body,
                    field_manager=names.FIELD_MANAGER_CONTROLLER,
                    subresource="status",
                )
            except ApiError as error:
                undeclared = set(_UNDECLARED.findall(error.message)) - self._left_out
                if undeclared:
                    # Whoever waits for the end must hear of it, whatever else cannot be said.
                    self._left_out |= undeclared
                    _log.error(_outdated_definition(undeclared))
                elif error.status != 409:
                    raise
                else:
                    # Somebody else wrote it, or it is another object: look, and apply to what is there now.
                    self._version = None
            else:
                self._version = written["metadata"]["resourceVersion"]
                return

    def _document(self, status: SearchStatus) -> dict[str, Any]:
        """Return what is written of a status, without what the cluster does not know."""
        if status.outcome is not None and self._left_out:
            message = f"{status.outcome.message} ({_outdated_definition(self._left_out)})"[:LONGEST_MESSAGE]
            outcome = status.outcome.model_copy(update={"message": message})
            status = status.model_copy(update={"outcome": outcome})
        document: dict[str, Any] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        for path in self._left_out:
            *above, last = path.split(".")
            place: Any = document
            for name in above:
                place = place.get(name) if isinstance(place, dict) else None
            if isinstance(place, dict):
                place.pop(last, None)
        return document


def _outdated_definition(fields: set[str]) -> str:
    named = " and ".join(f"status.{field}" for field in sorted(fields))
    return f"{named} cannot be told: apply the CustomResourceDefinition of this version, the cluster's is older"


class _Gone(KubeError):
    """Another experiment has the name now."""


def _loss(error: KubeError) -> Loss | None:
    if isinstance(error, _Gone):
        return Loss.GONE
    if not isinstance(error, ApiError):
        return None
    if error.status == 404:
        return Loss.GONE
    if error.status == 422 and "lower epoch" in error.message:
        return Loss.SUPERSEDED
    return None
