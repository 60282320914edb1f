"""Forward through a window: the values of a cell's nodes at all steps, laid out before the first step is run."""

from collections.abc import Callable

import torch
from torch import Tensor

from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_trainer.text.operations import ACTIVATE, COMBINE, copy, product

_LeafRun = tuple[int, Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...] | None, tuple[Tensor, ...]]
"""Leaves of one combination: columns, how, and at each step W x, where U h is kept, and where to."""


class Window:
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
            self._emit(copy, states[1:], root)

    def _new(self, columns: int) -> Tensor:
        return self.inputs.new_empty(*self.inputs.shape[:2], columns)

    def _emit(self, operation: Callable[..., Tensor], out: Tensor, *inputs: Tensor) -> None:
        steps = list(zip(*(each.unbind(0) for each in inputs), strict=True))
        self.program.append((operation, steps, out.unbind(0)))

    def run(self, state_weight: Tensor, mask: Tensor | None) -> None:
        """Fill the window step by step.

        Args:
            state_weight: U, (hidden, base * hidden).
            mask: what h is multiplied by before U at each step, (batch, hidden); None: by 1.
        """
        states = self.states.unbind(0)
        runs = self._runs()
        sizes = [size for size, *_ in runs]
        for step in range(len(states) - 1):
            state = states[step] if mask is None else states[step] * mask
            recurrent = torch.split(product(state, state_weight), sizes, 1)
            for part, (_, combine, inputs, kept, out) in zip(recurrent, runs, strict=True):
                combine(inputs[step], part, out=out[step])
                if kept is not None:
                    kept[step].copy_(part)
            for operation, arguments, out in self.program:
                operation(*arguments[step], out=out[step])

    def _runs(self) -> list[_LeafRun]:
        runs: list[_LeafRun] = []
        start = 0
        for combination, combine in COMBINE.items():
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
                self._emit(copy, self.cells[1:], before[..., at : at + hidden])
            value = self._new(size) if node.activation == "sin" else before
            if node.activation != "identity":
                self._emit(ACTIVATE[node.activation], value, before)
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
        self._emit(COMBINE[node.combination], before, *(self.values[child] for child in self.cell.children(index)))
        if node.activation != "identity":
            self._emit(ACTIVATE[node.activation], value, before)
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
        self._emit(COMBINE[inject.combination], self.before_injection, value, self.cells[:-1])
        if inject.activation != "identity":
            self._emit(ACTIVATE[inject.activation], injected, self.before_injection)
        self.values[index] = injected
