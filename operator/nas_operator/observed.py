"""What we know of an experiment and of its controller pods, as plain values. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from nas_api import names
from nas_api.child import ExitCode
from nas_api.reasons import Reason

Object = dict[str, Any]

QUICK = timedelta(seconds=60)
"""A controller that ends sooner than this after its start has hardly done anything."""

STARTED_LATE = timedelta(seconds=20)
"""A pod that does not run by then is looked into: most start sooner, and looking costs a call."""

_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG_REASONS = frozenset({"CreateContainerConfigError"})


@dataclass(frozen=True)
class Finding:
    """Something that keeps the controller from running."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class ControllerPod:
    """One controller pod."""

    name: str
    uid: str
    index: int
    created: datetime
    terminating: bool
    running: bool
    inputs: str
    quick_failures: int
    ended: datetime | None = None
    quick: bool = False
    """Whether it failed by itself within ``QUICK`` of its start."""
    last_words: str = ""
    finding: Finding | None = None

    @property
    def failures(self) -> int:
        """How many quick failures in a row there are with this one."""
        return self.quick_failures + 1 if self.quick else 0

    @property
    def live(self) -> bool:
        """Whether it runs or may still run."""
        return self.ended is None and not self.terminating


@dataclass(frozen=True)
class Refusal:
    """The API server would not let us do something; ``key`` names what was asked for."""

    key: str
    reason: Reason
    detail: str
    retry_at: datetime


@dataclass(frozen=True)
class Observed:
    """Everything that one look at an experiment found."""

    raw: Object
    """The experiment as the API server has it."""
    pods: tuple[ControllerPod, ...] = ()
    """Its controller pods by index."""
    access: bool = False
    """Whether ServiceAccount and RoleBinding were seen to be right lately."""
    accepted: frozenset[str] = frozenset()
    """Keys of the trials that the API server accepted."""
    refusal: Refusal | None = None
    children: int | None = None
    """Unfinished child Jobs; looked up only while the experiment is being suspended."""
    mount_failure: str = ""
    """Why the newest pod's volumes cannot be mounted; looked up only for a pod that starts late."""


def starts_late(pods: tuple[ControllerPod, ...], now: datetime) -> ControllerPod | None:
    """Return the newest pod, if it should run by now and its status does not say why it does not."""
    newest = pods[-1] if pods else None
    if newest is None or not newest.live or newest.running or newest.finding is not None:
        return None
    return newest if now - newest.created >= STARTED_LATE else None


def controller_pod(raw: Mapping[str, Any]) -> ControllerPod | None:
    """Return what matters of a pod, or None if its name is not one that we give."""
    metadata = raw["metadata"]
    index = pod_index(metadata["name"])
    if index is None:
        return None
    annotations = metadata.get("annotations") or {}
    failures = annotations.get(names.ANNOTATION_QUICK_FAILURES, "0")
    status = raw.get("status") or {}
    phase = status.get("phase", "Pending")
    created = instant(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC)
    terminated = _container_state(status).get("terminated") or {}
    terminating = "deletionTimestamp" in metadata
    ended = None
    quick = False
    if phase in ("Succeeded", "Failed"):
        started = instant(terminated.get("startedAt") or status.get("startTime")) or created
        ended = instant(terminated.get("finishedAt")) or started
        told_to_end = terminating or _disrupted(status) or terminated.get("exitCode") == ExitCode.TERMINATED
        quick = ended - started < QUICK and not told_to_end
    return ControllerPod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=index,
        created=created,
        terminating=terminating,
        running=phase == "Running" and not terminating,
        inputs=annotations.get(names.ANNOTATION_INPUTS, ""),
        quick_failures=int(failures) if failures.isdigit() else 0,
        ended=ended,
        quick=quick,
        last_words=_last_words(status, terminated) if ended is not None else "",
        finding=_finding(status) if ended is None else None,
    )


def pod_index(name: str) -> int | None:
    """Return the number at the end of a controller pod's name."""
    _, separator, tail = name.rpartition("-controller-")
    return int(tail) if separator and tail.isdigit() else None


def instant(text: str | None) -> datetime | None:
    """Return the moment of a timestamp as Kubernetes writes it."""
    return datetime.fromisoformat(text) if text else None


def _container_state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    for container in status.get("containerStatuses") or ():
        if container.get("name") == names.CONTROLLER_CONTAINER:
            return container.get("state") or {}
    return {}


def _disrupted(status: Mapping[str, Any]) -> bool:
    return any(
        condition.get("type") == "DisruptionTarget" and condition.get("status") == "True"
        for condition in status.get("conditions") or ()
    )


def _last_words(status: Mapping[str, Any], terminated: Mapping[str, Any]) -> str:
    words = terminated.get("message") or status.get("message") or terminated.get("reason") or status.get("reason") or ""
    code = terminated.get("exitCode")
    head = f"exit code {code}" if code is not None else "it left no exit code"
    return f"{head}: {words.strip()[-1500:]}" if words else head


def _finding(status: Mapping[str, Any]) -> Finding | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Finding(Reason.UNSCHEDULABLE, condition.get("message", ""))
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_REASONS:
            return Finding(Reason.IMAGE_PULL_FAILED, f"{container.get('image', '')}: {message or reason}")
        if reason in _CONFIG_REASONS:
            return Finding(Reason.CONFIG_MISSING, f"The controller's pod: {message or reason}")
        if reason in ("CreateContainerError", "RunContainerError"):
            return Finding(Reason.INVALID_TEMPLATE, f"The controller's container cannot start: {message or reason}")
    return None
