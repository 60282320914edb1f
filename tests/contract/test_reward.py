"""The reward functions of the paper."""

import pytest

from nas_api.base import duration
from nas_api.experiment import ObjectiveSpec
from nas_api.reward import reward


@pytest.mark.parametrize(
    ("objective", "metric", "expected"),
    [
        ({}, 0.9, 0.729),
        ({"reward": {"cube": {}}}, 0.5, 0.125),
        ({"reward": {"identity": {}}}, 0.9, 0.9),
        ({"goal": "Minimize", "reward": {"identity": {}}}, 0.9, -0.9),
        ({"goal": "Minimize", "reward": {"inverseSquare": {}}}, 100.0, 0.008),
        ({"goal": "Minimize", "reward": {"inverseSquare": {"constant": "40"}}}, 2.0, 10.0),
    ],
)
def test_reward(objective: dict[str, object], metric: float, expected: float) -> None:
    assert reward(ObjectiveSpec.model_validate(objective), metric) == pytest.approx(expected)


def test_a_perplexity_is_positive() -> None:
    objective = ObjectiveSpec.model_validate({"goal": "Minimize", "reward": {"inverseSquare": {}}})
    with pytest.raises(ValueError, match="needs a positive one"):
        reward(objective, 0.0)


@pytest.mark.parametrize(("text", "seconds"), [("72h", 259_200), ("1h30m", 5400), ("45s", 45)])
def test_durations(text: str, seconds: int) -> None:
    assert duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "h", "5", "1d", "1m1h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration(text)
