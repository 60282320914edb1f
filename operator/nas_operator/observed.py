"""What we know of an experiment and of its controller pods, as plain values. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from nas_api import names
from nas_api.child import ExitCode
from nas_api.reasons import Reason
from nas_kube import reading
from nas_kube.reading import Obstacle, Termination, instant

Object = dict[str, Any]

Owner = tuple[str, str, str]
"""Namespace, name and uid of an experiment."""

QUICK = timedelta(seconds=60)
"""A controller that ends sooner than this after its start has hardly done anything."""

STARTED_LATE = timedelta(seconds=20)
"""A pod that does not run by then is looked into: most start sooner, and looking costs a call."""


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
class FollowerPod:
    """A pod of the Job that follows an experiment; its kubelet starts its container again and again."""

    uid: str
    age: tuple[bool, str]
    """Sorts it among those before it, the newest last."""
    inputs: str
    done: bool
    """Whether everything was handed over."""
    since: datetime | None
    """Since when the container runs; None when it does not."""
    last_words: str
    """Of a container that ended before it was done; what it says at its end where it is done."""
    failed: bool
    """Whether the container's newest end was such a one."""
    finding: Finding | None = None


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
    service: bool = False
    """Whether the Service of its children of several pods was seen lately."""
    accepted: frozenset[str] = frozenset()
    """Keys of the trials that the API server accepted."""
    refusal: Refusal | None = None
    children: int | None = None
    """Unfinished child Jobs; looked up only while the experiment is being suspended, and after its search's end."""
    follower: FollowerPod | None = None
    """The newest pod of its follower."""
    followed: str | None = ""
    """What its follower's Job was seen to be built from lately; None: there is none; empty: nobody has looked."""
    follower_refusal: str = ""
    """Why the API server would not let us make that Job."""
    mount_failure: str = ""
    """Why the newest pod's volumes cannot be mounted; looked up only for a pod that starts late."""


def starts_late(pods: tuple[ControllerPod, ...], now: datetime) -> ControllerPod | None:
    """Return the newest pod, if it should run by now and its status does not say why it does not."""
    newest = pods[-1] if pods else None
    if newest is None or not newest.live or newest.running or newest.finding is not None:
        return None
    return newest if now - newest.created >= STARTED_LATE else None


def owner_of(raw: Mapping[str, Any]) -> Owner:
    """Return what says of an experiment that it is an owner."""
    metadata = raw["metadata"]
    return metadata["namespace"], metadata["name"], metadata["uid"]


def pod_of(raw: Mapping[str, Any]) -> tuple[Owner, ControllerPod | FollowerPod] | None:
    """Return what matters of a controller's or follower's pod, and whose it is; None where it is nobody's.

    An experiment's is what it controls (a follower's: what its Job controls), in its own namespace, under a name that
    we give. What a pod's labels say of it counts for nothing beyond that.
    """
    metadata = raw["metadata"]
    controller = reading.controller(raw)
    kind, name, uid = (controller.get(key, "") for key in ("kind", "name", "uid"))
    if kind == names.KIND:
        index = names.controller_pod_index(metadata["name"], name, uid)
        return None if index is None else ((metadata["namespace"], name, uid), controller_pod(raw, index))
    labels = metadata.get("labels") or {}
    owner = labels.get(names.LABEL_EXPERIMENT, ""), labels.get(names.LABEL_EXPERIMENT_UID, "")
    if kind == "Job" and name == names.follower_job(*owner):
        return (metadata["namespace"], *owner), follower_pod(raw)
    return None


def controller_pod(raw: Mapping[str, Any], index: int) -> ControllerPod:
    """Return what matters of a pod that is an experiment's index-th controller."""
    metadata = raw["metadata"]
    annotations = metadata.get("annotations") or {}
    failures = annotations.get(names.ANNOTATION_QUICK_FAILURES, "0")
    status = reading.status(raw)
    phase = status.get("phase", "Pending")
    created = instant(metadata.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC)
    obstacle = reading.obstacle(raw) if phase not in ("Succeeded", "Failed") else None
    termination = _termination(raw)
    terminating = "deletionTimestamp" in metadata
    ended = None
    quick = False
    if phase in ("Succeeded", "Failed"):
        told_to_end = terminating or reading.disruption(raw) is not None
        started = instant(status.get("startTime")) or created
        ended = started
        if termination is not None:
            told_to_end = told_to_end or termination.code == ExitCode.TERMINATED
            started = termination.started or started
            ended = termination.finished or started
        quick = ended - started < QUICK and not told_to_end
    return ControllerPod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=index,
        created=created,
        terminating=terminating,
        running=phase == "Running" and not terminating,
        inputs=annotations.get(names.ANNOTATION_INPUTS, ""),
        quick_failures=int(failures) if re.fullmatch("[0-9]{1,9}", failures) else 0,
        ended=ended,
        quick=quick,
        last_words=_last_words(status, termination) if ended is not None else "",
        finding=None if obstacle is None else _finding(obstacle, "The controller"),
    )


def follower_pod(raw: Mapping[str, Any]) -> FollowerPod:
    """Return what matters of a follower's pod."""
    metadata = raw["metadata"]
    ours = next((item for item in reading.containers(raw) if item.name == names.FOLLOWER_CONTAINER), None)
    newest = None if ours is None else ours.termination or ours.before
    done = reading.status(raw).get("phase") == "Succeeded"
    obstacle = reading.obstacle(raw)
    return FollowerPod(
        uid=metadata["uid"],
        age=reading.age(raw),
        inputs=(metadata.get("annotations") or {}).get(names.ANNOTATION_INPUTS, ""),
        done=done,
        since=None if ours is None else ours.since,
        last_words="" if newest is None else newest.message.strip()[-1500:] or f"exit code {newest.code}",
        failed=newest is not None and not done,
        finding=None if obstacle is None else _finding(obstacle, "The follower"),
    )


def pod_index(raw: Mapping[str, Any], name: str) -> int:
    """Return the number of an experiment's controller pod of this name; 0 where it is none."""
    metadata = raw["metadata"]
    return names.controller_pod_index(name, metadata["name"], metadata["uid"]) or 0


def recorded_pod(raw: Mapping[str, Any]) -> str | None:
    """Return the newest controller pod's name as an experiment's status has it; None as long as there is none."""
    name: str = (reading.status(raw).get("controller") or {}).get("pod", "")
    return name if pod_index(raw, name) else None


def _termination(raw: Mapping[str, Any]) -> Termination | None:
    ours = (item for item in reading.containers(raw) if item.name == names.CONTROLLER_CONTAINER)
    return next((item.termination for item in ours), None)


def _last_words(status: Mapping[str, Any], termination: Termination | None) -> str:
    head, message, reason = "it left no exit code", "", ""
    if termination is not None:
        head, message, reason = f"exit code {termination.code}", termination.message, termination.reason
    words = message or status.get("message") or reason or status.get("reason") or ""
    return f"{head}: {words.strip()[-1500:]}" if words else head


def _finding(obstacle: Obstacle, whose: str) -> Finding:
    detail = obstacle.said
    if obstacle.container is not None:
        before = {
            Reason.IMAGE_PULL_FAILED: obstacle.container.image,
            Reason.CONFIG_MISSING: f"{whose}'s pod",
        }.get(obstacle.reason, f"{whose}'s container cannot start")
        detail = f"{before}: {detail}"
    return Finding(obstacle.reason, detail)
