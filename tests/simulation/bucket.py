"""A model of S3: objects by key, the conditional write, and everything that may become of a request."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

from simulation.scheduler import Process, Scheduler
from simulation.weather import Weather

from nas_api import names
from nas_store.errors import StoreUnreachable, TooLarge

T = TypeVar("T")


class Bucket:
    """The objects; its methods take effect at once. Whoever asks from afar has a ``BucketStore``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.objects: dict[str, bytes] = {}
        self._written: dict[str, float] = {}
        self.listeners: list[Callable[[str, str, bytes, bytes | None], None]] = []
        """Told who has written what where, and what was there before."""

    def put(self, who: str, key: str, data: bytes) -> None:
        """Store data whatever was there."""
        before = self.objects.get(key)
        self.objects[key] = data
        self._written[key] = self._scheduler.now
        for listener in self.listeners:
            listener(who, key, data, before)

    def put_if_absent(self, who: str, key: str, data: bytes) -> bool:
        """Store data unless there is some."""
        if key in self.objects:
            return False
        self.put(who, key, data)
        return True

    def list(self, prefix: str, since: float | None = None) -> list[str]:
        """Return keys; those that were written since a time are left out."""
        limit = float("inf") if since is None else since
        return sorted(key for key in self.objects if key.startswith(prefix) and self._written.get(key, 0.0) < limit)


class BucketStore:
    """See :class:`nas_store.Store`: the bucket as a process sees it."""

    def __init__(
        self,
        bucket: Bucket,
        process: Process,
        weather: Weather,
        told: Callable[[str], None],
        effect: Callable[[Process, str], None],
    ) -> None:
        self._bucket = bucket
        self._process = process
        self._weather = weather
        self._told = told
        self._effect = effect

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        """See :class:`nas_store.Store`."""
        data = self._call(lambda: self._bucket.objects.get(key))
        if data is not None and limit is not None and len(data) > limit:
            raise TooLarge(f"{key} has {len(data)} bytes, more than {limit}")
        return data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`nas_store.Store`: what is tried again within the client finds itself."""
        stored = self._write(key, lambda: self._bucket.put_if_absent(self._process.name, key, data))
        if stored is None:
            return self._bucket.put_if_absent(self._process.name, key, data)
        return stored

    def put(self, key: str, data: bytes) -> None:
        """See :class:`nas_store.Store`."""
        self._write(key, lambda: self._bucket.put(self._process.name, key, data))

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        """See :class:`nas_store.Store`: a conditional write, against what was there before the question."""
        while True:
            before = self._call(lambda: self._bucket.objects.get(key))
            if not allowed():
                return False

            def write(before: bytes | None = before) -> bool:
                if self._bucket.objects.get(key) != before:
                    return False
                self._bucket.put(self._process.name, key, data)
                return True

            # One whose answer was lost may have stored it: the next look tells.
            if self._write(key, write):
                return True

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        """See :class:`nas_store.Store`."""
        data = self.get(source, limit=limit)
        if data is not None:
            self.put(target, data)
        return data is not None

    def digest(self, key: str, *, limit: int) -> str | None:
        """See :class:`nas_store.Store`."""
        data = self.get(key, limit=limit)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def list(self, prefix: str) -> list[str]:
        """See :class:`nas_store.Store`."""
        return self._call(lambda: self._bucket.list(prefix, self._weather.stale_since()))

    def uri(self, key: str) -> str:
        """See :class:`nas_store.Store`."""
        return f"s3://nas/{key}"

    def probe(self) -> None:
        """See :class:`nas_store.Store`."""
        self.put_if_absent(names.PROBE, b"first")

    def _call(self, effect: Callable[[], T]) -> T:
        scheduler = self._process.scheduler
        scheduler.sleep(scheduler.chance.uniform(0.002, 0.05))
        try:
            self._weather.store(self._process.name)
        except StoreUnreachable:
            # Its client has tried several times.
            scheduler.sleep(scheduler.chance.uniform(1.0, 10.0))
            raise
        done = effect()
        self._effect(self._process, "store")
        scheduler.current()
        return done

    def _write(self, key: str, effect: Callable[[], T]) -> T | None:
        """Make a write; None: its answer was lost, and the client within tries again."""
        scheduler = self._process.scheduler
        done = self._call(effect)
        if key.startswith(names.LOG_PREFIX):
            self._told(f"{self._process.name}: PUT {key} -> {done}")
        if self._weather.store_lost(self._process.name):
            self._told(f"{self._process.name}: the answer to PUT {key} is lost")
            scheduler.sleep(scheduler.chance.uniform(1.0, 20.0))
            if scheduler.chance.random() < 0.5:
                raise StoreUnreachable(f"http://s3.example does not answer (PUT {key})")
            return None
        if scheduler.chance.random() < 0.5:
            scheduler.sleep(scheduler.chance.uniform(0.001, 0.1))
        return done
