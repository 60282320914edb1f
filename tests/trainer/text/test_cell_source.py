"""A cell as code: the readable module computes what the trained one does, and needs only torch."""

import random
from typing import Any, get_args

import pytest
import torch

from nas_api.source import architecture_source
from nas_api.spaces.recurrent_cell import (
    Activation,
    Combination,
    RecurrentCellArchitecture,
    RecurrentCellSpace,
    RecurrentCellSpec,
)
from nas_trainer.text.cell import RecurrentCell


def drawn(seed: int, base: int) -> RecurrentCellArchitecture:
    space = RecurrentCellSpace(
        RecurrentCellSpec(base=base, combinations=get_args(Combination), activations=get_args(Activation))
    )
    rng = random.Random(seed)
    return space.decode(tuple(rng.randrange(len(each.options)) for each in space.decisions(0)))


def written(cell: RecurrentCellArchitecture) -> tuple[str, dict[str, Any]]:
    source = architecture_source(cell)
    assert source is not None
    module: dict[str, Any] = {}
    exec(source, module)
    return source, module


@pytest.mark.parametrize("base", [2, 4, 8, 16])
def test_the_code_and_the_step_compute_what_the_window_does(base: int) -> None:
    for seed in range(20):
        cell = drawn(seed, base)
        torch.manual_seed(seed)
        trained = RecurrentCell(cell, 3, 5).double()
        by_code = written(cell)[1]["Cell"](3, 5).double()
        by_code.load_state_dict(trained.state_dict())
        x, h, c = torch.randn(4, 2, 3).double(), torch.randn(2, 5).double(), torch.randn(2, 5).double()
        with torch.no_grad():
            states, memory = trained(x, h, c)
            for run in (by_code, trained.step):
                new_h, new_c = h, c
                for step, each in enumerate(x):
                    new_h, new_c = run(each, new_h, new_c)
                    torch.testing.assert_close(new_h, states[step])
                torch.testing.assert_close(new_c, memory)


def test_the_code_needs_only_torch_and_is_no_wider_than_a_page() -> None:
    source, _ = written(drawn(1, 4))
    imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert {line.split()[1].split(".")[0] for line in imports} == {"torch", "typing"}
    code = source.split('"""', 2)[2]
    assert max(map(len, code.splitlines())) <= 120


@pytest.mark.parametrize("shared", [False, True])
def test_the_network_takes_its_sizes_from_the_weights(shared: bool) -> None:
    module = written(drawn(2, 4))[1]
    network = module["Network"](words=7, width=6, layers=3, shared_embeddings=shared)
    again = module["Network"].of(network.state_dict())
    words = torch.arange(6).view(3, 2)
    logits, state = network(words)
    assert logits.shape == (3, 2, 7) and state[0].shape == (3, 2, 6)
    torch.testing.assert_close(again(words)[0], logits)
    torch.testing.assert_close(network(words[2:], network(words[:2])[1])[0], logits[2:])
