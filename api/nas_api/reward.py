"""How a metric becomes a reward."""

from nas_api.experiment import ObjectiveSpec


def reward(objective: ObjectiveSpec, metric: float) -> float:
    """Return the reward of a finite metric: the cube unless another is set.

    Raises:
        ValueError: the metric cannot have this reward (a perplexity that is not positive).
    """
    spec = objective.reward
    if spec.inverse_square is not None:
        if metric <= 0:
            raise ValueError(f"{objective.metric} is {metric}, but c / metric^2 needs a positive one")
        return float(spec.inverse_square.constant) / metric**2
    if spec.identity is not None:
        return metric if objective.goal == "Maximize" else -metric
    return float(metric**3)
