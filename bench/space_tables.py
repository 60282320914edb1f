"""Tables over the spaces of the paper, with the decisions that a policy meets there.

- ``recurrent``: cells of base 8, 34 decisions. Nothing is made up: a cell with random weights runs over random
  numbers, and the value is how well those of the last 8 steps and products of them can be read off its state, as echo
  state networks are measured (Jaeger, *Short term memory in echo state networks*, 2001). Another draw of weights is
  the noise.
- ``skips``: 8 convolutional layers with skip connections, 52 elementary draws, judged by what is known to matter: the
  longest and the shortest path from the image to the classifier, the field that a path sees, width, parameters.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tables import CHANCE, Table

from nas_api.decisions import Choices
from nas_api.spaces.convolutional import ConvolutionalSpace, ConvolutionalSpec, LayersSpec
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture, RecurrentCellSpace, RecurrentCellSpec

Values = NDArray[np.float64]

DRAWS, UNITS, STEPS, WARM_UP, MEMORY = 4, 16, 160, 20, 8
ACTIVATIONS: dict[str, Callable[[Values], Values]] = {
    "identity": lambda z: z,
    "tanh": np.tanh,
    "sigmoid": lambda z: 0.5 + 0.5 * np.tanh(z / 2),
    "relu": lambda z: np.maximum(z, 0),
}


def recurrent(seed: int = 0) -> Table:
    """Return a table of recurrent cells whose memory is measured."""
    generator = np.random.Generator(np.random.Philox(seed + 8000))
    space = RecurrentCellSpace(RecurrentCellSpec())
    numbers = generator.normal(size=STEPS)
    inputs = generator.normal(size=(DRAWS, 8, UNITS))
    states = generator.normal(size=(DRAWS, 8, UNITS, UNITS)) / UNITS**0.5
    past = np.stack([np.roll(numbers, back) for back in range(1, MEMORY + 1)], axis=1)
    wanted = np.concatenate([past, past[:, :-1] * past[:, 1:]], axis=1)[WARM_UP:]

    @cache
    def memories(choices: Choices) -> tuple[float, ...]:
        seen = _run(space.decode(choices), numbers, inputs, states)[WARM_UP:]
        if not np.isfinite(seen).all() or np.abs(seen).max() > 1e3:
            return (0.0,) * DRAWS
        return tuple(_explained(seen[:, draw], wanted) for draw in range(DRAWS))

    return Table(
        "recurrent",
        space.decisions(0),
        lambda choices: 100 * sum(memories(choices)) / DRAWS,
        lambda choices, luck: memories(choices)[luck.randrange(DRAWS)],
        "share of the past that the state tells, in %",
    )


@np.errstate(over="ignore", invalid="ignore")
def _run(cell: RecurrentCellArchitecture, numbers: Values, inputs: Values, states: Values) -> Values:
    """Return the cell's states, (steps, draws, units), in the paper's order of operations (section 3.4)."""

    def combine(combination: str, one: Values, other: Values) -> Values:
        return one + other if combination == "add" else one * other

    h, c = np.zeros((DRAWS, UNITS)), np.zeros((DRAWS, UNITS))
    out = []
    for number in numbers:
        recurrence = np.matmul(states, h[:, None, :, None])[..., 0]  # (draws, leaves, units)
        values: list[Values] = []
        following = c
        for index, node in enumerate(cell.nodes):
            if index < cell.base:
                one, other = number * inputs[:, index], recurrence[:, index]
            else:
                one, other = (values[child] for child in cell.children(index))
            raw = combine(node.combination, one, other)
            if index == cell.cell_output:
                following = raw
            a = ACTIVATIONS[node.activation](raw)
            if index == cell.injected:
                a = ACTIVATIONS[cell.inject.activation](combine(cell.inject.combination, a, c))
            values.append(a)
        h, c = values[-1], following
        out.append(h)
    return np.array(out)


def _explained(seen: Values, wanted: Values) -> float:
    """Return how much of the second half of what is wanted a ridge regression on the first half explains."""
    half = len(seen) // 2
    design = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
    first = design[:half]
    weights = np.linalg.solve(first.T @ first + 1e-3 * np.eye(UNITS + 1), first.T @ wanted[:half])
    missed = ((design[half:] @ weights - wanted[half:]) ** 2).mean(0)
    return float((1 - missed / wanted[half:].var(0)).clip(0, 1).mean())


def skips(seed: int = 0) -> Table:
    """Return a table of convolutional networks with skip connections."""
    generator = np.random.Generator(np.random.Philox(seed + 9000))
    space = ConvolutionalSpace(ConvolutionalSpec(layers=LayersSpec(initial=8)))
    ideal = generator.uniform(9, 21, size=2)
    weight = generator.lognormal(0, 0.4, size=7)
    limit = float(generator.uniform(2e5, 6e5))

    def value(choices: Choices) -> float:
        network = space.decode(choices)
        # Of each layer's output: its longest and shortest path from the image, and the field of the longest.
        longest: list[int] = []
        shortest: list[int] = []
        fields: list[Values] = []
        parameters = 0
        for index, layer in enumerate(network.layers):
            before = max(layer.inputs, key=lambda each: longest[each], default=None)
            longest.append(1 + (longest[before] if before is not None else 0))
            shortest.append(1 + min((shortest[each] for each in layer.inputs), default=0))
            size = np.array([layer.filter_height, layer.filter_width])
            fields.append(size - 1 + (fields[before] if before is not None else 1))
            parameters += layer.filter_height * layer.filter_width * layer.filters * network.channels(index, 3)
        leaves = network.leaves()
        deepest = max(leaves, key=lambda each: longest[each])
        reused = sum(len(layer.inputs) for layer in network.layers) / 7
        quality = weight[0] * math.log(longest[deepest])
        quality -= weight[1] * 0.3 * max(0, min(shortest[each] for each in leaves) - 2)
        quality += weight[2] * 0.4 * math.log(sum(network.layers[each].filters for each in leaves) / 48)
        quality -= weight[3] * float((np.log(fields[deepest] / ideal) ** 2).sum())
        quality += weight[4] * 0.3 * math.log(1 + reused)
        quality -= weight[5] * 0.1 * max(0, sum(not layer.inputs for layer in network.layers) - 1)
        quality -= weight[6] * 0.5 * max(0.0, math.log(parameters / limit)) ** 2
        return max(CHANCE, 95 - 12 * math.exp(-0.6 * quality))

    return Table(
        "skips",
        space.decisions(0),
        value,
        lambda choices, luck: (value(choices) + 0.25 * luck.gauss(0, 1)) / 100,
        "noise-free accuracy in %",
    )
