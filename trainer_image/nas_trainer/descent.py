"""What every task that learns by gradient descent has: a network, its optimiser, the state of both by name, and epochs
in which all that is drawn follows from the seed and the epoch's number.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from nas_api.child import FinalSettings, UsedGpu
from nas_api.experiment import OptimizerSpec
from nas_trainer.average import Average
from nas_trainer.cuda_graph import GpuRecorder, RecordedStep
from nas_trainer.distributed import ALONE, Ranks
from nas_trainer.gpu import Gpu
from nas_trainer.optimizer import make_optimizer
from nas_trainer.task import Progress

N = TypeVar("N", bound=nn.Module)
T = TypeVar("T", Tensor, tuple[Tensor, ...])
# torch takes seeds of 64 bits.
_SEEDS = 2**63
# A prime above the most epochs that a manifest may ask for.
_MORE_THAN_EPOCHS = 10_007


def choose_device() -> torch.device:
    """Return where to train: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_weights(seed: int) -> None:
    """Let the initial weights of the network that is built next follow from a seed."""
    torch.manual_seed(seed % _SEEDS)


class Descent(ABC, Generic[N]):
    """The part of a :class:`~nas_trainer.task.Task` that does not depend on what is learnt.

    Args:
        network: on the device where it is trained.
        optimizer: which one, and its settings.
        seed: decides, with an epoch's number, what is drawn in that epoch.
        device: where it is trained.
        final: what only final trainings change. None: nothing.
        ranks: the processes that train it together, each of which has one of these.
        gpu: how the device is used; None: it is a CPU.
    """

    def __init__(
        self,
        network: N,
        optimizer: OptimizerSpec,
        seed: int,
        device: torch.device,
        final: FinalSettings | None,
        ranks: Ranks = ALONE,
        gpu: Gpu | None = None,
    ) -> None:
        self.network = network
        self._ranks = ranks
        self._learning_rate = float(optimizer.learning_rate)
        self._optimizer = make_optimizer(network.parameters(), optimizer)
        self._average = Average(network, float(optimizer.ema)) if float(optimizer.ema) else None
        self._seed = seed
        self._device = device
        self._final = final or FinalSettings()
        self._gpu = gpu
        self._scaler = None if gpu is None else gpu.scaler(device)
        self._recorded: RecordedStep[Any] | None = None
        self.progress = Progress()

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def gpu(self) -> UsedGpu | None:
        """See :class:`~nas_trainer.task.Task`."""
        return None if self._gpu is None else self._gpu.used

    def run(self, epochs: int, after_epoch: Callable[[], None]) -> None:
        """See :class:`~nas_trainer.task.Task`."""
        while self.progress.epochs < epochs and not self.progress.diverged:
            loss, *metric = self._epoch(self.progress.epochs)
            self.progress = Progress((*self.progress.metrics, *metric), (*self.progress.losses, loss))
            after_epoch()

    @abstractmethod
    def _epoch(self, epoch: int) -> list[float]:
        """Train for an epoch, counted from 0; return its mean loss in nats and the metric on the validation set.

        There is no metric in a final test, which has no validation set.
        """

    def state(self) -> dict[str, Tensor]:
        """See :class:`~nas_trainer.task.Task`: weights, statistics and the optimiser's state."""
        tensors = self._state()
        if self._scaler is not None:
            tensors |= {f"scaler.{name}": torch.tensor(value) for name, value in self._scaler.state_dict().items()}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """See :class:`~nas_trainer.task.Task`."""
        pairs = [(tensor.detach(), tensors[name]) for name, tensor in self._state().items()]
        if any(ours.shape != theirs.shape for ours, theirs in pairs):
            raise RuntimeError("a tensor has another shape")
        for ours, theirs in pairs:
            ours.copy_(theirs)
        # An attempt on another GPU may have had none.
        if self._scaler is not None and "scaler.scale" in tensors:
            names = self._scaler.state_dict()
            self._scaler.load_state_dict({name: tensors[f"scaler.{name}"].item() for name in names})
        self.progress = progress

    @property
    def learned(self) -> N:
        """The network that is measured and handed over: the average, where there is one."""
        return self.network if self._average is None else self._average.network

    def weights(self) -> dict[str, Tensor]:
        """See :class:`~nas_trainer.task.Task`."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.learned.state_dict().items()}

    def _generator(self, epoch: int, rank: int = 0) -> torch.Generator:
        """Return what all of an epoch is drawn from; of another ``rank``, what the first one's draws do not tell."""
        return torch.Generator(self._device).manual_seed(
            (self._seed * 1_000_003 + epoch + rank * _MORE_THAN_EPOCHS) % _SEEDS
        )

    def _decayed(self, rate: float, epoch: int) -> float:
        """Return a learning rate, after a final training's ``decay_epoch`` a tenth of it."""
        decay = self._final.decay_epoch
        return rate / 10 if decay is not None and epoch >= decay else rate

    def _state(self) -> dict[str, Tensor]:
        """Return the very tensors that training changes, by name."""
        names = [name for name, _ in self.network.named_parameters()]
        return {
            **{f"network.{name}": tensor for name, tensor in self.network.state_dict().items()},
            **self._optimizer.state(names),
            **({} if self._average is None else self._average.state()),
        }

    def _precision(self) -> "torch.autocast | nullcontext[None]":
        """Return the block in which a forward pass runs."""
        return nullcontext() if self._gpu is None else self._gpu.precision(self._device)

    def _at_rate(self, step: Callable[..., T], learning_rate: float) -> Callable[..., T]:
        """Return what takes a step with a learning rate: a recording of it, where the manifest asks for that."""
        if learning_rate != self._optimizer.learning_rate:
            self._optimizer.learning_rate = learning_rate
            # A recording has the old one in it.
            self._recorded = None
        waits = self._scaler is not None and not self._optimizer.skips_by_itself
        if self._gpu is None or not self._gpu.settings.cuda_graphs or waits:
            return step
        if self._recorded is None:
            self._recorded = RecordedStep(step, GpuRecorder())
        return self._recorded

    def _learn(self, loss: Tensor, clip: float | None = None) -> None:
        """Go down a loss' gradient, whose norm is bounded by ``clip``."""
        if self._scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.unscale_(self._optimizer)  # type: ignore[arg-type]
        if clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), clip)
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)  # type: ignore[arg-type]
            self._scaler.update()
