"""A model of a queue: it lets Jobs in that are made suspended while there is room, and takes their turn away again."""

from collections.abc import Callable

from simulation.api_server import ApiServer, Object
from simulation.scheduler import Scheduler

from nas_api import names
from nas_kube.reading import finished, suspended
from nas_kube.resources import JOBS

_AGAIN_SECONDS = 10.0


class Queue:
    """Lets in as many Jobs as it has room for, in no order."""

    def __init__(
        self, scheduler: Scheduler, server: ApiServer, namespace: str, room: int, tell: Callable[[str], None]
    ) -> None:
        self._scheduler = scheduler
        self._server = server
        self._namespace = namespace
        self._room = room
        self._tell = tell
        self._stopped_until = 0.0
        server.listeners.append(self._changed)

    def stop(self, seconds: float) -> None:
        """Let nobody in for a while, and drain: whoever was let in waits again."""
        self._stopped_until = max(self._stopped_until, self._scheduler.now + seconds)
        for job in self._admitted():
            self._evict(job)

    def preempt(self) -> None:
        """Let one Job wait again: somebody else's is more urgent."""
        if admitted := self._admitted():
            self._evict(self._scheduler.chance.choice(admitted))

    def _changed(self, kind: str, item: Object) -> None:
        if kind == "ADDED" and item.get("kind") == "Job" and _queues(item):
            self._later(0.5, _AGAIN_SECONDS, item)

    def _later(self, low: float, high: float, job: Object) -> None:
        self._scheduler.at(self._scheduler.chance.uniform(low, high), lambda: self._admit(job))

    def _admit(self, job: Object) -> None:
        found = self._server.find(JOBS, self._namespace, job["metadata"]["name"])
        if found is None or found["metadata"]["uid"] != job["metadata"]["uid"] or finished(found):
            return
        if self._scheduler.now < self._stopped_until or len(self._admitted()) >= self._room:
            self._later(_AGAIN_SECONDS, 2 * _AGAIN_SECONDS, job)
        else:
            self._tell(f"the queue lets {job['metadata']['name']} in")
            self._suspend(job, suspend=False)

    def _evict(self, job: Object) -> None:
        self._tell(f"the queue has {job['metadata']['name']} wait again")
        self._suspend(job, suspend=True)
        self._later(0.5, 60.0, job)

    def _suspend(self, job: Object, *, suspend: bool) -> None:
        self._server.change(JOBS, self._namespace, job["metadata"]["name"], spec={"suspend": suspend})

    def _admitted(self) -> list[Object]:
        jobs = self._server.items(JOBS.plural)
        return [job for job in jobs if _queues(job) and not suspended(job) and not finished(job)]


def _queues(job: Object) -> bool:
    return names.LABEL_QUEUE in job["metadata"]["labels"]
