"""Small search spaces, and a search loop without children, for the policies' tests."""

import math
from collections.abc import Callable

import pytest
import torch

from nas_api.decisions import Categorical, Choices, Decision
from nas_api.search_space import SearchSpace, SearchSpaceSpec, search_space
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalSpec, LayersSpec
from nas_api.spaces.recurrent_cell import RecurrentCellSpec
from nas_controller.policies import Policy


class FlatSpace:
    """Categorical decisions, each of its own kind, whose choices stand for nothing."""

    def __init__(self, decisions: int, options: int) -> None:
        names = tuple(map(str, range(options)))
        self._decisions = tuple(Categorical(f"decision{index}", names) for index in range(decisions))

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        return self._decisions

    def size(self, sample: int) -> int:
        return math.prod(len(decision.options) for decision in self._decisions)

    def decode(self, choices: Choices) -> ConvolutionalArchitecture:
        raise ValueError("these choices are no network")

    def encode(self, architecture: ConvolutionalArchitecture) -> Choices:
        raise ValueError("these choices are no network")

    def parse_short(self, text: str) -> ConvolutionalArchitecture:
        raise ValueError("these choices are no network")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flat_space() -> Callable[[int, int], SearchSpace]:
    """Makes a space of so many decisions of so many options."""
    return FlatSpace


@pytest.fixture(scope="session")
def tiny_space() -> SearchSpace:
    """Three layers of 2 x 1 x 2 options with skip connections: 4**3 * 2**3 = 512 choices."""
    return search_space(
        SearchSpaceSpec(
            convolutional=ConvolutionalSpec(
                layers=LayersSpec(initial=3), filter_heights=(1, 3), filter_widths=(1,), filters=(8, 16)
            )
        )
    )


@pytest.fixture(scope="session")
def tiny_cell_space() -> SearchSpace:
    """Cells of base 2 with one combination and two activations: 2**4 * 3**2 = 144 choices."""
    return search_space(
        SearchSpaceSpec(
            recurrent_cell=RecurrentCellSpec(base=2, combinations=("add",), activations=("tanh", "sigmoid"))
        )
    )


@pytest.fixture(scope="session")
def cell_space() -> SearchSpace:
    """The paper's space of cells, base 8."""
    return search_space(SearchSpaceSpec(recurrent_cell=RecurrentCellSpec()))


@pytest.fixture(scope="session")
def conditional_space() -> SearchSpace:
    """Custom decisions with a chain of conditions, repeats and a range: (1 + 2 * (1 + 2 * 4) + 2) * 4 = 84 choices."""
    return search_space(
        SearchSpaceSpec.model_validate(
            {
                "custom": {
                    "decisions": [
                        {"name": "block", "options": ["none", "conv", "pool"]},
                        {
                            "name": "kernel",
                            "options": ["k1", "k3", "k5"],
                            "when": {"decision": "block", "in": ["conv"]},
                        },
                        {
                            "name": "groups",
                            "range": {"from": 2, "to": 8, "step": 6},
                            "repeat": 2,
                            "when": {"decision": "kernel", "in": ["k3", "k5"]},
                        },
                        {"name": "size", "options": ["s", "l"], "when": {"decision": "block", "in": ["conv", "pool"]}},
                        {"name": "bias", "options": ["yes", "no"], "repeat": 2},
                    ]
                }
            }
        )
    )


@pytest.fixture(scope="session")
def growing_space() -> SearchSpace:
    """Two layers at first and one more every six samples, so that depths meet in one batch."""
    return search_space(
        SearchSpaceSpec(
            convolutional=ConvolutionalSpec(
                layers=LayersSpec(initial=2, increment=1, every_samples=6, maximum=5),
                filter_heights=(1, 3, 5),
                filter_widths=(1, 3),
                filters=(8, 16),
            )
        )
    )


@pytest.fixture(scope="session")
def search() -> Callable[..., list[Choices]]:
    """Runs samples one after the other, from ``first`` on, and returns their choices."""

    def run(policy: Policy, samples: int, reward: Callable[[Choices], float], first: int = 0) -> list[Choices]:
        seen = []
        for sample in range(first, first + samples):
            proposal = policy.propose(sample)
            policy.proposed(sample, proposal)
            policy.observed(sample, reward(proposal.choices))
            seen.append(proposal.choices)
        return seen

    return run
