"""A training step that a GPU replays as a whole: launching its kernels one by one costs small networks, and cells with
their many steps, most of their time.

The steps of a training that warm it up are real ones, so that a recorded training sees the same examples in the same
order as one that is not. What only a GPU can show is the recording itself (``record``); the rest is tested without.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", Tensor, tuple[Tensor, ...])

# torch asks for some runs before a recording, in which libraries choose algorithms and allocate what they keep.
WARM_UP_STEPS = 3

AHEAD = 8
"""Replays that may be on their way. The device always has the next one, and who waits for it does not wait long."""
_LOOK_SECONDS = 0.0005


class Recorder(Protocol):
    """How work on fixed buffers becomes something to replay."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work once, as it will be recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does the work; it is not done by the recording."""


class GpuRecorder:
    """CUDA graphs. The one wait for the device is that of the recording. Nothing else may use the GPU meanwhile: torch
    allows no work that is not captured while a capture is under way."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], None]) -> None:
        """See :class:`Recorder`."""
        # Not on the default stream, which cannot be recorded.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with first_error(), torch.cuda.graph(graph, stream=self._stream):
            work()
        return paced(graph.replay, torch.cuda.current_stream)


@contextmanager
def first_error() -> Iterator[None]:
    """Raise what has ended a capture, such as exhausted memory or SIGTERM, and not that its end came too soon."""
    try:
        yield
    except RuntimeError as error:
        if error.__context__ is not None:
            raise error.__context__ from None
        raise


class Marks(Protocol):
    """A stream of the device, of which it is asked how far it has come."""

    def record_event(self) -> "Mark":
        """Return a mark behind all that has been launched."""


class Mark(Protocol):
    """A place in a stream."""

    def query(self) -> bool:
        """Return whether the device has passed it."""


def paced(replay: Callable[[], None], stream: Callable[[], Marks]) -> Callable[[], None]:
    """Return a function that replays, and then waits while more than ``AHEAD`` replays are on their way.

    It looks again and again instead of sleeping in the driver, which hears no signal: without it the host would launch
    a whole epoch, and hear SIGTERM when the device is done with it.

    Args:
        replay: launches the work.
        stream: returns that on which it does so.
    """
    marks: deque[Mark] = deque()

    def replay_in_step() -> None:
        replay()
        marks.append(stream().record_event())
        if len(marks) > AHEAD:
            oldest = marks.popleft()
            while not oldest.query():
                time.sleep(_LOOK_SECONDS)

    return replay_in_step


class RecordedStep(Generic[T]):
    """A step that is recorded after its warm-up.

    Shapes must stay the same, and so must every number that the step takes from Python, such as a learning rate.
    """

    def __init__(self, step: Callable[..., T], recorder: Recorder) -> None:
        self._step: Callable[..., T] = step
        self._recorder = recorder
        self._done = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._output: T
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> T:
        """Take the step; what is returned is overwritten by the next one, which may be given it."""
        if self._done == 0:
            self._inputs = tuple(map(torch.empty_like, inputs))
        for buffer, given in zip(self._inputs, inputs, strict=True):
            buffer.copy_(given)
        if self._done < WARM_UP_STEPS:
            self._done += 1
            self._recorder.warm_up(self._work)
            return self._output
        if self._replay is None:
            self._replay = self._recorder.record(self._work)
        self._replay()
        return self._output

    def _work(self) -> None:
        self._output = self._step(*self._inputs)
