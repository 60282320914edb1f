"""Nodes that refuse pods at once, and how the next Jobs stay away from them. Pure.

A broken node looks empty to the scheduler, so that it gets one pod after the other.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from nas_kube.reading import Object, containers, status

_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_AVOIDED_AFTER = 3
# By then it may have been repaired.
_REMEMBERED_SECONDS = 1800.0


class Avoidance:
    """Remembers refusals, on the clock of whoever tells of them."""

    def __init__(self) -> None:
        self._refusals: dict[str, list[float]] = {}
        """When, by node."""

    def refused(self, pods: Iterable[Object], now: float) -> None:
        """Take note of the pods of a failed Job: those of which no container ever ran were refused by their nodes."""
        for pod in pods:
            node = (pod.get("spec") or {}).get("nodeName")
            ran = any(item.termination is not None or item.running for item in containers(pod))
            if node and status(pod).get("phase") == "Failed" and not ran:
                self._refusals.setdefault(node, []).append(now)

    def nodes(self, now: float) -> list[str]:
        """Return the nodes to stay away from."""
        for node, times in list(self._refusals.items()):
            self._refusals[node] = times = [at for at in times if now - at < _REMEMBERED_SECONDS]
            if not times:
                del self._refusals[node]
        return sorted(node for node, times in self._refusals.items() if len(times) >= _AVOIDED_AFTER)


def keep_away(job: dict[str, Any], nodes: Sequence[str]) -> None:
    """Have the scheduler put a Job's pods elsewhere if it can; what the user's template prefers stays."""
    pod = job["spec"]["template"]["spec"]
    affinity = pod.get("affinity") or {}
    of_nodes = affinity.get("nodeAffinity") or {}
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    terms = [*(of_nodes.get(_PREFERRED) or ()), {"weight": 100, "preference": {"matchFields": fields}}]
    # Of parts that may be the manifest's own, none is changed in place.
    pod["affinity"] = {**affinity, "nodeAffinity": {**of_nodes, _PREFERRED: terms}}
