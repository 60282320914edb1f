"""The operator as a simulated process: the real plan, reconciler and cache, fed by real reflectors, without kopf."""

import threading
from typing import Any

from simulation.scheduler import Process

from nas_api import names
from nas_kube.client import KubeClient
from nas_kube.errors import KubeError
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import EXPERIMENTS, PODS
from nas_operator.cache import Cache, key_of
from nas_operator.kept import kept
from nas_operator.reconciler import Reconciler
from nas_operator.resync import PODS_SELECTOR
from nas_operator.settings import Settings

Object = dict[str, Any]

SETTINGS = Settings(controller_image="controller", trainer_image="trainer", follower_image="follower")
_AFTER_ERROR_SECONDS = 5.0
_FULL_SECONDS = 600.0


class Operator:
    """Looks at its one experiment whenever anything has changed, when a plan says so, and every ten minutes."""

    def __init__(self, client: KubeClient, process: Process, namespace: str, name: str) -> None:
        self._process = process
        self._key = (namespace, name)
        self._cache = Cache()
        self._reconciler = Reconciler(client, self._cache, SETTINGS, reporter="operator", clock=process.now)
        self._changed = threading.Condition()
        self._dirty = False
        jitter = process.scheduler.chance.uniform
        self._experiments = Reflector(client, EXPERIMENTS, namespace, self._on_experiment, clock=process, jitter=jitter)
        self._pods = Reflector(
            client, PODS, namespace, self._on_pod, label_selector=PODS_SELECTOR, clock=process, jitter=jitter
        )

    def run(self) -> None:
        """Work without end."""
        self._experiments.start()
        self._pods.start()
        while not (self._experiments.wait_synced(30.0) and self._pods.wait_synced(30.0)):
            pass
        while True:
            seconds = _FULL_SECONDS
            try:
                again = self._reconciler.reconcile(self._key)
                seconds = seconds if again is None else min(seconds, again.total_seconds())
            except KubeError:
                seconds = _AFTER_ERROR_SECONDS
            with self._changed:
                if not self._dirty:
                    self._process.wait(self._changed, max(seconds, 0.01))
                self._dirty = False

    def _on_experiment(self, kind: EventType, raw: Object) -> None:
        if kind is EventType.DELETED:
            self._cache.drop_experiment(raw)
            self._reconciler.forget(raw["metadata"]["uid"])
        else:
            self._cache.take_experiment(kept(raw), watched=True)
        assert key_of(raw) == self._key
        self._wake()

    def _on_pod(self, kind: EventType, raw: Object) -> None:
        if kind is EventType.DELETED:
            self._cache.drop_pod(raw["metadata"]["uid"])
        else:
            self._cache.take_pod(kept(raw))
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._dirty = True
            self._changed.notify_all()


def is_controller(pod: Object) -> bool:
    """Return whether a pod is a controller's."""
    return (pod["metadata"].get("labels") or {}).get(names.LABEL_ROLE) == names.ROLE_CONTROLLER
