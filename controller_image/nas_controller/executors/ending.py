"""How a child's Job ended, from the Job and, for a failed one, its pod. Pure."""

import re
from collections.abc import Mapping
from typing import Any

from nas_api import names
from nas_api.child import ExitCode
from nas_api.harmless import harmless
from nas_controller.executor import End

Object = Mapping[str, Any]

_LONGEST_MESSAGE = 1000
_EXIT_CODE = re.compile(r"exit code (\d+) matching FailJob rule")
# Index 0 of the Job's podFailurePolicy (nas_api.child_job) is the DisruptionTarget rule.
_DISRUPTED = re.compile(r"condition DisruptionTarget matching FailJob rule")
_ENDS: dict[int, End] = {
    ExitCode.INVALID_INPUT: End.INVALID_INPUT,
    ExitCode.OUT_OF_MEMORY: End.OUT_OF_MEMORY,
    ExitCode.DATASET_UNAVAILABLE: End.DATASET_UNAVAILABLE,
    ExitCode.STORAGE_REFUSED: End.STORAGE_REFUSED,
    ExitCode.TERMINATED: End.DISRUPTED,
}


def condition(job: Object, kind: str) -> Object | None:
    """Return a Job's condition of a kind if it is true."""
    for item in (job.get("status") or {}).get("conditions") or ():
        if item["type"] == kind and item["status"] == "True":
            return dict(item)
    return None


def finished(job: Object) -> bool:
    """Return whether a Job has ended, one way or the other."""
    return condition(job, "Complete") is not None or condition(job, "Failed") is not None


def ending(job: Object, pod: Object | None) -> tuple[End, str]:
    """Return how a finished Job's child ended, and its last words.

    Args:
        job: a Job that is ``finished``.
        pod: the failed Job's pod, or None where there is none any more.
    """
    failure = condition(job, "Failed")
    if failure is None:
        return End.SUCCEEDED, ""
    words = f"{failure.get('reason', '')}: {failure.get('message', '')}"
    if _DISRUPTED.search(words):
        return End.DISRUPTED, words
    if failure.get("reason") == "DeadlineExceeded":
        return End.DEADLINE_EXCEEDED, words
    if pod is not None:
        return _pod_ending(pod, words)
    match = _EXIT_CODE.search(words)
    return (_ENDS.get(int(match[1]), End.FAILED) if match else End.FAILED), words


def _pod_ending(pod: Object, words: str) -> tuple[End, str]:
    status = pod.get("status") or {}
    said = f"{status.get('reason', '')}: {status.get('message', '')}".strip(": ")
    if status.get("reason") == "DeadlineExceeded":
        return End.DEADLINE_EXCEEDED, said
    for item in status.get("conditions") or ():
        if item["type"] == "DisruptionTarget" and item["status"] == "True":
            return End.DISRUPTED, f"{item.get('reason', '')}: {item.get('message', '')}"
    terminated = _terminated(status)
    if terminated is None:
        # Refused by its node (OutOfcpu, NodeAffinity, ...): no container of it ever ran.
        return (End.DISRUPTED, said) if status.get("phase") == "Failed" else (End.FAILED, words)
    code = terminated.get("exitCode")
    message = harmless(str(terminated.get("message") or "")).strip()[-_LONGEST_MESSAGE:]
    message = message or f"{terminated.get('reason', 'Error')}, exit code {code}"
    if terminated.get("reason") == "OOMKilled":
        return End.OUT_OF_MEMORY, f"OOMKilled: {message}"
    return _ENDS.get(int(code or 0), End.FAILED), message


def _terminated(status: Object) -> Object | None:
    """Return how the trainer's container failed, else another one; how the trainer ended when none failed."""
    statuses = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    ended = [item for item in statuses if (item.get("state") or {}).get("terminated")]
    ended.sort(key=lambda item: (item["state"]["terminated"]["exitCode"] == 0, item["name"] != names.TRAINER_CONTAINER))
    return dict(ended[0]["state"]["terminated"]) if ended else None
