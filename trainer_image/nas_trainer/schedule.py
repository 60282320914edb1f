"""How the learning rate changes from epoch to epoch."""

import math

from nas_api.experiment import OptimizerSpec


def learning_rate(spec: OptimizerSpec, epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch.

    Args:
        spec: the highest rate, the schedule and its warm-up.
        epoch: counted from 0.
        epochs: how many there will be in all.
    """
    highest = float(spec.learning_rate)
    if epoch < spec.warmup_epochs:
        return highest * (epoch + 1) / (spec.warmup_epochs + 1)
    if spec.schedule == "Constant":
        return highest
    done = (epoch - spec.warmup_epochs) / (epochs - spec.warmup_epochs)
    if spec.schedule == "Cosine":
        return highest * (1 + math.cos(math.pi * done)) / 2
    return highest if done < 1 / 2 else highest / 10 if done < 3 / 4 else highest / 100
