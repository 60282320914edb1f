"""The optimisers, as ``torch.optim`` computes them.

Its classes load torch's compiler when the first one is made, which costs five times as much CPU as training a small
child does. These have the same arithmetic in a few lines, on all parameters at once.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from nas_api.experiment import OptimizerSpec

_BETA2 = 0.999
_EPSILON = 1e-8


class Optimizer(Protocol):
    """What changes parameters by their gradients."""

    learning_rate: float
    """May be changed between steps."""
    param_groups: list[dict[str, list[Tensor]]]
    """Where GradScaler looks for the gradients."""
    skips_by_itself: bool
    """Whether a step looks itself, on the device, for what GradScaler has found to be not finite; otherwise that keeps
    the host waiting, and the step cannot be recorded."""

    def step(self) -> None:
        """Change the parameters by their gradients, and drop the gradients."""

    def state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return all that steps depend on, by name; whoever copies into these tensors changes the state.

        Args:
            names: of the parameters, in their order.
        """


def make_optimizer(parameters: Iterable[Tensor], spec: OptimizerSpec) -> Optimizer:
    """Return the optimiser of a manifest."""
    rate, momentum, decay = float(spec.learning_rate), float(spec.momentum), float(spec.weight_decay)
    if spec.name == "AdamW":
        return AdamW(parameters, rate, momentum, decay)
    return NesterovSGD(parameters, rate, momentum, decay)


class NesterovSGD:
    """The paper's optimiser for children (section 4.1).

    Per step, with gradient g: g += weight_decay * w; v = momentum * v + g; w -= learning_rate * (g + momentum * v).
    """

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: float, momentum: float, weight_decay: float
    ) -> None:
        self._parameters = list(parameters)
        self.learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self.velocities = [torch.zeros_like(parameter) for parameter in self._parameters]
        """One for each parameter, in their order: all of the optimiser's state."""
        self.param_groups = [{"params": self._parameters}]
        self.found_inf: Tensor | None = None
        """Set by GradScaler during a step: not 0 where a gradient is not finite, and nothing is to be changed."""

    skips_by_itself = True
    # What GradScaler calls it.
    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self) -> None:
        """See :class:`Optimizer`."""
        gradients = _gradients(self._parameters)
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

    def state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """See :class:`Optimizer`."""
        return {f"momentum.{name}": velocity for name, velocity in zip(names, self.velocities, strict=True)}


class AdamW:
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter, 2019).

    Per step t, with gradient g: w -= learning_rate * weight_decay * w; m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g^2; w -= learning_rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon).
    """

    skips_by_itself = False

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, beta1: float, weight_decay: float) -> None:
        self._parameters = list(parameters)
        self.param_groups = [{"params": self._parameters}]
        self.learning_rate = learning_rate
        self._beta1 = beta1
        self._weight_decay = weight_decay
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        # On the device, as all that changes with each step: a recorded step has every Python number baked in.
        self._steps = torch.zeros((), dtype=torch.float64, device=self._parameters[0].device)

    @torch.no_grad()
    def step(self) -> None:
        """See :class:`Optimizer`."""
        gradients = _gradients(self._parameters)
        torch._foreach_mul_(self._parameters, 1 - self.learning_rate * self._weight_decay)
        torch._foreach_lerp_(self._means, gradients, 1 - self._beta1)
        torch._foreach_mul_(self._squares, _BETA2)
        torch._foreach_addcmul_(self._squares, gradients, gradients, 1 - _BETA2)
        self._steps += 1
        deviations = torch._foreach_sqrt(self._squares)
        torch._foreach_div_(deviations, (1 - _BETA2**self._steps).sqrt().float())
        torch._foreach_add_(deviations, _EPSILON)
        torch._foreach_reciprocal_(deviations)
        torch._foreach_mul_(deviations, (-self.learning_rate / (1 - self._beta1**self._steps)).float())
        torch._foreach_addcmul_(self._parameters, self._means, deviations)
        for parameter in self._parameters:
            parameter.grad = None

    def state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """See :class:`Optimizer`."""
        means = {f"mean.{name}": mean for name, mean in zip(names, self._means, strict=True)}
        squares = {f"square.{name}": square for name, square in zip(names, self._squares, strict=True)}
        return {**means, **squares, "steps": self._steps}


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if len(gradients) != len(parameters):
        raise ValueError("a parameter has no gradient, but every layer of a network is used")
    return gradients
