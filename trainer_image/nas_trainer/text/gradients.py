"""Backward through a window: what a step's h and c change with its leaves, and the gradients that follow from it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nas_trainer.text.operations import into, product, through
from nas_trainer.text.window import Window


class Derivatives:
    """Derivatives of a step's h and c by its leaves and by the c before it, at all steps at once; 1 is None.

    Whatever is below the node that gives c influences h through it alone (the tree's part above it takes nothing
    else from there), so the derivatives of c suffice there: with q = dh * reach + dc, the gradient at c's node,
    that of a leaf is q times its factor below that node and dh times its factor elsewhere.
    """

    def __init__(self, window: Window) -> None:
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
            factor = through(cell.inject.activation, factor, window.values[index], window.before_injection)
            factor, self.carry = into(cell.inject.combination, factor, value, window.cells[:-1])
            self.carry_below = below
        out = None
        if index < cell.base:
            at = window.order.index(index) * window.hidden
            out = self.factors[..., at : at + window.hidden]
        if index == cell.cell_output:
            self.reach = through(cell.nodes[index].activation, factor, value, window.before[index])
            factor, below = None, True
            if out is not None:
                out.fill_(1)
        else:
            factor = through(cell.nodes[index].activation, factor, value, window.before[index], out)
        if index < cell.base:
            if below:
                self.below.add(index)
            return
        children = cell.children(index)
        factors = into(cell.nodes[index].combination, factor, *(window.values[child] for child in children))
        for child, each in zip(children, factors, strict=True):
            self._visit(child, each, below)


def split_leaves(window: Window, derivatives: Derivatives) -> list[tuple[slice, Tensor, bool]]:
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
        to_input, to_state = into(combination, factor, inputs, states)
        assert to_input is not None and to_state is not None
        by_input.append((where, to_input, leaf in derivatives.below))
        factor.copy_(to_state)
    return by_input


def back_through_steps(
    window: Window,
    derivatives: Derivatives,
    at_state: Tensor,
    memory: Tensor,
    back: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through the steps; the factors become the gradients at the leaves, and ``at_state`` that at h.

    Args:
        window: the values.
        derivatives: what the gradients at h and c are multiplied by.
        at_state: the gradient at h from outside the cell, (steps, batch, hidden).
        memory: the gradient at the last c, (batch, hidden).
        back: U transposed, in the type in which it is multiplied.
        mask: what h was multiplied by before U; None: by 1.

    Returns:
        The gradients at each c (steps, batch, hidden), at the h before the window and at the c before it.
    """
    at_cell = torch.empty_like(at_state)
    factors = derivatives.factors.unbind(0)
    state = at_state.unbind(0)
    cell = at_cell.unbind(0)
    reach = None if derivatives.reach is None else derivatives.reach.unbind(0)
    carry = None if derivatives.carry is None else derivatives.carry.unbind(0)
    runs = _leaf_runs(window, derivatives)
    before = memory
    for step in reversed(range(len(state))):
        if step + 1 < len(state):
            state[step].add_(_masked(product(factors[step + 1], back), mask))
        if reach is None:
            torch.add(memory, state[step], out=cell[step])
        else:
            torch.addcmul(memory, state[step], reach[step], out=cell[step])
        at = (state[step].unsqueeze(1), cell[step].unsqueeze(1))
        for below, columns in runs:
            columns[step].mul_(at[below])
        before = cell[step] if derivatives.carry_below else state[step]
        memory = before if carry is None else before * carry[step]
    to_state = _masked(product(factors[0], back), mask).to(at_state.dtype)
    return at_cell, to_state, memory.clone() if memory is before else memory


def _masked(gradient: Tensor, mask: Tensor | None) -> Tensor:
    return gradient if mask is None else gradient.mul_(mask)


def _leaf_runs(window: Window, derivatives: Derivatives) -> list[tuple[bool, tuple[Tensor, ...]]]:
    """Return the factors of leaves side by side that are all below c's node or all not: which, and each step's."""
    leaves = derivatives.factors.view(*derivatives.factors.shape[:2], len(window.order), window.hidden)
    stretches = _stretches([leaf in derivatives.below for leaf in window.order])
    return [(below, leaves[:, :, start:stop].unbind(0)) for start, stop, below in stretches]


def _stretches(marks: Sequence[bool]) -> list[tuple[int, int, bool]]:
    """Return the stretches of equal marks: start, stop, mark."""
    starts = [index for index in range(len(marks)) if index == 0 or marks[index] != marks[index - 1]]
    return [(start, stop, marks[start]) for start, stop in zip(starts, [*starts[1:], len(marks)], strict=True)]
