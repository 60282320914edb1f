"""Why a child's Job does not run, from its pod and its events. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from nas_api import names
from nas_api.reasons import Reason

Object = Mapping[str, Any]
Diagnosis = tuple[Reason, str]

_WAITING = {
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


def diagnose(pod: Object | None, events: Iterable[Object]) -> Diagnosis | None:
    """Return why a Job that exists has no running pod, or None when nothing is wrong that we know of.

    Args:
        pod: the Job's newest pod, if there is one.
        events: events about the Job (``events.k8s.io/v1``).
    """
    return _from_pod(pod) if pod is not None else _from_events(events)


def trains(pod: Object) -> bool:
    """Return whether the trainer's container runs, wherever in the pod it is."""
    status = pod.get("status") or {}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return any(
        item["name"] == names.TRAINER_CONTAINER and "running" in (item.get("state") or {}) for item in containers
    )


def _from_pod(pod: Object) -> Diagnosis | None:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for item in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (item.get("state") or {}).get("waiting") or {}
        reason = _WAITING.get(waiting.get("reason", ""))
        if reason is not None:
            said = waiting.get("message") or waiting["reason"]
            return reason, f"pod {name}, container {item['name']}, image {item.get('image', '')}: {said}"
    for item in status.get("conditions") or ():
        if item["type"] == "PodScheduled" and item["status"] == "False":
            return Reason.UNSCHEDULABLE, f"pod {name}: {item.get('message') or item.get('reason', 'not scheduled')}"
    return None


def _from_events(events: Iterable[Object]) -> Diagnosis | None:
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    if not refused:
        return None
    note = str(max(refused, key=_moment).get("note", ""))
    if "exceeded quota" in note:
        return Reason.QUOTA_EXCEEDED, note
    return Reason.INVALID_TEMPLATE, f"spec.trainer.template: {note}"


def _moment(event: Object) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("deprecatedLastTimestamp") or event.get("eventTime") or "")
