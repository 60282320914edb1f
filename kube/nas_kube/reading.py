"""What Jobs, pods and conditions say of themselves, read in one place for operator and controller. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nas_api import names
from nas_api.reasons import Reason

Object = Mapping[str, Any]

# What a container waits for that will not come by itself, in the kubelet's words.
_WAITS = {
    "ErrImagePull": Reason.IMAGE_PULL_FAILED,
    "ImagePullBackOff": Reason.IMAGE_PULL_FAILED,
    "InvalidImageName": Reason.IMAGE_PULL_FAILED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_FAILED,
    "ImageInspectError": Reason.IMAGE_PULL_FAILED,
    "RegistryUnavailable": Reason.IMAGE_PULL_FAILED,
    "CreateContainerConfigError": Reason.CONFIG_MISSING,
    "CreateContainerError": Reason.INVALID_TEMPLATE,
    "RunContainerError": Reason.INVALID_TEMPLATE,
}


@dataclass(frozen=True)
class Termination:
    """How a container ended."""

    code: int
    reason: str
    """One word of the kubelet's, for example Completed, Error or OOMKilled."""
    message: str
    """Its last words; empty where it left none."""
    started: datetime | None
    finished: datetime | None


@dataclass(frozen=True)
class Container:
    """How a container of a pod stands."""

    name: str
    image: str
    image_id: str
    """The image's digest as the node names it; empty as long as it has none."""
    init: bool
    """Whether it is an init container."""
    running: bool
    since: datetime | None
    """Since when it runs; None when it does not."""
    waits_for: str
    """One word of the kubelet's, for example ContainerCreating; empty when it does not wait."""
    message: str
    """The kubelet's words about that."""
    termination: Termination | None
    """None as long as it has not ended."""
    before: Termination | None
    """How it ended before its kubelet started it again; None where it did not."""


@dataclass(frozen=True)
class Obstacle:
    """Why a pod does not run, and will not before somebody does something about it."""

    reason: Reason
    said: str
    """The words of whoever knows: the scheduler or the kubelet."""
    container: Container | None = None
    """The container that waits; None where the pod has no node."""


def status(raw: Object) -> Object:
    """Return an object's status; empty as long as nobody has written one."""
    return raw.get("status") or {}


def conditions(raw: Object) -> dict[str, Object]:
    """Return an object's conditions by type, whether they are true or not."""
    return {item["type"]: item for item in status(raw).get("conditions") or ()}


def true_condition(raw: Object, kind: str) -> Object | None:
    """Return an object's condition of a type if it is true."""
    found = conditions(raw).get(kind)
    return found if found is not None and found.get("status") == "True" else None


def controller(raw: Object) -> Object:
    """Return the reference to what an object belongs to and goes with: there is one at most; empty for none."""
    owners = raw["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def belongs(raw: Object, uid: str) -> bool:
    """Return whether an object belongs to the one with this uid, whatever its labels say."""
    return bool(uid) and controller(raw).get("uid") == uid


def is_of_a_child(pod: Object, experiment: str, uid: str) -> bool:
    """Return whether a Job with the name of a launch's controls a pod; the Job itself need not be known.

    Args:
        experiment: name of the experiment whose child it would be.
        uid: the experiment's.
    """
    number = (pod["metadata"].get("labels") or {}).get(names.LABEL_LAUNCH, "")
    owner = controller(pod)
    return number.isdecimal() and (owner.get("kind"), owner.get("name")) == (
        "Job",
        names.child_job(experiment, uid, int(number)),
    )


def finished(job: Object) -> bool:
    """Return whether a Job has ended, one way or the other."""
    return true_condition(job, "Complete") is not None or true_condition(job, "Failed") is not None


def suspended(job: Object) -> bool:
    """Return whether a Job is to have no pods for now: it waits in a queue, or somebody holds it."""
    return bool((job.get("spec") or {}).get("suspend"))


def parallelism(job: Object) -> int:
    """Return how many pods of a Job are to run at once."""
    number: int = (job.get("spec") or {}).get("parallelism", 1)
    return number


def longest_run(job: Object) -> float:
    """Return how many seconds a pod of a Job may take, with its grace; infinite where it has no deadline."""
    pod = ((job.get("spec") or {}).get("template") or {}).get("spec") or {}
    return float(pod.get("activeDeadlineSeconds") or math.inf) + grace(pod)


def grace(pod_spec: Object) -> float:
    """Return how many seconds a pod has to end once it is told to."""
    seconds = pod_spec.get("terminationGracePeriodSeconds")
    # What Kubernetes gives a pod that says nothing.
    return 30.0 if seconds is None else float(seconds)


def samples(raw: Object) -> frozenset[int]:
    """Return the numbers of the samples that a Job or a pod trains; empty where it does not say."""
    said = (raw["metadata"].get("annotations") or {}).get(names.ANNOTATION_SAMPLES, "")
    return frozenset(int(number) for number in said.split(",") if number.isdecimal())


def age(pod: Object) -> tuple[bool, str]:
    """Return what sorts pods that take each other's place, the newest last.

    A timestamp counts whole seconds, so that one may be as old as the one in whose place it is; and that one, being
    deleted, is never the one to look at.
    """
    metadata = pod["metadata"]
    return "deletionTimestamp" not in metadata, metadata.get("creationTimestamp", "")


def completion_index(pod: Object) -> str:
    """Return the number that a pod has among those of its Job; empty for the only one."""
    number: str = (pod["metadata"].get("labels") or {}).get(names.COMPLETION_INDEX, "")
    return number


def queue(job: Object) -> str:
    """Return the name of the queue of Kueue that a Job is in; empty for none."""
    name: str = job["metadata"].get("labels", {}).get(names.LABEL_QUEUE, "")
    return name


def priority_class(job: Object) -> str:
    """Return the name of the priority that a Job has in its queue; empty for none."""
    name: str = job["metadata"].get("labels", {}).get(names.LABEL_PRIORITY_CLASS, "")
    return name


def admission(workload: Object) -> str:
    """Return why Kueue lets a Job wait, in its words, from the Job's Workload; empty if it says nothing."""
    found = conditions(workload)
    # The quota first: it is reserved before the rest that an admission may ask for is looked at.
    waits = next((found[kind] for kind in ("QuotaReserved", "Admitted") if _is_false(found.get(kind))), None)
    return "" if waits is None else waits.get("message") or waits.get("reason") or ""


def disruption(pod: Object) -> Object | None:
    """Return the condition that says why a pod was made to end (pre-empted, evicted, node gone); None if it was not."""
    return true_condition(pod, "DisruptionTarget")


def containers(pod: Object) -> tuple[Container, ...]:
    """Return the containers of a pod that its kubelet tells of, init containers first."""
    found = status(pod)
    return tuple(
        _container(item, init)
        for field, init in (("initContainerStatuses", True), ("containerStatuses", False))
        for item in found.get(field) or ()
    )


def obstacle(pod: Object) -> Obstacle | None:
    """Return why a pod does not run; None where it runs, or may still do so by itself."""
    for container in containers(pod):
        reason = _WAITS.get(container.waits_for)
        if reason is not None:
            return Obstacle(reason, container.message or container.waits_for, container)
    scheduled = conditions(pod).get("PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        said = scheduled.get("message") or scheduled.get("reason") or "not scheduled"
        return Obstacle(Reason.UNSCHEDULABLE, said)
    return None


def instant(text: str | None) -> datetime | None:
    """Return the moment of a timestamp as Kubernetes writes it; None for none, and for one before the year 1."""
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def _is_false(condition: Object | None) -> bool:
    return condition is not None and condition.get("status") == "False"


def _container(item: Object, init: bool) -> Container:
    state = item.get("state") or {}
    waiting = state.get("waiting") or {}
    ended, before = state.get("terminated"), (item.get("lastState") or {}).get("terminated")
    return Container(
        name=item.get("name", ""),
        image=item.get("image", ""),
        image_id=item.get("imageID", ""),
        init=init,
        running="running" in state,
        since=instant((state.get("running") or {}).get("startedAt")),
        waits_for=waiting.get("reason", ""),
        message=waiting.get("message", ""),
        termination=None if ended is None else _termination(ended),
        before=None if before is None else _termination(before),
    )


def _termination(ended: Object) -> Termination:
    return Termination(
        code=ended["exitCode"],
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        started=instant(ended.get("startedAt")),
        finished=instant(ended.get("finishedAt")),
    )
