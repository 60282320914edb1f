"""Tables that answer like a training, in microseconds: one measured, four made up with other structures.

A table's noise-free values are what a search is judged by; what it is told is one noisy training.

- ``macro``: NAS-Bench-Macro, 8 decisions of 3 blocks, 6,561 networks on CIFAR-10, three training runs each. Su et al.,
  *Prioritized Architecture Sampling with Monto-Carlo Tree Search*, CVPR 2021.
- ``pairs``: 8 decisions of 4 options, whose pairs matter more than the decisions themselves.
- ``branches``: a first decision among three families with decisions of their own; the family that is the worst on
  average gains most when its decisions are all right together.
- ``wide``: 30 decisions of 2 to 4 options, each with a little effect, neighbours with an effect together.
- ``perplexity``: numbers and words, the reward 80 / perplexity², near 0 for most networks; some diverge.
"""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_api.decisions import Categorical, Choices, Decision, When, counting

MACRO = Path(__file__).parents[2] / "shared" / "data" / "nas-bench-macro_cifar10.json"
CHANCE = 10.0
"""Accuracy of a network that is cut or has diverged, in %, of ten classes."""


@dataclass(frozen=True)
class Table:
    """Decisions, and what a training of any choices of them would give."""

    name: str
    decisions: tuple[Decision, ...]
    value: Callable[[Choices], float]
    """The noise-free value by which a search is judged."""
    train: Callable[[Choices, random.Random], float]
    """The reward of one training; the generator is its luck."""
    unit: str


def macro(path: Path = MACRO) -> Table:
    """Return NAS-Bench-Macro.

    Raises:
        FileNotFoundError: there is no table at ``path``.
    """
    table = json.loads(path.read_text())

    def network(choices: Choices) -> Any:
        return table["".join(map(str, choices))]

    return Table(
        "macro",
        (Categorical("block", ("identity", "mb3", "mb6")),) * 8,
        lambda choices: network(choices)["mean_acc"],
        # The noise belongs to the table, not to the searcher: all searchers of a seed meet the same.
        lambda choices, luck: network(choices)["test_acc"][luck.randrange(3)] / 100,
        "noise-free accuracy in %",
    )


def pairs(seed: int = 0) -> Table:
    """Return a table in which pairs of decisions matter more than the decisions themselves."""
    generator = np.random.Generator(np.random.Philox(seed))
    decisions = tuple(Categorical(f"d{step}", tuple("abcd")) for step in range(8))
    single = generator.normal(size=(8, 4)) * 0.5
    joint = generator.normal(size=(8, 8, 4, 4)) * 0.6

    def raw(choices: Choices) -> float:
        alone = sum(single[step, choice] for step, choice in enumerate(choices))
        together = sum(joint[a, b, choices[a], choices[b]] for a, b in itertools.combinations(range(8), 2))
        return float(alone + together)

    return _scaled("pairs", decisions, raw, noise=0.2)


def branches(seed: int = 0) -> Table:
    """Return a rugged table with conditional decisions and a family that is bad unless it is all right."""
    generator = np.random.Generator(np.random.Philox(seed + 1000))
    family = Categorical("family", ("plain", "dense", "odd"))
    decisions: list[Decision] = [family]
    for which in range(3):
        decisions += [
            Categorical(f"{family.options[which]}{step}", tuple("abcd"), When(0, frozenset({which})))
            for step in range(5)
        ]
    decisions += [Categorical(f"common{step}", tuple("abc")) for step in range(3)]
    single = generator.normal(size=(len(decisions), 4)) * 0.4
    # Epistasis: each decision's effect depends on the two that follow it.
    rugged = generator.normal(size=(len(decisions), 4, 4, 4)) * 0.5
    target = generator.integers(0, 4, size=5)
    mean = (0.5, 0.0, -1.5)

    def raw(choices: Choices) -> float:
        which = choices[0]
        taken = [1 + 5 * which + step for step in range(5)] + [16, 17, 18]
        total = mean[which] + sum(single[step, choices[step]] for step in taken)
        for place, step in enumerate(taken):
            after, beyond = taken[(place + 1) % 8], taken[(place + 2) % 8]
            total += rugged[step, choices[step], choices[after], choices[beyond]]
        if which == 2:
            right = sum(int(choices[11 + step] == target[step]) for step in range(5))
            total += 5.0 * (right / 5) ** 2
        return float(total)

    return _scaled("branches", tuple(decisions), raw, noise=0.3)


def wide(seed: int = 0) -> Table:
    """Return a table of 30 decisions."""
    generator = np.random.Generator(np.random.Philox(seed + 2000))
    sizes = generator.integers(2, 5, size=30)
    decisions = tuple(Categorical(f"d{step}", tuple("abcd"[:size])) for step, size in enumerate(sizes))
    weight = 0.93 ** generator.permutation(30)
    single = generator.normal(size=(30, 4)) * weight[:, None]
    joint = generator.normal(size=(29, 4, 4)) * 0.5 * weight[:29, None, None]

    def raw(choices: Choices) -> float:
        alone = sum(single[step, choice] for step, choice in enumerate(choices))
        return float(alone + sum(joint[step, choices[step], choices[step + 1]] for step in range(29)))

    return _scaled("wide", decisions, raw, noise=0.3)


def perplexity(seed: int = 0) -> Table:
    """Return a table of numbers and words whose reward is 80 / perplexity²; the value is minus the perplexity's log."""
    generator = np.random.Generator(np.random.Philox(seed + 3000))
    numbers = tuple(map(str, range(1, 17)))
    decisions = (
        *(Categorical(f"number{step}", numbers) for step in range(4)),
        *(Categorical(f"word{step}", tuple("abcde")) for step in range(4)),
    )
    centre = generator.uniform(3, 14, size=4)
    width = generator.uniform(3, 9, size=4)
    drift = generator.normal(size=(4, 4))
    words = np.abs(generator.normal(size=(4, 5))) * 0.4
    diverging = (int(generator.integers(5)), int(generator.integers(5)))

    def value(choices: Choices) -> float:
        at = np.array(choices[:4]) + 1
        offset = (at - centre) / width
        shape = offset + 0.3 * drift @ np.tanh(offset)
        loss: float = 4.2 + 0.8 * float(shape @ shape) ** 0.7
        loss += sum(float(words[step, choice]) for step, choice in enumerate(choices[4:]))
        return -loss

    def train(choices: Choices, luck: random.Random) -> float:
        if (choices[4], choices[0] // 4) == (diverging[0], diverging[1] % 4) or luck.random() < 0.02:
            return 0.0
        return 80 * float(np.exp(2 * (value(choices) + 0.03 * luck.gauss(0, 1))))

    return Table("perplexity", decisions, value, train, "minus the log of the perplexity")


def _scaled(name: str, decisions: tuple[Decision, ...], raw: Callable[[Choices], float], noise: float) -> Table:
    """Return a table in units of the standard deviation of random networks, from their mean."""
    luck = random.Random(name)
    drawn = []
    for _ in range(2000):
        choices = tuple(luck.randrange(len(each.options)) for each in decisions if isinstance(each, Categorical))
        counts = counting(decisions, choices)
        drawn.append(raw(tuple(choice if taken else 0 for choice, taken in zip(choices, counts, strict=True))))
    mean, deviation = float(np.mean(drawn)), float(np.std(drawn))

    def value(choices: Choices) -> float:
        return (raw(choices) - mean) / deviation

    return Table(
        name,
        decisions,
        value,
        lambda choices, luck: value(choices) + noise * luck.gauss(0, 1),
        "standard deviations above the mean of random networks",
    )
