"""Stochastic gradient descent with Nesterov momentum, as ``torch.optim.SGD`` computes it.

That class loads torch's compiler when it is first made, which costs five times as much CPU as training a
small child does. This one has the same arithmetic in a few lines, on all parameters at once.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class NesterovSGD:
    """The paper's optimiser for children (section 4.1).

    Per step, with gradient g: g += weight_decay * w; v = momentum * v + g; w -= learning_rate * (g + momentum * v).
    """

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: float, momentum: float, weight_decay: float
    ) -> None:
        self._parameters = list(parameters)
        self.learning_rate = learning_rate
        """May be changed between steps."""
        self._momentum = momentum
        self._weight_decay = weight_decay
        self.velocities = [torch.zeros_like(parameter) for parameter in self._parameters]
        """One for each parameter, in their order: all of the optimiser's state."""

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients, and drop the gradients."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if len(gradients) != len(self._parameters):
            raise ValueError("a parameter has no gradient, but every layer of a network is used")
        torch._foreach_add_(gradients, self._parameters, alpha=self._weight_decay)
        torch._foreach_mul_(self.velocities, self._momentum)
        torch._foreach_add_(self.velocities, gradients)
        torch._foreach_add_(gradients, self.velocities, alpha=self._momentum)
        torch._foreach_add_(self._parameters, gradients, alpha=-self.learning_rate)
        for parameter in self._parameters:
            parameter.grad = None
