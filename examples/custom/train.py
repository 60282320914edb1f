#!/usr/bin/env python3
"""A trainer of your own: reads an architecture, trains a small network, writes a result. Python and nothing else.

The search gives it a folder, NAS_DIR, with architecture.json; it leaves result.json there. Everything else is up to the
trainer: here a multilayer perceptron learns which of two interleaved half circles a point belongs to.
"""

import itertools
import json
import math
import os
import random
from pathlib import Path

POINTS = 150


def half_circles(count: int, dice: random.Random) -> list[tuple[list[float], int]]:
    """Return points of two noisy half circles, and to which of them each belongs."""
    points = []
    for number in range(count):
        label, angle = number % 2, dice.uniform(0, math.pi)
        x, y = (math.cos(angle), math.sin(angle)) if label == 0 else (1 - math.cos(angle), 0.5 - math.sin(angle))
        points.append(([x + dice.gauss(0, 0.2), y + dice.gauss(0, 0.2)], label))
    return points


class Perceptron:
    """Layers of units with one activation, and a sigmoid at the end; learns from one point at a time."""

    def __init__(self, widths: list[int], activation: str, dice: random.Random) -> None:
        sizes = [2, *widths, 1]
        self.weights = [
            [[dice.gauss(0, 1 / math.sqrt(before)) for _ in range(before)] + [0.0] for _ in range(after)]
            for before, after in itertools.pairwise(sizes)
        ]
        self.speeds = [[[0.0] * len(row) for row in layer] for layer in self.weights]
        self.activation = activation

    def forward(self, point: list[float]) -> list[list[float]]:
        """Return the values of all layers, the input's first."""
        values = [point]
        for number, layer in enumerate(self.weights):
            sums = [sum(map(lambda w, v: w * v, row, values[-1])) + row[-1] for row in layer]
            if number == len(self.weights) - 1:
                values.append([1 / (1 + math.exp(-max(-60.0, min(60.0, each)))) for each in sums])
            elif self.activation == "tanh":
                values.append([math.tanh(each) for each in sums])
            else:
                values.append([max(0.0, each) for each in sums])
        return values

    def learn(self, point: list[float], label: int, rate: float, momentum: float) -> None:
        """Take one step down the cross-entropy's gradient."""
        values = self.forward(point)
        errors = [values[-1][0] - label]
        for number in reversed(range(len(self.weights))):
            layer, speed, inputs = self.weights[number], self.speeds[number], values[number]
            below = [sum(error * row[i] for error, row in zip(errors, layer, strict=True)) for i in range(len(inputs))]
            for error, row, moving in zip(errors, layer, speed, strict=True):
                for i, value in enumerate([*inputs, 1.0]):
                    moving[i] = momentum * moving[i] - rate * error * value
                    row[i] += moving[i]
            if self.activation == "tanh":
                errors = [each * (1 - value * value) for each, value in zip(below, inputs, strict=True)]
            else:
                errors = [each if value > 0 else 0.0 for each, value in zip(below, inputs, strict=True)]


def main() -> None:
    folder = Path(os.environ["NAS_DIR"])
    choices = json.loads((folder / "architecture.json").read_text())["choices"]
    widths = choices["width"][: choices["depth"]]
    # There is a momentum among the choices only if the optimizer has one.
    momentum = float(choices.get("momentum", 0))
    dice = random.Random(int(os.environ["NAS_SEED"]))
    training, validation = half_circles(POINTS, dice), half_circles(POINTS, dice)
    network = Perceptron(widths, choices["activation"], dice)
    history = []
    for _ in range(int(os.environ["NAS_EPOCHS"])):
        dice.shuffle(training)
        for point, label in training:
            network.learn(point, label, float(choices["learningRate"]), momentum)
        right = sum((network.forward(point)[-1][0] > 0.5) == label for point, label in validation)
        history.append(right / len(validation))
    result = {
        "metrics": {"accuracy": history[-1]},
        "history": history,
        "parameters": sum(len(row) for layer in network.weights for row in layer),
    }
    (folder / "result.json").write_text(json.dumps(result))
    print(f"{widths} {choices['activation']}: accuracy {history[-1]:.3f}")


if __name__ == "__main__":
    main()
