"""Follows a collection: one list, then one watch that goes on where it stopped."""

import random
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import structlog

from nas_kube.client import KubeClient, Object, Stream
from nas_kube.clock import SYSTEM_CLOCK, Clock, wait_for
from nas_kube.decoding import decode
from nas_kube.errors import ApiError, KubeError
from nas_kube.resources import Resource

_log = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_GOOD_WATCH_SECONDS = 10.0


Listed = Callable[[Mapping[str, str]], None]
"""Is told what a list has: uids by name."""


class EventType(StrEnum):
    """What happened to an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


class Reflector:
    """Calls ``on_event(type, object)`` for what is there and for every change, from one thread of its own.

    An object is delivered as it was last seen, without ``managedFields``. Changes that happened while no watch
    was open are found by comparing lists and delivered as if they had been watched: several changes may arrive
    as one, and an object replaced under its name arrives as DELETED and ADDED. When ``on_event`` raises, the
    error is logged and the event is delivered again after a pause, which grows; in between, all other objects are
    listed and their changes delivered.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        namespace: str | None,
        on_event: Callable[[EventType, Object], None],
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_list: Callable[[], Listed] | None = None,
        watch_seconds: float = 45.0,
        clock: Clock = SYSTEM_CLOCK,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Prepare; nothing is called before ``start``.

        Args:
            client: the API.
            resource: the collection.
            namespace: its namespace; None for all.
            on_event: called from the reflector's thread only.
            label_selector: as kubectl has it.
            field_selector: as kubectl has it.
            on_list: called from the reflector's thread before each list; what it returns is called once the changes
                that the list has told of are delivered. So who makes objects can tell those that came and went unseen.
            watch_seconds: how long the server keeps one watch open. One that is silent for 15 s more is broken, however
                quietly: so events are a minute late at most.
            clock: whose time it is.
            jitter: draws a pause between two bounds, so that clients do not come back together.
        """
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._on_event = on_event
        self._on_list = on_list
        self._query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._watch_seconds = watch_seconds
        self._known: dict[tuple[str, str], Object] = {}
        self._version: str | None = None
        self._last_alive = float("-inf")
        self._clock = clock
        self._jitter = jitter
        self._changed = threading.Condition()
        """Guards the next three."""
        self._stream: Stream | None = None
        self._stopped = False
        self._synced = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow, in the background."""
        self._thread = self._clock.start(f"reflector-{self._resource.plural}", self._run)

    def wait_synced(self, timeout_seconds: float) -> bool:
        """Wait until everything that was there at the start has been delivered; return whether it was."""
        with self._changed:
            return wait_for(self._clock, self._changed, lambda: self._synced, timeout_seconds)

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the thread soon; no event is delivered after this returns, unless one is being handled for longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            stream = self._stream
        if stream is not None:
            stream.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    @property
    def seconds_since_alive(self) -> float:
        """Seconds since the API server last answered or sent something; infinite before the first answer."""
        return self._clock.monotonic() - self._last_alive

    def _run(self) -> None:
        failures = 0
        while not self._stopped:
            began = self._clock.monotonic()
            error: KubeError | None = None
            try:
                if self._version is None:
                    self._list()
                self._watch()
                failures = 0
                continue
            except KubeError as found:
                error = found
                if isinstance(found, ApiError) and found.status == 410:
                    self._version = None  # Too old to go on from: the next round begins with a list.
                _log.info("watch interrupted", resource=self._resource.plural, error=str(found))
            except Exception:  # noqa: BLE001  The thread's edge: an error of on_event must not end all events.
                self._version = None  # The next list finds the event again.
                _log.exception("event not handled, will be delivered again", resource=self._resource.plural)
            # A watch that was good for a while is no sign of a server in trouble.
            failures = 1 if self._clock.monotonic() - began >= _GOOD_WATCH_SECONDS else failures + 1
            self._pause(failures, error)

    def _pause(self, failures: int, error: KubeError | None) -> None:
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10))
        seconds = self._jitter(longest / 2, longest)
        if isinstance(error, ApiError) and error.retry_after is not None:
            seconds = max(seconds, error.retry_after)
        with self._changed:
            wait_for(self._clock, self._changed, lambda: self._stopped, seconds)

    def _list(self) -> None:
        listed = None if self._on_list is None else self._on_list()
        listing = self._client.list(
            self._resource,
            self._namespace,
            label_selector=self._query["labelSelector"],
            field_selector=self._query["fieldSelector"],
        )
        self._last_alive = self._clock.monotonic()
        found = {_key(item): item for item in listing.items}
        changes: list[tuple[EventType, Object]] = []
        for key, gone in self._known.items():
            if key not in found or found[key]["metadata"]["uid"] != gone["metadata"]["uid"]:
                changes.append((EventType.DELETED, gone))
        for key, item in found.items():
            known = self._known.get(key)
            if known is None or known["metadata"]["uid"] != item["metadata"]["uid"]:
                changes.append((EventType.ADDED, item))
            elif known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                changes.append((EventType.MODIFIED, item))
        failed: dict[tuple[str, str], Exception] = {}
        for kind, item in changes:
            if (key := _key(item)) in failed:
                continue
            try:
                self._deliver(kind, item)
            except Exception as error:  # noqa: BLE001  The thread's edge: one object must not keep us from the others.
                failed[key] = error
        if listed is not None:
            listed({name: item["metadata"]["uid"] for (_, name), item in found.items()})
        self._version = listing.resource_version
        with self._changed:
            self._synced = True
            self._changed.notify_all()
        for failure in failed.values():
            raise failure

    def _watch(self) -> None:
        stream = self._client.stream(
            self._resource.path(self._namespace),
            {
                **self._query,
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": self._version,
                "timeoutSeconds": str(int(self._watch_seconds)),
            },
            silence_seconds=self._watch_seconds + 15.0,
        )
        with self._changed:
            self._stream = stream
        try:
            if self._stopped:
                # stop() came between our last look and the stream: nobody else will close it.
                stream.close()
            self._last_alive = self._clock.monotonic()
            for line in stream:
                if self._stopped:
                    return
                self._last_alive = self._clock.monotonic()
                if line:
                    self._take(decode(line))
        finally:
            with self._changed:
                self._stream = None

    def _take(self, event: dict[str, Any]) -> None:
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            raise ApiError.from_status(item)
        if kind != "BOOKMARK":
            self._deliver(EventType(kind), item)
        self._version = item["metadata"]["resourceVersion"]

    def _deliver(self, kind: EventType, item: Object) -> None:
        if self._stopped:
            return
        item["metadata"].pop("managedFields", None)
        key = _key(item)
        if kind is EventType.ADDED and key in self._known:
            # The server may repeat what it said when a watch goes on.
            kind = EventType.MODIFIED
        self._on_event(kind, item)
        # Remembered only once it was handled, so that an event whose handling failed is found again.
        if kind is EventType.DELETED:
            self._known.pop(key, None)
        else:
            self._known[key] = item


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
