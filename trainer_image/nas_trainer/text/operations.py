"""What cells are made of: products of matrices, and the nodes' combinations and activations with their derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nas_api.spaces.recurrent_cell import Activation, Combination

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left (n, k) @ right (k, m), computed and returned in the right one's type.

    In float32 on a CPU by oneDNN, as torch.nn.LSTM does: MKL, which torch.mm takes, is half as fast on processors
    of another make than its own.
    """
    if _ONEDNN and left.dtype == right.dtype == torch.float32 and left.device.type == "cpu":
        out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
        return out
    return torch.mm(left.to(right.dtype), right)


def product_type(x: Tensor) -> torch.dtype:
    """Return in which type matrices are to be multiplied here: autocast's where that is on, else the tensor's own."""
    device = x.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else x.dtype


class _Linear(torch.autograd.Function):
    """x (n, inputs) @ weight (outputs, inputs) transposed + bias, by ``product`` in a type of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kind: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kind = kind
        return product(x, weight.t().to(kind)).to(x.dtype).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight = product(gradient, weight.to(ctx.kind)), product(gradient.t(), x.to(ctx.kind))
        return to_x.to(x.dtype), to_weight.to(weight.dtype), gradient.sum(0), None


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x (n, inputs) @ weight (outputs, inputs) transposed + bias (outputs), as ``functional.linear`` does."""
    out: Tensor = _Linear.apply(x, weight, bias, product_type(x))  # type: ignore[no-untyped-call,unused-ignore]
    return out


def copy(source: Tensor, *, out: Tensor) -> Tensor:
    """Write a tensor into another, as the other operations write what they compute."""
    return out.copy_(source)


_MINUS_ONE = torch.tensor(-1.0)


def _tanh(x: Tensor, *, out: Tensor) -> Tensor:
    """Write tanh(x); on a CPU as 2 sigmoid(2 x) - 1, in half of torch.tanh's time, or a sixth of it in wide cells."""
    if x.device.type != "cpu":
        return torch.tanh(x, out=out)
    torch.add(x, x, out=out).sigmoid_()
    return torch.add(_MINUS_ONE, out, alpha=2, out=out)


COMBINE: dict[Combination, Callable[..., Tensor]] = {"add": torch.add, "elem_mult": torch.mul, "max": torch.maximum}
"""Combinations; each writes into ``out`` where one is given."""
ACTIVATE: dict[Activation, Callable[..., Tensor]] = {
    "identity": copy,
    "tanh": _tanh,
    "sigmoid": torch.sigmoid,
    "relu": partial(torch.clamp, min=0),
    "sin": torch.sin,
}
"""Activations that write into ``out``."""
PLAIN: dict[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "sin": torch.sin,
}
"""Activations in operations that other runtimes have, too."""


def through(
    activation: Activation, factor: Tensor | None, value: Tensor, before: Tensor | None, out: Tensor | None = None
) -> Tensor | None:
    """Return factor times the activation's derivative; a factor of None is 1.

    Args:
        activation: which.
        factor: the derivative of what comes after it.
        value: what the activation gave.
        before: what went into it; needed for sin alone.
        out: where to write the product; then a tensor is returned.
    """
    if activation == "identity":
        if out is None:
            return factor
        return out.fill_(1) if factor is None else out.copy_(factor)
    if factor is None:
        return _derivative(activation, value, before, out)
    return _chained(activation, factor, value, before, torch.empty_like(factor) if out is None else out)


def _derivative(activation: Activation, value: Tensor, before: Tensor | None, out: Tensor | None) -> Tensor:
    match activation:
        case "tanh":
            return torch.addcmul(value.new_ones(()), value, value, value=-1, out=out)
        case "sigmoid":
            return torch.addcmul(value, value, value, value=-1, out=out)
        case "relu":
            return torch.gt(value, 0, out=value.new_empty(value.shape) if out is None else out)
        case _:
            assert before is not None
            return torch.cos(before, out=out)


def _chained(activation: Activation, factor: Tensor, value: Tensor, before: Tensor | None, out: Tensor) -> Tensor:
    result: Tensor
    match activation:
        case "tanh":
            result = torch.ops.aten.tanh_backward.grad_input(factor, value, grad_input=out)
        case "sigmoid":
            result = torch.ops.aten.sigmoid_backward.grad_input(factor, value, grad_input=out)
        case "relu":
            result = torch.ops.aten.threshold_backward.grad_input(factor, value, 0, grad_input=out)
        case _:
            assert before is not None
            result = torch.mul(factor, torch.cos(before), out=out)
    return result


def into(combination: Combination, factor: Tensor | None, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
    """Return factor times the derivatives of a combination by its left and by its right input; None is 1."""
    if combination == "add":
        return factor, factor
    if combination == "elem_mult":
        return _times(factor, right), _times(factor, left)
    # Where both are equal the left one has the whole of it.
    chosen = torch.ge(left, right, out=torch.empty_like(left))
    return _times(factor, chosen), _times(factor, 1 - chosen)


def _times(factor: Tensor | None, other: Tensor) -> Tensor:
    return other if factor is None else factor * other
