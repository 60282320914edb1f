"""What the watches last said, kept so that a look at an experiment costs no call."""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nas_api import names
from nas_operator.kept import whole
from nas_operator.observed import ControllerPod, FollowerPod, Owner, pod_of

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of an experiment."""


def key_of(raw: Object) -> Key:
    """Return the key of an experiment."""
    return raw["metadata"]["namespace"], raw["metadata"]["name"]


def owner_key(pod: Object) -> Key:
    """Return the key of the experiment that a pod belongs to."""
    labels = pod["metadata"].get("labels") or {}
    return pod["metadata"]["namespace"], labels.get(names.LABEL_EXPERIMENT, "")


def version(raw: Object) -> int:
    """Return how new an object is: resource versions of one collection grow."""
    return int(raw["metadata"]["resourceVersion"])


@dataclass(frozen=True)
class _Known:
    """An experiment, as the JSON of what is kept of it: a tenth of what it takes decoded."""

    version: int
    uid: str
    data: bytes

    @classmethod
    def of(cls, raw: Object) -> "_Known":
        small = json.dumps(raw, ensure_ascii=False, separators=(",", ":"))
        return cls(version(raw), raw["metadata"]["uid"], small.encode(errors="replace"))

    def read(self) -> Object:
        return whole(json.loads(self.data))


@dataclass(frozen=True)
class _Held:
    version: int
    namespace: str
    owner: Owner
    pod: ControllerPod | FollowerPod


class Cache:
    """The newest of each experiment and of each pod of a controller or follower. Safe to use from several threads.

    It is fed by watches, by lists and by the answers to our own writes, in any order: the newer version stays. What it
    is given is what is ``kept`` of an object.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._experiments: dict[Key, _Known] = {}
        self._pods: dict[str, _Held] = {}
        self._condemned: set[str] = set()
        self._watched: dict[str, int] = {}

    def experiment(self, key: Key) -> Object | None:
        """Return what is kept of an experiment as last seen."""
        with self._lock:
            known = self._experiments.get(key)
        return None if known is None else known.read()

    def experiments(self) -> Iterator[Object]:
        """Yield what is kept of all experiments as last seen, one at a time."""
        with self._lock:
            everything = tuple(self._experiments.values())
        for known in everything:
            yield known.read()

    def keys(self) -> tuple[Key, ...]:
        """Return the keys of all experiments."""
        with self._lock:
            return tuple(self._experiments)

    def pods(self, owner: Owner) -> tuple[ControllerPod, ...]:
        """Return an experiment's controller pods by index; one that we deleted counts as terminating."""
        with self._lock:
            found = [
                replace(held.pod, terminating=True, running=False) if uid in self._condemned else held.pod
                for uid, held in self._pods.items()
                if held.owner == owner and isinstance(held.pod, ControllerPod)
            ]
        return tuple(sorted(found, key=lambda pod: pod.index))

    def follower(self, owner: Owner) -> FollowerPod | None:
        """Return the newest pod of an experiment's follower."""
        with self._lock:
            found = [
                held.pod for held in self._pods.values() if held.owner == owner and isinstance(held.pod, FollowerPod)
            ]
        return max(found, key=lambda pod: (pod.age, pod.uid), default=None)

    def take_experiment(self, raw: Object, *, watched: bool = False) -> None:
        """Remember an experiment, unless what is known is newer. ``watched``: a watch brought it."""
        taken = _Known.of(raw)
        with self._lock:
            if watched:
                self._watched[taken.uid] = taken.version
            known = self._experiments.get(key_of(raw))
            if known is None or known.version <= taken.version:
                self._experiments[key_of(raw)] = taken

    def drop_experiment(self, raw: Object) -> None:
        """Forget an experiment that is gone; a namesake stays."""
        with self._lock:
            self._watched.pop(raw["metadata"]["uid"], None)
            known = self._experiments.get(key_of(raw))
            if known is not None and known.uid == raw["metadata"]["uid"]:
                del self._experiments[key_of(raw)]

    def take_pod(self, raw: Object) -> None:
        """Remember a pod of a controller or follower, unless what is known is newer or it is not one of ours."""
        ours = pod_of(raw)
        if ours is None:
            return
        owner, pod = ours
        with self._lock:
            known = self._pods.get(pod.uid)
            if known is None or known.version <= version(raw):
                self._pods[pod.uid] = _Held(version(raw), raw["metadata"]["namespace"], owner, pod)

    def condemn_pod(self, uid: str) -> None:
        """Note that a pod was deleted by us, before a watch says so."""
        with self._lock:
            self._condemned.add(uid)

    def drop_pod(self, uid: str) -> None:
        """Forget a pod that is gone."""
        with self._lock:
            self._pods.pop(uid, None)
            self._condemned.discard(uid)

    def replace_experiments(self, listed: Iterable[Object], at: int, namespace: str | None) -> set[Key]:
        """Take a whole list made at resource version ``at``; return the keys that it changes.

        What is known, older than the list and not in it, is gone.
        """
        found = {key_of(raw): _Known.of(raw) for raw in listed}
        changed: set[Key] = set()
        with self._lock:
            for key, known in list(self._experiments.items()):
                outside = namespace is not None and key[0] != namespace
                if not outside and key not in found and known.version <= at:
                    del self._experiments[key]
                    self._watched.pop(known.uid, None)
                    changed.add(key)
            for key, listing in found.items():
                before = self._experiments.get(key)
                if before is None or before.version < listing.version:
                    self._experiments[key] = listing
                    changed.add(key)
        return changed

    def replace_pods(self, listed: Iterable[Object], at: int, namespace: str | None) -> None:
        """Take a whole list of pods made at resource version ``at``, as with experiments."""
        found = set()
        for raw in listed:
            found.add(raw["metadata"]["uid"])
            self.take_pod(raw)
        with self._lock:
            for uid, held in list(self._pods.items()):
                outside = namespace is not None and held.namespace != namespace
                if not outside and uid not in found and held.version <= at:
                    del self._pods[uid]
                    self._condemned.discard(uid)

    def unwatched(self, versions: dict[str, int]) -> list[str]:
        """Return the uids of experiments of which the watch has not yet brought these versions."""
        with self._lock:
            present = {known.uid for known in self._experiments.values()}
            return [uid for uid, at in versions.items() if uid in present and self._watched.get(uid, -1) < at]
