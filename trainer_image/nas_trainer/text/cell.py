"""A generated recurrent cell in torch, run over a whole window of steps at once (paper section 3.4).

What makes it quick on a CPU, where one step of a small cell is hardly longer than the calls it is made of:

- W x of all steps is one product before the loop; the gradients of W, U and x are one product each after it.
- The weights' columns are grouped by combination and activation, so that each group of leaves is one operation.
- Between U h and h every operation works element by element. So the derivative of h_t and c_t by each leaf is a
  product along the tree's path, which needs nothing from other steps: it is computed for all steps at once. What
  is left of the backward loop, for any cell, are five operations a step.

A GPU, which waits for each of these to be launched, replays the whole window (``nas_trainer.cuda_graph``). Under
autocast the products are computed in its type, and all that is between them in float32.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_trainer.text.gradients import Derivatives, back_through_steps, split_leaves
from nas_trainer.text.operations import COMBINE, PLAIN, product, product_type
from nas_trainer.text.window import Window


class _AllSteps(torch.autograd.Function):
    """All steps of a window as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: RecurrentCellArchitecture,
        x: Tensor,
        state: Tensor,
        memory: Tensor,
        input_weight: Tensor,
        state_weight: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        kind: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        steps, batch, _ = x.shape
        inputs = product(x.reshape(steps * batch, -1), input_weight.to(kind)).to(x.dtype).add_(bias)
        inputs = inputs.view(steps, batch, -1)
        states = x.new_empty(steps + 1, *state.shape)
        cells = torch.empty_like(states)
        states[0], cells[0] = state, memory
        window = Window(cell, inputs, states, cells)
        window.run(state_weight.to(kind), mask)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, input_weight, state_weight, mask)
            # What is written in place below is the window's own; views for the steps are not needed any more.
            window.program.clear()
            ctx.window = window
            ctx.kind = kind
        return states[1:], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, states_gradient: Tensor, memory_gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, input_weight, state_weight, mask = ctx.saved_tensors
        window: Window = ctx.window
        steps, batch, columns = window.inputs.shape
        derivatives = Derivatives(window)
        gradients = derivatives.factors
        by_input = split_leaves(window, derivatives)
        at_state = states_gradient.clone()
        back = state_weight.t().to(ctx.kind).contiguous()
        at_cell, state, memory = back_through_steps(window, derivatives, at_state, memory_gradient, back, mask)

        flat = gradients.view(steps * batch, columns)
        before = window.states[:-1] if mask is None else window.states[:-1] * mask
        to_state_weight = product(before.reshape(steps * batch, -1).t(), flat.to(ctx.kind))
        for where, factor, below in by_input:
            torch.mul(factor, at_cell if below else at_state, out=gradients[..., where])
        given = flat.to(ctx.kind)
        to_x = product(given, input_weight.t().to(ctx.kind)).to(x.dtype).view_as(x) if ctx.needs_input_grad[1] else None
        to_input_weight = product(x.reshape(steps * batch, -1).t(), given).to(x.dtype)
        to_state_weight = to_state_weight.to(x.dtype)
        return None, to_x, state, memory, to_input_weight, to_state_weight, flat.sum(0), None, None


class RecurrentCell(nn.Module):
    """A sampled cell with its weights.

    Leaf i combines W_i x_t + b_i and U_i h_(t-1); the biases are on the input's side, so that they cost nothing in
    the loop. The columns of the weights are blocks of ``hidden``, one for each leaf, in the order of
    ``architecture.columns()``.
    """

    def __init__(self, architecture: RecurrentCellArchitecture, inputs: int, hidden: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.hidden = hidden
        columns = architecture.base * hidden
        bound = 1 / math.sqrt(hidden)
        self.input_weight = nn.Parameter(torch.empty(inputs, columns).uniform_(-bound, bound))
        self.state_weight = nn.Parameter(torch.empty(hidden, columns).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(columns).uniform_(-bound, bound))

    def forward(self, x: Tensor, state: Tensor, memory: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run a window.

        Args:
            x: the inputs, (steps, batch, inputs).
            state: h before the window, (batch, hidden).
            memory: c before the window, (batch, hidden).
            mask: what h is multiplied by before U at each step, (batch, hidden), when some of it is dropped.

        Returns:
            h after each step, (steps, batch, hidden), and c after the last, (batch, hidden).
        """
        out: tuple[Tensor, Tensor] = _AllSteps.apply(  # type: ignore[no-untyped-call]
            self.architecture, x, state, memory, self.input_weight, self.state_weight, self.bias, mask, product_type(x)
        )
        return out

    def step(self, x: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step, in operations that other runtimes have, too.

        Args:
            x: the input, (batch, inputs).
            state: h before, (batch, hidden).
            memory: c before, (batch, hidden).

        Returns:
            The new h and c.
        """
        cell = self.architecture
        order = cell.columns()
        inputs = (x @ self.input_weight + self.bias).chunk(cell.base, 1)
        states = (state @ self.state_weight).chunk(cell.base, 1)
        values: list[Tensor] = []
        new_memory = memory
        for index, node in enumerate(cell.nodes):
            if index < cell.base:
                position = order.index(index)
                pair = (inputs[position], states[position])
            else:
                left, right = cell.children(index)
                pair = (values[left], values[right])
            before = COMBINE[node.combination](*pair)
            new_memory = before if index == cell.cell_output else new_memory
            value = PLAIN[node.activation](before)
            if index == cell.injected:
                value = PLAIN[cell.inject.activation](COMBINE[cell.inject.combination](value, memory))
            values.append(value)
        return values[-1], new_memory
