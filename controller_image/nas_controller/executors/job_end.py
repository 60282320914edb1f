"""How a child's Job ended, from the Job and, for a failed one, its pods. Pure."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from nas_api import names
from nas_api.child import ExitCode
from nas_api.harmless import harmless
from nas_controller.executor import End, end_of
from nas_kube.reading import Object, Termination, containers, disruption, status, suspended, true_condition

_LONGEST_MESSAGE = 1000
_EXIT_CODE = re.compile(r"exit code (\d+) matching FailJob rule")
# Index 0 of the Job's podFailurePolicy (nas_api.child_job) is the DisruptionTarget rule.
_DISRUPTED = re.compile(r"condition DisruptionTarget matching FailJob rule")


def job_end(job: Object, pods: Iterable[Object] = ()) -> tuple[End, str]:
    """Return how a finished Job's child ended, and its last words.

    Args:
        job: a Job that is ``finished``.
        pods: what is left of the failed Job's pods; of several, the first one that failed by itself tells.
    """
    failure = true_condition(job, "Failed")
    if failure is None:
        return End.SUCCEEDED, ""
    words = f"{failure.get('reason', '')}: {failure.get('message', '')}"
    # The failure policy judges the pods of a suspended Job as well, which end because they have to.
    if _DISRUPTED.search(words) or suspended(job):
        return End.DISRUPTED, words
    if failure.get("reason") == "DeadlineExceeded":
        return End.DEADLINE_EXCEEDED, words
    # One that has ended well says nothing of another one that failed and is gone.
    left = [pod for pod in pods if status(pod).get("phase") != "Succeeded"]
    if (pod := min(left, key=_fell, default=None)) is not None:
        return _pod_end(pod, words)
    match = _EXIT_CODE.search(words)
    if match is not None:
        return end_of(int(match[1])), words
    if failure.get("reason") == "BackoffLimitExceeded":
        # Its pod has failed, and was removed before anybody saw how: as a rule because somebody made it end.
        return End.VANISHED, f"{words}; its pod is gone"
    return End.FAILED, words


def _fell(pod: Object) -> tuple[bool, bool, datetime]:
    """Return what puts pods into the order in which they are to blame.

    Where one pod of several is lost the others fail too, or are ended with SIGTERM; one that was made to end by
    somebody else takes the blame from all.
    """
    ended = _telling(pod)
    code = None if ended is None else ended.code
    bystander = status(pod).get("phase") != "Failed" or code in (ExitCode.OK, ExitCode.TERMINATED)
    at = (None if ended is None else ended.finished) or datetime.max.replace(tzinfo=UTC)
    return disruption(pod) is None, bystander, at


def _pod_end(pod: Object, words: str) -> tuple[End, str]:
    found = status(pod)
    said = f"{found.get('reason', '')}: {found.get('message', '')}".strip(": ")
    node = (pod.get("spec") or {}).get("nodeName")
    where = f" (node {node})" if node else ""
    if found.get("reason") == "DeadlineExceeded":
        return End.DEADLINE_EXCEEDED, said
    if (disrupted := disruption(pod)) is not None:
        return End.DISRUPTED, f"{disrupted.get('reason', '')}: {disrupted.get('message', '')}{where}"
    ended = _telling(pod)
    if ended is None:
        # Refused by its node (OutOfcpu, NodeAffinity, ...): no container of it ever ran.
        return (End.DISRUPTED, said + where) if found.get("phase") == "Failed" else (End.FAILED, words)
    message = harmless(ended.message).strip()[-_LONGEST_MESSAGE:]
    message = message or f"{ended.reason or 'Error'}, exit code {ended.code}"
    if ended.reason == "OOMKilled":
        return End.OUT_OF_MEMORY, f"OOMKilled: {message}"
    # A Job that failed although no container did has failed for a reason of its own.
    end = end_of(ended.code) if ended.code else End.FAILED
    return end, message + where if end is End.DISRUPTED else message


def _telling(pod: Object) -> Termination | None:
    """Return how the trainer's container failed, else another one; how the trainer ended when none failed."""
    ended = [(item, item.termination) for item in containers(pod) if item.termination is not None]
    ended.sort(key=lambda each: (each[1].code == 0, each[0].name != names.TRAINER_CONTAINER, each[0].init))
    return ended[0][1] if ended else None
