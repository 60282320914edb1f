"""A generated recurrent cell in torch, run over a whole window of steps at once (paper section 3.4).

What makes it quick on a CPU, where one step of a small cell is hardly longer than the calls it is made of:

- W x of all steps is one product before the loop; the gradients of W, U and x are one product each after it.
- The weights' columns are grouped by combination and activation, so that each group of leaves is one operation.
- Between U h and h every operation works element by element. So the derivative of h_t and c_t by each leaf is a
  product along the tree's path, which needs nothing from other steps: it is computed for all steps at once. What
  is left of the backward loop, for any cell, are five operations a step.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas_api.spaces.recurrent_cell import Activation, Combination, RecurrentCellArchitecture

_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left (n, k) @ right (k, m).

    In float32 on a CPU by oneDNN, as torch.nn.LSTM does: MKL, which torch.mm takes, is half as fast on processors
    of another make than its own.
    """
    if _ONEDNN and left.dtype == torch.float32 and left.device.type == "cpu":
        out: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
        return out
    return torch.mm(left, right)


class _Linear(torch.autograd.Function):
    """x (n, inputs) @ weight (outputs, inputs) transposed + bias, by ``product``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.t()).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return product(gradient, weight), product(gradient.t(), x), gradient.sum(0)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x (n, inputs) @ weight (outputs, inputs) transposed + bias (outputs), as ``functional.linear`` does."""
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call,unused-ignore]
    return out


def _copy(source: Tensor, *, out: Tensor) -> Tensor:
    return out.copy_(source)


_MINUS_ONE = torch.tensor(-1.0)


def _tanh(x: Tensor, *, out: Tensor) -> Tensor:
    """Write tanh(x) = 2 sigmoid(2 x) - 1, which on a CPU takes half of torch.tanh's time, or a sixth in wide cells."""
    torch.add(x, x, out=out).sigmoid_()
    return torch.add(_MINUS_ONE, out, alpha=2, out=out)


_COMBINE: dict[Combination, Callable[..., Tensor]] = {"add": torch.add, "elem_mult": torch.mul, "max": torch.maximum}
_ACTIVATE: dict[Activation, Callable[..., Tensor]] = {
    "identity": _copy,
    "tanh": _tanh,
    "sigmoid": torch.sigmoid,
    "relu": partial(torch.clamp, min=0),
    "sin": torch.sin,
}
_PLAIN: dict[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "sin": torch.sin,
}


_Run = tuple[int, Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...] | None, tuple[Tensor, ...]]
"""Leaves of one combination: columns, how, and at each step W x, where U h is kept, and where to."""


class _Values:
    """The values of all nodes at all steps, each (steps, batch, hidden), and the operations of one step.

    Activations work in place where their derivative needs no more than their value.
    """

    def __init__(self, cell: RecurrentCellArchitecture, inputs: Tensor, states: Tensor, cells: Tensor) -> None:
        """Lay out the window.

        Args:
            cell: the tree.
            inputs: W x + b, (steps, batch, base * hidden); becomes W x + U h + b in the columns of added leaves.
            states: h, (steps + 1, batch, hidden); the first is given, the others are filled.
            cells: c, likewise.
        """
        self.cell = cell
        self.inputs = inputs
        self.states = states
        self.cells = cells
        self.hidden = states.shape[2]
        self.order = cell.columns()
        self.added = sum(cell.nodes[leaf].combination == "add" for leaf in self.order) * self.hidden
        # Leaves that do not add keep W x and U h, which their derivative needs.
        self.combined = inputs.new_empty(*inputs.shape[:2], inputs.shape[2] - self.added)
        self.recurrent = torch.empty_like(self.combined)
        self.values: dict[int, Tensor] = {}
        """What a node's parent takes: after the injection."""
        self.activated: dict[int, Tensor] = {}
        """What a node's activation gives: before the injection."""
        self.before: dict[int, Tensor] = {}
        """What went into the activation, where the derivative needs it."""
        self.before_injection: Tensor | None = None
        self.program: list[tuple[Callable[..., Tensor], list[tuple[Tensor, ...]], tuple[Tensor, ...]]] = []
        self._lay_leaves()
        for node in range(cell.base, len(cell.nodes)):
            self._lay_node(node)
        root = self.values[len(cell.nodes) - 1]
        if root.data_ptr() != states[1:].data_ptr():
            self._emit(_copy, states[1:], root)

    def _new(self, columns: int) -> Tensor:
        return self.inputs.new_empty(*self.inputs.shape[:2], columns)

    def _emit(self, operation: Callable[..., Tensor], out: Tensor, *inputs: Tensor) -> None:
        steps = list(zip(*(each.unbind(0) for each in inputs), strict=True))
        self.program.append((operation, steps, out.unbind(0)))

    def run(self, state_weight: Tensor) -> None:
        """Fill the window step by step."""
        states = self.states.unbind(0)
        runs = self._runs()
        sizes = [size for size, *_ in runs]
        for step in range(len(states) - 1):
            recurrent = torch.split(product(states[step], state_weight), sizes, 1)
            for part, (_, combine, inputs, kept, out) in zip(recurrent, runs, strict=True):
                combine(inputs[step], part, out=out[step])
                if kept is not None:
                    kept[step].copy_(part)
            for operation, arguments, out in self.program:
                operation(*arguments[step], out=out[step])

    def _runs(self) -> list[_Run]:
        runs: list[_Run] = []
        start = 0
        for combination, combine in _COMBINE.items():
            size = sum(self.cell.nodes[leaf].combination == combination for leaf in self.order) * self.hidden
            inputs = self.inputs[..., start : start + size].unbind(0)
            if combination == "add":
                runs.append((size, combine, inputs, None, inputs))
            else:
                where = slice(start - self.added, start - self.added + size)
                kept, out = self.recurrent[..., where].unbind(0), self.combined[..., where].unbind(0)
                runs.append((size, combine, inputs, kept, out))
            start += size
        return [run for run in runs if run[0]]

    def _lay_leaves(self) -> None:
        cell, hidden = self.cell, self.hidden
        start = 0
        while start < cell.base:
            node = cell.nodes[self.order[start]]
            stop = start
            while stop < cell.base and cell.nodes[self.order[stop]] == node:
                stop += 1
            at, size = start * hidden, (stop - start) * hidden
            before = self.inputs[..., at : at + size]
            if node.combination != "add":
                before = self.combined[..., at - self.added :][..., :size]
            group = self.order[start:stop]
            if cell.cell_output in group:
                at = group.index(cell.cell_output) * hidden
                self._emit(_copy, self.cells[1:], before[..., at : at + hidden])
            value = self._new(size) if node.activation == "sin" else before
            if node.activation != "identity":
                self._emit(_ACTIVATE[node.activation], value, before)
            for index, leaf in enumerate(group):
                columns = slice(index * hidden, (index + 1) * hidden)
                self.before[leaf] = before[..., columns]
                self._keep(leaf, value[..., columns])
            start = stop

    def _lay_node(self, index: int) -> None:
        node, last = self.cell.nodes[index], index == len(self.cell.nodes) - 1
        in_place = self.states[1:] if last and self.cell.injected != index else None
        before = value = in_place if in_place is not None else self._new(self.hidden)
        if index == self.cell.cell_output:
            before = self.cells[1:]
            value = before if node.activation == "identity" else value
        elif node.activation == "sin":
            before = self._new(self.hidden)
        self._emit(_COMBINE[node.combination], before, *(self.values[child] for child in self.cell.children(index)))
        if node.activation != "identity":
            self._emit(_ACTIVATE[node.activation], value, before)
        self.before[index] = before
        self._keep(index, value)

    def _keep(self, index: int, value: Tensor) -> None:
        """Note a node's value, which the injection may replace."""
        self.activated[index] = self.values[index] = value
        if index != self.cell.injected:
            return
        inject, last = self.cell.inject, index == len(self.cell.nodes) - 1
        injected = self.states[1:] if last else self._new(self.hidden)
        self.before_injection = self._new(self.hidden) if inject.activation == "sin" else injected
        self._emit(_COMBINE[inject.combination], self.before_injection, value, self.cells[:-1])
        if inject.activation != "identity":
            self._emit(_ACTIVATE[inject.activation], injected, self.before_injection)
        self.values[index] = injected


def _through(
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
        if activation == "tanh":
            return torch.addcmul(value.new_ones(()), value, value, value=-1, out=out)
        if activation == "sigmoid":
            return torch.addcmul(value, value, value, value=-1, out=out)
        if activation == "relu":
            return torch.gt(value, 0, out=value.new_empty(value.shape) if out is None else out)
        assert before is not None
        return torch.cos(before, out=out)
    out = torch.empty_like(factor) if out is None else out
    if activation == "tanh":
        return torch.ops.aten.tanh_backward.grad_input(factor, value, grad_input=out)  # type: ignore[no-any-return]
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward.grad_input(factor, value, grad_input=out)  # type: ignore[no-any-return]
    if activation == "relu":
        return torch.ops.aten.threshold_backward.grad_input(factor, value, 0, grad_input=out)  # type: ignore[no-any-return]
    assert before is not None
    return torch.mul(factor, torch.cos(before), out=out)


def _into(combination: Combination, factor: Tensor | None, left: Tensor, right: Tensor) -> tuple[Tensor | None, ...]:
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


class _Derivatives:
    """Derivatives of a step's h and c by its leaves and by the c before it, at all steps at once; 1 is None.

    Whatever is below the node that gives c influences h through it alone (the tree's part above it takes nothing
    else from there), so the derivatives of c suffice there: with q = dh * reach + dc, the gradient at c's node,
    that of a leaf is q times its factor below that node and dh times its factor elsewhere.
    """

    def __init__(self, window: _Values) -> None:
        self._window = window
        self.reach: Tensor | None = None
        """dh/dc, (steps, batch, hidden)."""
        self.carry: Tensor | None = None
        """The derivative by the c before: of c when ``carry_below``, else of h."""
        self.carry_below = False
        self.below: set[int] = set()
        """Leaves that are below c's node."""
        self.factors = torch.empty_like(window.inputs)
        """By what each leaf's activation is given, in the order of the columns, (steps, batch, base * hidden)."""
        self._visit(len(window.cell.nodes) - 1, None, False)

    def _visit(self, index: int, factor: Tensor | None, below: bool) -> None:
        window, cell = self._window, self._window.cell
        value = window.activated[index]
        if index == cell.injected:
            factor = _through(cell.inject.activation, factor, window.values[index], window.before_injection)
            factor, self.carry = _into(cell.inject.combination, factor, value, window.cells[:-1])
            self.carry_below = below
        out = None
        if index < cell.base:
            at = window.order.index(index) * window.hidden
            out = self.factors[..., at : at + window.hidden]
        if index == cell.cell_output:
            self.reach = _through(cell.nodes[index].activation, factor, value, window.before[index])
            factor, below = None, True
            if out is not None:
                out.fill_(1)
        else:
            factor = _through(cell.nodes[index].activation, factor, value, window.before[index], out)
        if index < cell.base:
            if below:
                self.below.add(index)
            return
        children = cell.children(index)
        factors = _into(cell.nodes[index].combination, factor, *(window.values[child] for child in children))
        for child, each in zip(children, factors, strict=True):
            self._visit(child, each, below)


class _Window(torch.autograd.Function):
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
    ) -> tuple[Tensor, Tensor]:
        steps, batch, _ = x.shape
        inputs = product(x.reshape(steps * batch, -1), input_weight).add_(bias).view(steps, batch, -1)
        states = x.new_empty(steps + 1, *state.shape)
        cells = torch.empty_like(states)
        states[0], cells[0] = state, memory
        window = _Values(cell, inputs, states, cells)
        window.run(state_weight)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, input_weight, state_weight)
            # What is written in place below is the window's own; views for the steps are not needed any more.
            window.program.clear()
            ctx.window = window
        return states[1:], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, states_gradient: Tensor, memory_gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, input_weight, state_weight = ctx.saved_tensors
        window: _Values = ctx.window
        steps, batch, columns = window.inputs.shape
        derivatives = _Derivatives(window)
        gradients = derivatives.factors
        by_input = _split_leaves(window, derivatives)
        at_state = states_gradient.clone()
        at_cell, state, memory = _backward_loop(window, derivatives, at_state, memory_gradient, state_weight)

        flat = gradients.view(steps * batch, columns)
        to_state_weight = product(window.states[:-1].reshape(steps * batch, -1).t(), flat)
        for where, factor, below in by_input:
            torch.mul(factor, at_cell if below else at_state, out=gradients[..., where])
        to_x = product(flat, input_weight.t()).view_as(x) if ctx.needs_input_grad[1] else None
        to_input_weight = product(x.reshape(steps * batch, -1).t(), flat)
        return None, to_x, state, memory, to_input_weight, to_state_weight, flat.sum(0)


def _split_leaves(window: _Values, derivatives: _Derivatives) -> list[tuple[slice, Tensor, bool]]:
    """Make the factors of leaves that do not add those by U h; return those by W x: columns, factor, below c's node."""
    by_input = []
    for position, leaf in enumerate(window.order):
        combination = window.cell.nodes[leaf].combination
        if combination == "add":
            continue
        where = slice(position * window.hidden, (position + 1) * window.hidden)
        inputs = window.inputs[..., where]
        states = window.recurrent[..., where.start - window.added : where.stop - window.added]
        factor = derivatives.factors[..., where]
        to_input, to_state = _into(combination, factor, inputs, states)
        assert to_input is not None and to_state is not None
        by_input.append((where, to_input, leaf in derivatives.below))
        factor.copy_(to_state)
    return by_input


def _backward_loop(
    window: _Values, derivatives: _Derivatives, at_state: Tensor, memory: Tensor, state_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through the steps; the factors become the gradients at the leaves, and ``at_state`` that at h.

    Args:
        window: the values.
        derivatives: what the gradients at h and c are multiplied by.
        at_state: the gradient at h from outside the cell, (steps, batch, hidden).
        memory: the gradient at the last c, (batch, hidden).
        state_weight: U.

    Returns:
        The gradients at each c (steps, batch, hidden), at the h before the window and at the c before it.
    """
    at_cell = torch.empty_like(at_state)
    back = state_weight.t().contiguous()
    factors = derivatives.factors.unbind(0)
    state = at_state.unbind(0)
    cell = at_cell.unbind(0)
    reach = None if derivatives.reach is None else derivatives.reach.unbind(0)
    carry = None if derivatives.carry is None else derivatives.carry.unbind(0)
    leaves = derivatives.factors.view(*at_state.shape[:2], len(window.order), window.hidden)
    runs = [
        (below, leaves[:, :, start:stop].unbind(0))
        for start, stop, below in _stretches([leaf in derivatives.below for leaf in window.order])
    ]
    before = memory
    for step in reversed(range(len(state))):
        if step + 1 < len(state):
            state[step].add_(product(factors[step + 1], back))
        if reach is None:
            torch.add(memory, state[step], out=cell[step])
        else:
            torch.addcmul(memory, state[step], reach[step], out=cell[step])
        at = (state[step].unsqueeze(1), cell[step].unsqueeze(1))
        for below, columns in runs:
            columns[step].mul_(at[below])
        before = cell[step] if derivatives.carry_below else state[step]
        memory = before if carry is None else before * carry[step]
    return at_cell, product(factors[0], back), memory.clone() if memory is before else memory


def _stretches(marks: Sequence[bool]) -> list[tuple[int, int, bool]]:
    """Return the stretches of equal marks: start, stop, mark."""
    starts = [index for index in range(len(marks)) if index == 0 or marks[index] != marks[index - 1]]
    return [(start, stop, marks[start]) for start, stop in zip(starts, [*starts[1:], len(marks)], strict=True)]


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

    def forward(self, x: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Run a window.

        Args:
            x: the inputs, (steps, batch, inputs).
            state: h before the window, (batch, hidden).
            memory: c before the window, (batch, hidden).

        Returns:
            h after each step, (steps, batch, hidden), and c after the last, (batch, hidden).
        """
        out: tuple[Tensor, Tensor] = _Window.apply(  # type: ignore[no-untyped-call]
            self.architecture, x, state, memory, self.input_weight, self.state_weight, self.bias
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
            before = _COMBINE[node.combination](*pair)
            new_memory = before if index == cell.cell_output else new_memory
            value = _PLAIN[node.activation](before)
            if index == cell.injected:
                value = _PLAIN[cell.inject.activation](_COMBINE[cell.inject.combination](value, memory))
            values.append(value)
        return values[-1], new_memory
