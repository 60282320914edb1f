"""Looks at children that do not run although they should, some at a time: at their pods, events and Workloads."""

from collections.abc import Iterable, Sequence

import structlog

from nas_api import names
from nas_controller.executor import Queued
from nas_controller.executors.children import Child, Children, newest_pods
from nas_controller.executors.diagnosis import diagnose, stranded, trains, unreachable
from nas_controller.executors.ownership import Ownership
from nas_kube.client import KubeClient
from nas_kube.clock import Clock
from nas_kube.errors import ApiError, KubeError
from nas_kube.reading import Object, admission, true_condition
from nas_kube.resources import EVENTS, PODS, WORKLOADS

_log = structlog.get_logger()

_LOOK_AFTER_SECONDS = 20.0
# Children that one look covers: what keeps hundreds from starting shows in a few of them.
_LOOKED_AT = 10
# A pod that its node neither begins nor ends is told of after so long.
_STRANDED_SECONDS = 60.0


class CloserLook:
    """Posts what it finds."""

    def __init__(self, client: KubeClient, ownership: Ownership, children: Children, clock: Clock) -> None:
        """Prepare.

        Args:
            client: the API.
            ownership: says how children's pods are found.
            children: whom looks are at.
            clock: whose time it is.
        """
        self._client = client
        self._ownership = ownership
        self._children = children
        self._clock = clock

    def pods(self, children: Iterable[Child]) -> Sequence[Object]:
        """Return all pods that bear the labels of these children; others may bear them too (``newest_pods``).

        Raises:
            KubeError: there was no answer.
        """
        selector = self._ownership.pods_of(child.number for child in children)
        return self._client.list(PODS, self._ownership.namespace, label_selector=selector).items

    def tell_what_holds_up(self) -> bool:
        """Post what keeps children from running; return False if there was something to look at and nothing new."""
        long_ago = self._clock.monotonic() - _LOOK_AFTER_SECONDS
        with self._children.lock:
            old = [
                child
                for child in sorted(self._children.all(), key=lambda child: child.number)
                if child.uid is not None and not child.ready and not child.finished and child.since <= long_ago
            ]
            lost = [
                child
                for child in self._children.all()
                if child.lost_since is not None and child.lost_since <= long_ago and not child.finished
            ]
            queued = [child for child in old if child.waits is not None]
            idle = [child for child in old if child.waits is None]
            none_runs = not any(child.ready for child in self._children.all())
        looks: list[bool] = []
        if lost:
            looks.append(self._look_at_lost(lost[:_LOOKED_AT]))
        if idle:
            looks.append(self._look_at_pods(idle[:_LOOKED_AT]))
        if queued and none_runs:
            looks.append(self._look_at_queue(queued[0]))
        return any(looks) or not looks

    def _look_at_lost(self, lost: list[Child]) -> bool:
        """Find out on which nodes children have ceased to be ready; return whether anything is news."""
        try:
            pods = self.pods(lost)
        except KubeError as error:
            _log.info("no look at children that are not ready any more", error=str(error))
            return False
        news = False
        for child in lost:
            told = unreachable(newest_pods(child, pods))
            with self._children.lock:
                if told is not None and child.lost_since is not None and not child.finished:
                    news = self._children.block(child, told) or news
        return news

    def _look_at_queue(self, child: Child) -> bool:
        """Find out why a child's queue does not let it in: it speaks for all. Return whether that is news."""
        waits = child.waits
        if waits is None or not waits.queue:
            return False
        selector = f"{names.LABEL_JOB_UID}={child.uid}"
        try:
            workloads = self._client.list(WORKLOADS, self._ownership.namespace, label_selector=selector).items
        except KubeError as error:
            if not (isinstance(error, ApiError) and error.status == 404):
                _log.info("no look at a queued child", launch=child.number, error=str(error))
                return False
            why = "the cluster has no Kueue, or one that is too old to tell (kueue.x-k8s.io/v1beta2)"
        else:
            why = next(map(admission, workloads), self._not_taken_up(child))
        told = Queued(child.number, waits.queue, why)
        with self._children.lock:
            if child.waits is None or child.waits == told or child.finished:
                return False
            child.waits = told
            self._children.post(told)
            return True

    def _not_taken_up(self, child: Child) -> str:
        asked = f", and is there a WorkloadPriorityClass {child.priority_class}" if child.priority_class else ""
        return f"Kueue has not taken up its Job: does it manage namespace {self._ownership.namespace}{asked}?"

    def _look_at_pods(self, idle: list[Child]) -> bool:
        """Find out why children that wait in no queue do not run; return whether anything is news."""
        try:
            pods = self.pods(idle)
            events = self._client.list(
                EVENTS, self._ownership.namespace, field_selector="regarding.kind=Job,reason=FailedCreate"
            ).items
        except KubeError as error:
            _log.info("no look at idle children", error=str(error))
            return False
        news = False
        for child in idle:
            about = [event for event in events if (event.get("regarding") or {}).get("uid") == child.uid]
            newest = newest_pods(child, pods)
            # Those that train wait for these; with none of them, for pods that there are not yet.
            idle_pods = [pod for pod in newest if not trains(pod)]
            held = stranded(newest)
            # What a lost node said last stands: that the containers are ready. The pod is not.
            silent = unreachable(pod for pod in newest if true_condition(pod, "ContainersReady"))
            now = self._clock.monotonic()
            with self._children.lock:
                child.strand(None if held is None else now)
                # Until then its node may be about to take note of it, or to let it end.
                lost = (held if child.stranded_for >= _STRANDED_SECONDS else None) or silent
            if held is None and silent is None and len(newest) == child.pods and not idle_pods:
                # A user's own trainer is an init container, so that its Job is not ready before the end.
                with self._children.lock:
                    if child.waits is None and not child.ready:
                        self._children.runs(child)
                        news = True
            elif (found := lost or diagnose(idle_pods, about)) is not None:
                with self._children.lock:
                    # It may have begun since the look.
                    if child.waits is None and not child.ready:
                        if silent is not None:
                            # Its node may never come back: it is given up like one that was seen to run.
                            child.ran_since = min(child.ran_since, now)
                        news = self._children.block(child, found) or news
        return news
