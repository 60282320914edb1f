"""The contract between the search and whatever runs children: Kubernetes Jobs, local processes, a table.

An executor knows launches by number and nothing of samples' meaning. It is told to launch or cancel and
answers with events, from any thread, through the function given to ``start``. A child's result never
travels this way: it is an object in the store, and the search fetches it when the launch ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from nas_api.child import ExitCode, TrainerInput
from nas_api.reasons import Reason


class End(StrEnum):
    """How a launch ended, as far as its executor can tell."""

    SUCCEEDED = "Succeeded"
    INVALID_INPUT = "InvalidInput"
    OUT_OF_MEMORY = "OutOfMemory"
    DATASET_UNAVAILABLE = "DatasetUnavailable"
    STORAGE_REFUSED = "StorageRefused"
    NO_CUDA = "NoCuda"
    STORAGE_UNREACHABLE = "StorageUnreachable"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    DISRUPTED = "Disrupted"
    """Node gone, pre-empted or evicted: tried again, costs nothing."""
    VANISHED = "Vanished"
    """The child is gone without having ended, as when somebody deletes its Job: tried again."""
    FAILED = "Failed"
    """Any other end: tried again, as often as trainer.attempts allows."""


_ENDS: dict[int, End] = {
    ExitCode.OK: End.SUCCEEDED,
    ExitCode.INVALID_INPUT: End.INVALID_INPUT,
    ExitCode.OUT_OF_MEMORY: End.OUT_OF_MEMORY,
    ExitCode.DATASET_UNAVAILABLE: End.DATASET_UNAVAILABLE,
    ExitCode.STORAGE_REFUSED: End.STORAGE_REFUSED,
    ExitCode.NO_CUDA: End.NO_CUDA,
    ExitCode.STORAGE_UNREACHABLE: End.STORAGE_UNREACHABLE,
    # Somebody else ended it, as a node does that is wanted for something else.
    ExitCode.TERMINATED: End.DISRUPTED,
}


def end_of(code: int) -> End:
    """Return how a trainer ended that left this exit code, wherever it ran."""
    return _ENDS.get(code, End.FAILED)


@dataclass(frozen=True)
class Launch:
    """Children to run together. ``number`` counts all launches of the experiment from 0."""

    number: int
    inputs: tuple[TrainerInput, ...]
    """What each child is told; one of them unless ``trainer.childrenPerPod`` says more."""
    again: bool = False
    """An earlier process recorded it, and may have run it: what it has left may still be there."""


@dataclass(frozen=True)
class Ended:
    """The child has ended; ``message`` is for people (its last words)."""

    launch: int
    end: End
    message: str = ""


@dataclass(frozen=True)
class Running:
    """The child runs: whatever blocked it is cured."""

    launch: int


@dataclass(frozen=True)
class Blocked:
    """The child cannot start or go on for now; the executor keeps trying, and ``Running`` or ``Ended`` follows."""

    launch: int
    reason: Reason
    message: str


@dataclass(frozen=True)
class Queued:
    """The child waits in a queue, and holds no resources: it has not begun, or was preempted, which costs nothing."""

    launch: int
    queue: str
    """Its name; empty where the child is held without one."""
    why: str = ""
    """The queue's own words; empty as long as they are not known."""


@dataclass(frozen=True)
class Admitted:
    """The child has left its queue, or has its Job at last: nothing is known to hold it up any more.

    ``Running``, ``Blocked``, ``Queued`` or ``Ended`` follows.
    """

    launch: int


@dataclass(frozen=True)
class Outdated:
    """The child, which an earlier process launched, does not train yet, and was made from an older manifest."""

    launch: int


Event = Ended | Running | Blocked | Queued | Admitted | Outdated


class Executor(Protocol):
    """Runs children. Methods are called from the search's thread only and return soon."""

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """Begin to observe; return the launches that exist, ended or not.

        For each of those an event follows; a launch that was recorded but is neither here nor has a
        result was lost between intent and effect, and the search launches it again under its number.
        """

    def launch(self, launch: Launch) -> None:
        """Run a child. A launch that exists already is adopted; failures arrive as events."""

    def cancel(self, launch: int) -> None:
        """End a child and forget it: no event follows. One that does not exist is no error."""

    def images(self, sample: int) -> dict[str, str]:
        """Return which images ran for a sample, as far as anybody still knows: digests by the names of containers."""

    def close(self) -> None:
        """Stop observing. Children go on: they belong to the experiment, not to this process."""
