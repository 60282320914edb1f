"""Pods of Jobs that are gone and that still train the same samples, and how long the next Job waits for them. Pure."""

from collections.abc import Collection, Iterable

from nas_api import names
from nas_kube.reading import Object, grace, samples, status

# Beyond its grace a pod is on a node that nobody can reach: only a human can end it.
_PATIENCE_SECONDS = 30.0


def leaving(pods: Iterable[Object], trained: frozenset[int], own: int | None = None) -> list[Object]:
    """Return the pods that have not ended of those that train any of these samples.

    Args:
        pods: an experiment's.
        trained: the samples.
        own: a launch whose pods do not count: its Job may be there already.
    """
    return [
        pod
        for pod in pods
        if samples(pod) & trained
        and (own is None or (pod["metadata"].get("labels") or {}).get(names.LABEL_LAUNCH) != str(own))
        and status(pod).get("phase") not in ("Succeeded", "Failed")
    ]


def longest_stay(pods: Collection[Object]) -> float:
    """Return how many seconds to wait at most for pods to end that have been told to."""
    return max(grace(pod.get("spec") or {}) for pod in pods) + _PATIENCE_SECONDS
