"""Jobs that are to be gone: DELETEs that are tried until they work, and what stands in the way of others meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from nas_controller.executors.calls import Calls, pause
from nas_controller.executors.children import Child, Children
from nas_controller.executors.ownership import Ownership
from nas_controller.tenure import Tenure
from nas_kube.client import KubeClient
from nas_kube.errors import KubeError
from nas_kube.resources import JOBS

_log = structlog.get_logger()

# So long before a finished Job's time to live is over we delete it: it costs more if others do (ADR 19).
_BEFORE_ITS_TIME_SECONDS = 5.0


@dataclass(eq=False)
class Deletion:
    """A Job that is to be deleted, for as long as it is not. Guarded by the lock of the children."""

    number: int
    uid: str | None
    samples: frozenset[int]
    """Whom it trains; empty where that is not known."""
    tries: int = 0
    surely: bool = False
    """Whether it may be somebody else's, who has taken our place a moment ago."""
    refusal: str = ""
    """Why the API server does not let us."""


class Deletions:
    """All of them. What is begun with the children's lock held is done, without it, by ``delete``."""

    def __init__(
        self, client: KubeClient, ownership: Ownership, children: Children, calls: Calls, tenure: Tenure | None
    ) -> None:
        """Prepare.

        Args:
            client: the API.
            ownership: says how the Jobs are called.
            children: whose lock guards deletions as well.
            calls: makes the calls.
            tenure: says whether children still are ours to delete; None: they are.
        """
        self._client = client
        self._ownership = ownership
        self._children = children
        self._calls = calls
        self._tenure = tenure
        self._pending: set[Deletion] = set()
        self._deleted: set[str] = set()
        """Uids of Jobs that we have deleted and that the watch may still tell of."""
        self._closed = False

    def give_up(self, child: Child) -> Deletion:
        """Forget a child, and begin the deletion of its Job. With the lock held."""
        self._children.give_up(child)
        return self.begin(Deletion(child.number, child.uid, child.samples))

    def begin(self, deletion: Deletion) -> Deletion:
        """Have a deletion stand in the way from now on; ``delete`` is yet to be called. With the lock held."""
        self._pending.add(deletion)
        return deletion

    def are_pending(self) -> bool:
        """Return whether any Job is yet to be deleted. With the lock held."""
        return bool(self._pending)

    def in_the_way(self, trained: frozenset[int]) -> Deletion | None:
        """Return the deletion of a Job that trains one of these samples; None: there is none. With the lock held."""
        return next((each for each in self._pending if each.samples & trained), None)

    def covers(self, launch: int, uid: str) -> bool:
        """Return whether a launch's Job is being deleted, or was. With the lock held."""
        return uid in self._deleted or any(each.number == launch for each in self._pending)

    def gone(self, uid: str) -> None:
        """Take note that the watch tells no more of a Job. With the lock held."""
        self._deleted.discard(uid)

    def close(self) -> None:
        """Have what fails from now on not tried again."""
        self._closed = True

    def delete(self, deletion: Deletion) -> None:
        """DELETE a Job; what is refused is tried again after a growing pause, for else it trains on unseen."""
        if self._tenure is not None and self._tenure.holds(surely=deletion.surely) is False:
            self._end(deletion)
            return
        name = self._ownership.job_name(deletion.number)
        try:
            self._client.delete(JOBS, self._ownership.namespace, name, uid=deletion.uid)
        except KubeError as error:
            if self._closed:
                _log.error("child not deleted", launch=deletion.number, error=str(error))
                self._end(deletion)
                return
            seconds = pause(deletion.tries)
            with self._children.lock:
                deletion.tries += 1
                deletion.refusal = "" if error.retryable else f"Job {name} cannot be deleted: {error}"
            _log.warning("child not deleted yet", launch=deletion.number, error=str(error), pause=seconds)
            self._calls.later(seconds, self.delete, deletion)
        else:
            self._end(deletion)

    def clean_up_after(self, launch: int, job: Mapping[str, Any]) -> None:
        """Have a launch's finished Job deleted when its time to live is all but over."""
        seconds = job["spec"].get("ttlSecondsAfterFinished", 0) - _BEFORE_ITS_TIME_SECONDS
        if seconds > 0:
            self._calls.later(seconds, self._clean_up, launch, job["metadata"]["uid"])

    def _clean_up(self, launch: int, uid: str) -> None:
        """DELETE a finished Job; one that we cannot delete goes by its time to live."""
        if self._tenure is not None and self._tenure.holds(surely=False) is False:
            return
        try:
            self._client.delete(JOBS, self._ownership.namespace, self._ownership.job_name(launch), uid=uid)
        except KubeError as error:
            _log.info("a finished Job is left to the controller manager", launch=launch, error=str(error))

    def _end(self, deletion: Deletion) -> None:
        with self._children.lock:
            self._pending.discard(deletion)
            if deletion.uid is not None:
                self._deleted.add(deletion.uid)
            self._children.settled.notify_all()
