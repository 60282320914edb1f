"""What every task that learns by gradient descent has: a network, its optimiser, and the state of both by name."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from torch import Tensor, nn

from nas_api.experiment import OptimizerSpec
from nas_trainer.optimizer import NesterovSGD
from nas_trainer.task import Progress

N = TypeVar("N", bound=nn.Module)


class Descent(Generic[N]):
    """The part of a :class:`~nas_trainer.task.Task` that does not depend on what is learnt.

    Args:
        network: on the device where it is trained.
        optimizer: Nesterov SGD's settings.
    """

    def __init__(self, network: N, optimizer: OptimizerSpec) -> None:
        self.network = network
        self._learning_rate = float(optimizer.learning_rate)
        self._optimizer = NesterovSGD(
            network.parameters(), self._learning_rate, float(optimizer.momentum), float(optimizer.weight_decay)
        )
        self.progress = Progress()

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def state(self) -> dict[str, Tensor]:
        """See :class:`~nas_trainer.task.Task`: weights, statistics and momentum."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"momentum.{name}": velocity for name, velocity in self._velocities()}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """See :class:`~nas_trainer.task.Task`."""
        self.network.load_state_dict({name: tensors[f"network.{name}"] for name in self.network.state_dict()})
        for name, velocity in self._velocities():
            velocity.copy_(tensors[f"momentum.{name}"])
        self.progress = progress

    def weights(self) -> dict[str, Tensor]:
        """See :class:`~nas_trainer.task.Task`."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}

    def _velocities(self) -> Iterator[tuple[str, Tensor]]:
        for (name, _), velocity in zip(self.network.named_parameters(), self._optimizer.velocities, strict=True):
            yield name, velocity
