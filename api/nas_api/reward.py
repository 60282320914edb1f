"""How a sample's metrics become its reward."""

import math
from collections.abc import Mapping

from nas_api.bounds import LARGEST_REWARD
from nas_api.experiment import ObjectiveSpec


def reward(objective: ObjectiveSpec, metric: float, metrics: Mapping[str, float] | None = None) -> float:
    """Return the reward of a finite metric: the cube unless another is set, times a factor for each penalty.

    A penalty's factor is (value / target) ^ -exponent, at most 1 with ``onlyAbove`` (MnasNet's soft constraint). A
    negative reward is divided by it instead, so that worse is lower whatever the sign.

    Args:
        objective: what is optimised.
        metric: the objective's metric.
        metrics: everything that was reported, by name; the penalties' values are looked up here.

    Raises:
        ValueError: the metric cannot have this reward (a perplexity that is not positive), a penalty's value is
            missing or not positive, or the reward is not finite or beyond ``LARGEST_REWARD``.
        ArithmeticError: the reward is beyond all numbers.
    """
    value = _plain(objective, metric)
    factor = penalty(objective, metrics or {})
    value = value * factor if value >= 0 else value / factor
    if not math.isfinite(value):
        raise ValueError(f"the reward of {objective.metric} {metric} is not finite")
    if abs(value) > LARGEST_REWARD:
        raise ValueError(f"the reward of {objective.metric} {metric} is {value:.3g}, beyond {LARGEST_REWARD:.0e}")
    return value


def penalty(objective: ObjectiveSpec, metrics: Mapping[str, float]) -> float:
    """Return the product of all penalties' factors, 1 without penalties.

    Raises:
        ValueError: a penalty's value is missing, or not a positive number.
    """
    product = 1.0
    for spec in objective.penalties:
        if spec.metric not in metrics:
            raise ValueError(f"objective.penalties names {spec.metric!r}, but metrics has only {sorted(metrics)}")
        value, target = metrics[spec.metric], float(spec.target)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{spec.metric} is {value}, but a penalty needs a positive number")
        if value > target or not spec.only_above:
            product *= (value / target) ** -float(spec.exponent)
    return product


def _plain(objective: ObjectiveSpec, metric: float) -> float:
    """Return the reward before penalties."""
    spec = objective.reward
    if spec.inverse_square is not None:
        if metric <= 0:
            raise ValueError(f"{objective.metric} is {metric}, but c / metric^2 needs a positive one")
        return float(spec.inverse_square.constant) / metric**2
    if spec.identity is not None:
        return metric if objective.goal == "Maximize" else -metric
    return float(metric**3)
