"""Training of one network: whole epochs, each a function of the state before it, the seed and its number.

So a training that stops after any epoch and goes on from its state ends, on one CPU, with the same bits as
one that never stopped.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nas_api.experiment import OptimizerSpec
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_trainer.data import Images
from nas_trainer.network import Network
from nas_trainer.optimizer import NesterovSGD

CROP_PADDING = 4
_VALIDATION_BATCH = 2048
# torch takes seeds of 64 bits.
_SEEDS = 2**63


@dataclass(frozen=True)
class Progress:
    """What is known after each epoch: validation accuracy in [0, 1] and mean training loss in nats."""

    accuracies: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.losses)

    @property
    def diverged(self) -> bool:
        """Whether the last epoch's loss is not finite."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (n, c, h, w), each cropped at random out of its zero-padded self and flipped or not.

    Zero is the mean of a whitened image. The paper upsamples before the crop (section 4.1); padding keeps
    the scale of training and validation images alike.
    """
    count, _, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, count, 1), generator=generator, device=device)
    flip = torch.rand(count, 1, generator=generator, device=device) < 0.5
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(flip, columns.flip(0), columns)
    padded = functional.pad(images, (CROP_PADDING,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


class Training:
    """One network, its optimiser and how far they are.

    Args:
        architecture: what to build.
        images: the dataset, wherever it is; it is moved to the device.
        optimizer: Nesterov SGD's settings; the learning rate is constant.
        batch_size: images a step; an epoch's incomplete last batch is left out.
        seed: decides the initial weights, and with the epoch's number its order and augmentation.
        device: where to train.
    """

    def __init__(
        self,
        architecture: ConvolutionalArchitecture,
        images: Images,
        optimizer: OptimizerSpec,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._device = device
        self._seed = seed
        # Convolutions on a GPU's tensor cores want the channels last.
        memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self._images = images.to(device, memory_format)
        self._batch_size = min(batch_size, len(images.train_labels))
        torch.manual_seed(seed % _SEEDS)
        self.network = Network(architecture, images.train_images.shape[1], images.classes).to(device)
        self.network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._optimizer = NesterovSGD(
            self.network.parameters(),
            float(optimizer.learning_rate),
            float(optimizer.momentum),
            float(optimizer.weight_decay),
        )
        self.progress = Progress()

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def run(self, epochs: int, after_epoch: Callable[[], None]) -> None:
        """Train until ``epochs`` are done in all or the loss is not finite; call back after each epoch."""
        while self.progress.epochs < epochs and not self.progress.diverged:
            loss = self._train_epoch(self.progress.epochs)
            accuracy = self._validate()
            # The one synchronisation of device and host in an epoch.
            values = torch.stack([accuracy, loss]).tolist()
            self.progress = Progress((*self.progress.accuracies, values[0]), (*self.progress.losses, values[1]))
            after_epoch()

    def state(self) -> dict[str, Tensor]:
        """Return a copy of all that training changes: weights, statistics and momentum, by name."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"momentum.{name}": velocity for name, velocity in self._velocities()}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Take over a state.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: a tensor has another shape.
        """
        network = {name: tensors[f"network.{name}"] for name in self.network.state_dict()}
        self.network.load_state_dict(network)
        for name, velocity in self._velocities():
            velocity.copy_(tensors[f"momentum.{name}"])
        self.progress = progress

    def _velocities(self) -> Iterator[tuple[str, Tensor]]:
        for (name, _), velocity in zip(self.network.named_parameters(), self._optimizer.velocities, strict=True):
            yield name, velocity

    def _precision(self) -> "torch.autocast | nullcontext[None]":
        return torch.autocast("cuda", torch.bfloat16) if self._device.type == "cuda" else nullcontext()

    def _train_epoch(self, epoch: int) -> Tensor:
        """Train on every image once; return the mean loss as a tensor on the device, float32 ()."""
        images, labels = self._images.train_images, self._images.train_labels
        generator = torch.Generator(self._device).manual_seed((self._seed * 1_000_003 + epoch) % _SEEDS)
        order = torch.randperm(len(labels), generator=generator, device=self._device)
        steps = len(labels) // self._batch_size
        total = torch.zeros((), device=self._device)
        self.network.train()
        for step in range(steps):
            chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
            batch = images[chosen]
            if self._images.augmented:
                batch = augment(batch, generator)
            with self._precision():
                loss = functional.cross_entropy(self.network(batch), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.detach().float()
        return total / steps

    @torch.no_grad()
    def _validate(self) -> Tensor:
        """Return the accuracy on the validation images as a tensor on the device, float32 ()."""
        self.network.eval()
        images, labels = self._images.validation_images, self._images.validation_labels
        correct = torch.zeros((), device=self._device)
        for start in range(0, len(labels), _VALIDATION_BATCH):
            with self._precision():
                logits: Tensor = self.network(images[start : start + _VALIDATION_BATCH])
            correct += (logits.argmax(1) == labels[start : start + _VALIDATION_BATCH]).sum()
        return correct / len(labels)


def best_of_last(accuracies: tuple[float, ...], epochs: int) -> float:
    """Return the metric: the best accuracy of the last ``epochs`` epochs (paper section 4.1)."""
    return max(accuracies[-epochs:])


def choose_device() -> torch.device:
    """Return where to train: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
