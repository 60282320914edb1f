"""What the process needs of a training, whatever learns: runs, checkpoints and results are the same for all."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nas_api.child import UsedGpu
from nas_api.handover import Preprocessing, Vocabulary


class Unsuitable(Exception):
    """What is asked for cannot be trained, now or ever; the message is one sentence that names the cure."""


class ExportFailed(Exception):
    """There is no ONNX model of this network; the message says why."""


@dataclass(frozen=True)
class Progress:
    """What is known of the epochs so far."""

    metrics: tuple[float, ...] = ()
    """The objective's metric on the validation set after each; empty where all but the test set is trained on."""
    losses: tuple[float, ...] = ()
    """Mean training loss of each, in nats."""

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.losses)

    @property
    def diverged(self) -> bool:
        """Whether the last epoch's loss is not finite."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])


class Task(Protocol):
    """One network that learns: whole epochs, each a function of the state before it, the seed and its number."""

    progress: Progress

    @property
    def gpu(self) -> UsedGpu | None:
        """The GPU on which it is trained; None: a CPU."""

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""

    def run(self, epochs: int, after_epoch: Callable[[], None]) -> None:
        """Train until ``epochs`` are done in all or the training has diverged; call back after each epoch."""

    def state(self) -> dict[str, Tensor]:
        """Return a copy of all that training changes, by name."""

    def restore(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Take over a state.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: a tensor has another shape.
        """

    def metrics(self, last: int) -> dict[str, float]:
        """Return the result's numbers after a training that has not diverged, the objective's metric among them.

        It is the best of the ``last`` epochs, or in a final test the test set's, which is read for it.
        """

    def weights(self) -> dict[str, Tensor]:
        """Return what ``load_state_dict`` of the network's readable module takes, on the CPU, contiguous."""

    def contract(self) -> Vocabulary | Preprocessing:
        """Return how others come from what they have to what the network takes."""

    def once(self, batch: int) -> Callable[[], object]:
        """Return what runs the trained network once, on its device, with all that its ONNX model does.

        Args:
            batch: images, or streams that are read by a word each.
        """

    def onnx(self, *, compared: bool = True) -> tuple[bytes, float]:
        """Return the trained network as an ONNX model, and the largest difference of its outputs from torch's.

        Args:
            compared: whether the outputs are compared; the difference is 0 otherwise.

        Raises:
            ExportFailed: it cannot be converted, or the outputs differ too much.
        """
