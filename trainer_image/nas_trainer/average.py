"""An exponential moving average of a network's weights and statistics, which is often the better network."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


class Average(Generic[N]):
    """A second network beside the one that learns, always in evaluation mode.

    Args:
        network: the one that learns, on its device; its tensors must stay the same objects.
        decay: what share of the average a step leaves as it is; at step t at most (1 + t) / (10 + t), so that a short
            training is not averaged with its beginning.
    """

    def __init__(self, network: N, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._decay = decay
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        self._ours, self._live = _unzip([pair for pair in pairs if pair[0].is_floating_point()])
        # Batches that a normalisation has counted.
        self._our_counts, self._live_counts = _unzip([pair for pair in pairs if not pair[0].is_floating_point()])
        # On the device: a recorded step has every Python number baked in.
        self._steps = torch.zeros((), dtype=torch.float64, device=self._live[0].device)

    @torch.no_grad()
    def update(self) -> None:
        """Take a step of the network in."""
        self._steps += 1
        taken = (9 / (10 + self._steps)).clamp_min(1 - self._decay).float()
        changes = torch._foreach_sub(self._live, self._ours)
        torch._foreach_mul_(changes, taken)
        torch._foreach_add_(self._ours, changes)
        for ours, live in zip(self._our_counts, self._live_counts, strict=True):
            ours.copy_(live)

    def state(self) -> dict[str, Tensor]:
        """Return all that the average depends on, by name; whoever copies into these tensors changes it."""
        tensors = {f"average.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return {**tensors, "averaged": self._steps}


def _unzip(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [ours for ours, _ in pairs], [live for _, live in pairs]
