"""Tables made up after public benchmarks, one for each structure that those have and ``tables.py`` has not.

Shapes, sizes, ceilings and noise are those that the benchmarks are known for; the effects are drawn for each seed.

- ``cells``: NAS-Bench-201. 6 edges of a cell, 5 operations each. What counts are the paths from input to output: an
  operation is worth nothing on a path that is cut elsewhere, and the best cells are close together under a ceiling.
- ``sizes``: MnasNet and HW-NAS-Bench. Depths, widths, expansions and kernels of 4 stages and a resolution, all numbers;
  accuracy grows ever slower with each, latency does not, and the reward is their product with a soft exponent.
- ``hyperparameters``: HPOBench's neural networks. The best learning rate moves with batch, optimiser and momentum; too
  high a one diverges.
- ``blocks``: FBNet's flat space. 24 positions with 8 operations, of which 3 are dead, other ones at each position;
  three dead ones in a row cut the network.
"""

import math
import random
from itertools import pairwise

import numpy as np
from tables import CHANCE, Table

from nas_api.decisions import Categorical, Choices, Decision, When

PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
"""Of a cell's edges 0-1, 0-2, 1-2, 0-3, 1-3 and 2-3 those that lead from node 0 to node 3."""


def cells(seed: int = 0) -> Table:
    """Return a table of cells in which operations act along paths."""
    generator = np.random.Generator(np.random.Philox(seed + 4000))
    kinds = np.array([0.0, 0.0, 0.6, 1.0, 0.15])  # none, skip, conv1x1, conv3x3, pool
    power = kinds + 0.15 * generator.normal(size=5) * (kinds > 0) + 0.1 * generator.normal(size=(6, 5)) * (kinds > 0)
    shortcut = float(generator.uniform(0.2, 0.5))

    def value(choices: Choices) -> float:
        live = [path for path in PATHS if all(choices[edge] != 0 for edge in path)]
        if not live:
            return CHANCE
        powers = sorted((float(sum(power[edge, choices[edge]] for edge in path)) for path in live), reverse=True)
        total = sum(each * 0.4**place for place, each in enumerate(powers))
        if any(all(choices[edge] == 1 for edge in path) for path in live):
            total += shortcut * min(1.0, max(0.0, total))
        return 94.4 - 34 * math.exp(-1.3 * total)

    def train(choices: Choices, luck: random.Random) -> float:
        accuracy = value(choices)
        return (accuracy + (0.15 + 0.02 * (94.4 - accuracy)) * luck.gauss(0, 1)) / 100

    operations = ("none", "skip", "conv1x1", "conv3x3", "pool3x3")
    return Table("cells", (Categorical("edge", operations),) * 6, value, train, "noise-free accuracy in %")


def sizes(seed: int = 0) -> Table:
    """Return a table of numbers in which accuracy is to be traded for latency."""
    generator = np.random.Generator(np.random.Philox(seed + 5000))
    columns: dict[str, tuple[int, ...]] = {
        "depth": (1, 2, 3, 4),
        "width": tuple(range(16, 129, 16)),
        "expansion": (1, 2, 3, 4, 5, 6),
        "kernel": (3, 5, 7),
    }
    resolutions = (128, 160, 192, 224)
    decisions = tuple(
        Categorical(f"{name}{stage}", tuple(map(str, options)))
        for stage in range(4)
        for name, options in columns.items()
    )
    loss = 6 * generator.lognormal(0, 0.5, size=4)
    exponents = generator.uniform(0.3, 0.7, size=(4, 3))
    kernel_loss = generator.uniform(0, 1.5, size=(4, 3))
    mismatch = float(generator.uniform(0.3, 1.0))

    def value(choices: Choices) -> float:
        options = list(columns.values())
        stages = [
            [column[choice] for column, choice in zip(options, choices[4 * stage : 4 * stage + 4], strict=True)]
            for stage in range(4)
        ]
        resolution = resolutions[choices[16]]
        error = 18 + 4 * (224 / resolution - 1)
        latency = 5.0
        for stage, (depth, width, expansion, kernel) in enumerate(stages):
            scale = np.array([depth / 2, width / (24 * (stage + 1)), expansion / 3])
            error += float(loss[stage] * np.prod(scale ** -exponents[stage]) ** 0.5 / 2)
            error += float(kernel_loss[stage, choices[4 * stage + 3]])
            pixels = (resolution / 160 / 2**stage) ** 2
            latency += depth * pixels * expansion * (width / 16) * (width / 16 + kernel**2 / 9) / 4
        error += mismatch * sum(abs(math.log2(b[1] / a[1]) - 1) for a, b in pairwise(stages))
        return (100 - error) * math.pow(latency / 40, -0.07)

    return Table(
        "sizes",
        (*decisions, Categorical("resolution", tuple(map(str, resolutions)))),
        value,
        lambda choices, luck: (value(choices) + 0.2 * luck.gauss(0, 1)) / 100,
        "noise-free accuracy in %, weighted by latency",
    )


def hyperparameters(seed: int = 0) -> Table:
    """Return a table of hyperparameters with a narrow valley beside a cliff."""
    generator = np.random.Generator(np.random.Philox(seed + 6000))
    rates = ("0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1")
    decays = ("0", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2")
    momenta = (0.0, 0.5, 0.9, 0.95, 0.99)
    batches = (16, 32, 64, 128, 256, 512)
    decisions: tuple[Decision, ...] = (
        Categorical("optimiser", ("sgd", "adam", "rmsprop")),
        Categorical("rate", rates),
        Categorical("batch", tuple(map(str, batches))),
        Categorical("momentum", tuple(map(str, momenta)), When(0, frozenset({0}))),
        Categorical("decay", decays),
        Categorical("dropout", ("0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6")),
        Categorical("layers", ("1", "2", "3", "4", "5", "6")),
        Categorical("units", ("32", "64", "128", "256", "512", "1024")),
        Categorical("activation", ("relu", "gelu", "tanh", "sigmoid")),
        Categorical("normalisation", ("none", "batch", "layer")),
    )
    optimisers = np.array([-0.6, -2.8, -3.0]) + 0.3 * generator.normal(size=3)
    words = np.abs(generator.normal(size=(3, 4))) * 1.2  # of optimiser, activation and normalisation
    steepness = float(generator.uniform(2, 5))
    layers, units = generator.uniform(1.5, 5.5), generator.uniform(1.5, 4.5)
    regular = float(generator.uniform(2, 6))

    def value(choices: Choices) -> float:
        optimiser, rate, batch, momentum, decay, dropout, depth, width, activation, normalisation = choices
        best = optimisers[optimiser] + 0.5 * math.log10(batches[batch] / 64)
        if optimiser == 0:
            best += math.log10(1 - momenta[momentum]) + 1
        off = math.log10(float(rates[rate])) - best - 0.15 * (normalisation > 0) + 0.1 * (depth - 2)
        if off > (1.3 if normalisation else 0.9):
            return CHANCE
        error = steepness * off**2
        error += 0.5 * (depth + 1 - layers) ** 2 + 0.6 * (width - units) ** 2
        # Larger networks want more of dropout and weight decay together.
        error += 0.25 * (dropout + decay - regular - 0.4 * (depth + width - 5)) ** 2
        error += float(words[0, optimiser] + words[1, activation] + words[2, normalisation])
        error += 1.5 * (activation == 3) * depth * (normalisation == 0)
        return max(CHANCE, 96 - 60 * math.tanh(error / 60))

    def train(choices: Choices, luck: random.Random) -> float:
        accuracy = CHANCE if luck.random() < 0.02 else value(choices)
        return (accuracy + (0.25 if accuracy > CHANCE else 0.0) * luck.gauss(0, 1)) / 100

    return Table("hyperparameters", decisions, value, train, "noise-free accuracy in %")


def blocks(seed: int = 0) -> Table:
    """Return a table of 24 decisions with many dead options."""
    generator = np.random.Generator(np.random.Philox(seed + 7000))
    operations = generator.uniform(0.3, 1.0, size=8)
    effect = (operations + 0.25 * generator.normal(size=(24, 8))) * generator.uniform(0.3, 1.0, size=(24, 1))
    for position in range(24):
        effect[position, generator.permutation(8)[:3]] = 0.0
    following = 0.15 * generator.normal(size=(23, 8, 8))

    def value(choices: Choices) -> float:
        gains = [float(effect[position, choice]) for position, choice in enumerate(choices)]
        if any(gains[place : place + 3] == [0.0] * 3 for place in range(22)):
            return CHANCE
        total = sum(gains)
        total += sum(float(following[place, one, other]) for place, (one, other) in enumerate(pairwise(choices)))
        return max(CHANCE, 78 - 30 * math.exp(-total / 5))

    return Table(
        "blocks",
        (Categorical("block", tuple("abcdefgh")),) * 24,
        value,
        lambda choices, luck: (value(choices) + 0.3 * luck.gauss(0, 1)) / 100,
        "noise-free accuracy in %",
    )
