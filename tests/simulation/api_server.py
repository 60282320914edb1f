"""A model of the API server: objects, versions, watches with their gaps, and everything that may become of a call.

What holds on the real one is checked on both by ``test_models.py``.
"""

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from simulation.scheduler import EPOCH, Process, Scheduler
from simulation.weather import Weather

from nas_api import names
from nas_kube.client import KubeClient, Listing, Stream, _document
from nas_kube.errors import ApiError, ApiUnavailable
from nas_kube.resources import EXPERIMENTS, JOBS, PODS, Resource

T = TypeVar("T")

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace, name."""


@dataclass
class Change:
    """One change of one object, as watches tell it."""

    version: int
    plural: str
    kind: str
    item: Object


@dataclass(eq=False)
class Watch:
    """An open watch: what it has still to tell, and who waits for that."""

    plural: str
    selects: Callable[[Object], bool]
    untold: deque[Change] = field(default_factory=deque)
    broken: bool = False
    closed: bool = False
    silent: bool = False
    """Half open: nothing comes any more, and nobody says so."""
    wake: Callable[[], None] = lambda: None


class ApiServer:
    """The objects and their history. Its methods take effect at once; who calls from afar has a ``Client``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._objects: dict[Key, Object] = {}
        self._owners: dict[tuple[Key, str], set[str]] = {}
        """Fields of the status by object and manager."""
        self._version = 100
        self._uids = itertools.count(1)
        self._history: deque[Change] = deque()
        self._compacted = 0
        self.watches: list[Watch] = []
        self.listeners: list[Callable[[str, Object], None]] = []
        """Told of each change as it takes effect: controllers of the control plane, nodes, the checker."""

    # ------------------------------------------------------------ reading

    def items(self, plural: str) -> list[Object]:
        """Return all objects of a kind."""
        return [item for (kind, _, _), item in self._objects.items() if kind == plural]

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return an object, or None."""
        return self._objects.get((resource.plural, namespace, name))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """Return an object.

        Raises:
            ApiError: 404.
        """
        found = self.find(resource, namespace, name)
        if found is None:
            raise ApiError(404, "NotFound", f'{resource.plural} "{name}" not found')
        return found

    def list(self, resource: Resource, selects: Callable[[Object], bool]) -> Listing:
        """Return the objects of a kind that are selected."""
        return Listing([item for item in self.items(resource.plural) if selects(item)], str(self._version))

    # ------------------------------------------------------------ writing

    def create(self, resource: Resource, namespace: str, body: Object, *, dry_run: bool = False) -> Object:
        """Create an object.

        Raises:
            ApiError: 409, AlreadyExists.
        """
        name = body["metadata"].get("name") or f"{body['metadata'].get('generateName', 'x')}{next(self._uids):05d}"
        key = (resource.plural, namespace, name)
        if key in self._objects:
            raise ApiError(409, "AlreadyExists", f'{resource.plural} "{name}" already exists')
        made = {
            **body,
            "metadata": {
                "generation": 1,
                **body["metadata"],
                "name": name,
                "namespace": namespace,
                "uid": body["metadata"].get("uid") or f"{next(self._uids):08x}-uid",
                "creationTimestamp": self.timestamp(),
            },
        }
        return made if dry_run else self._store("ADDED", key, made)

    def change(self, resource: Resource, namespace: str, name: str, **parts: Any) -> Object | None:
        """Merge parts into an object's top-level fields, as the control plane does; None: it is gone.

        A changed spec gets another generation.
        """
        key = (resource.plural, namespace, name)
        found = self._objects.get(key)
        if found is None:
            return None
        merged = {**found}
        for part, fields in parts.items():
            merged[part] = {**(found.get(part) or {}), **fields}
        if "spec" in parts:
            merged["metadata"] = {**merged["metadata"], "generation": found["metadata"]["generation"] + 1}
        return self._store("MODIFIED", key, merged)

    def apply_status(self, resource: Resource, namespace: str, name: str, body: Object, manager: str) -> Object:
        """Apply a status on the server: own exactly the fields that it has.

        Raises:
            ApiError: 404; 409 where the version is another; 422 for a lower epoch.
        """
        found = self.get(resource, namespace, name)
        key = (resource.plural, namespace, name)
        wanted = body["metadata"].get("resourceVersion")
        if wanted is not None and wanted != found["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified; please apply your changes")
        before, given = found.get("status") or {}, body["status"]
        if given.get("epoch", 0) < before.get("epoch", 0) and "epoch" in given:
            raise ApiError(422, "Invalid", "status: Invalid value: the status is of a controller with a lower epoch")
        mine = self._owners.get((key, manager), set())
        status = {field: value for field, value in before.items() if field not in mine or field in given} | given
        self._owners[(key, manager)] = set(given)
        if status == before:
            return found
        return self._store("MODIFIED", key, {**found, "status": status})

    def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> None:
        """Delete an object and what it owns; a pod that a node has goes once its containers have ended.

        Raises:
            ApiError: 404; 409 where the uid is another's.
        """
        found = self.get(resource, namespace, name)
        if uid is not None and found["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", "the UID in the precondition does not match the UID in record")
        if resource.plural == PODS.plural and (found.get("status") or {}).get("phase") in ("Pending", "Running"):
            if "deletionTimestamp" not in found["metadata"]:
                self.change(resource, namespace, name, metadata={"deletionTimestamp": self.timestamp()})
            return
        self.remove(resource, namespace, name)

    def remove(self, resource: Resource, namespace: str, name: str) -> None:
        """Take an object away at once, and have what it owns deleted soon."""
        gone = self._objects.pop((resource.plural, namespace, name), None)
        if gone is None:
            return
        self._tell("DELETED", resource.plural, self._versioned(gone))
        uid = gone["metadata"]["uid"]
        self._scheduler.at(self._scheduler.chance.uniform(0.1, 3.0), lambda: self._collect(uid))

    def timestamp(self) -> str:
        """Return the time as the API has it: whole seconds."""
        return f"{EPOCH.fromtimestamp(EPOCH.timestamp() + int(self._scheduler.now), EPOCH.tzinfo):%Y-%m-%dT%H:%M:%SZ}"

    def _collect(self, owner: str) -> None:
        for resource in (JOBS, PODS):
            for item in self.items(resource.plural):
                if any(each["uid"] == owner for each in item["metadata"].get("ownerReferences") or ()):
                    self.delete(resource, item["metadata"]["namespace"], item["metadata"]["name"])

    def _store(self, kind: str, key: Key, item: Object) -> Object:
        self._objects[key] = item = self._versioned(item)
        self._tell(kind, key[0], item)
        return item

    def _versioned(self, item: Object) -> Object:
        self._version += 1
        return {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}

    def _tell(self, kind: str, plural: str, item: Object) -> None:
        change = Change(self._version, plural, kind, item)
        self._history.append(change)
        for watch in self.watches:
            if watch.plural == plural and watch.selects(item) and not watch.silent:
                watch.untold.append(change)
                watch.wake()
        for listener in list(self.listeners):
            listener(kind, item)

    # ------------------------------------------------------------ watching

    def watch(self, plural: str, selects: Callable[[Object], bool], version: int) -> Watch:
        """Open a watch from a version on.

        Raises:
            ApiError: 410: what came after that version is forgotten.
        """
        if version < self._compacted:
            raise ApiError(410, "Expired", f"too old resource version: {version} ({self._compacted})")
        watch = Watch(plural, selects)
        watch.untold.extend(
            each for each in self._history if each.version > version and each.plural == plural and selects(each.item)
        )
        self.watches.append(watch)
        return watch

    def compact(self) -> None:
        """Forget what changed: a watch that is to go on from before is answered 410."""
        self._compacted = self._version
        self._history.clear()

    def break_watches(self, *, silently: bool = False) -> None:
        """End all watches that are open, or let nothing come out of them any more."""
        for watch in self.watches:
            watch.silent = watch.silent or silently
            watch.broken = watch.broken or not silently
            watch.wake()


class Client(KubeClient):
    """Calls the model from a process: answers take time, get lost, or are those of a server in trouble."""

    def __init__(
        self,
        server: ApiServer,
        process: Process,
        weather: Weather,
        told: Callable[[str], None],
        effect: Callable[[Process, str], None],
    ) -> None:
        self._server = server
        self._process = process
        self._scheduler = process.scheduler
        self._weather = weather
        self._told = told
        self._effect = effect

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return self._call("GET", resource, name, lambda: self._server.get(resource, namespace or "", name))

    def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        keep: Callable[[Object], Object | None] = lambda item: item,
    ) -> Listing:
        selects = selector(label_selector, field_selector)
        listing = self._call("LIST", resource, "", lambda: self._server.list(resource, selects))
        return Listing([kept for item in listing.items if (kept := keep(item)) is not None], listing.resource_version)

    def create(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        dry_run: bool = False,
        field_manager: str | None = None,
    ) -> Object:
        name = body["metadata"].get("name", "")
        verb = "DRYRUN" if dry_run else "POST"
        return self._call(
            verb, resource, name, lambda: self._server.create(resource, namespace or "", body, dry_run=dry_run)
        )

    def apply(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Object,
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        assert subresource == "status", "nothing else is applied in the simulation"
        return self._call(
            "APPLY",
            resource,
            name,
            lambda: self._server.apply_status(resource, namespace or "", name, body, field_manager),
        )

    def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Object, *, subresource: str | None = None
    ) -> Object:
        return self._call(
            "PATCH", resource, name, lambda: self._server.change(resource, namespace or "", name, **body) or {}
        )

    def delete(self, resource: Resource, namespace: str | None, name: str, *, uid: str | None = None) -> bool:
        try:
            self._call("DELETE", resource, name, lambda: self._server.delete(resource, namespace or "", name, uid))
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and uid is not None):
                return False
            raise
        return True

    def stream(self, path: str, query: Mapping[str, str | None], *, silence_seconds: float) -> Stream:
        resource = next(each for each in (EXPERIMENTS, JOBS, PODS) if f"/{each.plural}" in path)
        selects = selector(query.get("labelSelector"), query.get("fieldSelector"))
        version, seconds = int(query.get("resourceVersion") or 0), float(query.get("timeoutSeconds") or 0)
        watch = self._call("WATCH", resource, "", lambda: self._server.watch(resource.plural, selects, version))
        return _Stream(
            self._server,
            self._scheduler,
            watch,
            seconds,
            silence_seconds,
            lambda: self._weather.cut(self._process.name),
        )

    def close(self) -> None: ...

    def _call(self, verb: str, resource: Resource, name: str, effect: Callable[[], T]) -> T:
        """Make a call: it arrives after a while, and so does its answer, if nothing happens to them."""
        chance = self._scheduler.chance
        call = f"{verb} {resource.plural}/{name}"
        self._scheduler.sleep(chance.uniform(0.002, 0.03))
        refusal, seconds = self._weather.api(self._process.name, verb, resource.plural)
        if refusal is not None:
            if seconds:
                self._scheduler.sleep(seconds)
            raise refusal
        answer: T | ApiError
        try:
            answer = effect()
        except ApiError as caught:
            answer = caught
        if verb not in ("GET", "LIST", "WATCH", "DRYRUN") and not (verb == "POST" and resource.plural == "events"):
            self._told(f"{self._process.name}: {call} -> {answer if isinstance(answer, ApiError) else 'ok'}")
        self._effect(self._process, f"{verb} {resource.plural}")
        if self._weather.lost(self._process.name, verb):
            self._told(f"{self._process.name}: the answer to {call} is lost")
            self._scheduler.sleep(chance.uniform(1.0, 30.0))
            raise ApiUnavailable(f"{call}: timed out")
        if self._weather.cut(self._process.name):
            _document(b'{"kind": "Status", "metadata": {"na', call)
        if chance.random() < 0.5:
            self._scheduler.sleep(chance.uniform(0.001, 0.05))
        self._scheduler.current()
        if isinstance(answer, ApiError):
            raise answer
        return answer


class _Stream(Stream):
    """See :class:`nas_kube.client.Stream`."""

    def __init__(
        self,
        server: ApiServer,
        scheduler: Scheduler,
        watch: Watch,
        seconds: float,
        silence_seconds: float,
        cut: Callable[[], bool],
    ) -> None:
        self._server = server
        self._scheduler = scheduler
        self._watch = watch
        self._ends = scheduler.now + seconds
        self._silence = silence_seconds
        self._cut = cut

    def __iter__(self) -> Iterator[bytes]:
        watch, scheduler = self._watch, self._scheduler
        task = scheduler.current()
        watch.wake = lambda: scheduler.wake(task)
        heard = scheduler.now
        try:
            while not watch.closed:
                if watch.broken:
                    raise ApiUnavailable("the stream broke")
                if watch.silent:
                    if (left := heard + self._silence - scheduler.now) <= 0:
                        raise ApiUnavailable("the stream broke: nothing came")
                    scheduler.wait(left)
                elif watch.untold:
                    scheduler.sleep(scheduler.chance.choice((0.001, 0.01, 0.3)))
                    if watch.silent or watch.broken or not watch.untold:
                        continue
                    if self._cut():
                        # What of a line has come is nothing, and the answer counts as ended.
                        return
                    change, heard = watch.untold.popleft(), scheduler.now
                    yield json.dumps({"type": change.kind, "object": change.item}).encode()
                elif scheduler.now >= self._ends:
                    return
                else:
                    scheduler.wait(self._ends - scheduler.now)
        finally:
            watch.wake = lambda: None
            if watch in self._server.watches:
                self._server.watches.remove(watch)

    def close(self) -> None:
        self._watch.closed = True
        self._watch.wake()


def selector(labels: str | None, fields: str | None) -> Callable[[Object], bool]:
    """Return whether an object is selected: ``a=b``, ``a in (b,c)``, and fields by equality."""
    tests: list[tuple[str, frozenset[str]]] = []
    for part in _parts(labels or ""):
        key, _, rest = part.partition(" in ")
        if rest:
            tests.append((key, frozenset(rest.strip("()").split(","))))
        else:
            key, _, value = part.partition("=")
            tests.append((key, frozenset([value])))
    paths = [part.partition("=")[::2] for part in (fields or "").split(",") if part]

    def selects(item: Object) -> bool:
        found = item["metadata"].get("labels") or {}
        return all(found.get(key) in values for key, values in tests) and all(
            _field(item, path) == value for path, value in paths
        )

    return selects


def _parts(labels: str) -> Iterator[str]:
    """Yield the requirements of a label selector: commas within parentheses divide none."""
    depth, part = 0, ""
    for letter in labels:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            yield part
            part = ""
        else:
            part += letter
    if part:
        yield part


def _field(item: Object, path: str) -> str:
    found: Any = item
    for step in path.split("."):
        found = (found or {}).get(step)
    return str(found)


def ours(item: Object, uid: str) -> bool:
    """Return whether an object belongs to an experiment as its owner says."""
    return any(each["uid"] == uid and each.get("controller") for each in item["metadata"].get("ownerReferences") or ())


def launch_of(job: Object) -> int:
    """Return the number of a child's launch."""
    return int(job["metadata"]["labels"][names.LABEL_LAUNCH])
