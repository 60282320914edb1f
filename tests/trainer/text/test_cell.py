"""The generated cell: its forward and its hand-written backward, against cells written by hand and by numbers."""

import random
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from nas_api.spaces.recurrent_cell import (
    Activation,
    CellNode,
    Combination,
    RecurrentCellArchitecture,
    RecurrentCellSpace,
    RecurrentCellSpec,
)
from nas_trainer.text.cell import RecurrentCell
from nas_trainer.text.operations import linear, product

Step = Callable[[list[Tensor], list[Tensor], Tensor], tuple[Tensor, Tensor]]
"""From W_i x + b_i, U_i h and c to the new h and c."""

EXAMPLE = RecurrentCellArchitecture.parse_short("add/tanh elem_mult/relu elem_mult/sigmoid; inject add/relu at 0; c=1")
NASCELL = RecurrentCellArchitecture.parse_short(
    "add/sigmoid add/relu add/sigmoid elem_mult/relu add/tanh add/sigmoid add/tanh add/sigmoid"
    " elem_mult/tanh add/tanh elem_mult/tanh add/sigmoid elem_mult/identity add/tanh elem_mult/tanh;"
    " inject add/tanh at 8; c=12"
)
COMBINE: dict[Combination, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "elem_mult": torch.mul,
    "max": torch.maximum,
}
ACTIVATE: dict[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "sin": torch.sin,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def example_by_hand(w: list[Tensor], u: list[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's worked example, line by line (section 3.4, figure 5)."""
    a0 = torch.tanh(w[0] + u[0])
    a1 = torch.relu(w[1] * u[1])
    a0_new = torch.relu(a0 + c)
    a2 = torch.sigmoid(a0_new * a1)
    return a2, w[1] * u[1]


def nascell_by_hand(w: list[Tensor], u: list[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
    """The cell that TensorFlow has as NASCell."""
    first = [
        torch.sigmoid(w[0] + u[0]),
        torch.relu(w[1] + u[1]),
        torch.sigmoid(w[2] + u[2]),
        torch.relu(w[3] * u[3]),
        torch.tanh(w[4] + u[4]),
        torch.sigmoid(w[5] + u[5]),
        torch.tanh(w[6] + u[6]),
        torch.sigmoid(w[7] + u[7]),
    ]
    second = [
        torch.tanh(first[0] * first[1]),
        torch.tanh(first[2] + first[3]),
        torch.tanh(first[4] * first[5]),
        torch.sigmoid(first[6] + first[7]),
    ]
    new_c = torch.tanh(second[0] + c) * second[1]
    return torch.tanh(new_c * torch.tanh(second[2] + second[3])), new_c


def tree(cell: RecurrentCellArchitecture) -> Step:
    """Any cell, straight from the definition."""

    def step(w: list[Tensor], u: list[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
        values: list[Tensor] = []
        new_c = c
        for index, node in enumerate(cell.nodes):
            leaf = index < cell.base
            left = w[index] if leaf else values[2 * (index - cell.base)]
            right = u[index] if leaf else values[2 * (index - cell.base) + 1]
            before = COMBINE[node.combination](left, right)
            if index == cell.cell_output:
                new_c = before
            value = ACTIVATE[node.activation](before)
            if index == cell.injected:
                value = ACTIVATE[cell.inject.activation](COMBINE[cell.inject.combination](value, c))
            values.append(value)
        return values[-1], new_c

    return step


def run_by_hand(
    module: RecurrentCell, step: Step, x: Tensor, h: Tensor, c: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    order = module.architecture.columns()

    def by_leaf(columns: Tensor) -> list[Tensor]:
        blocks = columns.chunk(len(order), 1)
        return [blocks[order.index(leaf)] for leaf in range(len(order))]

    out = []
    for each in x:
        given = h if mask is None else h * mask
        h, c = step(by_leaf(each @ module.input_weight + module.bias), by_leaf(given @ module.state_weight), c)
        out.append(h)
    return torch.stack(out), c


def drawn(seed: int, base: int) -> RecurrentCellArchitecture:
    space = RecurrentCellSpace(
        RecurrentCellSpec(base=base, combinations=get_args(Combination), activations=get_args(Activation))
    )
    rng = random.Random(seed)
    return space.decode(tuple(rng.randrange(len(each.options)) for each in space.decisions(0)))


def problem(
    cell: RecurrentCellArchitecture, steps: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[RecurrentCell, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    module = RecurrentCell(cell, inputs=3, hidden=5).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    x, h, c = (torch.randn(shape, dtype=dtype) for shape in ((steps, 2, 3), (2, 5), (2, 5)))
    return module, x, h, c


def assert_alike(cell: RecurrentCellArchitecture, step: Step, mask: Tensor | None = None) -> None:
    module, *given = problem(cell)
    given = [each.requires_grad_() for each in given]
    wanted = [*given, *module.parameters()]
    weights = None
    results = []
    for run in (module, lambda *inputs: run_by_hand(module, step, *inputs)):
        states, memory = run(*given, mask)
        if weights is None:
            weights = torch.randn_like(states), torch.randn_like(memory)
        loss = (states * weights[0]).sum() + (memory * weights[1]).sum()
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        results.append([states, memory, *gradients])
    for ours, by_hand in zip(*results, strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-12)


def test_the_paper_s_example_is_computed_and_differentiated_as_by_hand() -> None:
    assert_alike(EXAMPLE, example_by_hand)


def test_nascell_is_computed_and_differentiated_as_by_hand() -> None:
    assert_alike(NASCELL, nascell_by_hand)


@pytest.mark.parametrize("base", [2, 8])
def test_a_state_of_which_some_is_dropped_is_dropped_at_each_step(base: int) -> None:
    """Variational dropout (Gal and Ghahramani, 2016): one mask on h for all steps, each stream its own."""
    mask = torch.tensor([[0, 2, 2, 0, 2], [2, 2, 0, 0, 2]], dtype=torch.float64)
    assert_alike(NASCELL, nascell_by_hand, mask)
    for seed in range(20):
        cell = drawn(seed, base)
        assert_alike(cell, tree(cell), mask)


@pytest.mark.parametrize("base", [2, 4, 8, 16])
def test_any_cell_is_computed_and_differentiated_as_by_its_definition(base: int) -> None:
    for seed in range(60):
        cell = drawn(seed, base)
        assert_alike(cell, tree(cell))


def test_every_place_of_the_injection_and_of_the_cell_s_state_is_right() -> None:
    for injected in range(7):
        for cell_output in range(7):
            for seed in range(3):
                cell = drawn(seed, 4).model_copy(update={"injected": injected, "cell_output": cell_output})
                assert_alike(cell, tree(cell))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("combination", get_args(Combination))
def test_every_combination_and_activation_is_right_everywhere(combination: Combination, activation: Activation) -> None:
    node = CellNode(combination=combination, activation=activation)
    for injected, cell_output in ((0, 2), (2, 2), (2, 0), (0, 0), (1, 0)):
        cell = RecurrentCellArchitecture(nodes=(node,) * 3, inject=node, injected=injected, cell_output=cell_output)
        assert_alike(cell, tree(cell))


@pytest.mark.parametrize("base", [2, 4, 8])
def test_gradients_are_those_of_finite_differences(base: int) -> None:
    for seed in range(3):
        module, *given = problem(drawn(seed, base), steps=3)
        given = [each.requires_grad_() for each in given]

        def run(*inputs: Tensor, module: RecurrentCell = module) -> tuple[Tensor, ...]:
            from torch.func import functional_call

            names = ("input_weight", "state_weight", "bias")
            states, memory = functional_call(module, dict(zip(names, inputs[3:], strict=True)), inputs[:3])
            return states, memory

        assert torch.autograd.gradcheck(run, (*given, *module.parameters()))


def test_a_window_goes_on_where_the_one_before_it_ended() -> None:
    module, x, h, c = problem(NASCELL, steps=6)
    whole, memory = module(x, h, c)
    first, between = module(x[:2], h, c)
    second, last = module(x[2:], first[-1], between)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, memory)


def test_single_precision_is_close_to_double() -> None:
    for cell in (EXAMPLE, NASCELL, drawn(3, 8)):
        for outputs in zip(problem_outputs(cell, torch.float32), problem_outputs(cell, torch.float64), strict=True):
            torch.testing.assert_close(outputs[0].double(), outputs[1], rtol=1e-4, atol=1e-4)


def problem_outputs(cell: RecurrentCellArchitecture, dtype: torch.dtype) -> tuple[Tensor, ...]:
    module, *given = problem(cell)
    module = module.to(dtype)
    states, memory = module(*(each.to(dtype) for each in given))
    return states, memory, *torch.autograd.grad(states.sum() + memory.sum(), list(module.parameters()))


def test_product_and_linear_are_torch_s() -> None:
    torch.manual_seed(1)
    left, right, bias = torch.randn(7, 5), torch.randn(3, 5), torch.randn(3)
    torch.testing.assert_close(product(left, right.t()), left @ right.t())
    given = [each.requires_grad_() for each in (left, right, bias)]
    for ours, torchs in zip(
        torch.autograd.grad(linear(*given).square().sum(), given),
        torch.autograd.grad(torch.nn.functional.linear(*given).square().sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(ours, torchs)


def test_columns_group_leaves_of_one_operation() -> None:
    assert NASCELL.columns() == (1, 5, 7, 0, 2, 4, 6, 3)
    assert EXAMPLE.columns() == (0, 1)
