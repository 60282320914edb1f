"""Why a child's Job does not run, from its pods and its events. Pure."""

from collections.abc import Iterable, Sequence

from nas_api import names
from nas_api.reasons import Reason
from nas_kube.reading import Object, containers, obstacle, status, true_condition

Diagnosis = tuple[Reason, str]


def diagnose(pods: Sequence[Object], events: Iterable[Object]) -> Diagnosis | None:
    """Return why a Job that exists does not run, or None when nothing is wrong that we know of.

    Args:
        pods: the Job's newest pods: one, several that wait for each other, or none as yet.
        events: events about the Job (``events.k8s.io/v1``).
    """
    return next(filter(None, map(_from_pod, pods)), None) if pods else _from_events(events)


def unreachable(pods: Iterable[Object]) -> Diagnosis | None:
    """Return which pods of a Job that were ready are so no more although they have not ended; None: all are."""
    lost = [pod for pod in pods if status(pod).get("phase") == "Running" and true_condition(pod, "Ready") is None]
    if not lost:
        return None
    where = ", ".join(f"pod {pod['metadata']['name']} on node {pod['spec'].get('nodeName')}" for pod in lost)
    return Reason.NODE_UNREACHABLE, f"{where}: not ready any more, as when its node does not answer"


def stranded(pods: Iterable[Object]) -> Diagnosis | None:
    """Return which pods of a Job a node neither begins nor ends, so that the Job gets no others; None: none we know of.

    A kubelet takes note of a pod before it pulls an image, and removes one that was told to end when it has. Where it
    does not, it is most likely not there any more.
    """
    told = []
    for pod in pods:
        node = (pod.get("spec") or {}).get("nodeName")
        if node is None or status(pod).get("phase") in ("Succeeded", "Failed"):
            continue
        where = f"pod {pod['metadata']['name']} on node {node}"
        leaves = "deletionTimestamp" in pod["metadata"]
        if not _has_begun(pod) and (leaves or not _is_noted(pod)):
            told.append(f"{where}: not begun")
        elif leaves:
            told.append(f"{where}: told to end, and there still")
    return (Reason.NODE_UNREACHABLE, f"{', '.join(told)}, as when its node does not answer") if told else None


def trains(pod: Object) -> bool:
    """Return whether the trainer's container runs, wherever in the pod it is."""
    return any(item.running and item.name == names.TRAINER_CONTAINER for item in containers(pod))


def _has_begun(pod: Object) -> bool:
    return any(item.running or item.termination is not None for item in containers(pod))


def _is_noted(pod: Object) -> bool:
    return "startTime" in status(pod) or bool(containers(pod))


def _from_pod(pod: Object) -> Diagnosis | None:
    found = obstacle(pod)
    if found is None:
        return None
    where = f"pod {pod['metadata']['name']}"
    if found.container is not None:
        where += f", container {found.container.name}, image {found.container.image}"
    return found.reason, f"{where}: {found.said}"


def _from_events(events: Iterable[Object]) -> Diagnosis | None:
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    if not refused:
        return None
    note = str(max(refused, key=_moment).get("note", ""))
    if "exceeded quota" in note:
        return Reason.QUOTA_EXCEEDED, note
    return Reason.INVALID_TEMPLATE, f"spec.trainer.template, or finalTraining.template: {note}"


def _moment(event: Object) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("deprecatedLastTimestamp") or event.get("eventTime") or "")
