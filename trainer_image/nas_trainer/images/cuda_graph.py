"""A training step that a GPU replays as a whole: launching its kernels one by one costs small networks most of their
time.

The steps of a training that warm it up are real ones, so that a recorded training sees the same images in the same
order as one that is not. What only a GPU can show is the recording itself (``record``); the rest is tested without.
"""

import threading
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]

# torch asks for some runs before a recording, in which libraries choose algorithms and allocate what they keep.
WARM_UP_STEPS = 3

# A recording begins with a wait for the whole device and gives free memory back: it must not meet another one.
_RECORDING = threading.Lock()


class Recorder(Protocol):
    """How work on fixed buffers becomes something to replay."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work once, as it will be recorded."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does the work; it is not done by the recording."""


class GpuRecorder:
    """CUDA graphs. The one wait for the device is that of the recording."""

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
        # Other children of this process go on meanwhile: what they allocate is no fault of this thread.
        with _RECORDING, torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class RecordedStep:
    """A step that is recorded after its warm-up.

    Shapes must stay the same, and so must every number that the step takes from Python, such as a learning rate.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self._step = step
        self._recorder = recorder
        self._done = 0
        self._images = self._labels = self._loss = torch.empty(0)
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take the step; the loss that is returned is overwritten by the next one."""
        if self._done == 0:
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        if self._done < WARM_UP_STEPS:
            self._done += 1
            self._recorder.warm_up(self._work)
            return self._loss
        if self._replay is None:
            self._replay = self._recorder.record(self._work)
        self._replay()
        return self._loss

    def _work(self) -> None:
        self._loss = self._step(self._images, self._labels)
