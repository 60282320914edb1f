"""Children that have not ended, as far as we know, and what was posted of them last."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nas_api.reasons import EXPLANATIONS, Reason
from nas_controller.executor import Blocked, End, Ended, Event, Launch, Queued, Running
from nas_controller.executors.diagnosis import Diagnosis
from nas_kube.clock import Clock
from nas_kube.reading import Object, age, belongs, completion_index


@dataclass(eq=False)
class Child:
    """A launch that has not ended, as far as we know. Guarded by the lock of :class:`Children`."""

    number: int
    launch: Launch | None
    """None for one that an earlier controller launched."""
    since: float
    """When it was launched or found, its Job was made, or let out of its queue, whatever came last. On the monotonic
    clock."""
    uid: str | None = None
    """Its Job's; None until the Job is known to exist."""
    pods: int = 1
    """As many as its Job has."""
    ready: bool = False
    """All of them run."""
    waits: Queued | None = None
    """What was posted of it last, as long as its Job is suspended."""
    blocked: Blocked | None = None
    """What was posted last of why it does not run, since it was launched or let out of its queue."""
    priority_class: str = ""
    """Its Job's."""
    samples: frozenset[int] = frozenset()
    """Whom it trains."""
    refusals: int = 0
    """How often its POST was refused or not answered."""
    unanswered: bool = False
    """The API server may have taken a POST of it and said nothing."""
    room_by: float | None = None
    """When it no longer waits for pods of an earlier launch of its samples; None: it has not met any."""
    longest: float = math.inf
    """Seconds that its Job's pods may run; what is left beyond that is nobody's to end but ours."""
    ran_since: float = math.inf
    """When all of them were seen to run."""
    counted: bool = False
    """It was its Job's count of pods that are ready that said so."""
    lost_since: float | None = None
    """Since when that count says otherwise, as when a node does not answer."""
    stranded_since: float | None = None
    """Since when looks have found a pod of it that its node neither begins nor ends."""
    stranded_for: float = 0.0
    """Seconds until the last of these looks."""
    finished: bool = False
    """Its Job has finished; what its pod says is being read."""
    given_up: bool = False
    """It was cancelled, or taken for gone: its Job is not to be."""

    def strand(self, now: float | None) -> None:
        """Take note that a look has found a pod stranded; None: that none is. With the lock held."""
        if now is None:
            self.stranded_since, self.stranded_for = None, 0.0
        else:
            self.stranded_since = now if self.stranded_since is None else self.stranded_since
            self.stranded_for = now - self.stranded_since


class Children:
    """All of them, by launch. ``lock`` guards them; methods that say so are called with it held.

    Events of a child that has not ended must not cross: whoever posts one holds the lock.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin with none; ``post`` is to be set before anything is posted."""
        self.lock = threading.Lock()
        self.settled = threading.Condition(self.lock)
        """Notified when there is less that is yet to be created or deleted."""
        self.by_launch: dict[int, Child] = {}
        self.post: Callable[[Event], None]
        self._clock = clock

    def all(self) -> Iterable[Child]:
        """Return them in no order. With the lock held."""
        return self.by_launch.values()

    def add(self, launch: int, asked: Launch | None, samples: frozenset[int] = frozenset()) -> Child:
        """Take in a child that begins, or was found. With the lock held."""
        child = self.by_launch[launch] = Child(launch, asked, self._clock.monotonic(), samples=samples)
        return child

    def knows(self, child: Child) -> bool:
        """Return whether a child has neither ended nor been given up. With the lock held."""
        return self.by_launch.get(child.number) is child

    def give_up(self, child: Child) -> None:
        """Forget a child whose Job is not to be. With the lock held."""
        del self.by_launch[child.number]
        child.given_up = True

    def block(self, child: Child, told: Diagnosis) -> bool:
        """Post why a child does not run; return whether that is news. With the lock held."""
        blocked = _blocked(child.number, *told)
        if blocked == child.blocked:
            return False
        child.blocked = blocked
        self.post(blocked)
        return True

    def runs(self, child: Child) -> None:
        """Post that a child runs, perhaps again. With the lock held."""
        if not child.ready:
            child.ran_since = self._clock.monotonic()
        child.ready, child.blocked, child.lost_since = True, None, None
        child.strand(None)
        self.post(Running(child.number))

    def fail(self, child: Child, message: str) -> None:
        """Forget a child, and post that it has failed for good."""
        with self.lock:
            self.by_launch.pop(child.number, None)
        self.post(Ended(child.number, End.FAILED, message))


def newest_pods(child: Child, pods: Iterable[Object]) -> Sequence[Object]:
    """Return the newest of the pods that a child's Job has made, of each number that has one where there are several.

    Args:
        child: whose Job it is.
        pods: also others, which may bear its labels.
    """
    own = [pod for pod in pods if belongs(pod, child.uid or "")]
    return list({completion_index(pod): pod for pod in sorted(own, key=age)}.values())


def _blocked(number: int, reason: Reason, cause: str) -> Blocked:
    """Return what to tell people: the cause in the words of whoever refused, and the cure."""
    return Blocked(number, reason, f"{cause.rstrip('.')}. {EXPLANATIONS[reason].cure}")
