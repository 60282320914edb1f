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


def staying(pods: Iterable[Object]) -> Diagnosis | None:
    """Return which pods stay although they were told to end, so that the Job gets no others; None: there are none."""
    left = [pod for pod in pods if "deletionTimestamp" in pod["metadata"] and not _has_ended(pod)]
    if not left:
        return None
    where = ", ".join(f"pod {pod['metadata']['name']} on node {pod['spec'].get('nodeName')}" for pod in left)
    return Reason.NODE_UNREACHABLE, f"{where}: told to end, and there still, as when its node does not answer"


def _has_ended(pod: Object) -> bool:
    return status(pod).get("phase") in ("Succeeded", "Failed")


def trains(pod: Object) -> bool:
    """Return whether the trainer's container runs, wherever in the pod it is."""
    return any(item.running and item.name == names.TRAINER_CONTAINER for item in containers(pod))


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
