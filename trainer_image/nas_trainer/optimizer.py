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
        self.param_groups = [{"params": self._parameters}]
        """Where GradScaler looks for the gradients."""
        self.found_inf: Tensor | None = None
        """Set by GradScaler during a step: not 0 where a gradient is not finite, and nothing is to be changed."""

    # GradScaler leaves it to us to skip a step: asking the device would keep the host waiting, and spoil a recording.
    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients, and drop the gradients."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if len(gradients) != len(self._parameters):
            raise ValueError("a parameter has no gradient, but every layer of a network is used")
        if self.found_inf is None:
            torch._foreach_add_(gradients, self._parameters, alpha=self._weight_decay)
            torch._foreach_mul_(self.velocities, self._momentum)
            torch._foreach_add_(self.velocities, gradients)
            torch._foreach_add_(gradients, self.velocities, alpha=self._momentum)
            torch._foreach_add_(self._parameters, gradients, alpha=-self.learning_rate)
        else:
            self._step_unless(self.found_inf, gradients)
        for parameter in self._parameters:
            parameter.grad = None

    def _step_unless(self, found_inf: Tensor, gradients: list[Tensor]) -> None:
        """Take the same step in one kernel, which looks at ``found_inf`` itself."""
        torch._fused_sgd_(
            self._parameters,
            gradients,
            # The kernel keeps none without momentum, and neither needs any.
            self.velocities if self._momentum else [],
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self.learning_rate,
            dampening=0.0,
            nesterov=self._momentum > 0,
            maximize=False,
            is_first_step=False,
            found_inf=found_inf,
        )
